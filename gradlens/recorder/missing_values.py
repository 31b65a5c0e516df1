"""Notes on the values that the rows of a run lack, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from gradlens.format import plural
from gradlens.recorder.layers import own_parameters
from gradlens.recorder.notes import Notes, listed


class MissingValues:
    """Finds, when a recording ends, which layers have no value in some rows or in all, and notes the reasons.

    Args:
        notes: Collects the notes of the run; it knows the layers.
    """

    def __init__(self, notes: Notes) -> None:
        self._notes, self._modules, self._names = notes, notes.modules, list(notes.modules)
        self._partial: set[str] = set()

    def note_partial_sums(self, outputs: Iterable[int], parameters: Iterable[int]) -> None:
        """Note the layers whose gradients are partial sums on each rank, which the recorder does not add up.

        Args:
            outputs: Layers with such a gradient of their output.
            parameters: Layers with such a gradient of a parameter.
        """
        layers = [self._names[i] for i in sorted(outputs)]
        self._partial |= set(layers)
        if layers:
            self._notes.add(
                "activation_grad_norm is missing where each rank holds a partial sum of the gradient, as of outputs "
                f"that stay distributed tensors (use_local_output=False): {listed(layers)}"
            )
        layers = [self._names[i] for i in sorted(parameters)]
        if layers:
            self._notes.add(f"param_grad_norm is missing where each rank holds a partial sum: {listed(layers)}")

    def note_outputs(
        self,
        last: NDArray[np.int64],
        n_rows: int,
        called: Collection[str],
        with_gradient: NDArray[np.bool_] | None = None,
    ) -> None:
        """Note which layers' outputs never had a gradient, or had none after some row, and why if that is known.

        Args:
            last: (L,) the last row in which each output had a gradient; -1 for none.
            n_rows: Rows of the run.
            called: Names of the layers that ran.
            with_gradient: (L,) whether the layers' parameters ever had a gradient; None if that is not recorded.
        """
        if not called:
            if last.max(initial=-1) < 0:
                self._notes.add("activation_grad_norm is missing in every row")
            return
        never = [name for name, row in zip(self._names, last, strict=True) if row < 0 and name not in self._partial]
        without = [name for name in never if name in called]
        uncalled = [name for name in never if name not in called]
        if without:
            self._notes.add(f"the output had no gradient in any row: {listed(without)}")
        if with_gradient is not None:
            used = [name for name in uncalled if with_gradient[self._names.index(name)]]
            uncalled = [name for name in uncalled if name not in used]
            if used:
                self._notes.add(
                    f"used without a call that hooks see (a weight in a function, tied, fused): {listed(used)}"
                )
        if uncalled:
            self._notes.add(f"never called (unused, or used inside a fused operation): {listed(uncalled)}")
        newest = int(last.max(initial=-1))
        stopped = newest >= 0 and newest < n_rows - 1
        if stopped:
            self._notes.add(f"activation_grad_norm is missing from row {newest + 1} on: hooks no longer fire")

    def note_gaps(self, gaps: NDArray[np.int64], last: NDArray[np.int64], n_rows: int) -> None:
        """Note which layers' outputs had no gradient in some rows, although their parameters had one.

        Args:
            gaps: (L,) number of such rows.
            last: As in ``note_outputs``; gaps that it has noted are left out here.
            n_rows: Rows of the run.
        """
        ended = n_rows - 1 - int(last.max(initial=-1))
        known = [i for i, name in enumerate(self._names) if name not in self._notes.replaced]
        some = [i for i in known if last[i] >= 0 and gaps[i] > ended]
        if some:
            names = listed([self._names[i] for i in some])
            count = max(int(gaps[i]) for i in some)
            self._notes.add(
                f"activation_grad_norm is missing in up to {count} of {plural(n_rows, 'row')} although the parameters "
                f"had gradients: {names}"
            )

    def note_parameters(self, last: NDArray[np.int64]) -> None:
        """Note which layers' parameters never had a gradient.

        Args:
            last: As in ``note_outputs``.
        """
        never = [name for name, row in zip(self._names, last, strict=True) if row < 0]
        own = [name for name in never if own_parameters(self._modules[name])]
        hooked = [name for name in own if any(map(_has_grad_hook, own_parameters(self._modules[name])))]
        own = [name for name in own if name not in hooked]
        if hooked:
            self._notes.add(
                "the parameters had no gradient when the step came; hooks on them run in the backward pass (an "
                "optimizer for each, that steps and clears there?), and then all those optimizers are to be given as "
                f"optimizer=[...]: {listed(hooked)}"
            )
        if own:
            self._notes.add(
                f"the parameters had no gradient in any row (frozen, unused, or cleared before the step): {listed(own)}"
            )


def _has_grad_hook(parameter: nn.Parameter) -> bool:
    """Return whether something is called when the gradient of a parameter has arrived (asked after recording)."""
    return bool(getattr(parameter, "_post_accumulate_grad_hooks", None))
