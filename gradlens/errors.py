"""Every exception that gradlens raises on purpose, as one tree.

::

    GradlensError
    ├── ConfigError        (ValueError)       a name or option that gradlens does not know
    ├── DataError          (ValueError)       images or labels that cannot be used
    ├── ModelError         (ValueError)       a model that cannot be built or recorded
    ├── RecorderError      (RuntimeError)     the recorder used in a way that it cannot serve
    ├── GateError          (RuntimeError)     something that was to hold does not: exit code 3
    ├── MissingLibraryError (ImportError)      a library that only some formats need is not installed
    └── RunFileError       (OSError)          a run file that cannot be read or written
        ├── RunExistsError (FileExistsError)  it is there already, and overwriting was not asked for
        ├── NoRunError     (FileNotFoundError) there is none
        └── DamagedError                      it is not as it was written

Each is also a built-in, so ``except ValueError`` works for those who do not know gradlens.
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
    """A name or an option that gradlens does not know; the command line answers with exit code 2."""


class DataError(GradlensError, ValueError):
    """Images or labels that cannot be used."""


class ModelError(GradlensError, ValueError):
    """A model that cannot be built or recorded."""


class RecorderError(GradlensError, RuntimeError):
    """The recorder was used in a way that it cannot serve."""


class GateError(GradlensError, RuntimeError):
    """Something that was asked to hold does not; the command line answers with exit code 3."""


class MissingLibraryError(GradlensError, ImportError):
    """A library that only some formats need is not installed."""


class RunFileError(GradlensError, OSError):
    """A run file, or what belongs to it, that cannot be read or written."""


class RunExistsError(RunFileError, FileExistsError):
    """The file is there already, and overwriting was not asked for."""


class NoRunError(RunFileError, FileNotFoundError):
    """There is no run where one was looked for."""


class DamagedError(RunFileError):
    """A run file that is not as it was written: bits flipped, cut off, or overwritten."""


class GradlensWarning(UserWarning):
    """Something that a user should know, although it stops nothing."""
