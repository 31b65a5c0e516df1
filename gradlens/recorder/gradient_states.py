"""The state of every parameter's gradient at a moment, to tell later which backward passes it still comes from.

Torch tells nobody when a gradient is cleared. But the gradient of a pass that was cleared is None, or it was rewritten
in place and is 0. A pass that changed no parameter's gradient (``torch.autograd.grad``) leaves all states as they were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import Tensor, nn

from gradlens.recorder.norms import plain

State = tuple[int, int] | None
"""Identity and version of a gradient; None where there is none."""
States = list[State]
PEEK = 1024
"""Number of elements that are looked at first, to see that a gradient is not 0."""


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

    def indices(self, ids: Iterable[int]) -> set[int]:
        """Return the indices of these parameters, given by their ``id``; unknown ones are left out."""
        return {self._index[each] for each in ids if each in self._index}

    def now(self) -> States | None:
        """Return the state of every gradient; None where states show nothing."""
        if not self._parameters:
            return None
        grads = [parameter.grad for parameter in self._parameters]
        return [None if grad is None else (id(grad), grad._version) for grad in grads]

    def cleared(self, since: States, among: Collection[int] | None = None, *, may_wait: bool = True) -> set[int]:
        """Return the parameters whose gradient was cleared: set to None, or to 0 in place.

        Args:
            since: Their states at the end of the last backward pass.
            among: Indices of the parameters to look at; None for all.
            may_wait: Whether the values of gradients on an accelerator may be looked at, which waits for it.
        """
        gone: set[int] = set()
        rewritten: dict[int, Tensor] = {}
        for i in range(len(since)) if among is None else among:
            then, grad = since[i], self._parameters[i].grad
            if then is None:
                continue
            if grad is None:
                gone.add(i)
            elif (id(grad), grad._version) != then and (may_wait or grad.is_cpu):
                rewritten[i] = grad
        for group in self.groups:  # clipping rewrites gradients too, but leaves some that are not 0
            mine = {i: grad for i, grad in rewritten.items() if i in group}
            if mine and all(map(_is_zero, mine.values())):
                gone.update(mine)
        return gone

    @property
    def all_cleared(self) -> bool:
        """Whether no parameter has a gradient."""
        return bool(self._parameters) and all(parameter.grad is None for parameter in self._parameters)

    def replaced(self, since: States, among: Collection[int]) -> bool:
        """Return whether all gradients of these parameters are other tensors than they were.

        Args:
            since: As in ``cleared``.
            among: Indices of the parameters.
        """
        pairs = [(since[i], self._parameters[i].grad) for i in among if i < len(since)]
        there = [(then, grad) for then, grad in pairs if then is not None and grad is not None]
        return bool(there) and all(then[0] != id(grad) for then, grad in there)


def _is_zero(grad: Tensor) -> bool:
    if grad.is_meta:
        return False
    numbers = plain(grad)
    flat = numbers.view(-1) if numbers.is_contiguous() else numbers.reshape(-1)
    return not bool(flat[:PEEK].any()) and not bool(flat.any())
