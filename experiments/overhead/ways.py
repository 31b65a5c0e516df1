"""Ways to watch gradients: what is called around a training step. gradlens, and what needs no package besides torch.

What is in other packages is in ``peers``.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from subjects import Trained
from torch import Tensor, nn

import gradlens
from gradlens.metrics import DEFAULT_METRICS


class Way:
    """Watch nothing: the bare training step, and the base of all others.

    Args:
        trained: What is watched.
        folder: Where files may be written.
    """

    title: ClassVar[str] = "bare"
    needs: ClassVar[str] = ""
    """The module that must be there to import."""
    package: ClassVar[str] = ""
    """The package that it is in, for its version."""
    out_of_place: ClassVar[bool] = False
    """Whether it fails where an activation overwrites its input; then all models of the comparison have none."""
    never_waits: ClassVar[bool] = False
    """Whether it promises that no step waits for an accelerator."""
    bytes_steps: ClassVar[tuple[int, int]] = (5, 20)
    """Steps of the two runs that tell the bytes of a step from those that are there once."""

    def __init__(self, trained: Trained, folder: Path) -> None:
        self.trained = trained
        self.folder = folder

    @classmethod
    def is_installed(cls) -> bool:
        """Return whether its package is there."""
        return not cls.needs or importlib.util.find_spec(cls.needs) is not None

    @classmethod
    def at_every_step(cls) -> type[Way]:
        """Return the way that does at every step what this one does at some."""
        return cls

    def row_share(self) -> float:
        """Return at how many of its steps it did so."""
        return 1.0

    def begin(self) -> None:
        """Place hooks, open files."""

    def resume(self) -> None:
        """Come back to this model after others were trained; not timed."""

    def after_backward(self) -> None:
        """Act while the gradients stand, before the optimizer's step."""

    def after_step(self, loss: float | Tensor) -> None:
        """Act after the optimizer's step."""

    def end(self) -> None:
        """Remove hooks, close files."""

    def own_account(self) -> float | None:
        """Return the share of training time that the way itself says it costs; None if it says nothing."""
        return None


class Gradlens(Way):
    """Record with gradlens: the default metrics, every step."""

    title = "gradlens"
    package = "gradlens-toolkit"
    never_waits = True
    bytes_steps = (64, 192)  # the file grows by 64 rows at a time
    options: ClassVar[dict[str, Any]] = {}

    def begin(self) -> None:
        """Enter the recorder."""
        self._recorder = gradlens.record(
            self.trained.model,
            self.folder / "run.h5",
            optimizer=self.trained.optimizer,
            on_error="raise",
            **self.options,
        ).__enter__()
        self._left = time.perf_counter()

    def resume(self) -> None:
        """Take the time that other models had off the recorder's clock.

        It takes the time from step to step for this training's own, as it is in every loop but this one: without this,
        its account and the rule "auto" would go by steps that are three times too long.
        """
        self._recorder._steps.state.began += time.perf_counter() - self._left

    def after_step(self, loss: float | Tensor) -> None:
        """Log the loss, as everybody does."""
        self._recorder.log(loss=loss)
        self._left = time.perf_counter()

    def end(self) -> None:
        """Leave the recorder."""
        self._recorder.close()

    def own_account(self) -> float | None:
        """Return the recorder's overhead."""
        return self._recorder.overhead

    def row_share(self) -> float:
        """Return rows over steps."""
        rows, steps = self._recorder.counts
        return rows / steps


class GradlensEvery10(Gradlens):
    """Every tenth step."""

    title = "gradlens, every=10"
    options: ClassVar[dict[str, Any]] = {"every": 10}

    @classmethod
    def at_every_step(cls) -> type[Way]:
        """Return the way without this option."""
        return Gradlens


class GradlensAuto(GradlensEvery10):
    """As often as keeps it under one per cent."""

    title = 'gradlens, every="auto"'
    options: ClassVar[dict[str, Any]] = {"every": "auto"}


def _without_others(name: str) -> tuple[str, ...]:
    """Return what takes all default metrics away but one."""
    return tuple(f"-{each}" for each in DEFAULT_METRICS if each != name)


class GradlensActivations(Gradlens):
    """One metric."""

    title = "gradlens, activation_grad_norm alone"
    options: ClassVar[dict[str, Any]] = {"metrics": _without_others("activation_grad_norm")}


class GradlensParameters(Gradlens):
    """One metric."""

    title = "gradlens, param_grad_norm alone"
    options: ClassVar[dict[str, Any]] = {"metrics": _without_others("param_grad_norm")}


class Forum(Way):
    """The recipe of the forums: a norm and an ``.item()`` for each parameter, kept in a dictionary."""

    title = "forum recipe, p.grad.norm().item()"

    def after_backward(self) -> None:
        """Take the norms."""
        parameters = self.trained.model.named_parameters()
        self.norms = {name: p.grad.norm().item() for name, p in parameters if p.grad is not None}


class ModuleHooks(Way):
    """A full backward hook on each module without children keeps the norm of its output's gradient as a number."""

    title = "module full-backward hooks, .item()"
    out_of_place = True

    def begin(self) -> None:
        """Place the hooks."""
        self.norms: dict[str, float | Tensor] = {}
        self._handles = [
            module.register_full_backward_hook(self._make_hook(name)) for name, module in leaves(self.trained.model)
        ]

    def _make_hook(self, name: str) -> Any:
        def hook(module: nn.Module, grad_input: Any, grad_output: tuple[Tensor, ...]) -> None:
            self.norms[name] = self.keep(grad_output[0].norm())

        return hook

    @staticmethod
    def keep(norm: Tensor) -> float | Tensor:
        """Return what is kept of a norm."""
        return norm.item()

    def end(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


class ModuleHooksTensor(ModuleHooks):
    """The same, but what is kept is a tensor, so that nothing waits for an accelerator."""

    title = "module full-backward hooks, tensors kept"

    @staticmethod
    def keep(norm: Tensor) -> float | Tensor:
        """Return what is kept of a norm."""
        return norm


def leaves(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Find the modules that have no children, with their names."""
    return [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]


OWN: dict[str, type[Way]] = {
    "bare": Way,
    "gradlens": Gradlens,
    "gradlens-every-10": GradlensEvery10,
    "gradlens-auto": GradlensAuto,
    "gradlens-activations": GradlensActivations,
    "gradlens-parameters": GradlensParameters,
    "forum": Forum,
    "module-hooks": ModuleHooks,
    "module-hooks-tensor": ModuleHooksTensor,
}
