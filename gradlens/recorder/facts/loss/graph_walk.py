"""Walk through the whole graph of a loss: which modules and parameters it reaches, and through which operations."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from gradlens.recorder.facts.loss.graph_reading import (
    BATCH_NORMS,
    FLAT,
    MODEL_KEY,
    MOST_NODES,
    Facts,
    children,
    has_label,
    labels_of,
    op_of,
)
from gradlens.recorder.facts.loss.kinds import OF_PLACE, OWN_FUNCTION
from gradlens.recorder.facts.loss.odd_operations import Place, near_flat


@dataclass
class Reading:
    """What one pass through a graph shows."""

    modules: Counter[str] = field(default_factory=Counter)
    """Names of modules whose output is reached, and how many outputs of theirs."""
    leaves: dict[int, Tensor] = field(default_factory=dict)
    """Tensors that receive the gradient, by ``id``."""
    between: set[int] = field(default_factory=set)
    """Leaves with modules of the model on both sides: toward the input and toward the loss."""
    inside: set[int] = field(default_factory=set)
    """Leaves on which an output of the model as a whole depends."""
    has_model: bool = False
    """Whether such an output is in the graph."""
    facts: dict[str, list[Facts]] = field(default_factory=lambda: defaultdict(list))
    """Kind to the facts that single operations show."""
    normalisation: dict[tuple[str, bool], int] = field(default_factory=dict)
    complete: bool = True
    nodes: list[Any] = field(default_factory=list)
    """All nodes, inputs first."""

    def note_operation(self, node: Any, op: str) -> None:
        """Count batch norms, and note a part that was compiled.

        Args:
            node: An operation's node.
            op: Its name.
        """
        if op in BATCH_NORMS:
            key = op, bool(getattr(node, "_saved_training", True))
            self.normalisation[key] = self.normalisation.get(key, 0) + 1
        elif op.startswith("CompiledFunction"):
            self.complete = False  # modules inside left no labels


def read_graph(roots: Sequence[Any], known: Mapping[int, str]) -> Reading:
    """Walk through the whole graph.

    Args:
        roots: Its last nodes.
        known: ``id`` of the model's parameters to the names of their layers; other leaves are examined more closely.

    Returns:
        What was found.
    """
    found = Reading()
    found.nodes = _inputs_first(roots, found)
    before, joins = _walk_toward_the_loss(found, known)
    _walk_toward_the_input(found, known, before, joins)
    return found


def _walk_toward_the_loss(found: Reading, known: Mapping[int, str]) -> tuple[dict[Any, str], dict[Any, list[int]]]:
    """Read every operation, each after those whose results it uses.

    Returns:
        before: node to the nearest module toward the input; joins: nodes where something made of unknown leaves alone
        meets the output of a module, to these leaves.
    """
    has_module: set[Any] = set()
    only_leaf: dict[Any, int] = {}
    joins: dict[Any, list[int]] = {}
    before: dict[Any, str] = {}
    for node in found.nodes:
        below = [child for child, _ in children(node)]
        names, op = labels_of(node), op_of(node)
        found.modules.update(names)
        near = names[-1] if names else next((before[child] for child in below if child in before), None)
        if near:
            before[node] = near
        if names or any(child in has_module for child in below):
            has_module.add(node)
        if op == "AccumulateGrad":
            leaf = node.variable
            found.leaves[id(leaf)] = leaf
            if id(leaf) not in known:
                only_leaf[node] = id(leaf)
        elif len(below) == 1 and below[0] in only_leaf:
            only_leaf[node] = only_leaf[below[0]]
        elif any(child in only_leaf for child in below) and any(child in has_module for child in below):
            joins[node] = [only_leaf[child] for child in below if child in only_leaf]
        found.note_operation(node, op)
        kinds = OF_PLACE.get(op, [])
        if isinstance(node, BackwardCFunction):
            kinds = kinds + OF_PLACE[OWN_FUNCTION]
        if kinds:
            place = Place(node, op, below, names, near, before, known)
            for name, of_place, most in kinds:
                if len(found.facts[name]) < most:
                    found.facts[name] += of_place(place)
    return before, joins


def _walk_toward_the_input(
    found: Reading, known: Mapping[int, str], before: Mapping[Any, str], joins: Mapping[Any, list[int]]
) -> None:
    """Find what lies between modules and inside the model, and the nearest modules on both sides of flat operations."""
    under: set[Any] = set()
    in_model: set[Any] = set()
    after: dict[Any, str] = {}
    for node in reversed(found.nodes):
        below, names = [child for child, _ in children(node)], labels_of(node)
        above = names[0] if names else after.get(node)
        if above:
            for child in below:
                after.setdefault(child, above)
        if (op := op_of(node)) in FLAT:
            place = Place(node, op, below, names, before.get(node), before, known)
            found.facts["flat"].append(near_flat(place, after.get(node)))
        if node in in_model or has_label(node, MODEL_KEY):
            found.has_model = True
            in_model.update(below)
            if op == "AccumulateGrad":
                found.inside.add(id(node.variable))
        if node in joins and node in under:
            found.between.update(joins[node])
        if node in under or names:
            under.update(below)


def _inputs_first(roots: Sequence[Any], found: Reading) -> list[Any]:
    """List all nodes, each after those that it depends on."""
    order, seen = [], set(roots)
    stack: list[tuple[Any, Iterator[tuple[Any, int]]]] = [(root, iter(children(root))) for root in roots]
    while stack:
        node, rest = stack[-1]
        child = next((below for below, _ in rest if below not in seen), None)
        if child is None:
            order.append(node)
            stack.pop()
        elif len(seen) < MOST_NODES:
            seen.add(child)
            stack.append((child, iter(children(child))))
        else:
            found.complete = False
            stack.pop()
    return order
