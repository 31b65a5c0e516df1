"""The layout of the full-screen view of a run: heatmap, profile, curves and findings, fitted to any window."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradlens.analysis.profile import find_stages
from gradlens.analysis.stats import median
from gradlens.charts.heatmap import drawn_layers
from gradlens.charts.layer_names import shorten_names
from gradlens.charts.live_columns import shown
from gradlens.diagnosis.findings import say_confidence, say_layers, say_steps
from gradlens.diagnosis.kinds import HEALTHY, NOT_KNOWN, UNDECIDED
from gradlens.format import say_seconds
from gradlens.metrics import METRICS
from gradlens.run import FloatArray, Layer
from gradlens.terminal.braille import braille, stretched
from gradlens.terminal.live.canvas import BOLD, CYAN, DEFAULT, DIM, GREEN, RED, REVERSE, YELLOW, Canvas
from gradlens.terminal.live.cells import AT_MISSING, Ints, Scale, draw_bars, draw_heat, draw_scale, fit_layers
from gradlens.terminal.live.watched_run import Judge, Watched

SPANS = ("all", "epoch", "1000", "100")
SPAN_NAMES = {"all": "all rows", "epoch": "this epoch", "1000": "last 1,000 rows", "100": "last 100 rows"}
NOW_ROWS = 100
"""The profile is the median of this many newest rows."""
STATUS_COLOURS = {"running": CYAN, "complete": GREEN, "interrupted": YELLOW, "failed": RED}
CURVE_COLOURS = (CYAN, YELLOW)
HELP = (
    ("q, Ctrl-C", "quit; the training continues"),
    ("space, p", "pause the view, and continue it"),
    ("m, M", "next metric, previous metric"),
    ("r, R", "next range, previous range: all rows, this epoch, the last 1,000, the last 100"),
    ("f", "all findings with their evidence; up and down scroll"),
    ("d", "diagnose now"),
    ("?, h", "this help"),
    ("Ctrl-L", "redraw"),
)
LEGEND = (
    "Heatmap: each line is a layer, with the input at the top; time goes to the right. All columns cover the same "
    "number of rows; when the width is full, pairs of columns are merged.",
    "At the right: the median of the newest rows of the same metric, on the same colour scale.",
    "Below: loss and accuracy, then the diagnosis of the rows so far with its reason and the next step.",
)


@dataclass
class Choice:
    """The choices of the user."""

    metric: str = ""
    span: str = "all"
    paused: bool = False
    page: str = "main"
    """main, findings or help."""
    scroll: int = 0


def draw_watch(width: int, height: int, watched: Watched, judge: Judge, choice: Choice, *, colour: bool) -> Canvas:
    """Draw the view.

    Args:
        width: Columns of the window.
        height: Lines of the window.
        watched: The run.
        judge: Its diagnosis.
        choice: The choices of the user.
        colour: Whether colours are shown.

    Returns:
        The canvas.
    """
    canvas = Canvas(width, height)
    _draw_head(canvas, watched, choice)
    if height < 8 or width < 30:
        _draw_lines(canvas, [("the window is too small: 30 columns and 8 lines are needed", DEFAULT, DIM)], 1, height)
    elif choice.page == "help":
        _draw_lines(canvas, _help_lines(width), 2, height - 1, choice)
    elif choice.page == "findings":
        _draw_lines(canvas, _all_findings(judge, width), 2, height - 1, choice)
    else:
        _draw_main(canvas, watched, judge, choice, colour)
    _draw_foot(canvas, choice)
    return canvas


def draw_waiting(width: int, height: int, lines: Sequence[str]) -> Canvas:
    """Draw the lines of a message while there is no run to show.

    Args:
        width: Columns of the window.
        height: Lines of the window.
        lines: The lines; the first is bold.

    Returns:
        The canvas.
    """
    canvas = Canvas(width, height)
    wrapped = [part for line in lines for part in textwrap.wrap(line, max(width - 2, 10)) or [""]]
    _draw_lines(canvas, [(line, DEFAULT, DIM if i else BOLD) for i, line in enumerate(wrapped)], 0, height - 1)
    canvas.text(0, height - 1, "q quit", attributes=DIM)
    return canvas


# --- head and foot ----------------------------------------------------------------------------------------


def _draw_head(canvas: Canvas, watched: Watched, choice: Choice) -> None:
    x = canvas.text(0, 0, watched.run.name, attributes=BOLD, most=max(canvas.width // 2, 10))
    status = "no sign of life: killed?" if watched.lost else watched.status
    x = canvas.text(x, 0, " ● ", YELLOW if watched.lost else STATUS_COLOURS[watched.status])
    x = canvas.text(x, 0, status, YELLOW if watched.lost else STATUS_COLOURS[watched.status])
    of = f"/{watched.total_epochs}" if watched.total_epochs else ""
    parts = [f"epoch {watched.epoch_index + 1}{of}", f"step {watched.step:,}"] if watched.rows else ["no row yet"]
    if watched.lost:
        parts.append(f"silent for {say_seconds(watched.silence)}")
    elif watched.rate == watched.rate:
        parts.append(f"{watched.rate:,.0f} rows/s")
    for part in parts:
        if x + 3 + len(part) < canvas.width - (9 if choice.paused else 0):
            x = canvas.text(x, 0, f" · {part}")
    if choice.paused:
        canvas.text(canvas.width - 8, 0, " PAUSED ", YELLOW, REVERSE | BOLD)


def _draw_foot(canvas: Canvas, choice: Choice) -> None:
    toggle = "continue" if choice.paused else "pause"
    parts = ["q quit", f"space {toggle}", "m metric", "r range", "f findings", "? help"]
    if choice.page != "main":
        parts = ["q quit", "esc back", "up, down scroll"]
    y, x = canvas.height - 1, 0
    for part in parts:
        key, _, does = part.rpartition(" ")
        if x + len(part) > canvas.width:
            break
        x = canvas.text(x, y, key, attributes=BOLD)
        x = canvas.text(x, y, f" {does}   ", attributes=DIM)


Line = tuple[str, int, int]
"""Text, colour, attributes."""


def _draw_lines(canvas: Canvas, lines: list[Line], top: int, bottom: int, choice: Choice | None = None) -> None:
    if choice is not None:
        choice.scroll = max(min(choice.scroll, len(lines) - (bottom - top)), 0)
        lines = lines[choice.scroll :]
    for y, (text, colour, attributes) in zip(range(top, bottom), lines, strict=False):
        canvas.text(0, y, text, colour, attributes)


def _help_lines(width: int) -> list[Line]:
    lines: list[Line] = []
    for keys, does in HELP:
        wrapped = textwrap.wrap(does, max(width - 13, 16))
        lines += [(f"{keys if i == 0 else '':<12} {part}", DEFAULT, 0) for i, part in enumerate(wrapped)]
    for text in LEGEND:
        lines += [("", DEFAULT, 0), *((part, DEFAULT, DIM) for part in textwrap.wrap(text, max(width - 1, 16)))]
    return lines


# --- the main page ----------------------------------------------------------------------------------------


def _draw_main(canvas: Canvas, watched: Watched, judge: Judge, choice: Choice, colour: bool) -> None:
    width, height = canvas.width, canvas.height
    findings = len(_finding_lines(judge, width, max(height // 4, 2)))
    room = height - 4 - findings  # head, title, axis and foot
    curves = 0 if room < 8 else 3 if room < 14 else 5
    used = _draw_heat_part(canvas, watched, choice, 1, room - curves, colour)
    y = 3 + used
    curves = min(room - used, 14) if curves else 0
    if curves:
        _draw_curves(canvas, watched, choice, y, curves)
    y += curves
    _draw_lines(canvas, _finding_lines(judge, width, height - 1 - y), y, height - 1)


def _draw_heat_part(canvas: Canvas, watched: Watched, choice: Choice, y: int, lines: int, colour: bool) -> int:
    """Draw title, heatmap, profile and axis; return how many lines the heatmap took."""
    metric, width = choice.metric, canvas.width
    title = METRICS[metric].title if metric in METRICS else metric
    label = min(max((len(layer.name) for layer in watched.run.layers), default=8), 16, width // 5)
    bars = 0 if width < 60 else max(min(width // 6, 40), 12)
    across = width - label - 1 - (bars + 2 if bars else 0)
    starts, values = watched.columns(metric, choice.span).fitted(across)
    kept = drawn_layers(watched.run.layers, np.logical_not(np.isnan(shown(values)).all(axis=0)))
    layers, matrix = [watched.run.layers[i] for i in kept], shown(values).T[kept]
    linear = watched.linear(metric)
    now = watched.recent[metric].rows[-NOW_ROWS:]
    profile = _median(now)[kept]
    if not matrix.shape[1] or not len(layers):
        canvas.text(0, y, title, attributes=BOLD)
        every = watched.every.get(metric, 1)
        interval = f" (it is recorded every {every} rows)" if every > 1 else ""
        canvas.text(label + 1, y + 1, f"no row of {metric} has been recorded yet{interval}", attributes=DIM)
        return 1
    if watched.status != "running":
        matrix = stretched(matrix.T, across).T
    per_line = 2 if colour else 1
    fitted, first = fit_layers(matrix, lines * per_line, linear=linear)
    scale = Scale.of(fitted, linear=linear)
    codes = scale.codes(fitted)
    _draw_title(canvas, y, title, scale, codes, colour)
    draw_heat(canvas, label + 1, y + 1, codes, colour=colour)
    _draw_labels(canvas, layers, first, per_line, label, y + 1)
    if bars:
        beside, _ = fit_layers(profile[:, None], lines * per_line, linear=linear)
        draw_bars(canvas, width - bars, y + 1, beside[:, 0], scale, bars, colour=colour)
    used = -(-len(fitted) // per_line)
    y += 1 + used
    span = SPAN_NAMES[choice.span]
    drawn = codes.shape[1]
    _draw_axis(canvas, label + 1, y, max(drawn, min(across, 30)), f"step {starts[0]:,}", f"{watched.step:,}", span)
    if bars:
        known = min(len(now), NOW_ROWS)
        label_text = "now" if known < NOW_ROWS else f"median of last {known}"
        canvas.text(width - bars, y, label_text if len(label_text) <= bars else "now", attributes=DIM)
    return used


def _median(rows: FloatArray) -> FloatArray:
    """Return (L,) medians of (T, L) rows; inf if a layer has an infinite value, NaN if it has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no known value
        medians = median(rows.astype(np.float64), axis=0)
    return np.where(np.isinf(rows).any(axis=0), np.inf, medians)


