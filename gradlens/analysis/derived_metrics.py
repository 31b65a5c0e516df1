"""Metrics that are computed from recorded ones.

``coherent_grad_norm`` is ``param_grad_norm`` times ``grad_coherence``. Let g1 and g2 be a layer's gradients on two
halves of a batch. A step of unit length along -g1 changes the loss of the other half by -g1.g2 / |g1| =
-|g2| cos(g1, g2). So the metric is the part of the norm that also helps images from which the gradient was not
computed. It keeps the cosine's sign. The cosine of two unrelated gradients is negative as often as positive: its mean
over rows and seeds is 0, and an interval that contains 0 means "no signal was seen". If negative values were set to 0,
pure noise would have a mean above 0.

Sources: Balduzzi et al. 2017, The Shattered Gradients Problem (with depth, coherence is lost and not the norm);
Sankararaman et al. 2020, The Impact of Neural Network Overparameterization on Gradient Confusion (section 2: negative
inner products between gradients slow training down).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from gradlens.errors import ConfigError
from gradlens.metrics import COHERENT_GRAD_NORM, GRAD_COHERENCE, PARAM_GRAD_NORM, is_linear
from gradlens.row_chunks import STATISTICS, RowChunks, choose_level, summarise
from gradlens.run import FloatArray, Run

FACTORS: dict[str, tuple[str, ...]] = {COHERENT_GRAD_NORM: (PARAM_GRAD_NORM, GRAD_COHERENCE)}
"""Derived metric to its factors; the metric is their product."""
CHUNK = 65_536
"""Rows that are read at once: as many as in the largest chunk."""
OF_HALVES = (GRAD_COHERENCE, COHERENT_GRAD_NORM)
"""Metrics that compare two halves of one batch."""


def say_caution(metric: str) -> str:
    """Return a caution for readers of a metric, or "".

    Batch norm's backward pass subtracts the mean over the batch. So the gradient w.r.t. its input sums to 0 over all
    examples: an excess in the first half is a deficit in the second. Measured at initialisation on the embedded data
    (64 pixels, 32 images, seeds 0 to 2, mean over hidden layers): the cosine between halves of one batch is -0.15
    (plain34) and -0.16 (resnet34), between two separate batches -0.01 and +0.07.

    Args:
        metric: A metric's name.

    Source: Ioffe & Szegedy 2015, Batch Normalization, section 3.
    """
    if metric not in OF_HALVES:
        return ""
    return (
        "Both halves are from one batch. Under batch norm their gradients sum to 0 in the direction that all images "
        "share, which lowers the cosine: a value below 0 then does not mean that images disagree. "
        "batch_coherence compares whole batches."
    )


class _Metrics(Mapping[str, FloatArray]):
    """A run's metrics and the derived ones, which are computed on access."""

    def __init__(self, run: Run, derived: tuple[str, ...]) -> None:
        self._run = run
        self._derived = derived

    def __iter__(self) -> Iterator[str]:
        yield from self._run.metrics
        yield from self._derived

    def __len__(self) -> int:
        return len(self._run.metrics) + len(self._derived)

    def __getitem__(self, name: str) -> FloatArray:
        if name not in self._derived:
            return self._run.metrics[name]
        return self.read_rows(name, 0, len(self._run.steps))

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Return rows ``start`` to ``stop - 1`` of a metric, (stop - start, L)."""
        if name not in self._derived:
            return self._run.metric_rows(name, start, stop)
        first, *others = (np.asarray(self._run.metric_rows(factor, start, stop)) for factor in FACTORS[name])
        with np.errstate(invalid="ignore", over="ignore"):  # inf times 0 gives NaN
            for other in others:
                first = first * other
        return first

    def read_chunks(self, name: str, start: int, stop: int, least: int) -> RowChunks:
        """Return statistics of at least ``least`` chunks of rows."""
        if name not in self._derived:
            return self._run.row_chunks(name, least=least, start=start, stop=stop)
        level = choose_level(stop - start, least)
        parts = []
        for begin in range(start, stop, CHUNK):
            rows = self.read_rows(name, begin, min(begin + CHUNK, stop))
            parts.append(summarise(rows, np.arange(0, len(rows), level), linear=is_linear(name)))
        none = np.empty((0, len(self._run.layers), len(STATISTICS)))
        edges = np.append(np.arange(start, stop, level), stop)
        return RowChunks(edges, np.concatenate(parts) if parts else none)


def with_derived(run: Run) -> Run:
    """Return the run with all derived metrics whose factors it holds; they are computed on access."""
    derived = tuple(
        name
        for name, factors in FACTORS.items()
        if name not in run.metrics and all(factor in run.metrics for factor in factors)
    )
    return replace(run, metrics=_Metrics(run, derived)) if derived else run


def check_metric(run: Run, name: str) -> None:
    """Raise an error if a run lacks a metric, or a factor of a derived metric.

    Args:
        run: The run.
        name: A metric's name.

    Raises:
        ConfigError: The run lacks the metric or a factor of it; the message says how to record it.
    """
    if name in FACTORS and name not in run.metrics:
        missing = [factor for factor in FACTORS[name] if factor not in run.metrics]
        if missing:
            raise ConfigError(
                f"run {run.name} lacks {' and '.join(missing)}; {name} is computed as {' x '.join(FACTORS[name])}",
                tip=f"record it: gradlens run MODEL --metrics {','.join(missing)}",
            )
    run.metric_rows(name, 0, 0)
