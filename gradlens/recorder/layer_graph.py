"""Find which layer's output feeds which layer, in the autograd graph of the first recorded step.

When a layer has been called, the graph is searched from its output down to the outputs of layers that ran before. Each
operation in between keeps two bit masks in its own ``metadata``. So every operation is visited once, and the masks are
released with the graph: nothing here refers to a tensor or to the graph.

* *front*: the layers whose outputs the operation uses, without those that reach it through another layer of the front
  too. So the front of a residual stream is the newest layer that wrote to it.
* *before*: all layers before those of the front.

An edge leads from each layer of the front of a layer's inputs to that layer. Three exceptions:

* A layer that is also called on something that no layer made, as a GAN's discriminator on real images and on the
  generator's output, is where another model begins: no edge leads to it.
* The edge that would close a cycle, as in a recurrent model, is left out.
* Where a layer runs in a backward pass only (reentrant checkpoints), or autograd's graph cannot be read, the graph has
  gaps, and there are no edges at all.

A layer *writes to a residual stream* if its output is added to something that it was itself computed from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from gradlens.recorder.hooks.backward_pass import in_backward


class _Mark(NamedTuple):
    """What an operation keeps: the layers right before it, and all layers before those, as bit masks."""

    front: int
    before: int


NOTHING = _Mark(0, 0)


class LayerGraph:
    """Collects the edges between layers, call by call."""

    def __init__(self) -> None:
        self._key = object()
        """Key in the metadata of operations: several recorders may follow one model."""
        self._parents: dict[int, int] = {}
        """Layer to the mask of the layers that feed it, in the order of first calls."""
        self._entries = 0
        self._writers = 0
        self._has_gaps = False

    def note_call(self, layer: int, outputs: Iterable[Tensor]) -> None:
        """Note a call of a layer.

        Args:
            layer: Its index.
            outputs: Its outputs, and the tensors that these are views of.
        """
        if in_backward() != -1:  # the second forward pass of a checkpoint
            self._has_gaps |= layer not in self._parents
            return
        try:
            self._note(layer, outputs)
        except (
            RuntimeError,
            AttributeError,
            TypeError,
            ValueError,
        ):  # a graph of another kind, as of a tensor subclass
            self._has_gaps = True

    def _note(self, layer: int, outputs: Iterable[Tensor]) -> None:
        nodes: list[Any] = [get_gradient_edge(tensor).node for tensor in outputs if tensor.requires_grad]
        if not nodes:
            return
        front, before = self._join([self._mark(node) for node in nodes])
        own = 1 << layer
        self._entries |= 0 if front else own
        self._parents[layer] = self._parents.get(layer, 0) | front & ~own
        for node in nodes:
            node.metadata[self._key] = _Mark(own, (before | front) & ~own)

    def _mark(self, start: Any) -> _Mark:
        """Return the mark of an operation, after all operations below it have got theirs."""
        key, waiting = self._key, [start]
        while waiting:
            node = waiting[-1]
            if key in node.metadata:
                waiting.pop()
                continue
            below = [after for after, _ in node.next_functions if after is not None]
            missing = [after for after in below if key not in after.metadata]
            if missing:
                waiting += missing
                continue
            marks = [after.metadata[key] for after in below]
            if len(marks) == 2 and node.name() == "AddBackward0":
                self._note_addition(*marks)
            node.metadata[key] = self._join(marks)
            waiting.pop()
        mark: _Mark = start.metadata[key]
        return mark

    def _join(self, marks: list[_Mark]) -> _Mark:
        marks = [mark for mark in marks if mark.front]
        if len(marks) < 2:
            return marks[0] if marks else NOTHING
        front = before = 0
        for mark in marks:
            front |= mark.front
            before |= mark.before
        return _Mark(front & ~before or front, before)  # in a cycle each layer is before each

    def _note_addition(self, a: _Mark, b: _Mark) -> None:
        for branch, stream in ((a, b), (b, a)):
            if stream.front and not stream.front & ~branch.before and branch.front.bit_count() == 1:
                self._writers |= branch.front

    @property
    def writers(self) -> set[int]:
        """The layers that write to a residual stream."""
        return set(_bits(self._writers))

    def parents(self) -> dict[int, list[int]]:
        """Return layer to the layers that feed it; empty where the graph has gaps."""
        if self._has_gaps:
            return {}
        place = {layer: i for i, layer in enumerate(self._parents)}
        found: dict[int, list[int]] = {layer: [] for layer in self._parents}
        backward: list[tuple[int, int]] = []
        for layer, mask in self._parents.items():
            for parent in _bits(mask if not self._entries >> layer & 1 else 0):
                if place[parent] < place[layer]:
                    found[layer].append(parent)
                else:
                    backward.append((parent, layer))
        for parent, layer in backward:
            if not _reaches(found, layer, parent):
                found[layer].append(parent)
        return found


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _reaches(parents: dict[int, list[int]], start: int, end: int) -> bool:
    """Return whether a path leads from one layer to another."""
    seen, waiting = {end}, [end]
    while waiting:
        layer = waiting.pop()
        if layer == start:
            return True
        new = [parent for parent in parents[layer] if parent not in seen]
        seen.update(new)
        waiting += new
    return False
