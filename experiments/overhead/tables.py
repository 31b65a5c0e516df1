"""From results to a table: aligned text, which is Markdown as well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]

CPU_COLUMNS = (
    "way",
    "ratio, median (quartiles)",
    "null",
    "ratio of the sums (5 to 95 %)",
    "null of the sums",
    "processor time (null)",
    "in other threads + processes",
    "its own account",
    "bytes per step + once",
    "memory",
    "bare step",
    "rounds",
    "note",
)
CUDA_COLUMNS = tuple(
    {"processor time (null)": "synchronisations per step", "in other threads + processes": "GPU memory"}.get(name, name)
    for name in CPU_COLUMNS
)


def merge(runs: Iterable[Result]) -> list[dict[str, Any]]:
    """Put the results of several runs together; of the same comparison, the later one stands."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in runs:
        about = run["about"]
        for pair in run["pairs"]:
            key = (pair["subject"], about["device"], about["threads"], pair["way"])
            merged[key] = {**pair, "about": about}
    return list(merged.values())


def write_tables(runs: Sequence[Result]) -> str:
    """Write a table for each subject, device and number of threads, with what it was measured on beneath."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for pair in merge(runs):
        about = pair["about"]
        groups.setdefault((pair["subject_title"], about["device"], about["threads"]), []).append(pair)
    return "\n\n".join(_write_group(title, pairs) for (title, _, _), pairs in groups.items())


def _write_group(title: str, pairs: Sequence[Result]) -> str:
    about = pairs[0]["about"]
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    columns = CUDA_COLUMNS if about["device"] == "cuda" else CPU_COLUMNS
    rows = [[_cells(pair)[column] for column in columns] for pair in pairs]
    kept = [k for k, column in enumerate(columns) if column in ("way", "note") or any(row[k] != "-" for row in rows)]
    table = align([[columns[k] for k in kept], *([row[k] for k in kept] for row in rows)])
    return f"**{title}**; {about['device']}, {threads}\n\n{table}\n\n" + "\n".join(_sources(pairs))


def align(rows: Sequence[Sequence[str]]) -> str:
    """Write rows, the first of them the head, as a Markdown table with even columns."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _sources(pairs: Sequence[Result]) -> list[str]:
    """Say once for each run what it was measured on."""
    texts = []
    for pair in pairs:
        about = pair["about"]
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        text = f"`{about['command']}`, commit {about['commit'] or 'unknown'}, {about['hardware']}; {versions}."
        if text not in texts:
            texts.append(text)
    return texts


def _cells(pair: Result) -> dict[str, str]:
    cells = dict.fromkeys((*CPU_COLUMNS, *CUDA_COLUMNS), "-")
    cells["way"] = pair["way_title"]
    cells["note"] = _note(pair)
    cells["memory"] = _memory(pair.get("memory"))
    cells["GPU memory"] = _megabytes((pair.get("memory") or {}).get("cuda"))
    if "ratio" not in pair:
        return cells
    ratio, null = pair["ratio"], pair["null"]
    cells["ratio, median (quartiles)"] = _spread(ratio, "median", "low", "high")
    cells["null"] = _spread(null, "median", "low", "high")
    cells["ratio of the sums (5 to 95 %)"] = _spread(ratio, "sums", "sums_low", "sums_high")
    cells["null of the sums"] = _spread(null, "sums", "sums_low", "sums_high")
    cells["bare step"] = f"{pair['bare_ms']:.2f} ms"
    cells["rounds"] = str(pair["rounds"])
    cells["bytes per step + once"] = _bytes(pair.get("bytes_per_step"), pair.get("bytes_once"))
    if "processor_ratio" in pair:
        cells["processor time (null)"] = f"{pair['processor_ratio']:.3f} ({pair['processor_null']:.3f})"
        elsewhere = pair["elsewhere_ms"]
        cells["in other threads + processes"] = f"{elsewhere['threads']:.2f} + {elsewhere['processes']:.2f} ms"
    if pair.get("own_account") is not None:
        cells["its own account"] = f"{1 + pair['own_account']:.3f}"
    if "synchronisations" in pair:
        cells["synchronisations per step"] = f"{pair['synchronisations']:g}"
    return cells


def _spread(values: Mapping[str, float], middle: str, low: str, high: str) -> str:
    return f"{values[middle]:.3f} ({values[low]:.3f} to {values[high]:.3f})"


def _bytes(per_step: float | None, once: float | None) -> str:
    if per_step is None:
        return "-"
    return f"{per_step:,.0f}" if once is None else f"{per_step:,.0f} + {once:,.0f}"


def _megabytes(count: float | None) -> str:
    return "-" if count is None else f"{count / 1e6:+.0f} MB"


def _memory(memory: Mapping[str, float] | None) -> str:
    if not memory:
        return "-"
    text = _megabytes(memory["growth"])
    return f"{text}, {_megabytes(memory['processes'])} in others" if memory["processes"] else text


def _note(pair: Result) -> str:
    notes = []
    if "missing" in pair:
        notes.append(f"not installed: {pair['missing']}")
    if "error" in pair:
        notes.append(pair["error"])
    if pair.get("out_of_place"):
        notes.append("ReLU out of place in all three models: it fails on in-place ones")
    notes += [f"{what}: {pair[f'{what}_error']}" for what in ("bytes", "memory") if f"{what}_error" in pair]
    if pair.get("equal_losses") is False:
        notes.append("the training is NOT the same as without it")
    return "; ".join(notes).replace("|", "/")
