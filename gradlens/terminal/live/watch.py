"""``gradlens watch``: follow a run in full screen with keys, or line by line if stdout is no terminal."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from gradlens.analysis.gradient_ratio import compare_layers, say_power
from gradlens.analysis.profile import say_layer
from gradlens.errors import GradlensError, NoRunError
from gradlens.format import plural, visible
from gradlens.metrics import GRADIENT_NORMS, METRICS
from gradlens.storage import awaited_run
from gradlens.terminal.console import has_colour, results
from gradlens.terminal.live.canvas import Canvas
from gradlens.terminal.live.layout import NOW_ROWS, SPANS, Choice, draw_waiting, draw_watch
from gradlens.terminal.live.screen import Screen
from gradlens.terminal.live.watched_run import Judge, Watched

SHARE = 0.03
"""Largest share of a core for reading and drawing; the diagnosis has its own limit."""
SHORTEST_S, LONGEST_S, IDLE_S = 0.4, 2.0, 1.0
"""Shortest and longest time between updates of a running run, and the time between updates of any other."""
FAILURES = 5
"""The view ends after this many failures to read the file in a row."""
LONG_PAUSE_S = 15.0
"""After a longer pause the file is read from the beginning, which is faster than row by row."""
LINE_S = 10.0
"""Seconds between the lines of a run without epochs."""


def watch(argument: str | None, *, metric: str = "", leave_at_end: bool = False) -> None:
    """Show a run while it is written, until the user quits.

    Args:
        argument: A file, a name under ``runs/`` or a folder; None means the newest run. It need not exist yet.
        metric: The metric to show first; "" means the first of the run.
        leave_at_end: End with the run, without a last line: the process that trains prints one.

    Raises:
        GradlensError: The file is no run, or can no longer be read.
    """
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        console = results()
        system = console.color_system if has_colour(console) else None
        if leave_at_end and hasattr(os, "nice"):
            os.nice(5)  # the training has priority
        with Screen(system) as screen:
            view = LiveView(screen, argument, metric, colour=system is not None, leave_at_end=leave_at_end)
            view.loop()
        if not leave_at_end:
            print_line(view.last_line)
    else:
        follow_plainly(argument)


def print_line(text: str) -> None:
    """Print a line on stdout and flush it."""
    sys.stdout.write(f"{visible(text)}\n")
    sys.stdout.flush()


class LiveView:
    """The full-screen view and its keys.

    It waits while ``watched`` is None, shows the run afterwards, and waits again if the file is removed.

    Args:
        screen: The screen.
        argument: As for ``watch``.
        metric: As for ``watch``.
        colour: Whether colours are shown.
        leave_at_end: As for ``watch``.
    """

    def __init__(self, screen: Screen, argument: str | None, metric: str, *, colour: bool, leave_at_end: bool) -> None:
        self.screen, self.argument, self.colour, self.leave_at_end = screen, argument, colour, leave_at_end
        self.choice = Choice(metric)
        self.watched: Watched | None = None
        self.judge: Judge | None = None
        self.last_line = ""
        self._failures = 0
        self._paused_at = 0.0
        self._drawn: object = None
        self._removed = ""
        self._was_running = False

    def loop(self) -> None:
        """Show the run until the user quits."""
        try:
            while True:
                began = time.thread_time()
                if not self.choice.paused:
                    self._look()
                self._draw()
                if self._is_over():
                    return
                cost = time.thread_time() - began
                quiet = self.watched is None or self.watched.status != "running"
                least = IDLE_S if quiet or self.choice.paused else SHORTEST_S
                until = time.monotonic() + min(max(cost / SHARE, least), LONGEST_S)
                while (left := until - time.monotonic()) > 0:
                    keys = self.screen.wait(left)
                    if any(self._press(key) for key in keys):
                        return
                    if keys:
                        self._drawn = None
                        self._draw()
        finally:
            self._keep_last_line()

    def _keep_last_line(self) -> None:
        """Set the line that is printed after the view."""
        if self.watched is None:
            self.last_line = "quit before there was a run"
            return
        kind = (
            f", {self.judge.diagnosis.verdict}" if self.judge is not None and self.judge.diagnosis is not None else ""
        )
        self.last_line = f"{self.watched.path}: {self.watched.status}, step {self.watched.step:,}{kind}"

    def _is_over(self) -> bool:
        """Return whether to end the view: the run has ended, and the view has seen it running."""
        ended = self.watched is not None and self.watched.status != "running"
        self._was_running |= self.watched is not None and not ended
        return self.leave_at_end and self._was_running and ended

    # --- reading ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        try:
            if self.watched is None:
                self._find()
            else:
                self.watched.look()
            self._failures = 0
        except NoRunError as error:
            self.watched, self._removed = None, error.message
        except GradlensError:
            self._failures += 1
            if self._failures >= FAILURES or self.watched is None:
                raise
        if self.watched is not None and self.judge is not None:
            self.judge.consider(self.watched.rows, self.watched.status)

    def _find(self) -> None:
        path = awaited_run(self.argument)
        if path is None:
            return
        self.watched, self.judge = Watched(path), Judge(path)
        self.argument = str(path)  # stay with this run, even if a newer one appears
        metrics = known_metrics(self.watched)
        if self.choice.metric not in metrics:
            self.choice.metric = metrics[0] if metrics else ""

    # --- drawing ------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        size = self.screen.size
        state: object = (size, self.argument) if self.watched is None else self._state(self.watched, size)
        if state == self._drawn:
            return
        self._drawn = state
        self.screen.show(self._canvas(size))

    def _state(self, watched: Watched, size: tuple[int, int]) -> object:
        """Return the values that the view depends on; it is drawn again when they change."""
        epochs = len(watched.epochs.get("epoch", ()))
        status = watched.status, watched.lost, int(watched.silence) if watched.lost else 0
        judged = (self.judge.rows, self.judge.failed) if self.judge is not None else None
        return size, watched.rows, epochs, status, judged, replace(self.choice)

    def _canvas(self, size: tuple[int, int]) -> Canvas:
        if self.watched is None or self.judge is None:
            return draw_waiting(*size, waiting_lines(self.argument, self._removed))
        if not self.choice.metric:
            return draw_waiting(*size, [f"{self.watched.path} holds no metric: there is nothing to draw"])
        return draw_watch(*size, self.watched, self.judge, self.choice, colour=self.colour)

    # --- keys ---------------------------------------------------------------------------------------------

    def _press(self, key: str) -> bool:
        """Handle a key; return whether the user quits."""
        choice = self.choice
        if key in ("q", "Q", "\x03"):
            return True
        if key in ("space", "p"):
            self._pause()
        elif key in ("m", "M") and self.watched is not None:
            metrics = known_metrics(self.watched)
            if metrics:
                choice.page, choice.metric = "main", _next(metrics, choice.metric, 1 if key == "m" else -1)
        elif key in ("r", "R"):
            choice.page, choice.span = "main", _next(SPANS, choice.span, 1 if key == "r" else -1)
        elif key in ("f", "?", "h"):
            page = "findings" if key == "f" else "help"
            choice.page, choice.scroll = "main" if choice.page == page else page, 0
        elif key in ("escape", "enter"):
            choice.page = "main"
        elif key in ("up", "down", "k", "j", "pageup", "pagedown"):
            lines = 10 if key.startswith("page") else 1
            choice.scroll = max(choice.scroll + (lines if key in ("down", "j", "pagedown") else -lines), 0)
        elif key == "d" and self.judge is not None and self.watched is not None:
            self.judge.hurry()
            self.judge.consider(self.watched.rows, self.watched.status)
        elif key == "\x0c":
            self.screen.forget()
        return False

    def _pause(self) -> None:
        self.choice.paused = not self.choice.paused
        if self.choice.paused:
            self._paused_at = time.monotonic()
            return
        if self.watched is not None and time.monotonic() - self._paused_at > LONG_PAUSE_S:
            self.watched = None  # read again from the beginning: faster than row by row
        self._look()


def _next(names: tuple[str, ...] | list[str], name: str, by: int) -> str:
    return names[(names.index(name) + by) % len(names)] if name in names else names[0]


def known_metrics(watched: Watched) -> list[str]:
    """Return the run's metrics, the usual ones first."""
    held = list(watched.run.metrics)
    return [name for name in METRICS if name in held] + [name for name in held if name not in METRICS]


