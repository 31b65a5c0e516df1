"""The notes of a run: what is missing in it, and why."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from gradlens.errors import GradlensError, GradlensWarning
from gradlens.format import plural
from gradlens.recorder.layers import LayerChoice, choose_layers, own_parameters

NO_HOOK = (
    "activation_grad_norm is missing in the first row: no hook fired; was the model compiled with fullgraph=True, or "
    "compiled and called before gradlens.record()?"
)
NOT_CALLED = (
    "activation_grad_norm is missing in the first row: no layer was called as a module, although gradients reached its "
    "parameters (layer.forward(x), its weight in a function, torch.jit or torch.export; or did recording begin between "
    "the forward and the backward pass?)"
)
BY_HAND = (
    "activation_grad_norm is missing in the first row: no layer was called and no backward pass came; the gradients "
    "were set by hand, or are those of copies of the model"
)
SILENT_PASSES = (
    "activation_grad_norm is missing in rows where some backward passes brought no gradient of any output: "
    "code compiled before gradlens.record() ran in them"
)
COMPILED_BACKWARD = "compiled autograd hides the end of a backward pass, so clipping is not detected"
DISCARDED = (
    "backward passes whose gradients were cleared before a recorded optimizer got them are in no row; the scalar "
    "discarded_passes counts them"
)
INNER_PASSES = (
    "backward passes that reach no parameter of the model (torch.autograd.grad, another model's loss) are not counted"
)
LISTED = 8
"""The most names that a note lists."""


class Notes:
    """The notes of one run, each kept once; they are stored in the file.

    Args:
        model: The model.
        choice: The user's choice of layers.
        modules: The layers that were chosen when recording began.
    """

    def __init__(self, model: nn.Module, choice: LayerChoice, modules: Mapping[str, nn.Module]) -> None:
        self._model, self._choice, self.modules = model, choice, modules
        self._own = {name: own_parameters(module) for name, module in modules.items()}
        self._texts: dict[str, None] = {}
        self.replaced: set[str] = set()
        """Layers that were replaced or removed after recording began."""
        self._inner_passes_from: int | None = None
        self.discarded_seen = False
        """Whether a backward pass was discarded."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All notes, in the order in which they were added."""
        return tuple(self._texts)

    def add(self, text: str) -> None:
        """Add a note."""
        self._texts.setdefault(text)

    def warn(self, text: str, tip: str) -> None:
        """Add a note, and warn the user the first time.

        Args:
            text: The note.
            tip: What the user can do about it; only the warning has it.
        """
        if text not in self._texts:
            self.add(text)
            warnings.warn(f"gradlens: {text}; {tip}", GradlensWarning, stacklevel=2)

    def look_for_changes(self) -> None:
        """Warn of modules that were added or replaced after recording began: they are not recorded; note new names."""
        now = choose_layers(self._model, self._choice)
        recorded, names_now = set(self.modules.values()), {module: name for name, module in now.items()}
        changed = [(name, module) for name, module in self.modules.items() if now.get(name) is not module]
        replaced = [name for name, module in changed if module not in names_now]
        renamed = [f"{name} (now {names_now[module]})" for name, module in changed if module in names_now]
        added = [name for name, module in now.items() if module not in recorded and name not in replaced]
        if renamed:
            self.add(f"recorded under the name that it had when recording began: {listed(renamed)}")
        self.replaced.update(replaced)
        for names, what in ((added, "added to the model"), (replaced, "replaced or removed")):
            if names:
                text = f"{listed(names)}: {what} after recording began, and not recorded since then"
                self.warn(text, "make a new recorder to record it")
        exchanged = [name for name in now if name in self._own and name not in replaced and self._has_others(name)]
        self.replaced.update(exchanged)
        if exchanged:
            self.warn(
                f"{listed(exchanged)}: parameters were replaced or added after recording began, and the new ones are "
                "in no row",
                "make a new recorder to record them",
            )

    def _has_others(self, name: str) -> bool:
        """Return whether a layer has parameters now that it did not have when recording began."""
        before = self._own[name]
        if any(hasattr(parameter, "device_mesh") for parameter in before):  # gathered and sharded again in each step
            return False
        known = set(map(id, before))
        return any(id(parameter) not in known for parameter in own_parameters(self.modules[name]))

    def warn_of_no_hook(self, *, compiled: bool, backward: bool) -> None:
        """Warn that gradients of outputs will be missing.

        Args:
            compiled: Whether code was compiled in this process.
            backward: Whether a backward pass reached the model's parameters.
        """
        if compiled:
            self.warn(NO_HOOK, "call torch.compiler.reset() and gradlens.record() before the first call")
        elif backward:
            self.warn(
                NOT_CALLED, "call layers as layer(x), or record only metrics of parameters (-activation_grad_norm)"
            )
        else:
            self.warn(
                BY_HAND, 'leave them out with metrics="-activation_grad_norm", or record the copies that are trained'
            )

    def note_in_turn(self, row: int, *, shared: bool = False) -> None:
        """Note that optimizers step in turn.

        Args:
            row: The first row of which this is known.
            shared: Whether they do because they share parameters.
        """
        what = "share parameters" if shared else "step in turn"
        self.add(f"the optimizers {what}: from row {row} on, each step of one of them is a row")

    def note_compiled_backward(self, *, scaled: bool) -> None:
        """Note what is not detected where compiled autograd runs the backward passes.

        Args:
            scaled: Whether a GradScaler is in use.
        """
        if scaled:
            tip = "turn off compiled autograd or the GradScaler"
            self.warn(f"{COMPILED_BACKWARD}, and a step that the GradScaler skips is merged into the next row", tip)
        else:
            self.add(COMPILED_BACKWARD)

    def note_unwatched_calls(self, metrics: Sequence[str]) -> None:
        """Note that these metrics are missing because layers run in compiled code."""
        self.add(f"not measured in compiled code: {listed(metrics)}")

    def note_inner_passes(self, row: int) -> None:
        """Note that some backward passes reach no parameter.

        Args:
            row: The row in which they were detected.
        """
        if self._inner_passes_from is None:
            self._inner_passes_from = row
            self.add(
                INNER_PASSES
                if row == 0
                else f"{INNER_PASSES}; they were detected from row {row} on, and may have been counted before"
            )

    def note_discarded(self, row: int) -> None:
        """Note that backward passes were discarded.

        Args:
            row: The row in progress when the first was.
        """
        if not self.discarded_seen:
            self.discarded_seen = True
            self.add(f"{DISCARDED} (first before row {row})")

    def note_earlier_passes(self, row: int) -> None:
        """Note that gradients were not cleared when recording began, so that the first row adds to them.

        Args:
            row: The first row.
        """
        self.add(
            f"the gradients of row {row} hold those of backward passes before recording began, which were not cleared: "
            "its activation_grad_norm is missing where they do"
        )

    def note_found_scaler(self) -> None:
        """Note that a GradScaler is in use that the recorder was not given."""
        self.add("a GradScaler calls the optimizer although scaler= was not given: it was found, and its scale is used")

    def note_other_changes(self, rows: int) -> None:
        """Note that gradients were changed before the step in another way than by clipping.

        Args:
            rows: Number of rows.
        """
        self.add(
            f"in {plural(rows, 'row')} gradients were changed between the backward pass and the step, and not by "
            "clipping alone (noise, projection, an average?): these have no clip_coefficient"
        )

    def note_constant_factor(self, factor: float) -> None:
        """Note that gradients were multiplied by the same number in every row, which clipping does not do.

        Args:
            factor: The number.
        """
        self.add(
            f"gradients were multiplied by {factor:.4g} (divided by {1 / factor:.6g}) between the backward pass and "
            "the step in every row: a scale of the loss or a number of micro-batches taken off by hand, and not "
            "clipping, whatever clip_coefficient says; activation_grad_norm has the scale still"
        )

    def warn_of_early_log(self) -> None:
        """Warn that a scalar was logged before the first backward pass."""
        self.warn(
            "log() was called before the first backward pass: these values are in the first row",
            "call it after loss.backward(): a value belongs to the step whose backward pass it follows",
        )

    def warn_of_late_log(self) -> None:
        """Warn that a scalar was logged after the row had been written."""
        self.warn(
            "log() after log_epoch() is in no row: the row was written by then",
            "call log() before log_epoch(), or pass the values to log_epoch()",
        )

    def warn_of_no_step(self, passes: int, optimizers: Collection[object], other: str = "") -> None:
        """Warn, while it happens, that backward passes come and no step.

        Args:
            passes: Number of passes so far.
            optimizers: The optimizers that are followed.
            other: Class of an optimizer that steps the parameters instead, if one was seen.
        """
        steps = f" (another one, {other}, steps the model's parameters)" if other else ""
        if optimizers:
            kinds = listed([type(each).__name__ for each in optimizers])
            text, tip = (
                f"{passes} backward passes and no step of the optimizer given ({kinds}), so no row yet{steps}",
                "give the optimizer whose step() is called (nothing to do if it steps after more passes than that)",
            )
        else:
            text, tip = (
                f"{passes} backward passes, and neither optimizer= was given nor recorder.step() called, so no row yet",
                f"pass {f'the {other} that steps as ' if other else ''}optimizer=, or call recorder.step() after "
                "loss.backward()",
            )
        self.warn(text, tip)

    def warn_of_other_steps(self, name: str, optimizers: Collection[object], rows: int) -> None:
        """Warn of steps of an optimizer that was not given, on parameters that are recorded.

        Args:
            name: Its class.
            optimizers: The optimizers that are followed.
            rows: Number of rows so far.
        """
        kinds = listed([type(each).__name__ for each in optimizers])
        given = f"the optimizer given ({kinds}) does not step" if kinds else "recorder.step() is not called"
        self.warn(
            f"another optimizer ({name}) steps the model's parameters while {given}: from row {rows} on, steps of it "
            "are in no row",
            "make a new recorder with the optimizer that steps (resume=True appends to the file), or give both as "
            "optimizer=[...]",
        )

    def warn_of_cleared_step(self) -> None:
        """Warn that gradients were cleared before ``recorder.step()``."""
        self.warn(
            "recorder.step() came after the gradients were cleared: such steps are in no row",
            "call it after loss.backward() and before zero_grad(), or pass the optimizer as optimizer=",
        )

    def warn_of_no_row(self, cause: str, cure: str) -> None:
        """Warn that the recording ends without a row.

        Args:
            cause: Why.
            cure: What to change.
        """
        self.warn(f"no row was recorded: {cause}", cure)

    def warn_of_strangers(self, optimizers: Collection[object]) -> None:
        """Warn that the optimizers hold no parameter of the model."""
        kinds = listed([type(each).__name__ for each in optimizers])
        self.warn(
            f"the optimizer given ({kinds}) holds none of the parameters of {type(self._model).__name__}",
            "pass the optimizer that was made from this model's parameters, after the model was moved or wrapped",
        )

    def warn_of_copies(self, optimizers: Collection[object]) -> None:
        """Warn that no backward pass reaches the model's parameters, and the optimizers hold none of them."""
        kinds, model = listed([type(each).__name__ for each in optimizers]), type(self._model).__name__
        self.warn(
            f"the optimizer given ({kinds}) holds none of the parameters of {model}, and no gradient reaches them "
            "(functional_call with copies of the parameters?): rows have gradients of outputs alone",
            "train dict(model.named_parameters()), which are the model's own; nothing to do if an input is trained",
        )

    def warn_of_split_passes(self) -> None:
        """Warn that a pipeline computes the gradients of weights in passes of their own."""
        self.warn(
            "metrics of outputs are missing: this pipeline's schedule (zero bubble) computes the gradients of inputs "
            "and of weights in separate passes",
            "gradients of parameters are recorded; ScheduleInterleaved1F1B has all metrics",
        )

    def warn_of_silent_passes(self) -> None:
        """Warn that a row lacks the gradients of outputs of some backward passes."""
        self.warn(SILENT_PASSES, "call torch.compiler.reset() before gradlens.record()")


def listed(names: Sequence[str]) -> str:
    """Return names separated by commas, at most ``LISTED`` of them."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def line(error: Exception) -> str:
    """Return an error as one line, with its type if it is not gradlens's own."""
    text = str(error).splitlines()[0] if str(error) else ""
    return text if isinstance(error, GradlensError) else f"{type(error).__name__}: {text}"
