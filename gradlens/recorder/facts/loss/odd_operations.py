"""Operations that are odd by themselves, whatever the loss: an output added to itself, a clamp, a softmax over one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch.autograd.function import BackwardCFunction

from gradlens.recorder.facts.loss.graph_reading import (
    VIEWS,
    WEIGHTED,
    Facts,
    children,
    dim_of,
    labels_of,
    op_of,
    saved,
    shape_of,
    through_views,
)

CLAMPS = {"Clamp", "ClampMin", "ClampMax", "Hardtanh"}
"""Operations whose derivative is 0 outside a range."""
KINKED = {"ThresholdBackward": "Relu", "LeakyReluBackward": "LeakyRelu", "HardtanhBackward": "Hardtanh"}
"""Operations that the derivative of a piecewise linear function leaves in a graph, each with that function."""
COMPARED = {"Sub", "MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss"}
"""Operations that compare two tensors."""
LOGARITHMS = {"Log", "Log2", "Log10", "Xlogy"}
BOUNDED = {"Sigmoid", "Tanh"}
SOFTMAX = {"Softmax", "LogSoftmax"}


@dataclass(frozen=True, slots=True)
class Place:
    """An operation in the graph of a loss, and what is known of it from the input to here.

    Args:
        node: Its node.
        op: Its name.
        below: The nodes whose results it uses.
        names: Names of the modules whose output it made.
        near: The nearest module toward the input, or the one whose output it made; None where there is none.
        before: Node to the nearest module toward the input.
        known: ``id`` of the model's parameters to the names of their layers.
    """

    node: Any
    op: str
    below: Sequence[Any]
    names: Sequence[str]
    near: str | None
    before: Mapping[Any, str]
    known: Mapping[int, str]

    @property
    def is_doubled(self) -> bool:
        """Whether it uses one result twice."""
        return len(self.below) == 2 and self.node.next_functions[0] == self.node.next_functions[1]


def clamped_parameter(place: Place) -> list[Facts]:
    """Return the layer of which a clamp gets a parameter."""
    if not place.below or op_of(place.below[0]) != "AccumulateGrad":
        return []
    layer = place.known.get(id(place.below[0].variable))
    return [] if layer is None else [{"op": place.op, "layer": layer}]


def curvature(place: Place) -> list[Facts]:
    """Return the piecewise linear function through whose derivative passes what has a graph: a second derivative."""
    if len(place.below) != 1:
        return []
    return [{"op": KINKED[place.op], "layer": place.before.get(place.below[0])}]


def doubled(place: Place) -> list[Facts]:
    """Return the module whose output is added to itself."""
    if not (place.is_doubled and place.near and len(shape_of(place.node)) > 1):
        return []
    return [{"layer": place.near}]


def with_itself(place: Place) -> list[Facts]:
    """Return the module whose output is compared with itself, with or without a graph."""
    if not place.near or not (place.is_doubled or _has_same_target(place.node)):
        return []
    return [{"op": place.op, "layer": place.near}]


def _has_same_target(loss: Any) -> bool:
    """Return whether a loss compares a tensor with itself, or with the same numbers without a graph."""
    values, target = saved(loss, "self"), saved(loss, "target")
    if values is None or target is None or values.shape != target.shape or values.stride() != target.stride():
        return False
    return values.device.type != "meta" and values.data_ptr() == target.data_ptr()


def divided_by_itself(place: Place) -> list[Facts]:
    """Return what is divided by its own sum over one element, to which a small number may be added."""
    if len(place.below) != 2 or not place.near:
        return []
    part, total = place.below
    while op_of(total) in ("Add", "Clamp", "ClampMin", *VIEWS) and len(children(total)) == 1:
        total = children(total)[0][0]
    summed = children(total)
    if op_of(total) != "Sum" or len(summed) != 1 or through_views(summed[0][0])[0] is not through_views(part)[0]:
        return []
    if not prod(shape_of(*summed[0])) == prod(shape_of(total)) > 1:
        return []
    return [{"layer": place.near, "shape": list(shape_of(place.node))}]


def written_by_hand(place: Place) -> list[Facts]:
    """Return an operation whose backward pass is the user's: no C++ of torch, and no Python of torch's own."""
    made = getattr(type(place.node), "_forward_cls", None) if isinstance(place.node, BackwardCFunction) else None
    if not place.below or made is None or str(made.__module__).startswith("torch."):
        return []
    return [{"name": place.op, "layer": place.near}]


def own_functions(nodes: Sequence[Any]) -> list[Facts]:
    """Return the autograd functions of a program's own, in Python, that get parameters or other leaves.

    Args:
        nodes: All nodes of a graph.
    """
    own = [node for node in nodes if isinstance(node, BackwardCFunction)]
    names = {op_of(node) for node in own if any(op_of(child) == "AccumulateGrad" for child, _ in children(node))}
    return [{"op": name} for name in sorted(names)]


def stacked_layers(place: Place) -> list[Facts]:
    """Return layers with weights whose output goes into the next one with nothing but views between them."""
    if not place.names:
        return []
    made = [through_views(child) for child in place.below]
    return [{"layer": under[0], "next": place.names[0]} for node, under in made if under and op_of(node) in WEIGHTED]


def bounded_output(place: Place) -> list[Facts]:
    """Return the modules whose output goes into a tanh or sigmoid."""
    made = [through_views(child)[1] for child in place.below]
    return [{"op": place.op, "layer": labels[0]} for labels in made if labels]


def log_of_log(place: Place) -> list[Facts]:
    """Return a logarithm of what is a logarithm of probabilities already."""
    return [
        {"op": place.op, "of": op_of(node), "layer": labels[0] if labels else None}
        for node, labels in [through_views(child) for child in place.below][:1]
        if op_of(node) in ("LogSoftmax", "LogSigmoid")
    ]


def softmax_dim(place: Place) -> list[Facts]:
    """Return a softmax over one element, or over the first of several dimensions."""
    shape = shape_of(place.node)
    dim = dim_of(place.node, len(shape))
    if dim is None or not shape or not (shape[dim] == 1 or (dim == 0 and len(shape) > 1)):
        return []
    behind = [label for child in place.below for label in through_views(child)[1][:1]]
    fact = {"op": place.op, "layer": place.names[0] if place.names else None, "dim": dim, "shape": list(shape)}
    return [fact | {"behind": behind[0] if behind else None, "elements": shape[dim]}]


def near_flat(place: Place, after: str | None) -> Facts:
    """Describe an operation whose derivative is 0 everywhere.

    Args:
        place: The operation.
        after: The nearest module toward the loss, or None.

    Returns:
        Its ``op``, ``layer`` (the nearest module toward the input, or None), ``next`` and ``weights``.
    """
    nearest = next((place.before[child] for child in place.below if child in place.before), None)
    return {"op": place.op, "layer": nearest, "next": after, "weights": _weights_under(place.node, place.known)}


def _weights_under(node: Any, known: Mapping[int, str]) -> str | None:
    """Return the layer whose parameter an operation gets, and nothing else that has a graph; None for other inputs."""
    while len(below := children(node)) == 1 and not labels_of(below[0][0]):
        node = below[0][0]
        if op_of(node) == "AccumulateGrad":
            return known.get(id(node.variable))
    return None