def waiting_lines(argument: str | None, removed: str = "") -> list[str]:
    """Return the lines that are shown while there is no run.

    Args:
        argument: As for ``watch``.
        removed: A message about a file that was removed.

    Returns:
        The lines: which run is expected, and which runs exist.
    """
    asked = Path("runs") if argument is None else Path(argument)
    what = f"a run in {asked}" if argument is None or asked.is_dir() else f"the run {asked}"
    lines = [f"waiting for {what}"]
    lines += [removed] if removed else []
    folder = asked.parent if argument is not None and asked.parent != Path(".") else Path("runs")
    there = sorted(path.stem for path in folder.glob("*.h5")) if folder.is_dir() else []
    lines += ["", f"runs in {folder}: {', '.join(there[:12])}{', ...' if len(there) > 12 else ''}"] if there else []
    return [*lines, "", "the view begins with the first rows of the run; gradlens run plain34 starts one"]


# --- without a terminal -----------------------------------------------------------------------------------


def follow_plainly(argument: str | None) -> None:
    """Print a line per epoch, and the diagnosis whenever it changes, until the run ends.

    Args:
        argument: As for ``watch``.
    """
    path = awaited_run(argument)
    if path is None:
        print_line(". ".join(line for line in waiting_lines(argument) if line))
        while path is None:
            time.sleep(IDLE_S)
            path = awaited_run(argument)
    watched, judge = Watched(path), Judge(path)
    print_line(f"{watched.path}: {watched.status}, {plural(len(watched.run.layers), 'layer')}")
    epochs, kind, last = 0, "", time.monotonic()
    try:
        while True:
            watched.look()
            done = len(watched.epochs.get("epoch", ()))
            for number in range(epochs, done):
                print_line(epoch_line(watched, number))
            if done > epochs or (time.monotonic() - last > LINE_S and watched.status == "running"):
                if done == epochs:
                    print_line(step_line(watched))
                last = time.monotonic()
            epochs = done
            judge.consider(watched.rows, watched.status)
            if watched.status != "running" or watched.lost:
                judge.wait()
            if judge.diagnosis is not None and judge.diagnosis.verdict != kind:
                kind = judge.diagnosis.verdict
                print_line(_verdict_line(judge))
            if watched.status != "running" or watched.lost:
                break
            time.sleep(IDLE_S)
    finally:
        judge.wait()
    end = (
        watched.status
        if not watched.lost
        else "no sign of life, so its writer may have been killed; gradlens recover repairs the file"
    )
    print_line(f"{watched.path}: {end}, {plural(watched.rows, 'row')}, {plural(epochs, 'epoch')}")


