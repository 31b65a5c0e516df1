"""The numbers of a run that the claims use: from a run file, or from kept numbers (``gradlens.study.kept_numbers``).

Numbers of rows are rounded to four decimals before anything is computed from them, so that kept numbers are small and
give the same verdicts as the run files, digit by digit. Shapes: T rows, B residual blocks, E epochs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gradlens.analysis.gradient_ratio import GradientRatio, compare_layers, gradient_ratio
from gradlens.analysis.profile import element_scale, is_long, layer_values
from gradlens.diagnosis.diagnose import diagnose
from gradlens.metrics import ACTIVATION_GRAD_NORM, METRICS_OF_PATHS, PARAM_GRAD_NORM, PARAM_NORM
from gradlens.run import FloatArray, Run

DECIMALS = 4
"""A ratio is kept to 0.0001 decades, 0.02 %."""
COLUMNS = ("train_accuracy", "val_accuracy", "train_loss", "val_loss")
"""The columns of the table of epochs that the claims use."""


@dataclass(frozen=True)
class Gradients:
    """Gradient ratios of the first to the last hidden layer, in decades, row by row.

    Args:
        rows: Number of rows of the run.
        known: Number of rows in which ``ratio`` is known.
        steps: (T,) optimizer steps of the rows in which a gradient is known; of chunks of rows in a long run.
        ratio: (T,) of L2 norms of the gradient at the layers' outputs; -inf and inf at exact zeros.
        elements: Root of the number of elements of the last hidden layer's output over that of the first, in decades;
            ``ratio`` plus this is the ratio per element.
        product: (T,) of |W| |dL/dW|, the norms of the layers' parameters and of their gradient; NaN where not recorded.
        at_norms: (T,) of gradients per element at the outputs of the first and last norm layer; NaN where not recorded.
        loss: (T,) loss; NaN where not recorded.
    """

    rows: int
    known: int
    steps: FloatArray
    ratio: FloatArray
    elements: float
    product: FloatArray
    at_norms: FloatArray
    loss: FloatArray


class StudyRun:
    """What the claims need of a run.

    Args:
        run: The run; its rows are read when they are first asked for.
    """

    def __init__(self, run: Run) -> None:
        self.source: Run | None = run
        self.name, self.place = run.name, str(run.path)
        self.model, self.seed, self.status = run.model, run.seed, str(run.status)
        self.config: Mapping[str, Any] = run.config
        self.epochs: dict[str, FloatArray] = {
            name: np.asarray(run.epochs[name], dtype=np.float64) for name in COLUMNS if name in run.epochs
        }  # fmt: skip
        loss = np.asarray(run.scalars.get("loss", np.empty(0)), dtype=np.float64)
        self.diverged = self.status == "failed" and len(loss) > 0 and not bool(np.isfinite(loss[-1]))

    @property
    def run(self) -> Run:
        """The run itself.

        Raises:
            ValueError: Only numbers of it were kept.
        """
        if self.source is None:
            raise ValueError(f"only numbers of {self.name} were kept")
        return self.source

    @cached_property
    def gradients(self) -> Gradients | None:
        """The gradient ratios; None where no gradient is known at three layers or more."""
        return read_gradients(self.run)

    @cached_property
    def shares(self) -> FloatArray:
        """(T, B) shares of the gradient that came through the shortcut of each block; (0, 0) where not recorded."""
        return rounded(block_shares(self.run))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the diagnosis, the main one first."""
        found = diagnose(self.run)
        return (found.kind, *found.kinds)


def as_study_run(run: Run | StudyRun) -> StudyRun:
    """Return the numbers of a run."""
    return run if isinstance(run, StudyRun) else StudyRun(run)


def rounded(values: FloatArray) -> FloatArray:
    """Return values rounded to ``DECIMALS``, without minus zero."""
    return np.round(np.asarray(values, dtype=np.float64), DECIMALS) + 0.0


