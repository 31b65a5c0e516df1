"""Import the libraries that only some formats need."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator

from gradlens.errors import MissingLibraryError

LIBRARIES = {"docx": "docx", "parquet": "pyarrow", "tensorboard": "tensorboard"}
"""Format, which is also the name of the extra, to the library that writes it; CSV, HTML and PDF need none."""

NAMES = {"docx": "python-docx"}
"""Names of libraries that are installed by another name than they are imported by."""


@contextlib.contextmanager
def optional(form: str) -> Iterator[None]:
    """Return a context for importing a format's library, without its deprecation warnings.

    Args:
        form: The format.

    Raises:
        MissingLibraryError: The library is not installed; the message says how to install it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except ImportError as error:
        raise MissingLibraryError(
            f"{form} needs {NAMES.get(form, LIBRARIES[form])}, which cannot be imported ({error}): "
            f"pip install 'gradlens-toolkit[{form}]'"
        ) from error


def check_library(form: str) -> None:
    """Check that the library of a format can be imported, before anything is read or written.

    Args:
        form: The format.

    Raises:
        MissingLibraryError: The library is not installed.
    """
    if form in LIBRARIES:
        with optional(form):
            importlib.import_module(LIBRARIES[form])
