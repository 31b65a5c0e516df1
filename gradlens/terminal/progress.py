"""Progress of a training: bars for epochs and steps, loss, accuracy, time left, and the current depth profile."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.spinner import Spinner
from rich.text import Text

from gradlens.events import Ended, EpochDone, Event, NonFinite, Note, Started, StepDone
from gradlens.format import plural, say_seconds
from gradlens.run import FloatArray
from gradlens.terminal.colours import strip
from gradlens.terminal.console import has_colour, start_live


class TrainingView:
    """Shows the events of trainings on a console: live in a terminal, elsewhere (as in a notebook) a line per epoch.

    Use it as a context manager and as the listener of ``train_run``.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._progress = Progress(
            TextColumn("{task.description:<6}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._profile: FloatArray | None = None
        self._steps = 1
        self._ended = False
        self._preparing = Spinner("dots", "preparing data and model")
        self._nonfinite_shown = False

    def __enter__(self) -> TrainingView:
        self._live = start_live(self.console, self._render, per_second=5)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Note():
                style = "yellow" if event.warning else "dim"
                self.console.print(Text(f"{'warning: ' if event.warning else ''}{event.text}", style=style))
            case Started():
                self._start(event)
            case StepDone():
                self._step(event)
            case EpochDone():
                self._epoch(event)
            case NonFinite():
                self._nonfinite(event)
            case Ended():
                self._end(event)

    def _start(self, event: Started) -> None:
        config = event.config
        self._steps, self._ended = event.steps_per_epoch, False
        self._profile = None
        self._nonfinite_shown = False
        self.console.print(
            Text(config.model, style="bold").append(
                f" seed {config.seed}: {event.train_images} training and {event.val_images} validation images of "
                f"{len(event.classes)} classes, {config.image_size} px, recipe {config.recipe}, {event.device} -> "
                f"{event.path}",
                style="not bold",
            )
        )
        if self.console.is_terminal:
            hint = f"gradlens watch {event.path} shows the run in full screen in another window; so does --live"
            self.console.print(Text(hint, style="dim"))
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._epochs = self._progress.add_task(
            "epochs",
            total=config.epochs * self._steps,
            completed=(event.first_epoch - 1) * self._steps,
            status="",
        )
        self._epoch_steps = self._progress.add_task("steps", total=self._steps, status="")

    def _nonfinite(self, event: NonFinite) -> None:
        """Print the first one of a run; the file has the others, and the lines of the epochs show NaN."""
        if not self._nonfinite_shown:
            after = "training stops here (--on-nonfinite continue prevents it)" if event.stops else "training continues"
            text = f"the loss is {event.loss} at step {event.step}, epoch {event.epoch}: {after}"
            self.console.print(Text(text, style="bold red"))
        self._nonfinite_shown = True

    def _step(self, event: StepDone) -> None:
        if event.profile is not None:
            self._profile = event.profile
        status = f"loss {event.loss:.3f} acc {event.accuracy:.3f}"
        self._progress.update(self._epochs, completed=(event.epoch - 1) * self._steps + event.step)
        self._progress.update(self._epoch_steps, completed=event.step, status=status, description=f"ep {event.epoch}")

    def _epoch(self, event: EpochDone) -> None:
        v = event.values
        self.console.print(
            f"epoch {event.epoch:>3}  train loss {v['train_loss']:.4f} acc {v['train_accuracy']:.4f}   "
            f"val loss {v['val_loss']:.4f} acc {v['val_accuracy']:.4f}   {v['seconds']:.1f} s"
        )

    def _end(self, event: Ended) -> None:
        text = f"{event.status} after {plural(event.epochs, 'epoch')}, {say_seconds(event.seconds)}: {event.path}"
        reason = event.reason or ("--resume continues it" if event.status == "interrupted" else "")
        self.console.print(Text(text + (f" ({reason})" if reason else ""), style="bold"))
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._profile, self._ended = None, True

    def _render(self) -> RenderableType:
        if not self._progress.task_ids:
            return Text("") if self._ended else self._preparing
        if self._profile is None:
            return self._progress
        most = max(self.console.width - 34, 10)
        values = [float(v) for v in self._profile][:most]
        line = Text("gradient  input ", style="dim")
        line.append_text(strip(values, colour=has_colour(self.console)))
        line.append(" output", style="dim")
        return Group(self._progress, line)
