"""The libraries that only some formats need."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator

from gradlens.errors import MissingLibraryError

LIBRARIES = {"parquet": "pyarrow", "tensorboard": "tensorboard"}
"""Format, which is also the name of the extra, to the library that writes it; CSV needs none."""


@contextlib.contextmanager
def optional(form: str) -> Iterator[None]:
    """Import what a format needs inside: without the warnings of its insides, and with a line on how to install it.

    Raises:
        MissingLibraryError: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except ImportError as error:
        raise MissingLibraryError(
            f"{form} needs {LIBRARIES[form]}, which cannot be imported ({error}): "
            f"pip install 'gradlens-toolkit[{form}]'"
        ) from error


def check_library(form: str) -> None:
    """Import the library of a format, before anything is read or written for it.

    Raises:
        MissingLibraryError: It is not installed.
    """
    if form in LIBRARIES:
        with optional(form):
            importlib.import_module(LIBRARIES[form])
