"""Metrics as the HTML page holds them: matrices of layers by columns of steps, each number in two bytes.

A code is 0 where nothing was recorded, ``ZERO`` where the value is exactly 0, and ``INFINITE`` where it was not finite.
Any other code is the position between the smallest and the largest value of the matrix, on a log scale for magnitudes
and on a linear scale for other metrics. Two bytes cover the 76 decades of float32 in steps of 0.27 %.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradlens.analysis.profile import heat_matrix
from gradlens.metrics import METRICS, is_linear
from gradlens.run import FloatArray, Run

MISSING, ZERO, INFINITE = 0, 65534, 65535
LAST = 65533
BYTES_PER_NUMBER = 2 * 4 / 3
"""Two bytes per number, encoded as base64."""
BUDGET = 1_300_000
"""Bytes for all matrices of a page. With the charts' code (1.12 MB) and the text, a page stays well under 3 MB."""
MOST_COLUMNS, LEAST_COLUMNS = 800, 40


def choose_columns(runs: Sequence[Run]) -> tuple[int, int]:
    """Choose how many columns of steps and how many runs fit into a page.

    Columns are reduced before any run is left out; runs are left out from the end.

    Args:
        runs: The runs in the order of the page.

    Returns:
        The number of columns of a matrix, and the number of runs that have room.
    """
    sizes = [[(_rows(run, name), len(run.layers)) for name in run.metrics] for run in runs]
    for columns in (MOST_COLUMNS, 600, 400, 300, 200, 150, 100, 70, LEAST_COLUMNS):
        total = np.cumsum([_bytes(run, columns) for run in sizes])
        if not len(runs) or total[-1] <= BUDGET:
            return columns, len(runs)
    return LEAST_COLUMNS, max(int(np.searchsorted(total, BUDGET, side="right")), 1)


def _rows(run: Run, metric: str) -> int:
    interval = max(int(run.info.get("every", {}).get(metric, 1)), 1)
    return -(-len(run.steps) // interval)


def _bytes(run: Sequence[tuple[int, int]], columns: int) -> float:
    return BYTES_PER_NUMBER * sum(min(rows, columns) * layers for rows, layers in run)


def pack_run(run: Run, columns: int) -> dict[str, Any]:
    """Encode all metrics of a run for JSON.

    Args:
        run: The run.
        columns: The largest number of columns of steps in a matrix.

    Returns:
        ``metrics``: name to encoded matrix; ``edges``: the steps at the edges of the columns, shared by the matrices.
    """
    edges: list[list[int]] = []
    packed: dict[str, Any] = {}
    for name in sorted(run.metrics, key=_order):
        matrix = heat_matrix(run, name, columns=columns)
        if not matrix.values.size or np.isnan(matrix.values).all():
            continue
        steps = [round(step) for step in matrix.steps]
        if steps not in edges:
            edges.append(steps)
        packed[name] = {**encode(matrix.values, linear=is_linear(name)), "edges": edges.index(steps)}
    return {"metrics": packed, "edges": edges}


def _order(name: str) -> int:
    names = list(METRICS)
    return names.index(name) if name in names else len(names)


def encode(values: FloatArray, *, linear: bool) -> dict[str, Any]:
    """Encode a matrix.

    Args:
        values: (L, C), layers by columns of steps.
        linear: Use a linear scale instead of a log scale.

    Returns:
        ``columns``; ``low`` and ``high``, the range of the values (of their log10 on a log scale); ``linear``; and
        ``codes``, base64 of little-endian uint16, row by row.
    """
    values = np.asarray(values, dtype=np.float64)
    usable = np.isfinite(values) & (values != 0) & (linear | (values > 0))
    scaled = np.where(usable, values, 1.0) if linear else np.log10(np.where(usable, values, 1.0))
    known = scaled[usable]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    span = high - low if high > low else 1.0
    codes = np.where(usable, 1 + np.rint((scaled - low) / span * (LAST - 1)), MISSING)
    codes = np.where(values == 0, ZERO, np.where(np.isinf(values), INFINITE, codes)).astype("<u2")
    return {
        "columns": int(values.shape[1]),
        "low": low,
        "high": high,
        "linear": bool(linear),
        "codes": base64.b64encode(codes.tobytes()).decode("ascii"),
    }
