"""``gradlens watch``: follow a run in a full screen with keys, or line by line where stdout is no terminal."""

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
from gradlens.format import plural
from gradlens.metrics import METRICS
from gradlens.storage import awaited_run
from gradlens.terminal.console import has_colour, results
from gradlens.terminal.live.canvas import Canvas
from gradlens.terminal.live.layout import NOW_ROWS, SPANS, Choice, draw_waiting, draw_watch
from gradlens.terminal.live.screen import Screen
from gradlens.terminal.live.watched_run import Judge, Watched

SHARE = 0.03
"""Share of a core for reading and drawing; the diagnosis has its own share."""
SHORTEST_S, LONGEST_S, IDLE_S = 0.4, 2.0, 1.0
FAILURES = 5
LONG_PAUSE_S = 15.0
LINE_S = 10.0
"""A run without epochs gets a line so often."""


def watch(argument: str | None, *, metric: str = "", leave_at_end: bool = False) -> None:
    """Show a run as it goes, until the user leaves.

    Args:
        argument: A file, a name under ``runs/`` or a folder; None: the newest run. It need not be there yet.
        metric: Which to begin with; "" for the first.
        leave_at_end: Leave when the run ends, and say nothing then: whoever trains it does.

    Raises:
        GradlensError: The file is no run, or cannot be read any more.
    """
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        console = results()
        system = console.color_system if has_colour(console) else None
        if leave_at_end and hasattr(os, "nice"):
            os.nice(5)  # the training beside it goes first
        with Screen(system) as screen:
            view = LiveView(screen, argument, metric, colour=system is not None, leave_at_end=leave_at_end)
            view.loop()
        if not leave_at_end:
            print_line(view.told)
    else:
        follow_plainly(argument)


def print_line(text: str) -> None:
    """Print a line of results at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class LiveView:
    """What is on the screen, and what the keys do.

    Args:
        screen: Where it is shown.
        argument: As of ``watch``.
        metric: As of ``watch``.
        colour: Whether colours are seen.
        leave_at_end: As of ``watch``.
    """

    def __init__(self, screen: Screen, argument: str | None, metric: str, *, colour: bool, leave_at_end: bool) -> None:
        self.screen, self.argument, self.colour, self.leave_at_end = screen, argument, colour, leave_at_end
        self.choice = Choice(metric)
        self.watched: Watched | None = None
        self.judge: Judge | None = None
        self.told = ""
        self._failures = 0
        self._paused_at = 0.0
        self._drawn: object = None
        self._removed = ""
        self._was_running = False

    def loop(self) -> None:
        """Show the run until the user leaves."""
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
            self._tell()

    def _tell(self) -> None:
        """Keep a line for the user who has left."""
        if self.watched is None:
            self.told = "left before there was a run"
            return
        kind = f", {self.judge.diagnosis.kind}" if self.judge is not None and self.judge.diagnosis is not None else ""
        self.told = f"{self.watched.path}: {self.watched.status}, step {self.watched.step:,}{kind}"

    def _is_over(self) -> bool:
        """Return whether to leave: at the end of a run that was seen running, not of one that had ended before."""
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
        self.argument = str(path)  # this one from now on, and none that is newer
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
        """Return what a screen depends on: where it is as before, none is drawn."""
        epochs = len(watched.epochs.get("epoch", ()))
        told = watched.status, watched.lost, int(watched.silence) if watched.lost else 0
        judged = (self.judge.rows, self.judge.failed) if self.judge is not None else None
        return size, watched.rows, epochs, told, judged, replace(self.choice)

    def _canvas(self, size: tuple[int, int]) -> Canvas:
        if self.watched is None or self.judge is None:
            return draw_waiting(*size, waiting_lines(self.argument, self._removed))
        if not self.choice.metric:
            return draw_waiting(*size, [f"{self.watched.path} holds no metric: there is nothing to draw"])
        return draw_watch(*size, self.watched, self.judge, self.choice, colour=self.colour)

    # --- keys ---------------------------------------------------------------------------------------------

    def _press(self, key: str) -> bool:
        """Do what a key is for; return whether the user leaves."""
        choice = self.choice
        if key in ("q", "Q", "\x03"):
            return True
        if key in ("space", "p"):
            self._pause()
        elif key in ("m", "M") and self.watched is not None:
            metrics = known_metrics(self.watched)
            if metrics:
                choice.metric = _next(metrics, choice.metric, 1 if key == "m" else -1)
        elif key in ("r", "R"):
            choice.span = _next(SPANS, choice.span, 1 if key == "r" else -1)
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
            self.watched = None  # begun anew: quicker than row by row
        self._look()


def _next(names: tuple[str, ...] | list[str], name: str, by: int) -> str:
    return names[(names.index(name) + by) % len(names)] if name in names else names[0]


def known_metrics(watched: Watched) -> list[str]:
    """Return the run's metrics, the usual ones first."""
    held = list(watched.run.metrics)
    return [name for name in METRICS if name in held] + [name for name in held if name not in METRICS]


