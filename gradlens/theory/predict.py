"""The profile that theory predicts for a run at initialisation, and the deviation of a measured one from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.gradient_ratio import gradient_ratio
from gradlens.metrics import ACTIVATION_GRAD_NORM
from gradlens.run import FloatArray, Run
from gradlens.theory.architecture import Net, Stack, recognise_net, recognise_stack
from gradlens.theory.laws import DECADES, Activation, LogNormal, batch_norm_growth, norm_ratio
from gradlens.theory.mean_field import Conv, plain_gains
from gradlens.theory.mean_field_residual import residual_gains

RELU_SPREAD, LINEAR_SPREAD = 5.0, 2.0
"""Variance of ln of the squared norm per layer, times its width (Hanin & Nica 2019)."""
NET_ERROR = 0.03
"""Error of the theory of convolutional networks itself, in decades, found in comparison with measurements; it comes on
top of the spread between seeds."""


@dataclass(frozen=True)
class Prediction:
    """The activation gradient's profile at initialisation, relative to the last hidden layer.

    Args:
        layers: (M,) indices of the run's main layers, input first, the output layer included.
        decades: (M,) log10 of the root mean square of the norm over initialisations, minus that of the last hidden
            layer; NaN where theory needs information that is not in the file: at the output layer, and with batch norm
            at the first layers, whose norm depends on the data.
        spread: (M,) standard deviation between seeds, in decades, by Hanin & Nica 2019 with channels as widths. It is
            exact for one input of a fully connected network; it is an upper bound for a batch and for maps, because
            norms average over them.
        source: Authors and years of the laws.
        validity: Conditions under which the prediction holds, in a sentence.
        error: Error of the theory itself, in decades.
    """

    layers: NDArray[np.int64]
    decades: FloatArray
    spread: FloatArray
    source: str
    validity: str
    error: float = 0.0

    def per_element(self, run: Run) -> FloatArray:
        """Return ``decades`` for the root mean square per element instead of the L2 norm, (M,).

        Args:
            run: The run to which the prediction belongs.
        """
        numel = np.array([run.layers[i].out_numel for i in self.layers], dtype=np.float64)
        return np.asarray(self.decades - (np.log10(numel) - np.log10(numel[-2])) / 2)


def predicted_profile(run: Run) -> Prediction | None:
    """Predict the profile of ``activation_grad_norm`` before the first step.

    There are predictions for the plain and residual networks that ``gradlens run`` builds by name (including
    torchvision's resnet18 and resnet34), for fully connected stacks, and for convolutions that keep their map's size;
    see ``gradlens.theory.architecture``.

    Args:
        run: The run.

    Returns:
        The prediction; None where the run file has too little information.
    """
    network = recognise_net(run)
    if network is not None:
        return _predict_net(run, network)
    stack = recognise_stack(run)
    return _predict_stack(run, stack) if stack is not None else None


def first_profile(run: Run, *, per_element: bool = False) -> FloatArray | None:
    """Return the measured profile of the first step, in decades relative to the last hidden layer.

    Args:
        run: The run.
        per_element: Use the root mean square per element instead of the L2 norm.

    Returns:
        (M,) decades over the main layers, or None where step 0 was not recorded. NaN where a norm is unknown or not
        finite, -inf where it is 0.
    """
    main = run.main_layers()
    if ACTIVATION_GRAD_NORM not in run.metrics or len(main) < 3 or not len(run.steps) or run.steps[0] != 0:
        return None
    found = np.full(len(main), np.nan)
    ratio = gradient_ratio(run, rows=slice(0, 1), per_element=per_element)
    if ratio is not None and len(ratio.rows) and ratio.indices[-2] == main[-2]:
        places = {int(i): place for place, i in enumerate(main)}
        found[[places[int(i)] for i in ratio.indices]] = ratio.decades[0]
    return found


def deviation(prediction: Prediction, measured: FloatArray) -> FloatArray:
    """Return the deviation of a measured profile from the prediction, in standard deviations between seeds.

    The squared error of the theory is added to the squared spread. Beyond about 3, the network differs from the one in
    the theory: it is not at initialisation, or its weights or its architecture are different. For batches and maps the
    spread is an upper bound, so that small deviations are common.

    Args:
        prediction: The prediction.
        measured: (M,) decades relative to the last hidden layer, as from ``first_profile``.

    Returns:
        (M,) measured minus predicted, in standard deviations. NaN where there is no prediction or measurement, and at
        the last hidden layer; -inf at exact zeros.
    """
    spread = np.where(prediction.spread > 0, np.hypot(prediction.spread, prediction.error), np.nan)
    return np.asarray((measured - prediction.decades) / spread)


def say_deviation(deviations: float, *, digits: int = 1) -> str:
    """Return a deviation from theory as text: "3.0 standard deviations below theory".

    Args:
        deviations: Measured minus predicted, in predicted standard deviations between seeds.
        digits: Number of decimals.
    """
    side = "below" if deviations < 0 else "above"
    if math.isinf(deviations):  # a gradient that is exactly 0
        return f"infinitely far {side} theory"
    size = f"{abs(deviations):.{digits}f}"
    return f"{size} standard {'deviation' if float(size) == 1 else 'deviations'} {side} theory"


def first_predicted(prediction: Prediction) -> int:
    """Return the position in ``prediction.layers`` of the first layer with a prediction; -1 where none has one.

    Args:
        prediction: The prediction.
    """
    known = np.flatnonzero(np.isfinite(prediction.decades))
    return int(known[0]) if len(known) else -1


# --- plain and residual networks --------------------------------------------------------------------------


def _predict_net(run: Run, network: Net) -> Prediction:
    if network.residual:
        gains, shares = residual_gains(
            network.stem, network.blocks, norm=network.norm, batch=network.batch, pooled=network.pooled
        )
        variance = _residual_variance(network, shares)
    else:
        gains = plain_gains(network.convs, norm=network.norm, batch=network.batch, pooled=network.pooled)
        variance = _chain_variance(network.convs, RELU_SPREAD)
    sources = ["He et al. 2015"]
    if network.norm:
        sources.append("Yang et al. 2019")
    if network.residual and network.norm:
        sources.append("De & Smith 2020")
    validity = "at initialisation, many channels"
    if network.norm:
        validity += "; not at the first layers, which depend on the data"
    if network.norm and network.residual and network.pooled:
        validity += "; up to 0.3 decades lower in the first stage, which follows a max pooling"
    return _prediction(run, np.log10(gains) / 2, variance, sources, validity, NET_ERROR)


def _prediction(
    run: Run, decades: FloatArray, variance: FloatArray, sources: Sequence[str], validity: str, error: float
) -> Prediction:
    """Make the prediction for the main layers from the numbers of the hidden layers; the output layer has none."""
    spread = np.array([LogNormal(v).spread_decades for v in variance])
    spread[np.isnan(decades)] = np.nan
    source = ", ".join([*sources, "spread: Hanin & Nica 2019"])
    return Prediction(run.main_layers(), np.append(decades, np.nan), np.append(spread, np.nan), source, validity, error)


def _chain_variance(convs: Sequence[Conv], per_width: float) -> FloatArray:
    """Return the variance of ln of the squared norm at each layer, summed over the layers between it and the last."""
    steps = [per_width / conv.outputs for conv in convs[:-1]]
    return np.append(np.cumsum(steps[::-1])[::-1], 0.0)


def _residual_variance(network: Net, shares: FloatArray) -> FloatArray:
    """Return the same variance for a residual network, where only the branches add variance.

    A share a of a block's squared norm passes through its branch, with the relative variance 10 / channels of two
    layers. The cross term with the part through the shortcut adds 4 a (1 - a) / channels.
    """
    found, total = [], 0.0
    for block, share in zip(reversed(network.blocks), reversed(shares), strict=True):
        width = block.first.outputs
        found += [total, total + RELU_SPREAD / width]
        total += (2 * RELU_SPREAD * share**2 + 4 * share * (1 - share)) / width
    return np.array([*found, total][::-1])


# --- stacks -----------------------------------------------------------------------------------------------


def _predict_stack(run: Run, stack: Stack) -> Prediction | None:
    maps = any(conv.places > 1 for conv in stack.hidden)
    per_width = RELU_SPREAD if stack.activation == "relu" else LINEAR_SPREAD
    if stack.norm and (stack.batch < 4 or (maps and stack.activation == "linear")):
        return None
    if maps and stack.activation == "relu":
        gains = plain_gains(stack.hidden, norm=stack.norm, batch=stack.batch)
        decades: FloatArray = np.log10(gains) / 2
    elif maps:
        return None
    else:
        decades = _stack_decades(stack)
    sources = ["Yang et al. 2019"] if stack.norm else ["Glorot & Bengio 2010", "He et al. 2015"]
    validity = "at initialisation; weights independent with mean 0, scale as recorded"
    return _prediction(
        run, decades, _chain_variance(stack.hidden, per_width), sources, validity, NET_ERROR if maps else 0.0
    )


def _stack_decades(stack: Stack) -> FloatArray:
    """Return the decades of a fully connected stack's hidden layers, by the laws of ``gradlens.theory.laws``."""
    steps = [_step(stack.activation, after, stack.norm, stack.batch) for _, after in itertools.pairwise(stack.hidden)]
    decades = np.append(np.cumsum(steps[::-1])[::-1], 0.0)
    if stack.norm:
        decades[0] = np.nan
    return decades


def _step(activation: Activation, after: Conv, norm: bool, batch: int) -> float:
    if norm:
        return float(np.log(batch_norm_growth(batch, activation)) * DECADES)
    return float(np.log(norm_ratio(after.inputs, after.weight_variance, activation)) * DECADES)
