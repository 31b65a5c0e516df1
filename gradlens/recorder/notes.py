"""What a reader of a run should know: what is missing, and why."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from gradlens.errors import GradlensError, GradlensWarning
from gradlens.recorder.layers import LayerChoice, choose_layers, own_parameters

NO_HOOK = (
    "activation_grad_norm is missing in the first row: no hook fired; was the model compiled with fullgraph=True, or "
    "compiled and called before gradlens.record()?"
)
SILENT_PASSES = (
    "activation_grad_norm is missing in rows in which no gradient of an output came in some of the backward passes: "
    "code that was compiled before gradlens.record() ran"
)
COMPILED_BACKWARD = "compiled autograd hides the end of a backward pass: clipping is not seen"
INNER_PASSES = "gradients of outputs by torch.autograd.grad, which reach no parameter, are not counted"
LISTED = 8
"""Names that a note lists at most."""


class Notes:
    """Collects sentences, each once; they are stored in the file.

    Args:
        model: The model.
        choice: The user's choice of layers.
        modules: The layers that were chosen when recording began.
    """

    def __init__(self, model: nn.Module, choice: LayerChoice, modules: Mapping[str, nn.Module]) -> None:
        self._model, self._choice, self._modules = model, choice, modules
        self._names = list(modules)
        self._texts: dict[str, None] = {}
        self._replaced: set[str] = set()
        self._inner_passes_from: int | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(self._texts)

    def add(self, text: str) -> None:
        """Add a sentence."""
        self._texts.setdefault(text)

    def warn(self, text: str, tip: str) -> None:
        """Add a sentence, and say it to the user the first time."""
        if text not in self._texts:
            self.add(text)
            warnings.warn(f"gradlens: {text}; {tip}", GradlensWarning, stacklevel=2)

    def look_for_changes(self) -> None:
        """Say which modules came or were replaced since recording began: they are not recorded."""
        now = choose_layers(self._model, self._choice)
        added = [name for name in now if name not in self._modules]
        replaced = [name for name, module in self._modules.items() if now.get(name) is not module]
        self._replaced.update(replaced)
        for names, what in ((added, "added to the model"), (replaced, "replaced or removed")):
            if names:
                text = f"{listed(names)}: {what} after recording began, and not recorded since"
                self.warn(text, "make a new recorder to record it")

    def note_missing_outputs(self, last: NDArray[np.int64], n_rows: int, called: Collection[str]) -> None:
        """Say which layers' outputs never got a gradient, or none any more, and why as far as it is known.

        Args:
            last: (L,) the last row in which each got one; -1 for none.
            n_rows: Rows of the run.
            called: Names of the layers that ran.
        """
        if not called:
            if last.max(initial=-1) < 0:
                self.add("activation_grad_norm is missing in every row")
            return
        never = [name for name, row in zip(self._names, last, strict=True) if row < 0]
        silent = [name for name in never if name in called]
        uncalled = [name for name in never if name not in called]
        if silent:
            self.add(f"no gradient came to the output of {listed(silent)}")
        if uncalled:
            self.add(f"never called, unused or used by a fused operation: {listed(uncalled)}")
        newest = int(last.max(initial=-1))
        stopped = newest >= 0 and newest < n_rows - 1
        if stopped:
            self.add(f"activation_grad_norm is missing from row {newest + 1} on: no hook fires any more")

    def note_gaps(self, gaps: NDArray[np.int64], last: NDArray[np.int64], n_rows: int) -> None:
        """Say which layers' outputs got no gradient in some rows, although their parameters did.

        Args:
            gaps: (L,) in how many rows.
            last: As in ``note_missing_outputs``; what is said there is not said again.
            n_rows: Rows of the run.
        """
        ended = n_rows - 1 - int(last.max(initial=-1))
        known = [i for i, name in enumerate(self._names) if name not in self._replaced]
        some = [i for i in known if last[i] >= 0 and gaps[i] > ended]
        if some:
            names = listed([self._names[i] for i in some])
            count = max(int(gaps[i]) for i in some)
            self.add(
                f"activation_grad_norm is missing in up to {count} of {n_rows} rows, in which the parameters had "
                f"gradients, of {names}"
            )

    def warn_of_no_hook(self) -> None:
        """Say that no gradient of an output is to be expected."""
        self.warn(NO_HOOK, "call torch.compiler.reset() and gradlens.record() before the first call")

    def note_compiled_backward(self, *, scaled: bool) -> None:
        """Say what is not seen where compiled autograd runs the backward passes.

        Args:
            scaled: Whether a GradScaler is in use.
        """
        if scaled:
            tip = "do without one of the two"
            self.warn(f"{COMPILED_BACKWARD}, and a step that the GradScaler skips goes into the row after it", tip)
        else:
            self.add(COMPILED_BACKWARD)

    def note_unwatched_calls(self, metrics: Sequence[str]) -> None:
        """Say that these metrics are missing because layers run in compiled code."""
        self.add(f"not measured in compiled code: {listed(metrics)}")

    def note_inner_passes(self, row: int) -> None:
        """Say that there are backward passes which reach no parameter.

        Args:
            row: The row in which they were seen.
        """
        if self._inner_passes_from is None:
            self._inner_passes_from = row
            self.add(
                INNER_PASSES if row == 0 else f"{INNER_PASSES}; seen from row {row} on, and before it maybe counted"
            )

    def warn_of_silent_passes(self) -> None:
        """Say that a row's gradients of outputs were not those of all backward passes."""
        self.warn(SILENT_PASSES, "call torch.compiler.reset() before gradlens.record()")

    def note_missing_parameters(self, last: NDArray[np.int64]) -> None:
        """Say which layers' parameters never got a gradient.

        Args:
            last: As in ``note_missing_outputs``.
        """
        never = [name for name, row in zip(self._names, last, strict=True) if row < 0]
        own = [name for name in never if own_parameters(self._modules[name])]
        if own:
            self.add(f"no gradient came to the parameters (frozen or unused) of {listed(own)}")


def listed(names: Sequence[str]) -> str:
    """Write names in a row, not too many."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def line(error: Exception) -> str:
    """Write an error in a line."""
    text = str(error).splitlines()[0] if str(error) else ""
    return text if isinstance(error, GradlensError) else f"{type(error).__name__}: {text}"
