"""Which modules return the output of a module inside them as it is: what calls them may leave it unused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from torch import Tensor

from gradlens.recorder.facts.loss.graph_reading import MODEL, labels_of

FEW_NODES = 16
"""Operations between a module's output and what is returned: an activation, a view."""


class ReturnedOutputs:
    """Remembers, for each module that contains others, from whose outputs its own were made."""

    def __init__(self) -> None:
        self._made_by: dict[str, set[str]] = defaultdict(set)

    def note(self, container: str, tensors: Sequence[Tensor], trained: Collection[str]) -> None:
        """Note what a module returned.

        Args:
            container: The module's name.
            tensors: What it returned.
            trained: Names of modules that own a parameter which requires a gradient, and have run.
        """
        for tensor in tensors:
            if tensor.grad_fn is not None:
                self._made_by[container] |= _nearest(tensor, trained)

    def left_over(self, layers: Sequence[str], last: str, reached: Collection[str]) -> str | None:
        """Return the module that returns the output of these layers, and of which the loss uses other parts.

        Args:
            layers: Modules that the loss does not reach.
            last: The one of them that is nearest to the loss.
            reached: Modules that a loss reaches.
        """
        for container, made_by in self._made_by.items():
            used = any(name != container and _is_inside(name, container) for name in reached)
            if used and last in made_by and all(_is_inside(name, container) for name in layers):
                return container
        return None


def _is_inside(name: str, container: str) -> bool:
    return container == MODEL or name == container or name.startswith(f"{container}.")


def _nearest(tensor: Tensor, trained: Collection[str]) -> set[str]:
    """Return the modules with parameters whose outputs a tensor was made from, where few operations lie between."""
    found: set[str] = set()
    stack, count = [tensor.grad_fn], 0
    while stack and count < FEW_NODES:
        node = stack.pop()
        count += 1
        if names := [name for name in labels_of(node) if name in trained]:
            found.update(names)
        elif node is not None:
            stack += [child for child, _ in node.next_functions if child is not None]
    return found