def waiting_lines(argument: str | None, removed: str = "") -> list[str]:
    """Say what is waited for, and what there is meanwhile."""
    asked = Path("runs") if argument is None else Path(argument)
    what = f"a run in {asked}" if argument is None or asked.is_dir() else f"the run {asked}"
    lines = [f"waiting for {what}"]
    lines += [removed] if removed else []
    folder = asked.parent if argument is not None and asked.parent != Path(".") else Path("runs")
    there = sorted(path.stem for path in folder.glob("*.h5")) if folder.is_dir() else []
    lines += (
        ["", f"there are in {folder}: {', '.join(there[:12])}{', ...' if len(there) > 12 else ''}"] if there else []
    )
    return [*lines, "", "it is shown as soon as its first rows are there; gradlens run plain34 makes one"]


# --- without a terminal -----------------------------------------------------------------------------------


def follow_plainly(argument: str | None) -> None:
    """Print a line per epoch, and what the diagnosis says whenever that changes, until the run ends."""
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
            told = len(watched.epochs.get("epoch", ()))
            for number in range(epochs, told):
                print_line(epoch_line(watched, number))
            if told > epochs or (time.monotonic() - last > LINE_S and watched.status == "running"):
                if told == epochs:
                    print_line(step_line(watched))
                last = time.monotonic()
            epochs = told
            judge.consider(watched.rows, watched.status)
            if watched.status != "running" or watched.lost:
                judge.wait()
            if judge.diagnosis is not None and judge.diagnosis.kind != kind:
                kind = judge.diagnosis.kind
                print_line(_verdict_line(judge))
            if watched.status != "running" or watched.lost:
                break
            time.sleep(IDLE_S)
    finally:
        judge.wait()
    end = watched.status if not watched.lost else "no sign of life: its writer was killed? gradlens recover mends it"
    print_line(f"{watched.path}: {end}, {plural(watched.rows, 'row')}, {plural(epochs, 'epoch')}")


def _verdict_line(judge: Judge) -> str:
    assert judge.diagnosis is not None
    main = judge.diagnosis.findings[0] if judge.diagnosis.findings else None
    why = f"{main.evidence}. Next: {main.remedy}" if main else judge.diagnosis.reason
    return f"diagnosis up to step {judge.step:,}: {judge.diagnosis.kind}: {why}"


def epoch_line(watched: Watched, number: int) -> str:
    """Return the line of an epoch: its losses and accuracies, and the gradient ratio now."""
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
    """Return the line of a moment: step, loss, and the gradient ratio."""
    parts = [f"step {watched.step:,}"]
    rows = watched.recent["scalars"].rows
    if "loss" in watched.scalar_names and len(rows):
        parts.append(f"loss {rows[-1, watched.scalar_names.index('loss')]:.4f}")
    return "  ".join([*parts, ratio_line(watched)])


def ratio_line(watched: Watched) -> str:
    """Say how the gradient at the first layer compares with that at the last hidden one, over the newest rows."""
    metric = next((name for name in ("activation_grad_norm", "param_grad_norm") if name in watched.run.metrics), "")
    rows = watched.recent[metric].rows[-NOW_ROWS:].astype(np.float64) if metric else np.empty((0, 0))
    ratio = compare_layers(watched.run, np.where(np.isfinite(rows), rows, np.nan)) if len(rows) else None
    if ratio is None or np.isnan(typical := ratio.typical()):
        return f"step {watched.step:,}"
    return f"gradient {say_layer(ratio.first)} / {say_layer(ratio.last)} {say_power(typical)}"
