"""Find weights that only a penalty uses, beside others of the same module that only the model's output uses."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import nn

from gradlens.recorder.facts.loss.graph_reading import MODEL_KEY, VIEWS, Facts, children, has_label, op_of, shape_of
from gradlens.recorder.facts.loss.graph_walk import Reading
from gradlens.recorder.layers import clean_name
from gradlens.recorder.registered_parameters import registered_parameters

TOTALS = {"Sum", "Mean", "Norm", "LinalgVectorNorm"}
ELEMENTWISE = VIEWS | {
    "Add", "Sub", "Rsub", "Mul", "Div", "Neg", "Pow", "Square", "Exp", "Log", "Log1P", "Sqrt", "Rsqrt", "Abs",
    "Softplus", "Sigmoid", "Clamp", "ClampMin", "ClampMax", "Reciprocal",
}  # fmt: skip


def penalised_instead(roots: list[Any], graph: Reading, model: nn.Module, known: Mapping[int, str]) -> list[Facts]:
    """Describe weights that the loss reaches beside the model's output and never through it.

    Args:
        roots: The last nodes of the loss's graph.
        graph: What was read of it.
        model: The model.
        known: ``id`` of the model's parameters to their modules.

    Returns:
        Facts: ``layer``, ``name`` (of weights that the model's output does not depend on), ``instead`` (of weights of
        the same module and shape on which it depends; the rest of the loss leaves out all of these).
    """
    if not graph.has_model or not graph.complete:
        return []
    only = {key for key in graph.leaves if key in known and key not in graph.inside and graph.leaves[key].dim() > 1}
    if not only:
        return []
    beside, found = _beside(roots), list[Facts]()
    for name, module in model.named_modules():
        own = registered_parameters(module)
        for key, parameter in own.items():
            if id(parameter) not in only & beside or not _is_whole(parameter, graph.nodes):
                continue
            others = [
                other
                for other, weights in own.items()
                if weights.shape == parameter.shape and id(weights) in graph.inside
            ]
            if others and beside.isdisjoint(id(own[other]) for other in others):
                found.append({"layer": clean_name(name) or "(model)", "name": key, "instead": others[0]})
    return found


def _is_whole(parameter: nn.Parameter, nodes: list[Any]) -> bool:
    """Return whether weights are taken as a whole, and elementwise, until they are summed up: as in a penalty.

    Where some of their rows are chosen, or data are compared with them, they are trained by data.
    """
    touched: set[Any] = set()
    for node in nodes:
        if op_of(node) == "AccumulateGrad":
            touched |= {node} if node.variable is parameter else set()
        elif any(child in touched for child, _ in children(node)):
            if op_of(node) in TOTALS:
                continue
            if op_of(node) not in ELEMENTWISE or prod(shape_of(node)) != parameter.numel():
                return False
            touched.add(node)
    return True


def _beside(roots: list[Any]) -> set[int]:
    """Return ``id`` of the leaves that a loss reaches without an output of the model as a whole."""
    stack, seen, found = list(roots), set(roots), set[int]()
    while stack:
        node = stack.pop()
        if has_label(node, MODEL_KEY):
            continue
        if op_of(node) == "AccumulateGrad":
            found.add(id(node.variable))
        for child, _ in children(node):
            if child not in seen:
                seen.add(child)
                stack.append(child)
    return found
