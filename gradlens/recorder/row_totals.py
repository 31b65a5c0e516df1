"""What is counted over all rows of a run, for what is said when it closes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gradlens.metrics import GRADIENT_NORMS
from gradlens.recorder.measured_row import MeasuredRow
from gradlens.recorder.norms import HostNorms


class RowTotals:
    """Counts over the rows; may be called in the sink's thread, and for rows out of order.

    Args:
        n_layers: L.
    """

    def __init__(self, n_layers: int) -> None:
        self.last_row_with = {name: np.full(n_layers, -1) for name in GRADIENT_NORMS}
        """Metric to (L,): the last row in which each layer had a value; -1 for none."""
        self.gaps = np.zeros(n_layers, dtype=np.int64)
        """(L,) number of rows in which a layer's parameters had a gradient and its output had none."""
        self.changed_otherwise = 0
        """Rows whose gradients were changed before the step in another way than by clipping."""
        self.factors: list[float] = []
        """The least and the largest ``clip_coefficient`` that was measured."""
        self.scaled_rows = 0
        """Number of rows in which it was not 1."""

    def count_row(self, measured: MeasuredRow, columns: Mapping[str, HostNorms], totals: HostNorms) -> None:
        """Count where values are, and whether gradients changed in another way than by clipping.

        Args:
            measured: The row.
            columns: Metric or addend to (L,), in the order of registration.
            totals: See ``MeasuredRow.totals``.
        """
        for name, last in self.last_row_with.items():
            if name in columns:
                there = ~np.isnan(columns[name])
                last[there] = np.maximum(last[there], measured.index)
        outputs, parameters = (columns.get(name) for name in GRADIENT_NORMS)
        if parameters is not None and GRADIENT_NORMS[0] in measured.due:
            self.gaps += ~np.isnan(parameters) & (True if outputs is None else np.isnan(outputs))
        unlike_clipping = measured.before and measured.changes_seen and np.isnan(totals).all()
        self.changed_otherwise += bool(unlike_clipping and measured.began_finite())

    def count_factor(self, factor: float) -> None:
        """Count a ``clip_coefficient`` other than 1 that was measured."""
        self.scaled_rows += 1
        self.factors = [min(factor, *self.factors), max(factor, *self.factors)] if self.factors else [factor] * 2
