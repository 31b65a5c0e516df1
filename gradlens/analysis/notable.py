"""What is notable about a run, in sentences that carry their numbers."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.profile import (
    ACTIVATION_GRAD,
    FIRST_STEPS,
    end_to_end,
    say_end_to_end,
    say_layer,
    say_power,
    say_rows,
)
from gradlens.run import Run

# Zhang et al. 2021 and smdebug judge overfitting by loss; here a gap of this size in accuracy is worth a line.
ACCURACY_GAP = 0.1


def notable(run: Run) -> list[str]:
    """Return what a reader should know first, most important first."""
    found = [
        *_ending(run),
        *_nonfinite(run),
        *_way_back(run),
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
        return ["the run was interrupted" + ("; gradlens run ... --resume goes on" if "recipe" in run.config else "")]
    return ["the run failed"] if run.status == "failed" else []


def _nonfinite(run: Run) -> list[str]:
    broken = np.zeros(len(run.steps), dtype=bool)
    for metric in (ACTIVATION_GRAD, "param_grad_norm"):
        if metric in run.metrics:
            broken |= np.isinf(run.metric(metric)).any(axis=1)
    rows = np.flatnonzero(broken)
    if len(rows):
        return [f"gradients were not finite in {len(rows)} rows, first at step {run.steps[rows[0]]}"]
    infinite = np.flatnonzero(np.isinf(run.scalars.get("loss", np.empty(0))))
    return [f"the loss was infinite, first at step {run.steps[infinite[0]]}"] if len(infinite) else []


def _way_back(run: Run) -> list[str]:
    way = end_to_end(run)
    if way is None:
        return []
    early, whole = way.median(slice(0, FIRST_STEPS)), way.median()
    if np.isnan(whole):
        return [say_end_to_end(whole)]
    first, last = (say_layer(run.layers[i]) for i in (way.first, way.last))
    early_said = "" if np.isnan(early) else f"; {say_power(early)} in the first {FIRST_STEPS}"
    return [
        f"{say_end_to_end(whole)}: {first} has {say_power(whole)} times the gradient norm of {last} "
        f"(median of {say_rows(way.rows_known, len(run.steps))}{early_said})"
    ]


def _zeros(run: Run) -> list[str]:
    if ACTIVATION_GRAD not in run.metrics or not len(run.steps):
        return []
    share = (run.metric(ACTIVATION_GRAD) == 0).mean(axis=0)
    dead = [run.layers[i].name for i in np.flatnonzero(share > 0.5)]
    if not dead:
        return []
    return [f"the gradient is exactly 0 in more than half of the rows at {len(dead)} layer(s), first {dead[0]}"]


def _missing(run: Run) -> list[str]:
    if "param_grad_norm" not in run.metrics or not len(run.steps):
        return []
    never = np.isnan(run.metric("param_grad_norm")).all(axis=0)
    names = [run.layers[i].name for i in np.flatnonzero(never)]
    return [f"{len(names)} layer(s) never got a gradient: {', '.join(names[:4])}"] if names else []


def _gap(run: Run) -> list[str]:
    train, val = (run.epochs.get(key, np.empty(0)) for key in ("train_accuracy", "val_accuracy"))
    if not len(train) or not len(val) or not train[-1] - val[-1] > ACCURACY_GAP:
        return []
    return [f"training accuracy ends {train[-1] - val[-1]:.2f} above validation accuracy: it overfits"]


def _copies(run: Run) -> list[str]:
    facts = run.config.get("data_facts", {})
    share = facts.get("val_share_any_copy_in_train", 0)
    if not share:
        return []
    return [f"{share:.0%} of the validation images have a copy in training: validation accuracy is partly memory"]
