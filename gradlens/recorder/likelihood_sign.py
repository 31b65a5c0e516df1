"""A loss that is plus a mean of log-probabilities: an optimizer makes it smaller, and what is right less likely."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradlens.recorder.graph_reading import VIEWS, Facts, children, labels_of, op_of

PASSED = VIEWS | {"Mean", "Sum", "Index", "Gather", "IndexSelect", "MaskedSelect", "Cat", "Stack"}
PROBABILITIES = {"Softmax", "Sigmoid"}
NEAR = VIEWS | {"Index", "Gather", "IndexSelect", "MaskedSelect", "Clamp", "ClampMin", "ClampMax", "Add"}
"""What may lie between a probability and its logarithm."""
MOST_STEPS = 64


def likelihood_sign(root: Any) -> list[Facts]:
    """Describe a loss that is a sum of log-probabilities, all with a positive sign.

    log(1 - p) alone is left out: the generator of the minimax game makes it smaller.

    Args:
        root: The loss's node.

    Returns:
        One fact, or none: ``op`` (``LogSoftmax``, ``LogSigmoid``, or ``Log``), ``layer`` (the module that made the
        probabilities or their logarithm, or None).
    """
    found: list[Facts] = []
    stack, steps = [(root, 1.0)], 0
    while stack and steps < MOST_STEPS:
        steps += 1
        node, sign = stack.pop()
        op, parts = op_of(node), [(child, index) for index, (child, _) in enumerate(node.next_functions) if child]
        if end := _find_end(node, op):
            if sign < 0:
                return []
            found += [end]
        elif op == "Neg" or op == "Rsub":
            stack += [(child, -sign) for child, _ in parts]
        elif op == "Sub":
            stack += [(child, -sign if index else sign) for child, index in parts]
        elif op in PASSED or op == "Add":
            stack += [(child, sign) for child, _ in parts]
        elif op in ("Mul", "Div") and len(parts) == 1 and (factor := _sign_of_factor(node)):
            stack += [(child, sign * factor) for child, _ in parts]
        else:
            return []
    direct = [fact for fact in found if not fact.pop("rest")]
    return direct[:1] if not stack else []


def signed_error(root: Any) -> list[Facts]:
    """Describe a loss that is the mean or sum of a model's output minus something without a graph.

    Args:
        root: The loss's node.

    Returns:
        One fact, or none: ``layer`` (the module that made the output).
    """
    node, averaged, lessened = root, False, False
    while not (names := labels_of(node)):
        op, below = op_of(node), [child for child, _ in children(node)]
        if len(below) != 1 or op not in (*VIEWS, "Mean", "Sum", "Sub", "Rsub", "Add"):
            return []
        averaged |= op in ("Mean", "Sum")
        lessened |= averaged and op in ("Sub", "Rsub")
        node = below[0]
    return [{"layer": names[0]}] if lessened else []


def _find_end(node: Any, op: str) -> Facts | None:
    """Return what a logarithm of a probability is, and whether it is that of the rest, log(1 - p)."""
    below = [child for child, _ in children(node)]
    if op == "LogSoftmax":
        return {"op": op, "layer": _name(node), "rest": False}
    if op == "LogSigmoid" and below:
        return {"op": op, "layer": _name(node), "rest": op_of(below[0]) in ("Neg", "Rsub")}
    if op != "Log" or len(below) != 1:
        return None
    under, rest = below[0], False
    while op_of(under) in (*NEAR, "Rsub") and len(children(under)) == 1:
        rest |= op_of(under) == "Rsub"
        under = children(under)[0][0]
    return {"op": op, "layer": _name(under), "rest": rest} if op_of(under) in PROBABILITIES else None


def _name(node: Any) -> str | None:
    names = labels_of(node)
    return names[0] if names else None


def _sign_of_factor(node: Any) -> float:
    """Return 1 or -1 for a factor without a graph whose elements have no other sign; 0 where that is not known."""
    for name in ("_raw_saved_other", "_raw_saved_self"):
        try:
            saved = getattr(node, name)
            value = saved.data if saved.unpack_hook is None else None
        except (AttributeError, RuntimeError):  # freed, or not needed for the gradient
            continue
        if isinstance(value, Tensor) and value.device.type == "cpu" and value.numel() and not value.requires_grad:
            return 1.0 if bool((value >= 0).all()) else -1.0 if bool((value <= 0).all()) else 0.0
    return 0.0
