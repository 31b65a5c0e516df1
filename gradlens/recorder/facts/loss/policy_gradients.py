"""What a loss does with a policy: advantages that multiply its log-probabilities, and the sign of its entropy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from gradlens.recorder.facts.loss.graph_reading import (
    VIEWS,
    Facts,
    children,
    labels_of,
    op_of,
    saved,
    saved_factor,
    through_views,
)
from gradlens.recorder.facts.loss.signed_terms import PASSED, SIGNS, signed_terms

SELECTED = PASSED | {"Maximum", "Minimum"}
"""A clipped ratio is the smaller one of two."""
MOST_NODES = 256
LEAST_TERMS = 4
"""Log-probabilities, each multiplied by a number, that are taken for examples: fewer may be parts of a loss."""
LOGARITHMS = {"Log", "LogSoftmax", "LogSigmoid", "NllLoss", "NllLoss2D", "BinaryCrossEntropyWithLogits"}
PROBABILITIES = {"Softmax", "Sigmoid", "Exp", "LogSoftmax"}
DIFFERENCES = {"Logsumexp", "Pow"}
"""What is under the difference that is a log-probability: of a categorical and of a normal distribution."""

Kind = tuple[str, str | None]


def policy_gradients(root: Any) -> list[Facts]:
    """Describe log-probabilities, or ratios of probabilities, whose weights have no graph and both signs.

    Weights of one sign count where their squares are in the same loss: they are a critic's errors, advantages.

    Args:
        root: The loss's node.

    Returns:
        One fact, or none: ``op`` (the operation whose result is weighted), ``layer`` (the module that made it, or
        None).
    """
    numbers: dict[Kind, list[int]] = {}
    stack, seen, count = [(root, 1)], {root}, 0
    while stack and count < MOST_NODES:
        node, sign = stack.pop()
        count += 1
        op, signs = op_of(node), [sign] * len(node.next_functions)
        if factor := _factor_of(node, op):
            kind = _weighted(node)
            if kind and factor == {-1, 1}:
                return [{"op": kind[0], "layer": kind[1]}]
            signs = [sign * max(factor)] * len(signs) if len(factor) == 1 else signs
            if kind:
                numbers.setdefault(kind, []).append(signs[0])
        elif op in SIGNS:
            signs = [sign * each for each in SIGNS[op]]
        elif op == "Neg":
            signs = [-sign] * len(signs)
        elif op not in SELECTED:
            continue
        below = [(child, each) for (child, _), each in zip(node.next_functions, signs, strict=False) if child]
        stack += [item for item in below if item[0] not in seen]
        seen.update(child for child, _ in below)
    by_sign = [kind for kind, found in numbers.items() if len(found) >= LEAST_TERMS and len(set(found)) == 2]
    return [{"op": op, "layer": layer} for op, layer in by_sign or _weighted_by_errors(seen)][:1]


def _weighted_by_errors(nodes: Iterable[Any]) -> list[Kind]:
    """Return log-probabilities that are multiplied by what is squared elsewhere, by the same memory."""
    errors, weights = set[tuple[Any, ...]](), list[tuple[tuple[Any, ...], Kind]]()
    for node in nodes:
        op, below = op_of(node), children(node)
        if op == "Pow" and len(below) == 1 and getattr(node, "_saved_exponent", None) == 2:
            errors |= _memory(saved(node, "self"))
        elif op == "Mul" and len(below) == 1 and (kind := _weighted(node)):
            weights += [(memory, kind) for memory in _memory(saved_factor(node))]
    return [kind for memory, kind in weights if memory in errors]


def _memory(tensor: Tensor | None) -> set[tuple[Any, ...]]:
    """Return where a tensor's numbers lie, in a set; empty for None and for single numbers."""
    return set() if tensor is None or tensor.numel() < 2 else {(tensor.data_ptr(), tuple(tensor.shape))}


def _factor_of(node: Any, op: str) -> set[int]:
    """Return the signs of what a result is multiplied by or divided by; empty for what has a graph, or is not known."""
    factor = saved_factor(node) if op in ("Mul", "Div") and len(children(node)) == 1 else None
    if factor is None or factor.device.type != "cpu" or factor.is_complex():
        return set()
    return _signs_of(factor)


def _signs_of(factor: Tensor) -> set[int]:
    return {sign for sign in (-1, 1) if bool((factor * sign > 0).any())} or {1}


def _weighted(node: Any) -> Kind | None:
    """Return the log-probability or the ratio that a product weights, and the module that made it; else None."""
    return log_probability(children(node)[0][0])


