"""The state of every parameter's gradient at a moment, to tell later which backward passes it still comes from.

Torch tells nobody when a gradient is cleared. But the gradient of a pass that was cleared is None, or it was rewritten
in place and is 0. A pass that changed no parameter's gradient (``torch.autograd.grad``) leaves all states as they were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from torch import Tensor, nn

from gradlens.recorder.layers import spread_out
from gradlens.recorder.norms import plain

NONE = id(None)
PEEK = 1024
"""Number of elements that are looked at first, to see that a gradient is not 0."""
SAMPLES = 4
"""Parameters of each optimizer whose versions stand for all, in a quick reading."""


@dataclass(frozen=True)
class States:
    """The states of gradients at a moment.

    Args:
        ids: (P,) identity of each gradient; ``NONE`` where there is none.
        versions: Index of a parameter to the version of its gradient: all of them, or samples.
        is_quick: Whether there are only samples.
    """

    ids: list[int]
    versions: dict[int, int]
    is_quick: bool

    def changed_since(self, before: States | None) -> frozenset[int]:
        """Return the parameters that have a gradient now, and another one than before.

        Args:
            before: The states before; None where no parameter had a gradient.
        """
        there = (i for i, now in enumerate(self.ids) if now != NONE)
        if before is None:
            return frozenset(there)
        then, versions = before.ids, before.versions
        return frozenset(i for i in there if then[i] != self.ids[i] or versions.get(i) != self.versions.get(i))


class GradientStates:
    """Reads the states of the gradients of a model's parameters.

    Under ``fully_shard`` the gradients of micro-batches are stored elsewhere, so states show nothing: there are none.

    Args:
        model: The model.
        optimizers: For each optimizer, the ``id`` of its parameters.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[set[int]]) -> None:
        parameters = list({id(p): p for p in model.parameters()}.values())
        self._parameters = [] if any(hasattr(p, "device_mesh") for p in parameters) else parameters
        self._index = {id(p): i for i, p in enumerate(self._parameters)}
        self.follow(optimizers)

    def follow(self, optimizers: Sequence[set[int]]) -> None:
        """Group the parameters by optimizer; the last group holds those of no optimizer.

        Args:
            optimizers: For each optimizer, the ``id`` of its parameters.
        """
        groups = [frozenset(self.indices(ids)) for ids in optimizers]
        self.groups = [*groups, frozenset(range(len(self._parameters))).difference(*groups)]
        self._samples = [self._choose(group) for group in self.groups]
        self.may_be_quick = len(optimizers) <= 1 and all(parameter.is_cpu for parameter in self._parameters)
        """Whether quick readings suffice while no backward pass waits for an optimizer."""

    def _choose(self, group: frozenset[int]) -> list[int]:
        mine = [self._parameters[i] for i in sorted(group) if self._parameters[i].requires_grad]
        return [self._index[id(parameter)] for parameter in spread_out(mine, SAMPLES)]

    def indices(self, ids: Iterable[int]) -> set[int]:
        """Return the indices of these parameters, given by their ``id``; unknown ones are left out."""
        return {self._index[each] for each in ids if each in self._index}

    @property
    def seem_cleared(self) -> bool:
        """Whether none of the samples has a gradient."""
        return all(self._parameters[i].grad is None for samples in self._samples for i in samples)

    def now(self, *, quick: bool = False) -> States | None:
        """Return the state of every gradient; None where states show nothing.

        Args:
            quick: Whether to read the versions of samples only.
        """
        if not self._parameters:
            return None
        grads = list(map(_grad_of, self._parameters))
        looked_at = (i for samples in self._samples for i in samples) if quick else range(len(grads))
        versions = {i: grads[i]._version for i in looked_at if grads[i] is not None}
        return States(list(map(id, grads)), versions, quick)

    def cleared(self, since: States, among: Collection[int] | None = None, *, may_wait: bool = True) -> set[int]:
        """Return the parameters whose gradient was cleared: set to None, or to 0 in place.

        Args:
            since: Their states at the end of the last backward pass.
            among: Indices of the parameters to look at; None for all.
            may_wait: Whether the values of gradients on an accelerator may be looked at, which waits for it.
        """
        gone: set[int] = set()
        rewritten: dict[int, Tensor] = {}
        for i in range(len(since.ids)) if among is None else among:
            then, grad = since.ids[i], self._parameters[i].grad
            if then == NONE:
                continue
            if grad is None:
                gone.add(i)
            elif (may_wait or grad.is_cpu) and (id(grad) != then or since.versions.get(i) != grad._version):
                rewritten[i] = grad
        for group, samples in zip(self.groups, self._samples, strict=True):
            mine = {i: grad for i, grad in rewritten.items() if i in group}
            if since.is_quick and not any(i in mine for i in samples if i in since.versions):
                continue
            if mine and all(map(_is_zero, mine.values())):  # clipping rewrites gradients too, but leaves some not 0
                gone.update(mine)
        return gone

    def not_zero(self, among: Iterable[int] | None = None) -> frozenset[int]:
        """Return the parameters that have a gradient which is not 0; an accelerator is waited for.

        Args:
            among: Indices of the parameters to look at; None for all.
        """
        looked_at = range(len(self._parameters)) if among is None else among
        grads = ((i, self._parameters[i].grad) for i in looked_at)
        return frozenset(i for i, grad in grads if grad is not None and not _is_zero(grad))

    @property
    def all_cleared(self) -> bool:
        """Whether no parameter has a gradient."""
        return bool(self._parameters) and all(parameter.grad is None for parameter in self._parameters)


_grad_of = attrgetter("grad")


def _is_zero(grad: Tensor) -> bool:
    if grad.is_meta:
        return False
    numbers = plain(grad)
    flat = numbers.view(-1) if numbers.is_contiguous() else numbers.reshape(-1)
    return not bool(flat[:PEEK].any()) and not bool(flat.any())
