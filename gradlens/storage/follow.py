"""Follow a run while it is written."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlens.errors import RunFileError
from gradlens.run import FloatArray, Status
from gradlens.storage.run_file import reading
from gradlens.storage.shown import shown_names
from gradlens.storage.stored_file import StoredFile

MOST_ROWS = 4096
"""Rows that come at once, so that memory stays bounded;"""
MOST_NUMBERS = 16_000_000
"""of a model with very many layers, fewer."""
NONE: NDArray[Any] = np.empty(0)


@dataclass(frozen=True)
class NewRows:
    """Rows that have come to a run file since it was last looked at.

    Args:
        start: Index of the first of them in the run.
        steps: (R,) their optimizer steps.
        epoch_of_step: (R,) index into the table of epochs.
        scalars: Name to (R,).
        metrics: Name to (R, L).
        epochs: Rows of the table of epochs that have come, name to (E,).
        status: The run's status.
        heartbeat: The writer's last sign of life, in seconds since 1970.
        more: Whether there are more rows already.
    """

    start: int
    steps: NDArray[np.int64]
    epoch_of_step: NDArray[np.int32]
    scalars: Mapping[str, FloatArray]
    metrics: Mapping[str, FloatArray]
    epochs: Mapping[str, FloatArray]
    status: Status
    heartbeat: float = 0.0
    more: bool = False


def follow_run(
    path: str | os.PathLike[str], *, start: int = 0, poll: float = 0.25, patience: float = 30.0
) -> Iterator[NewRows]:
    """Yield the rows of a run as they are flushed, each once and in order, until the run ends.

    Args:
        path: The run file; it must be there.
        start: Index of the first row that is wanted.
        poll: Seconds between two looks at the file.
        patience: Seconds without a sign of life (writers give one every second) after which the writer is taken for
            dead, and the rows end.

    Yields:
        At most 4,096 rows at once; at the end of a run perhaps none, with its status.

    Raises:
        NoRunError: There is no such file, or it was removed.
        RunFileError: It cannot be read, or the run was resumed from an earlier row meanwhile.

    Example::

        for new in gradlens.follow_run("runs/plain34-s0.h5"):
            print(new.steps[-1], new.scalars["loss"][-1])
    """
    follower = Follower(path, start=start)
    heartbeat, changed = -1.0, time.monotonic()
    ended, told = False, "running"
    while True:
        new = follower.look()
        if len(new.steps) or any(map(len, new.epochs.values())):
            yield new
            told = new.status
        if new.more:
            continue
        if ended:
            if told != new.status:
                yield new  # no rows, but how the run ended
            return
        if new.status != "running":
            ended = True  # the counts were read before the status: look once more
            continue
        if new.heartbeat != heartbeat:
            heartbeat, changed = new.heartbeat, time.monotonic()
        elif time.monotonic() - changed > patience:
            return
        time.sleep(poll)


class Follower:
    """Look at a run file now and then, and get what has come since.

    Args:
        path: The run file.
        start: Index of the first row that is wanted.
        epochs: Index of the first row of the table of epochs that is wanted.
    """

    def __init__(self, path: str | os.PathLike[str], *, start: int = 0, epochs: int = 0) -> None:
        self.path = path
        self.seen, self.epochs = start, epochs
        self._known = False

    def look(self) -> NewRows:
        """Return the rows that have come, at most 4,096 of them; waits for nothing.

        Raises:
            NoRunError: There is no such file.
            RunFileError: It cannot be read, or the run was resumed from an earlier row meanwhile.
        """
        new = reading(self.path, lambda stored: _new_rows(stored, self.seen, self.epochs), known=self._known)
        self._known = True
        self.seen += len(new.steps)
        self.epochs += len(new.epochs.get("epoch", ()))
        return new


def _new_rows(stored: StoredFile, seen: int, epochs: int) -> NewRows:
    """Return the next rows."""
    if stored.n_steps < seen or stored.n_epochs < epochs:
        raise RunFileError(
            f"{stored.path} holds {stored.n_steps} rows now and held {seen}: the run was resumed from an earlier one",
            tip="follow it anew",
        )
    at_once = MOST_NUMBERS // max(stored.n_layers * len(stored.metrics), 1)
    count = min(stored.n_steps - seen, MOST_ROWS, max(at_once, 1))
    state: dict[str, Any] = stored.state()
    columns: dict[str, NDArray[Any]] = {}
    for name in stored.columns:
        if name.startswith("epoch/"):  # most looks find none
            columns[name] = stored.column(name, epochs) if stored.n_epochs > epochs else NONE
        else:
            columns[name] = stored.column(name, seen)[:count]

    shown = shown_names(stored.columns)
    columns = {shown[name]: part for name, part in columns.items()}

    def group(prefix: str) -> dict[str, FloatArray]:
        return {name.removeprefix(prefix): part for name, part in columns.items() if name.startswith(prefix)}

    return NewRows(
        start=seen,
        steps=columns["step"],
        epoch_of_step=columns["epoch_of_step"],
        scalars=group("scalar/"),
        metrics={name: stored.rows(name, seen, seen + count) for name in stored.metrics},
        epochs=group("epoch/"),
        status=state["status"],
        heartbeat=float(state["heartbeat"]),
        more=seen + count < stored.n_steps,
    )
