"""The paths of a model: chains of layers, each of which is fed by the one before, directly or through other layers.

Only layers on one path can be compared: the gradient passes from the last of them to the first. In a run without a
layer graph (an older file, or one of arrays), all main layers count as one path, in the order in which they first ran.
A layer that is only a constant, such as a hyperparameter of a kernel, is on no path.

* *Main path*: the path with the most main layers, shortcuts and norm layers not counted. Where several are equally
  long, it is the one whose layers ran first. Adapters and experts, which see a part of the signal, routers, and modules
  that contain other layers count only where fewer than three other layers are left.
* *Paths*: the main path, and for each layer that no other feeds and each layer that feeds no other (a head) the longest
  path there, if at least two of its layers are on no path before. So an actor and a critic with a common body are two
  paths if their own parts are deep, two models in one run are always, and query, key and value are not.

Shapes: L layers, M layers of a path, E edges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlens.run import Layer, Run

LEAST_LAYERS = 3
"""First, last hidden and output layer."""
LEAST_NEW = 2
"""Layers that a further path must have to itself: a gradient between fewer is not compared."""
ASIDE = frozenset(("adapter", "expert", "router"))
"""Tags of layers that a path is not judged by, as long as there are others."""
CURVES = ("residual", "attention", "query", "key", "value", "gate")
"""Tags of layers with a profile of their own in a transformer."""


def main_path(run: Run, known: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Return the layers of the main path.

    Args:
        run: The run.
        known: (L,) which layers count; None for all.

    Returns:
        (M,) indices of main layers, input first.
    """
    return find_paths(run, known)[0]


def find_paths(run: Run, known: NDArray[np.bool_] | None = None) -> list[NDArray[np.int64]]:
    """Return the paths of a run, the main path first.

    Args:
        run: The run.
        known: As in ``main_path``.

    Returns:
        At least one path, (M,) indices of main layers, input first; it is empty where no layer counts.
    """
    main = [int(i) for i in run.main_layers() if (known is None or known[i]) and "constant" not in run.layers[i].tags]
    if not any(layer.parents for layer in run.layers):
        return [np.array(main, dtype=np.int64)]
    graph = _Graph(run.layers)
    found = graph.paths(_preferred(run, main))
    return found if len(found[0]) >= LEAST_LAYERS else graph.paths(main)


def _preferred(run: Run, layers: Iterable[int]) -> list[int]:
    return [int(i) for i in layers if not ASIDE.intersection(run.layers[i].tags) and not _is_around(run, int(i))]


def _is_around(run: Run, i: int) -> bool:
    """Return whether a layer is a module around most of the others, or feeds none.

    A block with a parameter of its own (LayerScale) is none: its output is the trunk of a residual network, where the
    last layer inside a branch that is scaled down has a far smaller gradient.
    """
    layer = run.layers[i]
    if "block" not in layer.tags:
        return False
    inside = sum(other.name.startswith(f"{layer.name}.") for other in run.layers)
    return 2 * inside > len(run.layers) or not any(i in other.parents for other in run.layers)


def hidden_layers(run: Run) -> NDArray[np.int64]:
    """Return the layers of the main path that ran, input first, without the output layer, (L,)."""
    return main_path(run, ran(run))[:-1]


def ran(run: Run) -> NDArray[np.bool_]:
    """Return which layers were called in the first recorded step, (L,)."""
    return np.array([layer.out_numel > 0 for layer in run.layers], dtype=bool)


def name_path(run: Run, path: NDArray[np.int64]) -> str:
    """Return a name for a path: "from FIRST to LAST"."""
    return f"from {run.layers[path[0]].name} to {run.layers[path[-1]].name}"


@dataclass(frozen=True)
class Section:
    """Layers with a profile of their own.

    Args:
        name: "query", or "from FIRST to LAST"; "" for the main path.
        layers: (M,) indices, input first.
        hidden: Those of them whose steepness is fitted: all but an output layer.
    """

    name: str
    layers: NDArray[np.int64]
    hidden: NDArray[np.int64]


def main_section(run: Run) -> Section:
    """Return the main path as a section."""
    return Section("", main_path(run), hidden_layers(run))


def find_sections(run: Run) -> list[Section]:
    """Return the sections besides the main path: the layers of each kind in a transformer, and the other paths."""
    tags = [layer.tags for layer in run.layers]
    kinds = {tag: np.array([i for i in run.main_layers() if tag in tags[i]], dtype=np.int64) for tag in CURVES}
    is_transformer = len(kinds["query"]) + len(kinds["attention"]) > 0
    paths = find_paths(run, ran(run))[1:]
    return [
        *(Section(tag, at, at) for tag, at in kinds.items() if len(at) >= LEAST_LAYERS and is_transformer),
        *(Section(name_path(run, path), path, path[:-1]) for path in paths if len(path) >= LEAST_LAYERS),
    ]


class _Graph:
    """The layers in an order in which each follows those that feed it."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._parents = [layer.parents for layer in layers]
        self._children: list[list[int]] = [[] for _ in layers]
        for i, parents in enumerate(self._parents):
            for parent in parents:
                self._children[parent].append(i)
        left = [len(parents) for parents in self._parents]
        self._order = [i for i, parents in enumerate(self._parents) if not parents]
        for layer in self._order:
            for child in self._children[layer]:
                left[child] -= 1
                if not left[child]:
                    self._order.append(child)

    def paths(self, counted: Sequence[int]) -> list[NDArray[np.int64]]:
        """Return the paths of the layers that count; see ``find_paths``."""
        counts = self._counts(counted)
        before, came_from = self._longest(counts, self._order, self._parents)
        after, goes_to = self._longest(counts, self._order[::-1], self._children)

        def follow(layer: int, steps: NDArray[np.int64]) -> list[int]:
            found = []
            while layer >= 0:
                found.append(layer)
                layer = int(steps[layer])
            return [i for i in found if counts[i]]

        ends = [i for i in counted if after[i] == 1 or before[i] == 1]
        through = [[*follow(i, came_from)[:0:-1], i, *follow(i, goes_to)[1:]] for i in ends]
        found, seen = [np.empty(0, dtype=np.int64)], set[int]()
        for path in sorted(through, key=lambda path: (-len(path), path)):
            if not seen or len(seen.union(path)) >= len(seen) + LEAST_NEW:
                found = [*found, np.array(path, dtype=np.int64)] if seen else [np.array(path, dtype=np.int64)]
                seen.update(path)
        return found

    def _counts(self, counted: Sequence[int]) -> NDArray[np.int64]:
        counts = np.zeros(len(self._parents), dtype=np.int64)
        counts[list(counted)] = 1
        return counts

    @staticmethod
    def _longest(
        counts: NDArray[np.int64], order: Sequence[int], links: Sequence[Sequence[int]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how many counted layers the longest path to each layer has, and the layer before it there, or -1."""
        lengths, steps = np.zeros_like(counts), np.full(len(counts), -1)
        for layer in order:
            best = max(links[layer], key=lambda i: (lengths[i], -i), default=-1)
            steps[layer] = best
            lengths[layer] = counts[layer] + (lengths[best] if best >= 0 else 0)
        return lengths, steps