def read_gradients(run: Run) -> Gradients | None:
    """Read the gradient ratios of a run.

    |W| |dL/dW| stays the same where a layer's weights are multiplied by c behind a norm, or by c and the next layer's
    by 1/c between ReLUs: the gradient is divided by what the weights are multiplied by. So does the gradient at a
    norm's output. The norm of the gradient at a layer's own output does not.

    Args:
        run: The run.

    Returns:
        The ratios; None where fewer than three layers have a gradient.

    Source: van Laarhoven 2017, L2 Regularization versus Batch and Weight Normalization, sec. 2; for ReLU networks Dinh
        et al. 2017, arXiv:1703.04933, sec. 3.
    """
    ratio = gradient_ratio(run)
    if ratio is None:
        return None
    unknown = np.full(len(ratio.rows), np.nan)
    loss = run.scalars.get("loss")
    short = not is_long(run, slice(None))
    first, last = (run.layers[int(ratio.indices[i])].out_numel for i in (0, -2))
    return Gradients(
        rows=len(run.steps),
        known=ratio.rows_known,
        steps=np.asarray(run.steps[ratio.rows], dtype=np.float64),
        ratio=rounded(ratio.first_decades),
        elements=math.log10(last / first) / 2 if first > 0 and last > 0 else math.nan,
        product=rounded(_products(run, ratio)) if short else unknown,
        at_norms=rounded(_at_norms(run, ratio)) if short else unknown,
        loss=unknown if loss is None else rounded(np.asarray(loss, dtype=np.float64)[ratio.rows]),
    )


def _products(run: Run, ratio: GradientRatio) -> FloatArray:
    """Return the ratio of |W| |dL/dW| in the rows of ``ratio``, (T,)."""
    found = np.full(len(run.steps), np.nan)
    if {PARAM_NORM, PARAM_GRAD_NORM} <= set(run.metrics):
        with np.errstate(over="ignore", invalid="ignore"):
            products = layer_values(run, PARAM_NORM) * layer_values(run, PARAM_GRAD_NORM)
        compared = compare_layers(run, np.where(np.isfinite(products), products, np.nan))
        if compared is not None and (compared.first, compared.last) == (ratio.first, ratio.last):
            found[compared.rows] = compared.first_decades
    return found[ratio.rows]


def _at_norms(run: Run, ratio: GradientRatio) -> FloatArray:
    """Return the ratio of the first norm layer's gradient per element to the last one's in the rows, (T,)."""
    norms = [i for i, layer in enumerate(run.layers) if layer.role == "norm" and layer.out_numel > 0]
    if len(norms) < 2:
        return np.full(len(ratio.rows), np.nan)
    values = layer_values(run, ACTIVATION_GRAD_NORM)[ratio.rows] / element_scale(run, ACTIVATION_GRAD_NORM)
    first, last = values[:, norms[0]], values[:, norms[-1]]
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.log10(first) - np.log10(last)
    return np.where(np.isfinite(first) & np.isfinite(last) & (first + last > 0), decades, np.nan)


def block_shares(run: Run) -> FloatArray:
    """Return the share of the gradient at each residual block's input that came through its shortcut.

    Let S and B be the norms of the parts through shortcut and branch, and c their cosine. The sum of both has the
    squared norm S^2 + B^2 + 2cSB. The projection of the shortcut's part on the sum contributes S^2 + cSB to it. Both
    shares add up to 1; a share is above 1 if the other part points against the sum. Where a shortcut passes nothing,
    its share is 0.

    Args:
        run: The run.

    Returns:
        (T, B): rows in which the paths were recorded, and blocks, input first; (0, 0) where they were not.
    """
    if not all(name in run.metrics for name in METRICS_OF_PATHS):
        return np.empty((0, 0))
    short, branch, cosine = (layer_values(run, name) for name in METRICS_OF_PATHS)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # layers that are in no block
        largest = np.maximum(short, branch)
        short, branch = short / largest, branch / largest  # squares of tiny norms would underflow
        cosine = np.where((short == 0) | (branch == 0), 0.0, cosine)  # a cosine with nothing is not known
        whole = short**2 + branch**2 + 2 * cosine * short * branch
        shares = np.where(whole > 0, (short**2 + cosine * short * branch) / whole, np.nan)
    known = np.isfinite(shares)
    if not known.any():
        return np.empty((0, 0))
    return np.asarray(shares[np.ix_(known.any(axis=1), known.any(axis=0))])
