"""The data of the page's figures, as JSON that is safe inside a script element."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gradlens.analysis.compare import compare_runs
from gradlens.analysis.groups import Group, group_name, n_epochs
from gradlens.analysis.profile import epoch_starts
from gradlens.analysis.step_curves import has_scalars
from gradlens.metrics import METRICS, METRICS_OF_PATHS, is_linear
from gradlens.report.content import Facts
from gradlens.report.embedded_metrics import choose_columns, pack_run
from gradlens.report.sentences import Words, say, say_mean
from gradlens.report.translations import ENGLISH
from gradlens.run import Layer, Run

MOST_LINES = 12
"""With more seeds in a group, their lines are left out: a band shows a tangle better."""
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def safe_json(value: Any) -> str:
    """Encode a value as JSON without characters that could end a script, open markup or break a line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escape in ESCAPES.items():
        text = text.replace(character, escape)
    return text


def payload(facts: Facts, words: Words = ENGLISH) -> dict[str, Any]:
    """Return everything that the page's figures show.

    Args:
        facts: What the report says.
        words: The words of the language.

    Returns:
        Values for JSON. The last runs have no matrices if even coarse ones do not fit into the page.
    """
    from gradlens.plots.style import THEMES, magnitude_colours

    measured = [(run, label) for run, label in zip(facts.runs, facts.labels, strict=True) if len(run.steps)]
    columns, room = choose_columns([run for run, _ in measured])
    layers: list[dict[str, Any]] = []
    looks = _looks(list(dict.fromkeys(group_name(run) for run in facts.runs)))
    runs, shown = [], []
    for run, label in measured[:room]:
        packed = pack_run(run, columns)
        if packed["metrics"]:
            shown.append(run)
            runs.append(
                {
                    "label": label,
                    "look": looks[group_name(run)],
                    "layers": _place(layers, run.layers),
                    "epochs": _epochs(run),
                    **packed,
                }
            )
    names = [name for name in METRICS if any(name in run["metrics"] for run in runs)]
    names += sorted({name for run in runs for name in run["metrics"]} - set(names))
    colours = magnitude_colours()
    return {
        "runs": runs,
        "layers": layers,
        "metrics": {name: _describe(name, words) for name in names},
        "curves": _curves(facts, words),
        "words": _page_words(words),
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


def _page_words(words: Words) -> dict[str, str]:
    """Return the words that the page's script needs."""
    plain = (
        "language",
        "decimal mark",
        "not recorded",
        "not finite",
        "exactly 0",
        "Light",
        "Dark",
        "mean of the others",
    )
    return {key: words[key] for key in plain} | {
        key.removeprefix("js "): text for key, text in words.items() if key.startswith("js ")
    }


def _looks(models: list[str]) -> dict[str, dict[str, Any]]:
    """Return each model's colour in both themes and its dash, the same as in the figures."""
    from gradlens.plots.style import Look, house_style, looks_of

    found: dict[str, dict[str, Any]] = {model: {} for model in models}
    for theme in ("light", "dark"):
        with house_style(Look(theme=theme)):
            for model, (colour, dash) in zip(models, looks_of(models), strict=True):
                found[model] |= {theme: colour, "dash": {"-": "solid", "--": "dashed"}.get(dash, "dotted")}
    return found


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
    return [round(step) for step in epoch_starts(run)] if n_epochs(run) else []


def _describe(name: str, words: Words) -> dict[str, Any]:
    metric = METRICS.get(name)
    size = ""
    if name.endswith("_norm") and name not in METRICS_OF_PATHS:
        size = "out_numel" if name.startswith("activation") else "param_numel"
    title = metric.title if metric else name
    return {
        "title": say(title, words),
        "per_element": say(title.replace("L2 norm", "RMS per element"), words),
        "reading": say(metric.reading, words) if metric else "",
        "linear": is_linear(name),
        "signed": bool(metric and metric.limits and metric.limits[0] < 0),
        "size": size,
    }


def _second(facts: Facts, runs: list[Run]) -> int:
    """Return the index of the run that is shown next to the first: of another group, or of the next seed; else -1."""
    group_of = {id(run): group.label for group in facts.groups for run in group.runs}
    others = [i for i, run in enumerate(runs) if group_of[id(run)] != group_of[id(runs[0])]]
    return others[0] if others else 1 if len(runs) > 1 else -1


def _curves(facts: Facts, words: Words) -> list[dict[str, Any]]:
    """Return the curves over epochs; over steps, of logged scalars, where no run has epochs."""
    from gradlens.plots.style import Look, house_style, looks_of

    groups, unit = facts.groups, "epoch"
    columns = {row["column"]: words.get(row["quantity"], row["quantity"]) for row in facts.finals}
    if not facts.has_epochs:
        if not any(len(run.steps) and has_scalars(run) for run in facts.runs):
            return []
        compared = compare_runs(facts.runs, by="step")
        groups, unit = compared.groups, "step"
        columns = {column: say(title, words) for column, title in compared.columns.items()}
    models = [group.model for group in groups]
    both = []
    for theme in ("light", "dark"):
        with house_style(Look(theme=theme)):
            both.append(looks_of(models))
    looks = [
        {"light": light[0], "dark": dark[0], "dash": {"-": "solid", "--": "dashed"}.get(light[1], "dotted")}
        for light, dark in zip(*both, strict=True)
    ]
    curves = []
    for column, title in columns.items():
        drawn = [_curve(group, column, look, words) for group, look in zip(groups, looks, strict=True)]
        drawn = [curve for curve in drawn if any(value is not None for value in curve["mean"])]
        if drawn:
            places = max((group.positions for group in groups), key=len)
            curves.append(
                {
                    "title": title,
                    "unit": unit,
                    "share": unit == "epoch" and "accuracy" in column,
                    "places": [round(place) for place in places],
                    "groups": drawn,
                }
            )
    return curves


def _curve(group: Group, column: str, look: dict[str, Any], words: Words) -> dict[str, Any]:
    """Return a group's mean over seeds, its interval, each seed's curve, and the mean after the first seed's end."""
    stats = group.mean_curve(column)
    whole = [interval.n == len(group.runs) for interval in stats]
    several = len(group.runs) > 1
    ends: dict[str, Any] = {"low": None, "high": None, "seeds": []}
    if several:
        for end in ("low", "high"):
            ends[end] = [_plain(getattr(s, end)) if all_run else None for s, all_run in zip(stats, whole, strict=True)]
        if len(group.runs) <= MOST_LINES:
            ends["seeds"] = [[_plain(value) for value in curve] for curve in group.curve(column)]
    joint = max(sum(whole) - 1, 0)
    rest = [_plain(s.mean) if i >= joint else None for i, s in enumerate(stats)] if whole and not all(whole) else None
    return {
        "label": words["seeds of group"].format(group=group.label, n=len(group.runs)) if several else group.label,
        "look": look,
        "rest": rest,
        "mean": [_plain(s.mean) if all_run else None for s, all_run in zip(stats, whole, strict=True)],
        "said": [say_mean(interval, words) for interval in stats],
        **ends,
    }


def _plain(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None
