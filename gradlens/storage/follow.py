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
from gradlens.storage.stored import StoredFile, reading

MOST_ROWS = 4096
"""Rows that come at once, so that memory stays bounded."""


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
    """

    start: int
    steps: NDArray[np.int64]
    epoch_of_step: NDArray[np.int32]
    scalars: Mapping[str, FloatArray]
    metrics: Mapping[str, FloatArray]
    epochs: Mapping[str, FloatArray]
    status: Status


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
    seen, epochs = start, 0
    heartbeat, changed = -1.0, time.monotonic()
    ended, told = False, "running"
    while True:
        new, beat, more = reading(path, lambda stored, at=(seen, epochs): _new_rows(stored, *at))  # type: ignore[misc]
        if len(new.steps) or any(map(len, new.epochs.values())):
            yield new
            told = new.status
            seen += len(new.steps)
            epochs += len(new.epochs.get("epoch", ()))
        if more:
            continue
        if ended:
            if told != new.status:
                yield new  # no rows, but how the run ended
            return
        if new.status != "running":
            ended = True  # the counts were read before the status: look once more
            continue
        if beat != heartbeat:
            heartbeat, changed = beat, time.monotonic()
        elif time.monotonic() - changed > patience:
            return
        time.sleep(poll)


def _new_rows(stored: StoredFile, seen: int, epochs: int) -> tuple[NewRows, float, bool]:
    """Return the next rows, the heartbeat, and whether there are more of them already."""
    if stored.n_steps < seen or stored.n_epochs < epochs:
        raise RunFileError(
            f"{stored.path} holds {stored.n_steps} rows now and held {seen}: the run was resumed from an earlier one",
            tip="follow it anew",
        )
    count = min(stored.n_steps - seen, MOST_ROWS)
    state: dict[str, Any] = stored.state()
    columns = {}
    for name in stored.columns:
        of_epochs = name.startswith("epoch/")
        columns[name] = stored.column(name, epochs) if of_epochs else stored.column(name, seen)[:count]

    def group(prefix: str) -> dict[str, FloatArray]:
        return {name.removeprefix(prefix): part for name, part in columns.items() if name.startswith(prefix)}

    new = NewRows(
        start=seen,
        steps=columns["step"],
        epoch_of_step=columns["epoch_of_step"],
        scalars=group("scalar/"),
        metrics={name: stored.rows(name, seen, seen + count) for name in stored.metrics},
        epochs=group("epoch/"),
        status=state["status"],
    )
    return new, float(state["heartbeat"]), seen + count < stored.n_steps
