"""Terms of a loss that share nothing: one trains the layers before a sample, the other those after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gradlens.recorder.facts.loss.graph_reading import VIEWS, Facts, Shape, children, labels_of, op_of, shape_of

SUMS = {"Add", "Sub"}
PASSED = VIEWS | {"Mul", "Div", "Neg", "Mean", "Sum"}
"""Operations on a loss that leave its terms as they are."""
DIVERGENCES = {"Exp", "Log"}
"""Operations in a divergence between normal distributions."""
MOST_TERMS = 12
MOST_NODES = 20_000
"""The terms of larger graphs are not compared."""


@dataclass
class Term:
    """What one term of a loss depends on."""

    ends: set[Any] = field(default_factory=set)
    """Nodes that hand the gradient to parameters or other tensors."""
    modules: list[str] = field(default_factory=list)
    ops: set[str] = field(default_factory=set)
    """Operations between the loss and the first modules."""
    shapes: set[Shape] = field(default_factory=set)
    """Shapes of what they compute from, and of the modules' outputs."""

    def join(self, other: Term) -> None:
        """Add another term."""
        self.ends |= other.ends
        self.modules += other.modules
        self.ops |= other.ops
        self.shapes |= other.shapes


def terms_apart(root: Any, order: Sequence[str]) -> list[Facts]:
    """Describe two groups of terms that reach no parameter in common, one of which has an exponential or a logarithm.

    Args:
        root: The loss's node.
        order: Names of modules in the order in which they ran.

    Returns:
        One fact, or none: ``before`` and ``after``, the last module that the divergence reaches and the first one that
        only the other terms reach, where that ran later; ``shapes`` of what the divergence is computed from.
    """
    nodes = _split(root)
    if not 2 <= len(nodes) <= MOST_TERMS:
        return []
    terms, room = [], MOST_NODES
    for node in nodes:
        term, seen = _read(node, room)
        room -= seen
        if room <= 0:
            return []
        terms.append(term)
    groups: list[Term] = []
    for term in terms:
        apart = [group for group in groups if not group.ends & term.ends]
        for group in groups:
            if group not in apart:
                term.join(group)
        groups = [*apart, term]
    groups = [group for group in groups if group.modules]
    if len(groups) != 2:
        return []
    place = {name: i for i, name in enumerate(order)}
    one, two = sorted(groups, key=lambda group: min(place.get(name, len(place)) for name in group.modules))
    before, after = (sorted({n for n in group.modules if n in place}, key=place.__getitem__) for group in (one, two))
    if not before or not after or not one.ops & DIVERGENCES or place[before[-1]] > place[after[0]]:
        return []
    return [{"before": before[-1], "after": after[0], "shapes": sorted(map(list, one.shapes))}]


def _split(root: Any) -> list[Any]:
    """Return the nodes of the terms that a loss is the sum of."""
    found: list[Any] = []
    stack = [root]
    while stack and len(found) <= MOST_TERMS:
        node = stack.pop()
        below = [child for child, _ in children(node)]
        is_sum = op_of(node) in SUMS or (op_of(node) in PASSED and len(below) == 1)
        if is_sum and not labels_of(node):
            stack += below
        else:
            found.append(node)
    return list(dict.fromkeys(found))


def _read(start: Any, room: int) -> tuple[Term, int]:
    """Return what a term depends on, and how many nodes were seen."""
    found, seen = Term(), {start}
    stack = [(start, False)]
    while stack and len(seen) <= room:
        node, in_model = stack.pop()
        names = labels_of(node)
        found.modules += names
        if not in_model:
            found.shapes.add(shape_of(node))
            found.ops |= set() if names else {op_of(node)}
        if op_of(node) == "AccumulateGrad":
            found.ends.add(node)
        for child, _ in children(node):
            if child not in seen:
                seen.add(child)
                stack.append((child, in_model or bool(names)))
    return found, len(seen)
