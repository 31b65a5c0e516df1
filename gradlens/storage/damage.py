"""What a broken file makes h5py say, as a line that names the file."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from gradlens.errors import DamagedError, GradlensError
from gradlens.storage.contents import BROKEN

RECOVER = "gradlens recover keeps what is whole"


class _OfAFile(Protocol):
    path: Path


@contextlib.contextmanager
def telling_damage(path: Path) -> Iterator[None]:
    """Turn what h5py says of a broken file into a line that names the file."""
    try:
        yield
    except GradlensError:
        raise
    except BROKEN as error:
        raise DamagedError(f"{path} is damaged: {line_of(error)}", tip=RECOVER) from error


def line_of(error: Exception) -> str:
    """Return what an error says, in one line."""
    said = str(error).strip("'\"")
    return said.splitlines()[0] if said else type(error).__name__


Method = TypeVar("Method", bound=Callable[..., Any])


def tells_damage(method: Method) -> Method:
    """Let a method of what has a ``path`` raise a DamagedError for whatever a broken file makes h5py say."""

    @functools.wraps(method)
    def wrapped(self: _OfAFile, *arguments: Any, **options: Any) -> Any:
        with telling_damage(self.path):
            return method(self, *arguments, **options)

    return cast(Method, wrapped)
