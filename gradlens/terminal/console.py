"""Two consoles: results on stdout, progress and talk on stderr. Rich honours NO_COLOR and pipes."""

from __future__ import annotations

from rich.console import Console


def results() -> Console:
    """Return the console for results (stdout)."""
    return Console(highlight=False, soft_wrap=False)


def talk() -> Console:
    """Return the console for progress and messages (stderr)."""
    return Console(stderr=True, highlight=False)


def has_colour(console: Console) -> bool:
    """Say whether colours will be seen."""
    return console.color_system is not None and not console.no_color