def log_probability(end: Any) -> Kind | None:
    """Return the operation that made a log-probability or a ratio of probabilities, and its module; else None.

    Args:
        end: The node of what may be one.
    """
    names = labels_of(end)
    while (op_of(end) == "Neg" or op_of(end) in PASSED) and children(end):
        end = children(end)[0][0]
        names = labels_of(end) or names
    op = op_of(end)
    if op in LOGARITHMS or (op == "Exp" and op_of(children(end)[0][0]) in ("Sub", *VIEWS)) or _is_difference(end):
        return op, names[0] if names else None
    return None


def _is_difference(end: Any) -> bool:
    """Return whether a difference is the logarithm of a probability."""
    stack, ops = [end], set[str]()
    while stack and len(ops) < len(DIFFERENCES) * 8:
        node = stack.pop()
        ops.add(op_of(node))
        if op_of(node) in {"Sub", "Neg", "Div", *VIEWS}:
            stack += [child for child, _ in children(node)]
    return op_of(end) == "Sub" and not ops.isdisjoint(DIFFERENCES)


def trained_advantages(root: Any) -> list[Facts]:
    """Describe log-probabilities that are multiplied by a difference with a graph, of a module's output and a number.

    Args:
        root: The loss's node.

    Returns:
        One fact, or none: ``layer`` (the module whose output is in the difference), ``op`` (of the log-probability).
    """
    stack, seen, count = [root], {root}, 0
    while stack and count < MOST_NODES:
        node = stack.pop()
        count += 1
        op, below = op_of(node), [child for child, _ in children(node)]
        if op == "Mul" and len(below) == 2:
            for one, other in (below, below[::-1]):
                kind, critic = log_probability(one), _critic(other)
                if kind and critic is not None and not _is_under(critic, one):
                    return [{"layer": labels_of(critic)[0], "op": kind[0]}]
            continue
        if op in SELECTED or op in SIGNS or op == "Neg" or (op in ("Mul", "Div") and len(below) == 1):
            stack += [child for child in below if child not in seen]
            seen.update(below)
    return []


def _critic(node: Any) -> Any:
    """Return the node of a layer's output that is taken from something without a graph, or the other way; else None.

    The difference may be normalised: less its mean, over its standard deviation.
    """
    while (op := op_of(node)) in (*VIEWS, "Div", "Sub") and (below := children(node)):
        if op == "Sub" and not (len(below) == 2 and op_of(below[1][0]) == "Mean"):
            break
        node = below[0][0]
    if op_of(node) not in ("Sub", "Rsub") or len(children(node)) != 1:
        return None
    end = children(node)[0][0]
    while op_of(end) in VIEWS and len(children(end)) == 1 and not labels_of(end):
        end = children(end)[0][0]
    return end if labels_of(end) and op_of(end) not in PROBABILITIES else None


def _is_under(node: Any, top: Any) -> bool:
    """Return whether a node is near under another one: a probability and its own logarithm."""
    stack, count = [top], 0
    while stack and count < MOST_NODES:
        each = stack.pop()
        count += 1
        if each is node:
            return True
        stack += [child for child, _ in children(each)]
    return False


def entropy_signs(root: Any) -> list[Facts]:
    """Return the signs with which entropies are in a loss: 1 where it makes them smaller, -1 where larger.

    An entropy is minus the sum of p * log(p), where both have a graph (``torch.distributions.Categorical``).

    Args:
        root: The loss's node.

    Returns:
        A fact for each sign.
    """
    terms, _ = signed_terms(root, _is_entropy)
    return [{"sign": sign} for sign in sorted({-sign for _, sign in terms})]  # they are the sums of p * log(p)


def _is_entropy(node: Any) -> bool:
    """Return whether an operation is the sum of p * log(p)."""
    inner = children(node)
    if op_of(node) != "Sum" or len(inner) != 1 or op_of(inner[0][0]) != "Mul":
        return False
    factors = [through_views(child)[0] for child, _ in children(inner[0][0])]
    if len(factors) != 2 or not any(op_of(factor) == "Softmax" for factor in factors):
        return False
    other = next((factor for factor in factors if op_of(factor) != "Softmax"), None)
    while other is not None and op_of(other) in ("Clamp", "ClampMin") and children(other):
        other = through_views(children(other)[0][0])[0]
    if other is None:
        return False
    normed = op_of(other) == "Sub" and any(op_of(through_views(c)[0]) == "Logsumexp" for c, _ in children(other))
    return op_of(other) in ("LogSoftmax", "Log") or normed
