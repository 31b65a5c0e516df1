"""A run of about a second that trains nothing: it writes its run file as ``gradlens run --resume`` does.

It takes the file's lock, resumes after the last finished epoch, flushes every row, closes the file as "interrupted"
after SIGINT or SIGTERM, and appends a line to a journal when it starts an epoch and when it is complete. While a file
``hold`` lies beside the journal, it stays in its second epoch: what a test does meanwhile cannot come too late.

Usage: short_run.py FILE JOURNAL [SECONDS_PER_EPOCH] [EPOCHS]
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from gradlens.errors import GradlensError
from gradlens.run import Header, Layer, Row
from gradlens.storage import FileSink, read_run

ROWS = 4
"""Rows of an epoch."""
LAYERS = (Layer("layer", "Linear", "main", 1, 1, 1),)


def note(journal: Path, text: str) -> None:
    """Append a line to the journal, in one piece."""
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, f"{text}\n".encode())
    os.close(file)


def main(path: Path, journal: Path, seconds: float = 0.1, epochs: int = 3) -> int:
    """Write the run, or the rest of it.

    Returns:
        The exit code: 0 complete, 130 interrupted, 1 the file is being written.
    """
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    run = read_run(path) if path.exists() else None
    if run is not None and run.status == "complete":
        return 0
    done = 0 if run is None else len(run.epochs["epoch"])
    sink = FileSink(path, overwrite=not done, resume_at=(done * ROWS, done) if done else None, flush_seconds=0)
    try:
        sink.open(Header(LAYERS, {"param_grad_norm": 1}, model="short", seed=0))
    except GradlensError as error:
        print(f"Error: {error.message}")
        return 1
    hold = journal.with_name("hold")
    for epoch in range(done, epochs):
        note(journal, f"{path.name} epoch {epoch}")
        for row in range(ROWS):
            while epoch and hold.exists() and not asked:
                time.sleep(0.05)
            if asked:
                sink.close("interrupted")
                return 130
            sink.write_row(Row(epoch * ROWS + row, epoch, {"param_grad_norm": np.ones(1)}, {"loss": 1.0, "lr": 0.1}))
            sink.flush()
            time.sleep(seconds / ROWS)
        sink.write_epoch(dict.fromkeys(("train_loss", "val_loss", "lr", "seconds"), 1.0) | {"epoch": epoch + 1})
    sink.close("complete")
    note(journal, f"{path.name} complete")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:4]), *map(int, sys.argv[4:5])))
