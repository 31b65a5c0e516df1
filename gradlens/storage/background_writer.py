"""Write from a thread of its own, so that a training step never waits for a disk."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradlens.run import Header, Row, Status
from gradlens.sinks import Sink
from gradlens.storage.place import check_process

GATHERED = 64
"""Calls that are gathered before the thread is woken: waking it for each row costs the training more than the row."""
WAITING = 4096
"""Calls that may wait for the disk; a training that is still faster then waits too, so that memory stays bounded."""
WAKE_SECONDS = 0.25
"""Interval at which the thread looks for rows that wait."""
FLUSH_SECONDS = 1.0
"""Interval at which the file is flushed when no further row comes."""
LONGEST_END = 30.0
"""Seconds after which the end of the interpreter waits no more for an abandoned run."""
PAUSE_SECONDS = 2e-4
"""Between two calls the thread lets the training have the interpreter, for which it might else wait 5 ms."""


class BackgroundSink:
    """Pass everything on to a sink, in order, in a thread.

    An error there is raised by the next call here; what comes after it is dropped.

    Args:
        sink: Where everything goes in the end.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._rest = threading.Condition()
        self._busy = False
        self._closing = False
        self._left_as: Status | None = None
        """The status with which the thread closes the sink itself."""
        self.when_idle: Callable[[], Callable[[BackgroundSink], None] | None] = lambda: None
        """A weak reference to what the thread calls where nothing waits, such as ``Table.offer_row``."""
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._process = os.getpid()
        self._flushed = -FLUSH_SECONDS
        self.seconds = 0.0
        """Processor time that the thread has used."""

    @property
    def path(self) -> Path | None:
        """The file that is written, if it is one."""
        return getattr(self._sink, "path", None)

    def claim(self) -> None:
        """Make sure that nobody else writes there."""
        self._sink.claim()

    def open(self, header: Header) -> None:
        """Begin the run, and the thread."""
        self._sink.open(header)
        self._thread = threading.Thread(target=self._work, name="gradlens writer", daemon=True)
        self._thread.start()

    def write_row(self, row: Row | Callable[[], Row]) -> None:
        """Keep one row."""
        self._put(lambda: self._sink.write_row(row))

    def amend_row(self, row: Row) -> None:
        """Replace the last row."""
        self._put(lambda: self._sink.amend_row(row))

    def offer(self, row: Row) -> None:
        """Keep one row, called from the thread itself."""
        self._calls.append(lambda: self._sink.write_row(row))

    def leave(self, *calls: Callable[[Sink], None]) -> None:
        """Add last calls without waiting, before ``abandon``."""
        for call in calls:
            self._calls.append(functools.partial(call, self._sink))

    def write_epoch(self, values: Mapping[str, float]) -> None:
        """Keep one row of the table of epochs, and wait until it is written."""
        values = dict(values)
        self._put(lambda: self._sink.write_epoch(values))
        self.flush()

    def write_state(self, overhead: float, notes: Sequence[str]) -> None:
        """Keep overhead and notes."""
        notes = tuple(notes)
        self._put(lambda: self._sink.write_state(overhead, notes))

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Keep the facts."""
        self._put(lambda: self._sink.write_facts(facts))

    def flush(self) -> None:
        """Wait until everything so far is written."""
        self._put(self._sink.flush)
        self._wait_until_fewer(1)
        self._raise()

    def close(self, status: Status) -> None:
        """Write what waits, end the thread and the run; in a forked process the run goes on without it."""
        if os.getpid() != self._process:
            return
        thread = self._thread
        if thread is not None:
            self._closing = True
            self._wake.set()
            thread.join()
            self._thread = None
        self._sink.close(status)
        self._raise()

    def abandon(self, status: Status) -> None:
        """End the run without waiting for it: the thread writes what waits and closes the sink; may be called anywhere.

        Args:
            status: How the run ended.
        """
        if os.getpid() != self._process:
            return
        if self._thread is None:
            with contextlib.suppress(Exception):
                self._sink.close(status)
            return
        _abandoned.add(self)
        self._left_as = status
        self._closing = True  # seen when the thread wakes; to wake it takes a lock that may be held at this moment

    def finish(self) -> None:
        """Wait until the thread has closed the sink, after ``abandon``."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and os.getpid() == self._process:
            self._wake.set()
            thread.join(LONGEST_END)

    def _put(self, call: Callable[[], None]) -> None:
        self._raise()
        check_process(self._process)
        if self._thread is None:  # not open yet, or closed: what the sink itself says
            call()
            return
        self._calls.append(call)
        if len(self._calls) >= GATHERED:
            self._wake.set()
            if len(self._calls) >= WAITING:
                self._wait_until_fewer(WAITING)

    def _wait_until_fewer(self, count: int) -> None:
        if self._thread is None:
            return
        self._wake.set()
        with self._rest:
            self._rest.wait_for(lambda: len(self._calls) < count and not (count == 1 and self._busy))

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    # --- in the thread ------------------------------------------------------------------------------------

    def _work(self) -> None:
        failed = False
        while not (self._closing and not self._calls):
            self._wake.wait(WAKE_SECONDS)
            self._wake.clear()
            started = time.thread_time()
            self._busy = True
            try:
                self._drain(failed)
            except Exception as error:
                self._error, failed = error, True
            finally:
                with self._rest:
                    self._busy = False
                    self._rest.notify_all()
            self.seconds += time.thread_time() - started
        if self._left_as is not None:
            with contextlib.suppress(Exception):
                self._sink.close(self._left_as)
            _abandoned.discard(self)

    def _drain(self, failed: bool) -> None:
        """Make all calls that wait; flush where none came for a while."""
        if not self._calls:
            offer = self.when_idle()
            if offer is not None:
                offer(self)
        if not self._calls and not failed and time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flushed = time.monotonic()
            self._sink.flush()
        while self._calls:
            try:
                if not failed:
                    self._calls[0]()
            finally:
                self._calls.popleft()
            if not self._closing:
                time.sleep(PAUSE_SECONDS)


_abandoned: set[BackgroundSink] = set()


def finish_abandoned() -> None:
    """Wait until the runs that were abandoned in this process are closed."""
    for sink in list(_abandoned):
        sink.finish()
