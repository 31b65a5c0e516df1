"""The notable facts of a run, in sentences with numbers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.gradient_ratio import (
    FIRST_ROWS,
    GradientRatio,
    fate_of,
    gradient_ratio,
    say_all_zero,
    say_fate,
    say_power,
    say_ratio,
    say_rows,
)
from gradlens.analysis.overfitting import accuracy_gap
from gradlens.analysis.parts import by_layers
from gradlens.analysis.profile import held_values, is_long, long_chunks, say_layer, typical_held
from gradlens.format import plural
from gradlens.metrics import ACTIVATION_GRAD_NORM, PARAM_GRAD_NORM
from gradlens.run import Run


def notable(run: Run) -> list[str]:
    """Return the notable facts of a run as sentences, the most important first."""
    found = [
        *_ending(run),
        *_nonfinite(run),
        *_ratio(run),
        *_zeros(run),
        *_missing(run),
        *_gap(run),
        *_copies(run),
    ]
    return [sentence for sentence in found if sentence]


def _ending(run: Run) -> list[str]:
    if run.status == "running":
        return ["the run is still being written, or its writer was killed"]
    if run.status == "interrupted":
        tip = "; continue it with gradlens run ... --resume" if "recipe" in run.config else ""
        return [f"the run was interrupted{tip}"]
    return ["the run failed"] if run.status == "failed" else []


MOST_CHUNKS = 64
"""In a long run, at most so many chunks with non-finite values are read row by row."""


def _nonfinite(run: Run) -> list[str]:
    names = [name for name in (ACTIVATION_GRAD_NORM, PARAM_GRAD_NORM) if name in run.metrics]
    rows, more = _broken_rows(run, names)
    if len(rows):
        number = f"{'more than ' if more else ''}{plural(len(rows), 'row')}"
        return [f"gradients are not finite in {number}, first at step {run.steps[rows[0]]}"]
    infinite = np.flatnonzero(np.isinf(run.scalars.get("loss", np.empty(0))))
    return [f"the loss is infinite, first at step {run.steps[infinite[0]]}"] if len(infinite) else []


def _broken_rows(run: Run, names: list[str]) -> tuple[NDArray[np.int64], bool]:
    """Return the rows in which any of these metrics is infinite, and whether there may be more."""
    spans, more = [(0, len(run.steps))], False
    if is_long(run):
        spans = []
        for name in names:
            chunks = long_chunks(run, name)
            found = np.flatnonzero(np.isinf(chunks.high).any(axis=1))
            more |= len(found) > MOST_CHUNKS
            spans += [(int(chunks.edges[i]), int(chunks.edges[i + 1])) for i in found[:MOST_CHUNKS]]
    rows = [
        np.flatnonzero(np.isinf(run.metric_rows(name, *span)).any(axis=1)) + span[0]
        for span in sorted(set(spans))
        for name in names
    ]
    return np.unique(np.concatenate(rows)) if rows else np.empty(0, dtype=np.int64), more


def _ratio(run: Run) -> list[str]:
    ratio = gradient_ratio(run)
    if ratio is None:
        return []
    whole, nothing = ratio.typical(), say_all_zero(ratio, len(run.steps))
    if np.isnan(whole):
        return [nothing or say_fate(whole)]
    comparison = say_ratio(say_layer(ratio.first), say_layer(ratio.last), whole)
    return [
        *filter(None, [nothing]),
        f"{say_fate(whole)}: {comparison} (median of {'; '.join(_over_time(run, ratio, whole))})",
    ]


def _over_time(run: Run, ratio: GradientRatio, whole: float) -> list[str]:
    """Name the rows of a median ratio, the ratio in the first rows, and a ratio at the end that differs in kind."""
    parts = [say_rows(ratio.rows_known, len(run.steps))]
    early = gradient_ratio(run, rows=slice(0, FIRST_ROWS)) if len(run.steps) > FIRST_ROWS else None
    if early is not None and not np.isnan(early.typical()):
        parts.append(f"{say_power(early.typical())} in the first {FIRST_ROWS} rows")
    late = [(value, name) for value, name in ratio.late() if fate_of(value) not in (fate_of(whole), "unknown")]
    return [
        *parts,
        *(f"{say_power(value)} in {name}" for value, name in late[-1:]),
        *([ratio.path] if ratio.path else []),
    ]


def _zeros(run: Run) -> list[str]:
    if ACTIVATION_GRAD_NORM not in run.metrics or not len(run.steps):
        return []
    if is_long(run):
        share = long_chunks(run, ACTIVATION_GRAD_NORM).zeros.sum(axis=0) / len(run.steps)
    else:
        share = by_layers(lambda values: (values == 0).mean(axis=0), held_values(run, ACTIVATION_GRAD_NORM))
    dead = [run.layers[i] for i in np.flatnonzero(share > 0.5)]
    if not dead:
        return []
    where = f"{plural(len(dead), 'layer')}, nearest the input {say_layer(dead[0])}"
    return [f"the gradient is exactly 0 in more than half of the rows at {where}"]


def _missing(run: Run) -> list[str]:
    if PARAM_GRAD_NORM not in run.metrics or not len(run.steps):
        return []
    never = by_layers(lambda values: np.isnan(values).all(axis=0), typical_held(run, PARAM_GRAD_NORM))
    names = [run.layers[i].name for i in np.flatnonzero(never) if run.layers[i].param_numel > 0]
    if not names:
        return []
    return [f"{plural(len(names), 'layer')} had no parameter gradient at any step: {', '.join(names[:4])}"]


def _gap(run: Run) -> list[str]:
    if math.isnan(gap := accuracy_gap(run)):
        return []
    return [f"final training accuracy is {gap:.2f} above validation accuracy: the model overfits"]


def _copies(run: Run) -> list[str]:
    facts = run.config.get("data_facts", {})
    share = facts.get("val_share_any_copy_in_train", 0) if isinstance(facts, dict) else 0
    if not share or not isinstance(share, int | float):
        return []
    return [
        f"{share:.0%} of the validation images have a copy in the training set: validation accuracy is partly memory"
    ]
