"""What was found, for a reader: a line for each check, and a table of costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from experiments.device.checks import MEASURED, Found

SHOWN = 110
"""Characters of a reason or a note that are shown."""


def write_tables(found: Found) -> str:
    """Return what was found as text."""
    gpu = next((part["gpu"] for part in found["parts"] if "gpu" in part), "unknown")
    name = gpu["name"] if isinstance(gpu, dict) else f"GPU {gpu}"
    lines = [f"{found['device']}{', quick' if found['quick'] else ''}: {name}; {found.get('seconds', 0):.0f} s"]
    for part in found["parts"]:
        lines += ["", *_part_lines(part)]
    costs = [row for part in found["parts"] for row in _cost_rows(part)]
    if costs:
        lines += ["", "Step times over those of the bare model: median of paired ratios (quartiles)", *_align(costs)]
    return "\n".join([*lines, "", count(found)])


def count(found: Found) -> str:
    """Return how many checks ended in which way."""
    ends: dict[str, int] = {}
    for part in found["parts"]:
        for check in part.get("checks", []):
            ends[check["status"]] = ends.get(check["status"], 0) + 1
    return ", ".join(f"{number} {status}" for status, number in ends.items()) or "no checks"


def _part_lines(part: Found) -> Iterator[str]:
    reason = f": {part['reason']}" if "reason" in part else ""
    yield f"{part['part']} ({part['status']}, {part.get('seconds', 0):.0f} s){reason[:SHOWN]}"
    if "in_progress" in part:
        yield f"  stopped in: {part['in_progress']}"
    for check in part.get("checks", []):
        yield f"  {check['status']:<12} {check['check']}{_say(check)}"


def _say(check: Found) -> str:
    """Return what is worth a look in the result of a check."""
    words = [check[key] for key in ("outcome", "reason") if check.get(key)]
    if check.get("errors"):
        words.append(f"largest error {_largest(check['errors'])} (bound {check['bound']:.0e})")
    if check.get("float64_errors"):
        words.append(f"float64 copy {_largest(check['float64_errors'])} (bound {check['float64_bound']:.0e})")
    if check.get("first_wait"):
        words.append(f"first wait: {check['first_wait']['where'][-1]}")
    if check.get("where"):
        words.append(check["where"][-1])
    return f": {'; '.join(word[:SHOWN] for word in words)}" if words else ""


def _largest(errors: dict[str, float]) -> str:
    name = max(errors, key=lambda key: errors[key])
    return f"{errors[name]:.1e} in {name}"


def _cost_rows(part: Found) -> Iterator[list[str]]:
    """Yield the rows of the table of costs."""
    timed = [check for check in part.get("checks", []) if check["status"] == MEASURED and "bare_ms" in check]
    peaks = [check for check in part.get("checks", []) if check["status"] == MEASURED and "extra" in check]
    for check in timed:
        extra = f"{peaks[0]['extra'] / 2**20:+.0f} MiB ({peaks[0]['ratio']:.3f})" if peaks else "not measured"
        yield [
            f"{part.get('subject', part['part'])}; batch {check['batch']}",
            f"bare {check['bare_ms']:.2f} ms",
            *(f"{way} {_ratio(check[way])}" for way in ("null", "every=1", "every=10")),
            f"peak {extra}",
            f"{check['rounds']} rounds",
        ]


def _ratio(found: dict[str, Any]) -> str:
    return f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _align(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
