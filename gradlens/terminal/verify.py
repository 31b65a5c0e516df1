"""The table of laws and measured values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradlens.format import plain, say_seconds
from gradlens.theory.laws import Check


def check_rows(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Return a row per check, for JSON and CSV."""
    return [
        {
            "law": check.law,
            "source": check.source,
            "setting": check.setting,
            "value": check.value,
            "measured": plain(check.measured),
            "tolerance": check.tolerance,
            "passed": check.passed,
        }
        for check in checks
    ]


def print_checks(console: Console, checks: Sequence[Check], seconds: float) -> None:
    """Print the table, and how many checks passed.

    Args:
        console: The console to print to.
        checks: The checks.
        seconds: How long they took.
    """
    table = Table(title="Laws, measured by the recorder", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("law, source and setting", overflow="fold")
    for name in ("value", "measured", "off by", "tolerance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for check in checks:
        verdict = Text("pass", "green") if check.passed else Text("FAIL", "bold red")
        law = Text(check.law).append(f"\n{check.source}; {check.setting}", "dim")
        numbers = (f"{check.value:.4f}", f"{check.measured:.4f}", _percent(check.error), _percent(check.tolerance))
        table.add_row(law, *numbers, verdict)
    console.print(table)
    held = sum(check.passed for check in checks)
    console.print(f"{held} of {len(checks)} checks are within their tolerance ({say_seconds(seconds)})")


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "-"
    return f"{100 * share:.2f} %" if share >= 5e-5 else f"{100 * share:.0e} %"
