"""The one collective of each row: what every rank sends, and what it learns from the sums."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradlens.errors import RecorderError
from gradlens.recorder.measured_row import MeasuredRow
from gradlens.recorder.norms import HostNorms
from gradlens.recorder.parameters import ParameterGradients
from gradlens.recorder.ranks.distributed import Ranks
from gradlens.recorder.ranks.rank_agreement import RankAgreement
from gradlens.recorder.ranks.tensor_layouts import ShardedGradients
from gradlens.recorder.schedule import AutoEvery


class RowCollective:
    """Adds up rows over the ranks, and lets the ranks agree on errors, clipping and the next step to record.

    Args:
        ranks: The processes that record together.
        agreement: Compares their weights.
        metrics: All metrics of the run.
        n_layers: L.
        gradients: Its ``changes_seen`` is set where a rank has detected clipping.
        sharded: Adds up gradients that are partial sums on each rank.
        auto: The rule "auto", for which rank 0 decides.
    """

    def __init__(
        self,
        ranks: Ranks,
        agreement: RankAgreement,
        metrics: Sequence[str],
        n_layers: int,
        gradients: ParameterGradients,
        sharded: ShardedGradients | None,
        auto: AutoEvery | None,
    ) -> None:
        self.ended = False
        """Whether the ranks have ended the recording together, or a collective failed."""
        self._ranks, self._agreement = ranks, agreement
        self._metrics, self._n_layers = metrics, n_layers
        self._gradients, self._sharded, self._auto = gradients, sharded, auto
        self._have_sizes = False

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self._ranks.world

    def combine(
        self,
        measured: MeasuredRow | None,
        error: Exception | None,
        out_numel: HostNorms,
        last_step: int,
        *,
        compare: bool = False,
    ) -> tuple[dict[str, HostNorms], HostNorms, HostNorms]:
        """Return the columns, the totals (2,) and the sizes of outputs of a row over all ranks, by one collective.

        Args:
            measured: The row; None where this rank has none, because of the error.
            error: The error on this rank, if any.
            out_numel: (L,) elements of each output, as far as this rank knows; sent in the first collective only.
            last_step: Index of the last row's optimizer step.
            compare: Whether the ranks' weights are compared.

        Returns:
            Columns and totals as in ``MeasuredRow``; sizes (L,) in the first collective, then (0,).

        Raises:
            Exception: The error; a RecorderError if it was on another rank, or if no row can be combined.
        """
        refusal = self._ranks.find_refusal()
        if refusal is not None:
            self.ended = True
            raise error or refusal
        columns, totals = {}, np.full(2, math.nan)
        compared = np.zeros(self._agreement.size if compare else 0)
        judged = compare and measured is not None
        try:
            if measured is not None:
                columns, totals = measured.columns(self._n_layers), measured.totals()
                if compare and error is None:
                    compared = self._agreement.measure(measured.index)
        except Exception as failure:
            error = error or failure
        sizes = np.zeros(0) if self._have_sizes else out_numel / self._ranks.copies(self._n_layers)
        flags = [error is not None, self._gradients.changes_seen, self._next_step(last_step)]
        summed = self._partial_sums(measured)
        self.ended = True  # stays True if the collective fails
        extra = np.array([*totals, *flags, *compared, *summed, *sizes])
        columns, sums = self._ranks.combine(self._metrics, columns, self._n_layers, extra)
        self.ended = bool(sums[2] > 0)
        if self.ended:
            raise error or RecorderError("recording failed on another rank")
        _, compared, summed, sizes = np.split(sums, np.cumsum([5, len(compared), len(summed)]))
        if judged and measured is not None:
            self._agreement.judge(compared, measured.step)
        if self._sharded is not None:
            self._sharded.add(columns, summed)
        self._have_sizes = True
        self._gradients.changes_seen = bool(sums[3] > 0)
        if self._auto is not None:
            self._auto.set_next(int(sums[4]))
        return columns, sums[:2], sizes

    def _next_step(self, last_step: int) -> int:
        """Return what rank 0 says of the next step to record; the others send 0."""
        if self._auto is None:
            return 0
        self._auto.note_row(last_step)
        return self._auto.next if self._ranks.rank == 0 else 0

    def _partial_sums(self, measured: MeasuredRow | None) -> HostNorms:
        """Return this rank's addends of gradients that are partial sums, unscaled."""
        summed = np.zeros(0 if self._sharded is None else self._sharded.size)
        for addend, scale in measured.summed if measured is not None else ():
            summed += addend.cpu().numpy() / (1 if scale is None else float(scale))
        return summed
