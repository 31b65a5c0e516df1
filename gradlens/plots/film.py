"""A film: the profile over depth as the training goes on, beside the loss."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradlens.analysis.derived_metrics import say_caution
from gradlens.analysis.gradient_ratio import say_power
from gradlens.analysis.profile import find_stages
from gradlens.charts.heatmap import quiet_end
from gradlens.charts.ridges import Film
from gradlens.errors import MissingLibraryError, RunExistsError, RunFileError
from gradlens.metrics import SHOWN_METRICS, is_linear, say_metric
from gradlens.plots.figure_files import check_facts_place, figure_facts, write_text
from gradlens.plots.style import Look, current, fill, head_inches, house_style, looks_of
from gradlens.specs import FILM_ENDINGS, check_figure_path

DPI = 110
FRAMES_PER_SECOND = 10
LAST_SECONDS = 1.5
"""So long the last frame stays."""
MOST_TOLD = 4


def save_film(
    film: Film,
    path: Path,
    metric: str,
    *,
    command: str,
    per_element: bool = False,
    asked: bool = True,
    look: Look | None = None,
) -> None:
    """Write a film, and beside it a JSON with the command, the runs, the versions and the commit.

    Args:
        film: As ``make_film`` returns it.
        path: Its ending gives the format: .gif, or .mp4, which needs ffmpeg.
        metric: What it is of.
        command: The command that drew it.
        per_element: Whether it is the root mean square per element.
        asked: The user named this file, so it may be replaced; otherwise only a film of gradlens is.
        look: Ground and width; on a screen, light, where it is left out.

    Raises:
        ConfigError: The ending is not known.
        MissingLibraryError: It ends in .mp4, and there is no ffmpeg.
        RunExistsError: A file that gradlens did not write is in the way.
        RunFileError: It cannot be written.
    """
    check_figure_path(path, FILM_ENDINGS)
    facts = path.with_suffix(".json")
    if not asked and path.exists() and not facts.exists():
        raise RunExistsError(f"{path} is there and was not drawn by gradlens", tip="-o FILE names another place")
    check_facts_place(facts)
    look = look or Look()
    text = caption(film, metric).replace("\n", " ")
    writer = _writer(path, {"title": text, "comment": command})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        with house_style(look):
            figure, show = draw_film(film, metric, per_element, look)
            with writer.saving(figure, str(temporary), DPI):
                last = len(film.frames) - 1
                for k in [*range(last + 1), *[last] * int(LAST_SECONDS * FRAMES_PER_SECOND)]:
                    show(k)
                    writer.grab_frame()
        if path.suffix.lower() == ".gif":
            _comment(temporary, f"{text} {command}")
        os.replace(temporary, path)
        told = figure_facts(path, command, film.runs, text)
        write_text(facts, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise RunFileError(f"{path} cannot be written: {error.strerror or error}") from error


def _writer(path: Path, metadata: dict[str, str]) -> AbstractMovieWriter:
    if path.suffix.lower() == ".gif":
        return PillowWriter(fps=FRAMES_PER_SECOND, metadata=metadata)
    if not FFMpegWriter.isAvailable():
        raise MissingLibraryError(
            f"{path} needs ffmpeg, which is not installed", tip="a film that ends in .gif does not"
        )
    return FFMpegWriter(fps=FRAMES_PER_SECOND, metadata=metadata)


def _comment(path: Path, text: str) -> None:
    """Add a comment to a GIF, before its last byte. Source: GIF89a specification, section 24."""
    data = text.encode()
    blocks = b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255))
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b";":
            file.seek(-1, os.SEEK_END)
            file.write(b"!\xfe" + blocks + b"\x00;")


def draw_film(film: Film, metric: str, per_element: bool, look: Look) -> tuple[Figure, Show]:
    """Draw the first frame; return the figure, and what shows any frame in it.

    Args:
        film: As ``make_film`` returns it.
        metric: What it is of.
        per_element: Whether it is the root mean square per element.
        look: Ground and width.
    """
    width = look.inches(6.4)
    head = fill(caption(film, metric).split("\n"), width)
    figure = Figure(figsize=(width, 4.2 + head_inches(head)), layout="constrained")
    axes = figure.subplots(2, 1, height_ratios=(3.2, 1))
    figure.suptitle(head, x=0.01, ha="left", fontsize=8)
    show = Show(film, metric, axes[0], axes[1])
    title = say_metric(metric, per_element=per_element)
    title = title if is_linear(metric) else f"log10 of the {title}"
    axes[0].set_ylabel("\n".join(textwrap.wrap(title, 44)))
    show(0)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # nothing moves from frame to frame
    return figure, show


class Show:
    """Shows a frame of a film in two panels: the profiles, and how far the training is."""

    def __init__(self, film: Film, metric: str, axis: Axes, below: Axes) -> None:
        self._film, self._axis = film, axis
        looks = looks_of([run.model for run in film.runs])
        self._lines: list[Line2D] = []
        for label, layers, (colour, dash) in zip(film.labels, film.layers, looks, strict=True):
            x = np.arange(1, len(layers) + 1)
            (line,) = axis.plot(x, np.full(len(x), np.nan), color=colour, linestyle=dash, label=label)
            self._lines.append(line)
        self._scale(metric)
        longest = max(film.layers, key=len)
        for stage in find_stages(longest)[1:]:
            if all([layer.name for layer in layers] == [layer.name for layer in longest] for layers in film.layers):
                axis.axvline(stage.start + 0.5, color=current().faint, linewidth=0.5, alpha=0.7)
        axis.set_xlim(0, len(longest) + 1)
        axis.set_xlabel("layer, from the input (left) to the output (right)")
        axis.legend(loc="best")
        for run, (colour, dash) in zip(film.runs, looks, strict=True):
            loss = np.asarray(run.scalars.get("loss", np.full(len(run.steps), np.nan)), dtype=np.float64)
            every = max(1, len(loss) // 800)
            below.plot(run.steps[::every], loss[::every], color=colour, linestyle=dash, linewidth=0.7)
        below.set_xlim(film.frames[0, 0], film.frames[-1, 1] + 1)
        below.set_xlabel("optimizer step")
        below.set_ylabel("loss")
        self._now = below.axvspan(0, 1, color=current().faint, alpha=0.4, linewidth=0)
        for one in (axis, below):
            one.grid(color=current().faint, alpha=0.2, linewidth=0.5)
            one.spines[["top", "right"]].set_visible(False)

    def _scale(self, metric: str) -> None:
        """Fix the upright axis for all frames."""
        known = np.concatenate([values[np.isfinite(values)] for values in self._film.values])
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        room = 0.05 * (high - low) or 0.5
        shown = SHOWN_METRICS[metric]
        self._axis.set_ylim(*(shown.limits or (low - room, high + room)))
        if shown.scale == "signed":
            self._axis.set_yscale("symlog", linthresh=quiet_end(known))
        if shown.scale == "signed" or (shown.limits and shown.limits[0] < 0):
            self._axis.axhline(0, color=current().ink, linewidth=0.7)

    def __call__(self, frame: int) -> None:
        """Show a frame."""
        first, last = self._film.frames[frame]
        for line, values, over in zip(self._lines, self._film.values, self._film.over, strict=True):
            line.set_ydata(np.where(np.isfinite(values[frame]), values[frame], np.nan))
            line.set_alpha(0.35 if frame > over else 1.0)
        self._now.set_x(first)
        self._now.set_width(max(last + 1 - first, 1))
        self._axis.set_title(f"steps {first} to {max(last, first)}", fontweight="bold")


def caption(film: Film, metric: str) -> str:
    """Say in a sentence per run how the profile moves, from the numbers, and how to read the film."""
    said = []
    for label, values in list(zip(film.labels, film.values, strict=True))[:MOST_TOLD]:
        ends = [_say_frame(values[k], metric) for k in (0, -1)]
        if all(ends):
            what = "median layer" if is_linear(metric) else "first over last hidden layer"
            said.append(f"{label}: {what} {ends[0]} at first, {ends[1]} at last.")
    how = "Each frame is the median over a stretch of steps (grey, below); pale: the run has ended."
    return "\n".join([*said, how, *[text for text in [say_caution(metric)] if text]])


def _say_frame(values: Sequence[float] | np.ndarray, metric: str) -> str:
    """Say what a frame shows: the first over the last hidden layer, or of what is no magnitude the median layer."""
    values = np.asarray(values)
    if is_linear(metric):
        return "" if np.isnan(values).all() else f"{float(np.nanmedian(values)):+.2g}"
    if len(values) < 3 or not np.isfinite(values[-2]) or np.isnan(values[0]):
        return ""
    return say_power(float(values[0] - values[-2]))
