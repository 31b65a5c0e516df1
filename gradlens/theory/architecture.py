"""Recognise the architecture of a network from its run file: convolutions and residual blocks, or a stack of layers.

A run file has each layer's name, kind, output size and parameter count. For networks that ``gradlens run`` trains by
name, the rest follows from the name. For other stacks, no layer shows the activation function or whether there is batch
norm: both are read from the run's configuration
(``record(info={"config": {"activation": "relu", "norm": "none"}})``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradlens.errors import ConfigError
from gradlens.metrics import PARAM_NORM
from gradlens.run import Layer, Run
from gradlens.specs import parse_model
from gradlens.theory.laws import ACTIVATIONS, Activation, default_variance, he_variance
from gradlens.theory.mean_field import Conv
from gradlens.theory.mean_field_residual import Block

STEMS = {7: (64, 2, 3), 3: (16, 1, 1)}
"""Kernel size of the first convolution to its channels, stride and padding: the ImageNet and the CIFAR family."""
POOL = (3, 2, 1)
"""Kernel size, stride and padding of the max pooling after the ImageNet stem."""
TORCHVISION_TWINS = ("resnet18", "resnet34")
"""torchvision's models of the same architecture, with option B and He initialisation."""


@dataclass(frozen=True)
class Net:
    """A plain or residual network of He et al. 2015, as ``gradlens run`` builds it.

    Args:
        residual: Whether it has shortcuts.
        norm: Whether it has batch norm.
        batch: Number of images in a batch.
        stem: The first convolution.
        blocks: Pairs of convolutions; those of a plain network have no projection.
    """

    residual: bool
    norm: bool
    batch: int
    stem: Conv
    blocks: tuple[Block, ...]

    @property
    def convs(self) -> list[Conv]:
        """All convolutions on the main path, input first."""
        return [self.stem, *(conv for block in self.blocks for conv in (block.first, block.second))]

    @property
    def pooled(self) -> bool:
        """Whether a max pooling follows the stem."""
        return self.stem.kernel == 7


def recognise_net(run: Run) -> Net | None:
    """Recognise a network of the plain and residual families.

    Args:
        run: The run.

    Returns:
        The network; None where the shapes of any layer do not agree with it.
    """
    built = _family(run)
    side = run.config.get("image_size")
    main = [run.layers[i] for i in run.main_layers()]
    if built is None or not isinstance(side, int) or len(main) < 4 or main[-1].kind != "Linear":
        return None
    if any(layer.calls != 1 for layer in main):  # with micro-batches, batch norm sees a smaller batch
        return None
    residual, norm, init, shortcut = built
    sizes = {3 * c * k * k + (0 if norm else c): k for k, (c, _, _) in STEMS.items()}
    kernel = sizes.get(main[0].param_numel)
    if kernel is None:
        return None
    channels, stride, padding = STEMS[kernel]
    stem = _conv(3, channels, kernel, stride, padding, side, init)
    blocks = _blocks(main[1:-1], stem, init, shortcut if residual else None)
    batch, rest = divmod(main[0].out_numel, channels * stem.places)
    network = Net(residual, norm, batch, stem, tuple(blocks))
    return network if rest == 0 and batch >= 2 and _agrees(network, main[:-1]) else None


def _family(run: Run) -> tuple[bool, bool, str, str] | None:
    """Return whether the model is residual, whether it has batch norm, its initialisation, and its shortcut option."""
    try:
        spec = parse_model(run.model)
    except ConfigError:
        return None
    if spec.source == "registry" and (spec.carries, spec.branch, spec.activation) != ("both", "whole", "relu"):
        return None  # there is no theory of these variants here
    if spec.source == "registry":
        init, shortcut = (str(run.config.get(key, "")) for key in ("init", "shortcut"))
        known = init in ("he", "default") and shortcut in ("A", "B") and spec.depth == len(run.main_layers())
        return (spec.family == "resnet", spec.norm, init, shortcut) if known else None
    if spec.source == "torchvision" and spec.location in TORCHVISION_TWINS:
        return True, True, "he", "B"
    return None


def _conv(inputs: int, outputs: int, kernel: int, stride: int, padding: int, side: int, init: str) -> Conv:
    area = kernel * kernel
    variance = he_variance(outputs * area) if init == "he" else default_variance(inputs * area)
    return Conv(inputs, outputs, kernel, stride, padding, side, variance)


def _blocks(layers: list[Layer], stem: Conv, init: str, shortcut: str | None) -> list[Block]:
    """Return the blocks, with stages taken from the layers' names: ``layer2.0.conv1`` begins stage 2."""
    kernel, stride, padding = POOL
    side = (stem.out_side + 2 * padding - kernel) // stride + 1 if stem.kernel == 7 else stem.out_side
    inputs, stage, blocks = stem.outputs, "", []
    for first in layers[::2]:
        new_stage = first.stage != stage and stage != ""
        outputs, step = (inputs * 2, 2) if new_stage else (inputs, 1)
        one = _conv(inputs, outputs, 3, step, 1, side, init)
        projection = _conv(inputs, outputs, 1, step, 0, side, init) if new_stage and shortcut == "B" else None
        blocks.append(Block(one, _conv(outputs, outputs, 3, 1, 1, one.out_side, init), projection))
        inputs, stage, side = outputs, first.stage, one.out_side
    return blocks


