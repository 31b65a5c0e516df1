"""Every exception that gradlens raises on purpose, as one tree.

::

    GradlensError
    ├── ConfigError        (ValueError)       an unknown name or option
    ├── DataError          (ValueError)       unusable images or labels
    ├── ModelError         (ValueError)       a model that cannot be built or recorded
    ├── RecorderError      (RuntimeError)     the recorder cannot be used in this way
    ├── GateError          (RuntimeError)     a check failed: exit code 3
    ├── MissingLibraryError (ImportError)      a library that only some formats need is not installed
    └── RunFileError       (OSError)          a run file that cannot be read or written
        ├── RunExistsError (FileExistsError)  the file exists, and overwriting was not requested
        ├── NoRunError     (FileNotFoundError) there is no run
        └── DamagedError                      the content has changed since it was written

Each is also a built-in exception, so that ``except ValueError`` works too.
"""

from __future__ import annotations


class GradlensError(Exception):
    """The base of all errors raised on purpose.

    Args:
        message: What failed, what was expected, what was got; one line.
        tip: What to try; one line, shown below the message.
    """

    def __init__(self, message: str, *, tip: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.tip = tip

    def __str__(self) -> str:
        return self.message if self.tip is None else f"{self.message} (tip: {self.tip})"


class ConfigError(GradlensError, ValueError):
    """An unknown name or option; the exit code of the command line is 2."""


class DataError(GradlensError, ValueError):
    """Unusable images or labels."""


class ModelError(GradlensError, ValueError):
    """A model that cannot be built or recorded."""


class RecorderError(GradlensError, RuntimeError):
    """The recorder cannot be used in this way."""


class GateError(GradlensError, RuntimeError):
    """A check that the user asked for failed; the exit code of the command line is 3."""


class MissingLibraryError(GradlensError, ImportError):
    """A library that only some formats need is not installed."""


class RunFileError(GradlensError, OSError):
    """A run file, or a file that belongs to it, cannot be read or written."""


class RunExistsError(RunFileError, FileExistsError):
    """The file exists already, and overwriting was not requested."""


class NoRunError(RunFileError, FileNotFoundError):
    """There is no run of this name, or no run in this folder."""


class DamagedError(RunFileError):
    """The content of a run file has changed since it was written: flipped bits, cut off, or overwritten."""


class GradlensWarning(UserWarning):
    """Something that the user should know, though it stops nothing."""
