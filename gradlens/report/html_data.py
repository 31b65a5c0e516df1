"""The data of the page's figures, as JSON that is safe inside a script element."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gradlens.analysis.compare import FINAL_ROWS, say_interval
from gradlens.analysis.groups import Group
from gradlens.analysis.profile import epoch_starts
from gradlens.metrics import METRICS, METRICS_OF_PATHS, is_linear
from gradlens.report.content import Facts
from gradlens.report.embedded_metrics import choose_columns, pack_run
from gradlens.run import Layer, Run

ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def safe_json(value: Any) -> str:
    """Encode a value as JSON without characters that could end a script, open markup or break a line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escape in ESCAPES.items():
        text = text.replace(character, escape)
    return text


def payload(facts: Facts) -> dict[str, Any]:
    """Return everything that the page's figures show.

    The last runs have no matrices if even coarse ones do not fit into the page.
    """
    from gradlens.plots.style import THEMES, magnitude_colours

    measured = [(run, label) for run, label in zip(facts.runs, facts.labels, strict=True) if len(run.steps)]
    columns, room = choose_columns([run for run, _ in measured])
    layers: list[dict[str, Any]] = []
    runs, shown = [], []
    for run, label in measured[:room]:
        packed = pack_run(run, columns)
        if packed["metrics"]:
            shown.append(run)
            runs.append({"label": label, "layers": _place(layers, run.layers), "epochs": _epochs(run), **packed})
    names = [name for name in METRICS if any(name in run["metrics"] for run in runs)]
    names += sorted({name for run in runs for name in run["metrics"]} - set(names))
    colours = magnitude_colours()
    return {
        "runs": runs,
        "layers": layers,
        "metrics": {name: _describe(name) for name in names},
        "curves": _curves(facts.groups),
        "second": _second(facts, shown),
        "last_step": max((edges[-1] - 1 for run in runs for edges in run["edges"]), default=0),
        "columns": columns,
        "left_out": max(len(measured) - room, 0),
        "colours": [_hex(colours(place)) for place in np.linspace(0, 1, 24)],
        "themes": {
            name: {
                "palette": theme.palette,
                "diverging": theme.diverging,
                "zero": theme.zero,
                "missing": theme.missing,
                "nonfinite": theme.nonfinite,
            }
            for name, theme in THEMES.items()
        },
    }


def _hex(colour: tuple[float, ...]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour[:3])


def _place(layers: list[dict[str, Any]], of_run: tuple[Layer, ...]) -> int:
    """Return the index of a run's layers in the list of known layers, to which new ones are added."""
    described = {
        "names": [layer.name for layer in of_run],
        "out_numel": [layer.out_numel for layer in of_run],
        "param_numel": [layer.param_numel for layer in of_run],
        "calls": [layer.calls for layer in of_run],
    }
    if described not in layers:
        layers.append(described)
    return layers.index(described)


def _epochs(run: Run) -> list[int]:
    return [round(step) for step in epoch_starts(run)]


def _describe(name: str) -> dict[str, Any]:
    metric = METRICS.get(name)
    size = ""
    if name.endswith("_norm") and name not in METRICS_OF_PATHS:
        size = "out_numel" if name.startswith("activation") else "param_numel"
    return {
        "title": metric.title if metric else name,
        "reading": metric.reading if metric else "",
        "linear": is_linear(name),
        "signed": bool(metric and metric.limits and metric.limits[0] < 0),
        "size": size,
    }


def _second(facts: Facts, runs: list[Run]) -> int:
    """Return the index of the run that is shown next to the first: of another group, or of the next seed; else -1."""
    group_of = {id(run): group.label for group in facts.groups for run in group.runs}
    others = [i for i, run in enumerate(runs) if group_of[id(run)] != group_of[id(runs[0])]]
    return others[0] if others else 1 if len(runs) > 1 else -1


def _curves(groups: tuple[Group, ...]) -> list[dict[str, Any]]:
    curves = []
    for column, title in FINAL_ROWS.items():
        drawn = [_curve(group, column) for group in groups]
        drawn = [curve for curve in drawn if any(value is not None for value in curve["mean"])]
        if drawn:
            longest = max(len(curve["mean"]) for curve in drawn)
            curves.append(
                {
                    "title": title,
                    "share": "accuracy" in column,
                    "epochs": list(range(1, longest + 1)),
                    "groups": drawn,
                }
            )
    return curves


def _curve(group: Group, column: str) -> dict[str, Any]:
    """Return a group's mean over seeds for the epochs that all seeds have, its interval, and each seed's curve."""
    stats = group.mean_curve(column)
    whole = [interval.n == len(group.runs) for interval in stats]
    several = len(group.runs) > 1
    ends: dict[str, Any] = {"low": None, "high": None, "seeds": []}
    if several:
        for end in ("low", "high"):
            ends[end] = [_plain(getattr(s, end)) if all_run else None for s, all_run in zip(stats, whole, strict=True)]
        ends["seeds"] = [[_plain(value) for value in curve] for curve in group.curve(column)]
    return {
        "label": f"{group.label} ({len(group.runs)} seeds)" if several else group.label,
        "mean": [_plain(s.mean) if all_run else None for s, all_run in zip(stats, whole, strict=True)],
        "said": [say_interval(interval) for interval in stats],
        **ends,
    }


def _plain(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None
