"""Write from a thread of its own, so that a training step never waits for a disk."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence

from gradlens.run import Header, Row, Sink, Status

WAITING_ROWS = 4096
"""Calls that may wait for the disk; a training that is still faster then waits too, so that memory stays bounded."""
FLUSH_SECONDS = 1.0
"""Rows are at risk for no longer, also when no further row comes."""


class BackgroundSink:
    """Pass everything on to a sink, in order, in a thread.

    An error there is raised by the next call here; what comes after it is dropped.

    Args:
        sink: Where everything goes in the end.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING_ROWS)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def open(self, header: Header) -> None:
        """Begin the run, and the thread."""
        self._sink.open(header)
        self._thread = threading.Thread(target=self._work, name="gradlens writer", daemon=True)
        self._thread.start()

    def write_row(self, row: Row | Callable[[], Row]) -> None:
        """Keep one row."""
        self._put(lambda: self._sink.write_row(row))

    def write_epoch(self, values: Mapping[str, float]) -> None:
        """Keep one row of the table of epochs, and wait until it is written."""
        values = dict(values)
        self._put(lambda: self._sink.write_epoch(values))
        self.flush()

    def write_state(self, overhead: float, notes: Sequence[str]) -> None:
        """Keep overhead and notes."""
        notes = tuple(notes)
        self._put(lambda: self._sink.write_state(overhead, notes))

    def flush(self) -> None:
        """Wait until everything so far is written."""
        if self._thread is not None:
            self._put(self._sink.flush)
            self._queue.join()
        self._raise()

    def close(self, status: Status) -> None:
        """Write what waits, end the thread and the run."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()
        self._sink.close(status)
        self._raise()

    def _put(self, call: Callable[[], None]) -> None:
        self._raise()
        if self._thread is None:  # not open yet, or closed: what the sink itself says
            call()
        else:
            self._queue.put(call)

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        failed = False
        while True:
            try:
                call = self._queue.get(timeout=FLUSH_SECONDS)
            except queue.Empty:
                with contextlib.suppress(queue.Full):
                    self._queue.put_nowait(self._sink.flush)  # in turn, like any other call
                continue
            try:
                if call is None:
                    return
                if not failed:
                    call()
            except Exception as error:
                self._error, failed = error, True
            finally:
                self._queue.task_done()
