"""The summary of a run: diagnosis and notable facts, the training table, the depth profile."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from gradlens.analysis.highlights import notable
from gradlens.analysis.profile import depth_profile
from gradlens.analysis.step_curves import has_scalars, logged_scalars, make_window
from gradlens.diagnosis.diagnose import diagnose
from gradlens.format import plural, say_magnitude, say_seconds, say_share
from gradlens.metrics import GRADIENT_NORMS, UPDATE_RATIO
from gradlens.run import EPOCH_COLUMNS, Run
from gradlens.terminal.cards import Card, evidence_table, heading, print_card
from gradlens.terminal.colours import magnitude_colour, style
from gradlens.terminal.console import has_colour
from gradlens.terminal.diagnosis import diagnosis_card
from gradlens.terminal.panels import curve_panel, panel_width, side_by_side

MOST_EPOCHS = 6
CURVE_LINES = 5
MOST_SCALARS = 4
MOST_LAYERS = 48


def print_summary(console: Console, run: Run) -> None:
    """Print the card of a run, its curves, its table of epochs, and its depth profile."""
    print_card(console, summary_card(run))
    if len(run.epochs.get("epoch", ())):
        console.print(heading("Training"))
        panels = _curve_panels(console, run)
        if panels:
            console.print(side_by_side(console, panels, panel_width(console, len(panels))))
        console.print(_epoch_table(run))
    elif len(run.steps) and has_scalars(run):
        _print_scalars(console, run)
    if len(run.steps):
        console.print()
        console.print(_profile_table(console, run))


def summary_card(run: Run) -> Card:
    """Return the card: the diagnosis, its reason, what to do, other notable facts, and how the run was made."""
    title = f"{run.model or run.name}, seed {run.seed}" if run.seed >= 0 else run.name
    card = diagnosis_card(diagnose(run), title)
    lines = [(label, text) for label, text in card.lines if label != "note"]
    lines += [("also", sentence) for sentence in notable(run)]
    lines += [("run", _describe_run(run))]
    lines += [("note", text) for label, text in card.lines if label == "note"]
    lines += [("note", note) for note in run.info.get("notes", ())]
    return replace(card, beside=[run.status, *card.beside[1:]], lines=lines)


def _describe_run(run: Run) -> str:
    """Describe the size of the run, its data and recipe, and the time that it took."""
    config, environment = run.config, run.info.get("environment", {})
    parts = [f"{plural(len(run.steps), 'row')} x {plural(len(run.layers), 'layer')}"]
    if config.get("recipe"):
        parts.append(f"{config.get('data')} · recipe {config['recipe']} · {config.get('image_size')} px")
    seconds = np.nansum(run.epochs.get("seconds", np.zeros(1)))
    if seconds:
        parts.append(f"{say_seconds(float(seconds))} on {environment.get('device', '?')}")
    overhead = float(run.info.get("overhead", math.nan))
    if math.isfinite(overhead):
        longer = f"{overhead:.1f} times as long as training" if overhead > 1 else f"{say_share(overhead)} of the time"
        parts.append(f"recording took {longer}")
    return " · ".join(parts)


def _curve_panels(console: Console, run: Run) -> list[RenderableType]:
    """Return the curves of loss and accuracy; none for a run of few epochs."""
    width, colour = panel_width(console, 2), has_colour(console)
    panels: list[RenderableType] = []
    for kind in ("loss", "accuracy"):
        curves = [(part, run.epochs.get(f"{part}_{kind}", np.empty(0))) for part in ("train", "val")]
        curves = [(part, values) for part, values in curves if np.isfinite(values).sum() > 2]
        # Without colour two curves in one panel could not be distinguished.
        for some in [curves] if colour else [[curve] for curve in curves]:
            if some:
                panels.append(curve_panel(kind, some, width, CURVE_LINES, colour=colour))
    return panels


def _print_scalars(console: Console, run: Run) -> None:
    """Print curves of what was logged, where no epochs were: over steps, smoothed as in ``gradlens compare``."""
    window = make_window([run])
    smooth = f"; each value is the mean of the last {window.width:,} steps" if window.width > 1 else ""
    console.print(heading(f"Training, over steps{smooth}"))
    titles = list(logged_scalars([run]).items())[:MOST_SCALARS]
    width, colour = panel_width(console, len(titles)), has_colour(console)
    panels = [
        curve_panel(title, [("", window.curve(run, name))], width, CURVE_LINES, colour=colour, named=False)
        for name, title in titles
    ]
    console.print(side_by_side(console, panels, width))


def _epoch_table(run: Run) -> Table:
    columns = [name for name in EPOCH_COLUMNS if name in run.epochs and not np.isnan(run.epochs[name]).all()]
    columns += [name for name in run.epochs if name not in EPOCH_COLUMNS]
    count = len(run.epochs["epoch"])
    shown = sorted({round(i) for i in np.linspace(0, count - 1, min(count, MOST_EPOCHS))})
    table = evidence_table("", caption=f"{len(shown)} of {count} epochs" if len(shown) < count else None)
    table.title = None
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for i in shown:
        table.add_row(*[_epoch_cell(name, float(run.epochs[name][i])) for name in columns])
    return table


def _epoch_cell(name: str, value: float) -> str:
    if name == "epoch":
        return f"{value:.0f}"
    if name == "lr":
        return f"{value:.1e}"
    return f"{value:.1f}" if name == "seconds" else f"{value:.4f}"


def _profile_table(console: Console, run: Run) -> Table:
    """Return a table of the median gradient norm of each layer as a bar on a log scale, and of the update ratio."""
    metric = next((m for m in GRADIENT_NORMS if m in run.metrics), "")
    table = evidence_table("Depth profile: median over all rows, input first")
    if not metric:
        return table
    profile = depth_profile(run, metric)
    update = depth_profile(run, UPDATE_RATIO) if UPDATE_RATIO in run.metrics else None
    table.add_column("layer", no_wrap=True)
    table.add_column(metric.replace("_grad", "\ngrad").replace("_", " "), justify="right", no_wrap=True)
    widest = max((len(layer.name) for layer in run.layers), default=0)
    bar_width = max(console.width - max(widest, 5) - len("activation") - 7 - (14 if update is not None else 0), 8)
    table.add_column("", width=bar_width, no_wrap=True)
    if update is not None:
        table.add_column("update ratio", justify="right", no_wrap=True)
    positive = profile[np.isfinite(profile) & (profile > 0)]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 1.0)
    for i in _chosen(len(run.layers)):
        cells: list[Text | str] = [run.layers[i].name, say_magnitude(float(profile[i]))]
        cells.append(_bar(float(profile[i]), low, high, bar_width, has_colour(console)))
        if update is not None:
            cells.append(say_magnitude(float(update[i])))
        table.add_row(*cells)
    if len(run.layers) > MOST_LAYERS:
        table.caption = f"{MOST_LAYERS} of {len(run.layers)} layers, evenly spaced"
    return table


def _chosen(count: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, MOST_LAYERS))})


def _bar(value: float, low: float, high: float, width: int, colour: bool) -> Text:
    if not math.isfinite(value) or value <= 0:
        return Text(
            {True: "not recorded", False: "exactly 0"}[math.isnan(value)] if not math.isinf(value) else "not finite"
        )
    span = math.log10(high / low)
    share = 1.0 if span == 0 else 0.04 + 0.96 * math.log10(value / low) / span
    eighths = max(round(share * width * 8), 1)
    text = "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
    return Text(text, style=style(magnitude_colour(value, low, high)) if colour else "")
