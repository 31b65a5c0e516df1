"""The origin of a number or a figure: the versions and the commit of the code that made it."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gradlens._version import __version__

PACKAGES = ("torch", "torchvision", "numpy", "h5py", "matplotlib")


def versions() -> dict[str, str]:
    """Return the versions of gradlens, Python and the packages it uses, without importing them."""
    found = {"gradlens": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the commit of the running gradlens, with ``-dirty`` if files were changed; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        tracked = _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        if tracked is None:
            return None
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except OSError:
        return None
    return f"{head}-dirty" if head and changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