def _draw_title(canvas: Canvas, y: int, title: str, scale: Scale, codes: Ints, colour: bool) -> None:
    x = canvas.text(0, y, title, attributes=BOLD, most=max(canvas.width - 26, 20))
    room = canvas.width - x - 2
    length = 8 if room < 76 else 16
    if room >= 8 + 2 * 8:
        draw_scale(canvas, x + 2, y, scale, codes, length, colour=colour)
    elif (codes == AT_MISSING).all():
        canvas.text(x + 2, y, "not recorded", attributes=DIM)


def _draw_labels(canvas: Canvas, layers: Sequence[Layer], first: Ints, per_line: int, label: int, y: int) -> None:
    """Name each layer if there is room, else each stage on the line where it begins."""
    stages = {stage.start: stage.name for stage in find_stages(tuple(layers)) if stage.name}
    lines = -(-len(first) // per_line)
    every_layer = len(layers) <= lines or len(stages) < 2
    short, named = shorten_names([layer.name for layer in layers], label), -1
    for i in range(lines):
        at, end = int(first[i * per_line]), i * per_line + per_line
        until = int(first[end]) if end < len(first) else len(layers)
        here = [layer for layer in range(max(at, named + 1), max(until, at + 1)) if every_layer or layer in stages]
        if here:
            names = [short[here[0]]] if every_layer else [stages[layer] for layer in here]
            name = names[0] if len("/".join(names)) > label else "/".join(names)
            canvas.text(0, y + i, f"{name[:label]:>{label}}", attributes=DIM)
        named = max(named, until - 1, at)


def _draw_axis(canvas: Canvas, x: int, y: int, width: int, left: str, right: str, centre: str) -> None:
    canvas.text(x, y, left, attributes=DIM)
    canvas.text(max(x + width - len(right), x + len(left) + 1), y, right, attributes=DIM)
    if len(left) + len(centre) + len(right) + 4 <= width:
        canvas.text(x + (width - len(centre) + len(left) - len(right)) // 2, y, centre, attributes=DIM)


# --- curves -----------------------------------------------------------------------------------------------


def _draw_curves(canvas: Canvas, watched: Watched, choice: Choice, y: int, height: int) -> None:
    panels = [panel for panel in (_loss(watched, choice, canvas.width), _accuracy(watched)) if panel is not None]
    if not panels:
        return
    panels = panels[: 2 if canvas.width >= 60 else 1]
    width = (canvas.width - 3 * (len(panels) - 1)) // len(panels)
    for i, (names, curves, grows) in enumerate(panels):
        _draw_panel(canvas, i * (width + 3), y, width, height, names, curves, grows)


Panel = tuple[tuple[str, ...], list[FloatArray], bool]
"""Names of curves, their (N,) values, and whether they grow to the right or fill the width."""


def _loss(watched: Watched, choice: Choice, width: int) -> Panel | None:
    if not watched.scalar_names:
        return None
    name = "loss" if "loss" in watched.scalar_names else watched.scalar_names[0]
    _, values = watched.columns("scalars", choice.span).fitted(max(width - 3, 20))
    curve = watched.scalar(shown(values), name)
    return ((name,), [curve], watched.status == "running") if np.isfinite(curve).any() else None


def _accuracy(watched: Watched) -> Panel | None:
    for kind in ("accuracy", "loss"):
        names = tuple(f"{part}_{kind}" for part in ("train", "val"))
        curves = [watched.epochs[name] for name in names if name in watched.epochs]
        if len(curves) == 2 and any(np.isfinite(curve).any() for curve in curves):
            return tuple(name.replace("_", " ") for name in names), curves, False
    return None


def _draw_panel(
    canvas: Canvas,
    x: int,
    y: int,
    width: int,
    height: int,
    names: tuple[str, ...],
    curves: list[FloatArray],
    grows: bool,
) -> None:
    known = np.concatenate(curves)
    known = known[np.isfinite(known)]
    # A loss that begins far higher must not flatten the curve: values outside the range are drawn at its edge.
    low, high = np.quantile(known, [0.01, 0.99]).tolist() if len(known) else (0.0, 1.0)
    log = low > 0 and high / low > 5
    drawn = [np.log10(np.where(curve > 0, curve, np.nan)) if log else curve for curve in curves]
    ends = (math.log10(low), math.log10(high)) if log else (low, high)
    if not grows:
        drawn = [stretched(curve, 2 * width) for curve in drawn]
    at = x
    for i, (name, curve) in enumerate(zip(names, curves, strict=True)):
        known = curve[np.isfinite(curve)]
        at = canvas.text(at, y, f"{name} ", CURVE_COLOURS[i], most=x + width - at)
        at = canvas.text(at, y, f"{known[-1]:.4g}  " if len(known) else "-  ", attributes=BOLD, most=x + width - at)
    axis_text = f"axis {low:.3g} to {high:.3g}{', log' if log else ''}"
    if f"{low:.3g}" != f"{high:.3g}" and at + len(axis_text) <= x + width:
        canvas.text(at, y, axis_text, attributes=DIM)
    characters, owner = braille(drawn, *ends, width, height - 1)
    canvas.block(x, y + 1, characters, np.array(CURVE_COLOURS)[owner])


# --- findings ---------------------------------------------------------------------------------------------


def _finding_lines(judge: Judge, width: int, most: int = 10**6) -> list[Line]:
    """Return the verdict, the reason and the next step, cut so that the beginning of each is shown."""
    diagnosis = judge.diagnosis
    if diagnosis is None:
        return [(judge.failed or "the diagnosis appears after the first rows", DEFAULT, DIM)]
    colour = {HEALTHY: GREEN, UNDECIDED: YELLOW, NOT_KNOWN: YELLOW}.get(diagnosis.verdict, RED)
    verdict = diagnosis.verdict
    if len(diagnosis.kinds) > 1:
        verdict += f", also {', '.join(diagnosis.kinds[1:])}"
    if diagnosis.findings:
        verdict += f" · {say_confidence(diagnosis.findings[0])}"
    verdict += f" · up to step {judge.step:,}"
    lines: list[Line] = [(verdict, colour, BOLD)]
    if not diagnosis.findings:
        return lines + _labelled("why", diagnosis.reason, width, most - 1)
    main, *others = diagnosis.findings
    why = _labelled("why", main.evidence, width)
    todo = _labelled("next", main.remedy, width)
    if len(why) + len(todo) > most - 1:
        room = max(most - 1 - min(len(todo), (most - 1) // 2), 0)
        why = _labelled("why", main.evidence, width, room)
        todo = _labelled("next", main.remedy, width, most - 1 - len(why))
    lines += why + todo
    for finding in others:
        lines += _labelled("also", str(finding), width, most - len(lines))
    return lines


def _labelled(name: str, text: str, width: int, most: int = 10**6) -> list[Line]:
    wrapped = textwrap.wrap(text, max(width - 6, 20), max_lines=max(most, 1), placeholder=" …") if most > 0 else []
    return [(f"{name if i == 0 else '':<5} {part}", DEFAULT, 0) for i, part in enumerate(wrapped)]


def _all_findings(judge: Judge, width: int) -> list[Line]:
    diagnosis = judge.diagnosis
    if diagnosis is None or not diagnosis.findings:
        lines = _finding_lines(judge, width)
    else:
        lines = []
        for finding in diagnosis.findings:
            lines.append((f"{finding.kind} · {say_confidence(finding)}", RED, BOLD))
            where = f"{say_layers(finding.layers)}; {say_steps(finding.steps)}"
            pairs = (("where", where), ("why", finding.evidence), ("limit", f"{finding.threshold} ({finding.source})"))
            for name, text in (*pairs, ("next", finding.remedy)):
                lines += _labelled(name, text, width)
            lines.append(("", DEFAULT, 0))
    for note in diagnosis.notes if diagnosis else ():
        lines += _labelled("note", note, width)
    return lines
