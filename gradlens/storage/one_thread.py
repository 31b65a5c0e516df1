"""One thread at a time in HDF5: a run may be read in the process that is writing it.

h5py locks its single calls. A reader and a writer of one file in two threads of a process still corrupted its memory
(seen with h5py 3.16 and HDF5 2.0, within seconds): whatever opens, reads or writes a run file does so alone.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

_locks = [threading.RLock()]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep other threads of this process out of HDF5; also a decorator."""
    with _locks[0]:
        yield


def _renew() -> None:
    """Let a forked process begin with a lock that no thread holds: those of its parent do not exist there."""
    _locks[0] = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
