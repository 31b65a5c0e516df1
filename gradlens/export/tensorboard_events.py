"""Write a run as TensorBoard events: one event per row with the values of all metrics, layers and scalars.

Tags: ``activation_grad_norm/layer1.0.conv1``, ``scalar/loss``, ``epoch/val_accuracy``. An epoch's values are at the
last step that was recorded in it. A run file holds the time of the run's creation but not of each step. The wall time
of an event is therefore the creation (0 if unknown) plus the step in seconds, which only preserves the order.

"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlens.export.optional_libraries import optional
from gradlens.export.tables import epoch_columns, last_rows, metric_rows, names_of, spans
from gradlens.export.tfrecords import write_record
from gradlens.run import Run
from gradlens.storage.schema import as_float32

CHUNK_VALUES = 1 << 18
MAX_PATTERNS = 64
"""Number of kept event messages, one for each pattern of present values."""
EVENT_FILES = "events.out.tfevents.*.gradlens"
"""Pattern of the names of files that are written here."""


def write_events(run: Run, folder: Path, metrics: Sequence[str]) -> int:
    """Write the events of a run into a folder, and return the number of steps with values.

    Args:
        run: The run.
        folder: The folder of the file; created if it does not exist.
        metrics: The metrics to write; metrics that the run does not hold are skipped.

    Returns:
        The number of steps that have a value.

    Raises:
        MissingLibraryError: tensorboard is not installed.
    """
    with optional("tensorboard"):
        from tensorboard.compat.proto.event_pb2 import Event

    start = created_seconds(run)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with (folder / EVENT_FILES.replace("*", f"{int(start):010d}")).open("xb") as stream:
        write_record(stream, Event(wall_time=start, file_version="brain.Event:2").SerializeToString())
        step_of = _Encoder(Event, _step_tags(run, metrics), start)
        epoch_of = _Encoder(Event, [f"epoch/{name}" for name in epoch_columns([run])], start)
        epochs = _epochs_by_row(run)
        for row, values in enumerate(_rows(run, metrics)):
            step = int(run.steps[row])
            encoded = [step_of(step, values), *(epoch_of(step, epoch) for epoch in epochs.get(row, ()))]
            for data in filter(None, encoded):
                write_record(stream, data)
            count += encoded[0] is not None
    return count


def created_seconds(run: Run) -> float:
    """Return the time of a run's creation in seconds since 1970; 0 if unknown."""
    try:
        moment = datetime.fromisoformat(str(run.info.get("created", "")))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


class _Encoder:
    """Encode rows of values as events, without NaN.

    Creating a message costs more than changing it, so one message is kept for each pattern of present values.
    """

    def __init__(self, make: Callable[..., Any], tags: Sequence[str], start: float) -> None:
        self._make = make
        self._tags = tags
        self._start = start
        self._kept: dict[bytes, Any] = {}

    def __call__(self, step: int, values: NDArray[np.float32]) -> bytes | None:
        there = ~np.isnan(values)
        if not there.any():
            return None
        event = self._event(there)
        event.wall_time, event.step = self._start + step, step
        for entry, value in zip(event.summary.value, values[there].tolist(), strict=True):
            entry.simple_value = value
        return bytes(event.SerializeToString())

    def _event(self, there: NDArray[np.bool_]) -> Any:
        key = there.tobytes()
        if key not in self._kept:
            if len(self._kept) >= MAX_PATTERNS:
                self._kept.clear()
            self._kept[key] = self._make()
            for place in np.flatnonzero(there).tolist():
                self._kept[key].summary.value.add(tag=self._tags[place])
        return self._kept[key]


def _step_tags(run: Run, metrics: Sequence[str]) -> list[str]:
    tags = [f"{metric}/{layer.name}" for metric in _held(run, metrics) for layer in run.layers]
    return [*tags, *(f"scalar/{name}" for name in run.scalars)]


def _held(run: Run, metrics: Sequence[str]) -> list[str]:
    return [metric for metric in metrics if metric in names_of(run)]


def _rows(run: Run, metrics: Sequence[str]) -> Iterator[NDArray[np.float32]]:
    """Yield the values of each row, in the order of its tags."""
    held = _held(run, metrics)
    width = len(held) * len(run.layers) + len(run.scalars)
    for start, stop in spans(len(run.steps), width, CHUNK_VALUES):
        parts = [metric_rows(run, metric, start, stop) for metric in held]
        parts += [as_float32(np.asarray(values[start:stop]))[:, None] for values in run.scalars.values()]
        yield from np.concatenate(parts, axis=1) if parts else np.empty((stop - start, 0), np.float32)


def _epochs_by_row(run: Run) -> dict[int, list[NDArray[np.float32]]]:
    """Return the values of the epochs that end at each row; epochs before the first row are at the first row."""
    found: dict[int, list[NDArray[np.float32]]] = {}
    columns = [as_float32(np.asarray(run.epochs[name])) for name in epoch_columns([run])]
    for epoch, row in enumerate(np.maximum(last_rows(run), 0).tolist()):
        found.setdefault(row, []).append(np.array([column[epoch] for column in columns]))
    return found
