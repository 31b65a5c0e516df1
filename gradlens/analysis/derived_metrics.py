"""Metrics that are not recorded but follow from those that are.

``coherent_grad_norm`` is ``param_grad_norm`` times ``grad_coherence``. Let g1 and g2 be the gradients that two halves
of a batch have for a layer: a step of unit length along -g1 changes the loss of the other half by -g1.g2 / |g1| =
-|g2| cos(g1, g2). So it is the part of the norm that serves pictures which had no say in it. It keeps the cosine's
sign: of two halves that have nothing in common the cosine is as often negative as positive, so that the mean over rows
and seeds is 0, and an interval that holds 0 says "no signal was seen". Cut off at 0, noise alone would have a mean
above 0.

Sources: Balduzzi et al. 2017, The Shattered Gradients Problem (with depth, coherence is lost and not the norm);
Sankararaman et al. 2020, The Impact of Neural Network Overparameterization on Gradient Confusion (section 2: negative
inner products between gradients slow training down).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from gradlens.errors import ConfigError
from gradlens.metrics import is_linear
from gradlens.row_chunks import STATISTICS, RowChunks, choose_level, summarise
from gradlens.run import FloatArray, Run

FACTORS: dict[str, tuple[str, ...]] = {"coherent_grad_norm": ("param_grad_norm", "grad_coherence")}
"""Each derived metric is the product of these."""
CHUNK = 65_536
"""Rows that are read at once; the largest block is of as many."""


OF_HALVES = ("grad_coherence", "coherent_grad_norm")


def say_caution(metric: str) -> str:
    """Say what a reader of a metric must know, or "".

    Batch norm's backward pass subtracts the mean over the batch, so that the gradient w.r.t. what it normalises sums to
    0 over all examples (Ioffe & Szegedy 2015, section 3): what the first half has too much of, the second lacks.
    Measured at initialisation on the embedded data (64 pixels, 32 images, seeds 0 to 2, mean over hidden layers):
    halves of a batch -0.15 (plain34) and -0.16 (resnet34), two batches of their own -0.01 and +0.07.
    """
    if metric not in OF_HALVES:
        return ""
    return (
        "Both halves are of one batch: under batch norm their gradients sum to 0 in the direction that all pictures "
        "share, which draws the cosine below 0; a value below 0 is then no disagreement between pictures."
    )


class _Metrics(Mapping[str, FloatArray]):
    """A run's metrics, and those that follow from them; computed when asked for."""

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
        """Return some rows of a metric, (stop - start, L)."""
        if name not in self._derived:
            return self._run.metric_rows(name, start, stop)
        first, *others = (np.asarray(self._run.metric_rows(factor, start, stop)) for factor in FACTORS[name])
        with np.errstate(invalid="ignore", over="ignore"):  # inf times 0 is not known
            for other in others:
                first = first * other
        return first

    def read_blocks(self, name: str, start: int, stop: int, least: int) -> RowChunks:
        """Return statistics of at least so many blocks of rows."""
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
    """Return the run with those derived metrics whose factors it holds; nothing is read or computed yet."""
    derived = tuple(
        name
        for name, factors in FACTORS.items()
        if name not in run.metrics and all(factor in run.metrics for factor in factors)
    )
    return replace(run, metrics=_Metrics(run, derived)) if derived else run


def check_metric(run: Run, name: str) -> None:
    """Raise a ConfigError where a run lacks a metric, or one that is needed for it."""
    if name in FACTORS and name not in run.metrics:
        missing = [factor for factor in FACTORS[name] if factor not in run.metrics]
        if missing:
            raise ConfigError(
                f"run {run.name} lacks {' and '.join(missing)}: {name} is {' x '.join(FACTORS[name])}",
                tip=f"record it: gradlens run MODEL --metrics {','.join(missing)}",
            )
    run.metric_rows(name, 0, 0)
