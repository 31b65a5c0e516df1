"""The protocol by which metrics are measured, in addition to the gradient norms that every row has.

``gradlens.metrics`` names the module that measures a metric (``Metric.measured_by``); it has a class of this protocol
as ``MEASURER``. So a new metric is a file in ``measurers/`` and a line there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gradlens.metrics import METRICS
from gradlens.recorder.layers import Learned
from gradlens.recorder.measured_row import Part


@dataclass(frozen=True)
class Context:
    """What is measured.

    Args:
        model: The model.
        modules: Layer names to modules, L of them.
        own: (L,) the parameters of each layer that this rank reads.
        intervals: Metric to its interval in rows.
        learned: What the first row shows about the layers.
        on_error: Is called with an error in a hook.
        on_pass: Is to be called during a backward pass, when a gradient arrives.
    """

    model: nn.Module
    modules: Mapping[str, nn.Module]
    own: Sequence[Sequence[nn.Parameter]]
    intervals: Mapping[str, int]
    learned: Learned
    on_error: Callable[[Exception], None]
    on_pass: Callable[[], None]


class Measurer:
    """Measures some metrics; a recorder makes one of each class that its metrics need.

    A method does nothing unless a class overrides it. ``due`` always names the metrics that the row in progress has.

    Args:
        context: What is measured.
    """

    reads_parameters: ClassVar[bool] = False
    """Whether its values are of the layers' parameters, and so are missing where these were replaced."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def choose(self, due: Sequence[str], row: int) -> list[str]:
        """Return the metrics that a row is to have, where they are not simply those that are due.

        Args:
            due: The metrics that are due by their intervals.
            row: Index of the row.
        """
        return list(due)

    @property
    def spread_over_rows(self) -> list[str]:
        """Metrics of which each row has only some layers, in turn."""
        return []

    def begin_step(self, due: Sequence[str], row: int) -> None:
        """Place the hooks that the step in progress needs, and remove others; none is due where it is not recorded."""

    def remove_hooks(self) -> None:
        """Remove the hooks until the next step."""

    @property
    def pending(self) -> bool:
        """Whether the backward pass in progress has brought something."""
        return False

    def take_pass(self) -> Any:
        """Return what the backward pass in progress has brought, and reset it."""
        return None

    def add_pass(self, taken: Any, layers: NDArray[np.bool_] | None) -> None:
        """Add what a pass has brought to the step that it belongs to.

        Args:
            taken: See ``take_pass``.
            layers: (L,) the layers for which it belongs to the step; None for all.
        """

    def end_pass(self) -> None:
        """Release what the forward pass has left, after a backward pass of the loss."""

    def before_step(self, due: Sequence[str], row: int) -> None:
        """Read parameters and their gradients as an optimizer gets them; called once in a row."""

    def skip_step(self, due: Sequence[str], row: int) -> None:
        """Read parameters in a row whose step the GradScaler skipped."""

    def after_step(self) -> None:
        """Read parameters after all optimizers have stepped."""

    def parts(self, scale: Tensor | float | None) -> dict[str, list[Part]]:
        """Return metric or addend to its values in the row in progress.

        Args:
            scale: The loss scale that activation gradients carry.
        """
        return {}

    def clear(self) -> None:
        """Forget the step in progress, and release its tensors."""

    def stop(self) -> None:
        """Release what is kept for later rows: the recording ends."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is remembered from earlier rows, which a resumed recording needs for the same values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Remember what ``state_dict`` of an earlier recording returned."""


def make_measurers(metrics: Iterable[str], context: Context) -> list[Measurer]:
    """Return the measurers that metrics need.

    Args:
        metrics: Their names.
        context: What is measured.
    """
    modules = dict.fromkeys(METRICS[name].measured_by for name in metrics if METRICS[name].measured_by)
    package = __name__.rpartition(".")[0]
    return [importlib.import_module(f"{package}.measurers.{name}").MEASURER(context) for name in modules]
