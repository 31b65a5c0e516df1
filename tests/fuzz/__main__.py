"""Fuzz the reader for long: ``python -m tests.fuzz structure --cases 100000`` or ``bytes --seconds 3600``.

``structure`` changes what a file says of itself (see ``structure.py``). ``bytes`` changes its bytes, guided by the
reader's coverage, with atheris (``pip install atheris``). Whatever a reader raises that is no GradlensError, a hang, a
crash or too much memory ends the run with the fewest changes or the bytes that show it; from these a case in
``tests/storage/hostile_files.py`` is made.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import tempfile
import time
from pathlib import Path

ROUND = 1000
"""Files that hypothesis draws at once: it keeps what it has drawn, and gets slower."""


def structure(cases: int, seconds: int) -> None:
    """Check so many changed files, or for so long, in rounds; half of each base."""
    from tests.fuzz.check import BASES, check_structures

    started, found = time.monotonic(), collections.Counter[str]()
    while found.total() < cases and time.monotonic() - started < seconds:
        for make in BASES:
            with tempfile.TemporaryDirectory(dir=in_memory()) as folder:
                found += check_structures(make, Path(folder), min(ROUND, max(cases // len(BASES), 1)))
        passed = time.monotonic() - started
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.most_common())
        rate = found.total() / passed
        print(f"{found.total()} files in {passed:.0f} s ({rate:.0f} per second): {kinds}", flush=True)


def in_memory() -> str | None:
    """Return a folder that lies in memory, if there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def by_bytes(seconds: int) -> None:
    """Let atheris change bytes for so long."""
    import atheris

    with atheris.instrument_imports(include=["gradlens"]):  # what is imported earlier is not guided by
        from tests.storage.test_fuzz import finished, killed, old, outcome

    folder = Path(tempfile.mkdtemp(dir=in_memory()))
    corpus, copy = folder / "corpus", folder / "copy.h5"
    corpus.mkdir()
    for make in (finished, killed, old):
        (corpus / make.__name__).write_bytes(make(folder).read_bytes())

    def one(data: bytes) -> None:
        copy.write_bytes(data)
        os.utime(copy, (1, 1))
        said = outcome(copy, "")
        if said.split(":")[0] not in ("error", "WRONG"):
            raise AssertionError(said)

    limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=200000", "-len_control=0"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={os.getcwd()}/", str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("what", choices=["structure", "bytes"])
    parser.add_argument("--cases", type=int, default=100_000, help="files to change at most (structure)")
    parser.add_argument("--seconds", type=int, default=3600, help="how long at most")
    chosen = parser.parse_args()
    if chosen.what == "structure":
        structure(chosen.cases, chosen.seconds)
    else:
        by_bytes(chosen.seconds)
