"""Checks: what one is, how its result is kept, and how a part of the script is kept within its time."""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Found = dict[str, Any]
"""What a check or a part found; goes into the JSON file as it is."""

PASS, FAIL, ERROR = "pass", "fail", "error"
MEASURED, NOT_MEASURED, SKIPPED, STOPPED = "measured", "not measured", "skipped", "stopped"
NO_CUDA = "no CUDA"
FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent


class Part:
    """One part of the script: where it runs, until when, and what it has found so far.

    Args:
        device: "cuda" or "cpu".
        quick: Whether small sizes and few steps are wanted.
        deadline: When the part must be over, by ``time.time()``.
        save: Is called with what was found so far after each check.
        options: What only some parts need: "data" and "study" (paths), "folder" (where files may be left).
    """

    def __init__(
        self,
        device: str,
        *,
        quick: bool,
        deadline: float,
        save: Callable[[Found], None] = lambda found: None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.device, self.quick, self.deadline = device, quick, deadline
        self.options = dict(options or {})
        self.found: Found = {"checks": []}
        self._save = save

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    @property
    def on_cuda(self) -> bool:
        """Whether there is a GPU to measure on."""
        return self.device == "cuda"

    def add(self, **values: Any) -> None:
        """Keep values beside the checks."""
        self.found |= values
        self._save(self.found)

    def check(self, name: str, act: Callable[[], Found], *, needs: float = 1.0, cuda: bool = False) -> None:
        """Make one check and keep its result; an error in it is a result too.

        Args:
            name: Of the check.
            act: Makes it, and returns its result with a "status".
            needs: Seconds without which it is not begun.
            cuda: Whether it can be made on a GPU only.
        """
        result: Found = {"check": name}
        began = time.perf_counter()
        if cuda and not self.on_cuda:
            result |= {"status": NOT_MEASURED, "reason": NO_CUDA}
        elif self.left < needs:
            result |= {"status": SKIPPED, "reason": f"{max(self.left, 0):.0f} s left, needs {needs:.0f} s"}
        else:
            result |= self._make(name, act)
            result["seconds"] = round(time.perf_counter() - began, 2)
        self.found["checks"].append(result)
        self.found.pop("in_progress", None)
        self._save(self.found)

    def _make(self, name: str, act: Callable[[], Found]) -> Found:
        self.add(in_progress=name)
        try:
            return act()
        except Exception as error:
            return describe_error(error)


def describe_error(error: BaseException) -> Found:
    """Return an error as the result of a check."""
    return {"status": ERROR, "reason": last_line(error), "where": where(error)}


def last_line(error: BaseException) -> str:
    """Return the last line of the traceback: the error's type and the first line of what it says."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def where(error: BaseException, frames: int = 4) -> list[str]:
    """Return the innermost lines of Python in which an error was raised, outermost first."""
    found = traceback.extract_tb(error.__traceback__)[-frames:]
    return [f"{_short(frame.filename)}:{frame.lineno} in {frame.name}: {frame.line}" for frame in found]


def _short(path: str) -> str:
    """Return a path without what is above the checkout or the installed packages."""
    for root in (f"{ROOT}{os.sep}", f"site-packages{os.sep}"):
        if root in path:
            return path.split(root, 1)[1]
    return os.path.basename(path)


def judge(errors: Mapping[str, float], bound: float, **details: Any) -> Found:
    """Return the result of a comparison.

    Args:
        errors: The largest relative error of each quantity; NaN and inf pass no bound.
        bound: The largest error that passes.
        details: Kept with the result.
    """
    good = bool(errors) and all(error <= bound for error in errors.values())
    return {"status": PASS if good else FAIL, "bound": bound, "errors": dict(errors), **details}


def write_json(path: Path, found: Found) -> None:
    """Write a file whole or not at all; numbers that JSON does not have become text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(_plain(found), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
