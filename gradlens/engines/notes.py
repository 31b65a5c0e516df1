"""What is known of a run of an experiment besides its run file: that it waits, and why its last attempts failed.

A note is a small JSON file next to the run file, ``.NAME.h5.job``. It is written when the run is handed to an engine
and removed when the run file is complete. It never decides whether a run is complete: only the run file does.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from gradlens.atomic import write_text

ENDING = ".job"


@dataclass(frozen=True)
class RunNote:
    """A note on a run.

    Args:
        engine: The name of the engine.
        outlives: Whether the engine carries on when the process that submitted the run has ended.
        reasons: Why each attempt failed, oldest first.
        failed: Whether no attempt is left.
        host: The machine of the process that submitted the run.
        process: The id of that process.
    """

    engine: str
    outlives: bool = False
    reasons: tuple[str, ...] = ()
    failed: bool = False
    host: str = ""
    process: int = 0

    @property
    def abandoned(self) -> bool:
        """Whether nobody starts the run any more; False where that cannot be known from this machine."""
        return not self.outlives and self.host == platform.node() and process_has_ended(self.process)


def process_has_ended(process: int) -> bool:
    """Return whether a process of this machine has ended; False where that cannot be known."""
    if os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass
    return False


def note_path(path: Path) -> Path:
    """Return the file of the note on a run."""
    return path.with_name(f".{path.name}{ENDING}")


def write_note(path: Path, engine: str, outlives: bool, reasons: list[str], *, failed: bool = False) -> None:
    """Write the note on a run; a full disk does not stop the experiment.

    Args:
        path: The run file.
        engine: The name of the engine.
        outlives: Whether the engine carries on without this process.
        reasons: Why each attempt failed.
        failed: Whether no attempt is left.
    """
    note = RunNote(engine, outlives, tuple(reasons), failed, platform.node(), os.getpid())
    with contextlib.suppress(OSError):
        write_text(note_path(path), json.dumps(asdict(note)))


def remove_note(path: Path) -> None:
    """Remove the note on a run."""
    with contextlib.suppress(OSError):
        note_path(path).unlink(missing_ok=True)


def read_note(path: Path) -> RunNote | None:
    """Return the note on a run; None where there is none that can be read."""
    try:
        found = json.loads(note_path(path).read_text(encoding="utf-8"))
        return RunNote(**{**found, "reasons": tuple(map(str, found["reasons"]))})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def find_noted(folder: Path) -> list[Path]:
    """List the runs in a folder and below that have a note, by the names of their run files."""
    found = (path.with_name(path.name[1 : -len(ENDING)]) for path in folder.rglob(f".*.h5{ENDING}"))
    below = (path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(below)