def _agrees(network: Net, layers: list[Layer]) -> bool:
    """Return whether every layer has the shapes that the network implies."""
    if len(network.convs) != len(layers):
        return False
    for conv, layer in zip(network.convs, layers, strict=True):
        weights = conv.inputs * conv.outputs * conv.kernel**2 + (0 if network.norm else conv.outputs)
        if (layer.kind, layer.param_numel) != ("Conv2d", weights):
            return False
        if layer.out_numel != network.batch * conv.outputs * conv.places:
            return False
    return True


@dataclass(frozen=True)
class Stack:
    """A sequence of layers with the same activation function, ending in a linear output layer.

    Args:
        activation: The activation function after each hidden layer.
        norm: Whether batch norm precedes the activation function.
        batch: Number of examples in a batch.
        hidden: The hidden layers. A fully connected layer is a convolution with kernel size 1 on maps of size 1. The
            ``inputs`` of the first layer may be 0, which means unknown; they are not needed.
    """

    activation: Activation
    norm: bool
    batch: int
    hidden: tuple[Conv, ...]


def recognise_stack(run: Run) -> Stack | None:
    """Recognise a fully connected network, or convolutions of one map size with a linear output layer.

    The configuration must contain ``activation`` ("relu" or "linear") and ``norm`` ("none" or "batch"), and for
    convolutions ``batch_size``. Widths follow from the layers' shapes, if exactly one interpretation fits. The variance
    of the weights follows from ``param_norm`` in the first row.

    Args:
        run: The run.

    Returns:
        The stack; None where the run has too little information.
    """
    activation = next((a for a in ACTIVATIONS if a == run.config.get("activation")), None)
    norm = {"none": False, "batch": True}.get(str(run.config.get("norm")))
    main = [run.layers[i] for i in run.main_layers()]
    if activation is None or norm is None or len(main) < 3 or any(layer.calls != 1 for layer in main):
        return None
    if {layer.kind for layer in main} == {"Linear"}:
        read = _read_linear(main)
    elif {layer.kind for layer in main[:-1]} == {"Conv2d"} and main[-1].kind == "Linear":
        read = _read_convs(main[:-1], run.config.get("batch_size"))
    else:
        return None
    variances = _variances(run, read[1], read[2]) if read else None
    if read is None or variances is None:
        return None
    batch, hidden, _ = read
    measured = tuple(
        Conv(c.inputs, c.outputs, c.kernel, c.stride, c.padding, c.side, float(v))
        for c, v in zip(hidden, variances, strict=True)
    )
    return Stack(activation, norm, batch, measured)


Reading = tuple[int, list[Conv], bool]
"""The batch size, the hidden layers, and whether layers have a bias."""


def _read_linear(layers: list[Layer]) -> Reading | None:
    """Find the batch size for which the widths agree with the parameter counts of all layers."""
    found: list[Reading] = []
    common = math.gcd(*(layer.out_numel for layer in layers))
    small = [b for b in range(1, math.isqrt(common) + 1) if common % b == 0]
    for batch, bias in itertools.product({*small, *(common // b for b in small)}, (True, False)):
        widths = [layer.out_numel // batch for layer in layers]
        fits = all(
            layer.param_numel == after * (before + bias)
            for before, after, layer in zip(widths, widths[1:], layers[1:], strict=False)
        )
        inputs = layers[0].param_numel / widths[0] - bias
        if fits and inputs >= 1 and inputs == int(inputs):
            fans = [int(inputs), *widths]
            found.append((batch, [Conv(i, o, 1, 1, 0, 1, 0.0) for i, o in itertools.pairwise(fans[:-1])], bias))
    return found[0] if len(found) == 1 else None


def _read_convs(layers: list[Layer], batch: object) -> Reading | None:
    """Find kernel sizes and channels that agree with all parameter counts and outputs, for maps of constant size."""
    if not isinstance(batch, int) or batch < 1:
        return None
    found = [
        (batch, list(convs), bias)
        for bias in (True, False)
        for inputs in (1, 3)
        for convs in _chains(layers, batch, inputs, bias)
    ]
    return found[0] if len(found) == 1 else None


def _chains(layers: list[Layer], batch: int, inputs: int, bias: bool, side: int = 0) -> Iterator[tuple[Conv, ...]]:
    if not layers:
        yield ()
        return
    for kernel in (1, 3, 5, 7):
        outputs, rest = divmod(layers[0].param_numel, inputs * kernel * kernel + bias)
        if rest or not outputs or layers[0].out_numel % (batch * outputs):
            continue
        found = math.isqrt(layers[0].out_numel // (batch * outputs))
        if found**2 * outputs * batch == layers[0].out_numel and side in (0, found):
            conv = Conv(inputs, outputs, kernel, 1, kernel // 2, found, 0.0)
            for others in _chains(layers[1:], batch, outputs, bias, found):
                yield (conv, *others)


def _variances(run: Run, hidden: list[Conv], bias: bool) -> list[float] | None:
    """Return the variance of each layer's weights in the first row; biases are assumed to be PyTorch's default."""
    if PARAM_NORM not in run.metrics or not len(run.steps) or run.steps[0] != 0:
        return None
    norms = np.asarray(run.metric_rows(PARAM_NORM, 0, 1), dtype=np.float64)[0][run.main_layers()][:-1]
    found = []
    for norm, conv in zip(norms, hidden, strict=True):
        fan_in = conv.inputs * conv.kernel**2
        square = norm**2 - (conv.outputs * default_variance(fan_in) if bias else 0.0)
        found.append(square / (fan_in * conv.outputs))
    return found if all(math.isfinite(v) and v > 0 for v in found) else None
