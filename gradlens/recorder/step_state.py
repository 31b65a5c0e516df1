"""What is known of one optimizer step while it goes on: its backward passes, and which optimizers have stepped."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradlens.recorder.gradient_states import States
from gradlens.recorder.layers import Pass
from gradlens.recorder.measured_row import Part
from gradlens.recorder.scalars import Scalar

LayerMask = NDArray[np.bool_]


@dataclass(eq=False)
class BackwardPass:
    """One backward pass: what it brought, and what became of the parameters' gradients that it changed.

    Args:
        step: Index of the optimizer step in which it began.
        before: States of all gradients before it; None if there was none, or where unknown.
    """

    step: int
    before: States | None = None
    after: States | None = None
    """States of all gradients at its end; None if the end was not detected."""
    parts: list[Part] = field(default_factory=list)
    """Norms of the gradients of outputs."""
    taken: list[Any] = field(default_factory=list)
    """What it brought to each measurer."""
    learned: Pass = field(default_factory=dict)
    is_late: bool = False
    """Whether it was noticed when parameters may have got gradients of it already."""
    silent: bool = False
    """Whether it brought no gradient of any output."""
    lost: set[int] = field(default_factory=set)
    """Parameters whose gradient was cleared before an optimizer got it."""
    used: set[int] = field(default_factory=set)
    """Parameters whose gradient an optimizer got."""
    is_used: bool = False
    is_lost: bool = False
    is_carried: bool = False
    """Whether an optimizer has got gradients of it in an earlier step."""
    logged: dict[str, list[Scalar]] = field(default_factory=dict)
    """Scalars logged after it."""

    @functools.cached_property
    def touched(self) -> frozenset[int]:
        """The parameters whose gradient it changed; empty if its end was not detected."""
        return frozenset() if self.after is None else self.after.changed_since(self.before)

    @property
    def is_whole(self) -> bool:
        """Whether no gradient of it was cleared."""
        return not (self.lost or self.is_lost)

    @property
    def left(self) -> frozenset[int]:
        """The parameters whose gradient an optimizer may still get."""
        return self.touched - self.lost - self.used

    def lose(self, cleared: Collection[int]) -> bool:
        """Note that gradients were cleared.

        Args:
            cleared: The parameters.

        Returns:
            Whether no optimizer has got or can get any gradient of this pass any more.
        """
        self.lost |= self.left.intersection(cleared)
        self.is_lost = self.is_lost or bool(self.touched and not self.used and not self.left)
        return self.is_lost

    def carry(self) -> BackwardPass:
        """Begin the next step: what optimizers have got does not count there.

        Returns:
            The pass itself.
        """
        self.is_carried |= self.is_used
        self.lost |= self.used
        self.logged = {} if self.is_used else self.logged
        self.used, self.is_used = set(), False
        return self

    def use(self, parameters: Collection[int]) -> None:
        """Note that an optimizer gets the gradients of these parameters."""
        got = self.left.intersection(parameters)
        self.used |= got
        self.is_used = self.is_used or bool(got) or self.after is None


@dataclass(eq=False)
class StepState:
    """An optimizer step in progress; a new one is made for each step.

    Args:
        index: Index of the optimizer step.
        wanted: Whether the step is recorded.
        began: When it began, in seconds of ``time.perf_counter``.
        passes: Backward passes of the step before that an optimizer may still use.
    """

    index: int
    wanted: bool
    began: float
    passes: list[BackwardPass] = field(default_factory=list)
    inner: list[BackwardPass] = field(default_factory=list)
    """Passes that changed no parameter's gradient."""
    begun: int = 0
    """Number of backward passes that began in the step."""
    ended: int = 0
    """Number of backward passes that ended in the step and changed gradients."""
    discarded: int = 0
    """Number of backward passes whose gradients were cleared before an optimizer got any of them."""
    stepped: set[int] = field(default_factory=set)
    """The optimizers that have stepped."""
    read: set[int] = field(default_factory=set)
    """The optimizers whose gradients were read."""
    closure_ran: bool = False
    """Whether a closure has returned, so that its later evaluations are not recorded."""
    lrs: dict[str, Scalar] = field(default_factory=dict)
    found_inf: Tensor | None = None
    clip: Scalar | None = None
    """The clip coefficient that the user reported."""
    logged: dict[str, list[Scalar]] = field(default_factory=dict)
    """Scalars logged before the first backward pass of the run."""
    cost: float = 0.0
    """Seconds that the recorder took, without the hooks on layers."""

    def lose(self, cleared: Collection[int]) -> list[BackwardPass]:
        """Note that gradients were cleared.

        Args:
            cleared: The parameters.

        Returns:
            The passes of which nothing is left; they are no longer among ``passes``.
        """
        gone = [each for each in self.passes if each.lose(cleared)]
        self.passes = [each for each in self.passes if not each.is_lost]
        self.discarded += sum(not each.is_carried for each in gone)
        return gone

    def divide(self, number: float, mask: LayerMask | None) -> None:
        """Divide the gradients of outputs that the passes brought.

        Args:
            number: The number.
            mask: (L,) the layers whose outputs they are of; None for all.
        """
        for each in (*self.passes, *self.inner):
            others = [] if mask is None else [part.only(~mask) for part in each.parts]
            mine = [part.only(mask) for part in each.parts]
            each.parts = [replace(part, scale=number if part.scale is None else part.scale * number) for part in mine]
            each.parts += [part for part in others if len(part.layers)]

    def set_scale(self, scale: Tensor | None) -> None:
        """Note that what the passes brought carries a loss scale."""
        for each in (*self.passes, *self.inner):
            for part in each.parts:
                part.scale = scale

    def carried(self) -> list[BackwardPass]:
        """Return the passes that an optimizer may still use in the next step, as they begin it."""
        return [each.carry() for each in self.passes if each.left]

    def logged_here(self, *, one_optimizer: bool) -> list[dict[str, list[Scalar]]]:
        """Return what was logged for the row of this step.

        What was logged after a pass that no optimizer has got yet belongs to the step of the one that gets it.

        Args:
            one_optimizer: Whether no other optimizer can get a pass later.
        """
        here = [each for each in self.passes if one_optimizer or each.is_used or not each.left]
        return [self.logged, *[each.logged for each in (*here, *self.inner)]]

    def counted(self, own: Sequence[frozenset[int]]) -> list[tuple[BackwardPass, LayerMask | None]]:
        """Return the passes that belong to the step, and for each of them the layers for which it does.

        A pass belongs to a layer if an optimizer got the gradients that it brought to the layer's own parameters. A
        layer whose parameters no pass of the step changed (frozen, or without any) has all passes that were used.

        Returns:
            Passes, each with (L,) a mask of layers; None stands for all layers.
        """
        used = [each for each in self.passes if each.is_used]
        if not used:
            return [(each, None) for each in self.inner]
        if all(each.is_whole and not each.left for each in used):
            separate = len(used) > 1 and len(self.stepped) > 1
            if not separate:
                return [(each, None) for each in used]
        masks = np.zeros((len(used), len(own)), dtype=bool)
        for layer, mine in enumerate(own):
            touched = [bool(mine & each.touched) for each in self.passes]
            got = [bool(mine & each.used) or (each.after is None) for each in used]
            masks[:, layer] = got if any(touched) else True
        return list(zip(used, masks, strict=True))


def only(learned: Pass, mask: LayerMask | None) -> Pass:
    """Return what was learned in a pass about the layers of a mask."""
    return learned if mask is None else {layer: found for layer, found in learned.items() if mask[layer]}


def add_logged(to: dict[str, list[Scalar]], values: Mapping[str, Scalar]) -> None:
    """Add scalars to those logged before."""
    for name, value in values.items():
        to.setdefault(name, []).append(value)
