"""Publish whole copies of a run file in another folder while it is written, such as one on a shared file system.

A file that is written in HDF5's SWMR mode is only safe to read where the writer's file system is local: HDF5 does not
promise it on NFS. So the run is written locally, and readers elsewhere get copies, each of which takes the place of the
last one in one step. ``offer`` is called by the writer between two writes, when the file is at rest: it copies the file
next to itself, and a thread sends that copy. Whatever the other file system does (full, gone, silent), the writer does
not wait for it, except at the end, and then only as long as bytes arrive.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from gradlens.atomic import reason, stale_names, temporary_name, whole_file
from gradlens.errors import GradlensWarning, RunExistsError, RunFileError

PUBLISH_S = 5.0
"""Least seconds between two copies, unless an epoch ended."""
MOST_S = 45.0
"""Most seconds between two copies of a long run: readers take a run for dead after a minute without a sign of life."""
SHARE = 0.05
"""So much of the time is spent on copying, within these bounds."""
SILENT_S = 30.0
"""At the end, the other file system is given up after so many seconds in which no byte arrived."""
PART = 1 << 25
"""Bytes that are sent, and synced, at once."""


def warn(text: str) -> None:
    """Warn that publishing failed."""
    warnings.warn(f"gradlens: {text}", GradlensWarning, stacklevel=2)


class Publisher:
    """Sends copies of a run file to a folder.

    Args:
        folder: The folder; it is made.
        tell: Called with one line when publishing fails, once.
        onto: Whether a copy that is there may be replaced, even where the run file is a new one.
    """

    def __init__(
        self, folder: str | os.PathLike[str], tell: Callable[[str], None] = warn, *, onto: bool = False
    ) -> None:
        self.folder = Path(folder).absolute()
        self._tell, self._onto = tell, onto
        self._path = self._target = Path()
        self._began = self._moved = -MOST_S
        self._cost = 0.0
        """Seconds that the last copy took, on both file systems."""
        self._failed = False
        self._thread: threading.Thread | None = None

    def claim(self, path: Path, *, onto: bool) -> None:
        """Make the folder, and see that the copy may lie there.

        Args:
            path: The run file.
            onto: Whether a file that is there may be replaced.

        Raises:
            RunFileError: The folder is that of the run file, or cannot be written to.
            RunExistsError: There is a file of this name, and it may not be replaced.
        """
        self._path, self._target = path, self.folder / path.name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(self.folder, os.W_OK)
            for stale in stale_names(self._target):  # of writers that were killed
                stale.unlink(missing_ok=True)
            for stale in stale_names(self._snapshot()):
                stale.unlink(missing_ok=True)
        except OSError as error:
            raise RunFileError(f"{self.folder}: nothing can be published there: {reason(error)}") from error
        if not writable:
            raise RunFileError(f"{self.folder}: nothing can be published there: you may not write to it")
        if self.folder.resolve() == path.parent.resolve():
            raise RunFileError(f"{self.folder} is the folder of the run itself", tip="publish to another one")
        if self._target.exists() and not (onto or self._onto):
            raise RunExistsError(f"{self._target} already exists; nothing was overwritten", tip="another folder")

    def _snapshot(self) -> Path:
        return self._path.with_name(f"{self._path.name}.copy")

    def offer(self, *, epoch: bool = False) -> None:
        """Publish the file as it is now, if it is time; the caller writes nothing meanwhile.

        Args:
            epoch: Whether an epoch ended, so that the copy is due earlier.
        """
        pause = min(self._cost / SHARE, MOST_S)
        if self._busy() or time.monotonic() - self._began < (pause if epoch else max(PUBLISH_S, pause)):
            return
        self._began = time.monotonic()
        copy = temporary_name(self._snapshot())
        try:
            shutil.copyfile(self._path, copy)
        except OSError as error:
            with contextlib.suppress(OSError):
                copy.unlink(missing_ok=True)
            self._fail(error)
            return
        self._start(copy, remove=True)

    def finish(self) -> None:
        """Publish the closed file, and wait for it; as long as bytes arrive."""
        if self._wait() and self._path.exists():
            self._began = time.monotonic()
            self._start(self._path, remove=False)
            self._wait()

    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _wait(self) -> bool:
        """Wait for the thread; return whether it has ended."""
        self._moved = time.monotonic()
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.2)
            if time.monotonic() - self._moved > SILENT_S:
                self._fail(TimeoutError(None, f"no answer for {SILENT_S:g} seconds"))
                return False
        return True

    def _start(self, copy: Path, *, remove: bool) -> None:
        self._thread = threading.Thread(target=self._send, args=(copy, remove), name="gradlens publisher", daemon=True)
        self._thread.start()

    def _send(self, copy: Path, remove: bool) -> None:
        try:
            with whole_file(self._target) as temporary, copy.open("rb") as source, temporary.open("wb") as target:
                while part := source.read(PART):
                    target.write(part)
                    target.flush()
                    os.fsync(target.fileno())
                    self._moved = time.monotonic()
        except OSError as error:
            self._fail(error)
        finally:
            self._cost = time.monotonic() - self._began
            if remove:
                with contextlib.suppress(OSError):
                    copy.unlink(missing_ok=True)

    def _fail(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            self._tell(
                f"{self._target} cannot be published: {reason(error)}; it is tried again, the training goes on, and "
                f"{self._path} has everything"
            )