def _verdict_line(judge: Judge) -> str:
    assert judge.diagnosis is not None
    main = judge.diagnosis.findings[0] if judge.diagnosis.findings else None
    why = f"{main.evidence}. Next: {main.remedy}" if main else judge.diagnosis.reason
    return f"diagnosis up to step {judge.step:,}: {judge.diagnosis.verdict}: {why}"


def epoch_line(watched: Watched, number: int) -> str:
    """Return the line of an epoch: its losses and accuracies, and for the last epoch the ratio of gradients."""
    values = {name: float(column[number]) for name, column in watched.epochs.items() if number < len(column)}
    of = f"/{watched.total_epochs}" if watched.total_epochs else ""
    parts = [f"epoch {values.get('epoch', number + 1):.0f}{of}"]
    for part in ("train", "val"):
        numbers = [
            f"{kind} {values[key]:.4f}" for kind in ("loss", "accuracy") if _has(values, key := f"{part}_{kind}")
        ]
        parts += [f"{part} {' '.join(numbers)}"] if numbers else []
    last = number + 1 == len(watched.epochs.get("epoch", ()))
    return "  ".join([*parts, *([ratio_line(watched)] if last else [])])


def _has(values: dict[str, float], key: str) -> bool:
    return values.get(key, float("nan")) == values.get(key)


def step_line(watched: Watched) -> str:
    """Return the line of the newest step: step, loss, and the ratio of gradients."""
    parts = [f"step {watched.step:,}"]
    rows = watched.recent["scalars"].rows
    if "loss" in watched.scalar_names and len(rows):
        parts.append(f"loss {rows[-1, watched.scalar_names.index('loss')]:.4f}")
    return "  ".join(dict.fromkeys([*parts, ratio_line(watched)]))  # without a ratio that line is the step alone


def ratio_line(watched: Watched) -> str:
    """Return the gradient norm of the first layer over that of the last hidden layer, the median of the newest rows."""
    metric = next((name for name in GRADIENT_NORMS if name in watched.run.metrics), "")
    rows = watched.recent[metric].rows[-NOW_ROWS:].astype(np.float64) if metric else np.empty((0, 0))
    ratio = compare_layers(watched.run, np.where(np.isfinite(rows), rows, np.nan)) if len(rows) else None
    if ratio is None or np.isnan(typical := ratio.typical()):
        return f"step {watched.step:,}"
    return f"gradient {say_layer(ratio.first)} / {say_layer(ratio.last)} {say_power(typical)}"
