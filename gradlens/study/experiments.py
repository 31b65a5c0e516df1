"""Find the experiments of the original study by name: inside the installed package, or next to it in a checkout."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDERS = (HERE / "experiments", HERE.parents[1] / "experiments")
"""Where ``pyproject.toml`` puts them in a wheel, then their folder in a checkout."""


def find_experiments(folders: tuple[Path, ...] = FOLDERS) -> dict[str, Path]:
    """Return the experiments by name, from the first folder that has any."""
    for folder in folders:
        if found := {path.stem: path for path in sorted(folder.glob("*.toml"))}:
            return found
    return {}
