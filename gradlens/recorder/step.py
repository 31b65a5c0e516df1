"""What is measured of one optimizer step: kept on the device until its row is closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gradlens.recorder.norms import combine_norms, fast_norm
from gradlens.run import FloatArray, Layer

Column = dict[str, Tensor]
"""Layer's name to a 0-d float64 tensor."""


class OpenStep:
    """The numbers of the step in progress.

    Args:
        parameters: Layer's name to the parameters that it owns.
    """

    def __init__(self, parameters: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self._parameters = parameters
        self._outputs: dict[str, list[Tensor]] = {}
        self._columns: dict[str, Column] = {}
        self._copies: dict[str, list[Tensor]] = {}
        self._sum_numel: dict[str, int] = {}

    def clear(self) -> None:
        """Forget everything: the step is over, or was never made."""
        self._outputs, self._columns, self._copies, self._sum_numel = {}, {}, {}, {}

    @property
    def has_output_grads(self) -> bool:
        """Whether a backward pass has come by."""
        return bool(self._outputs)

    def clear_output_grads(self) -> None:
        """Forget the gradients of outputs alone."""
        self._outputs = {}

    def add_output(self, name: str, numel: int) -> None:
        """Count the elements that a layer puts out, over all micro-batches and calls."""
        self._sum_numel[name] = self._sum_numel.get(name, 0) + numel

    def out_numel(self, name: str, default: int) -> int:
        """Return the elements that a layer has put out in this step."""
        return self._sum_numel.get(name, default)

    def add_output_grad(self, name: str, grad: Tensor, scale: Tensor | None) -> None:
        """Take the gradient of an output, divided by the loss scale; several are combined as one larger batch."""
        self._outputs.setdefault(name, []).append(_unscale(fast_norm(grad), scale))

    @torch.no_grad()
    def read_gradients(self, scale: Tensor | None) -> None:
        """Take ``param_grad_norm``, divided by a loss scale that the optimizer itself will take out."""
        norms = self._norms(lambda parameter: parameter.grad)
        self._columns["param_grad_norm"] = {name: _unscale(norm, scale) for name, norm in norms.items()}

    @torch.no_grad()
    def read_weights(self, *, keep_copies: bool) -> None:
        """Take ``param_norm``, and a copy of the weights where their update is wanted."""
        self._columns["param_norm"] = self._norms(lambda parameter: parameter)
        if keep_copies:
            self._copies = {name: [p.detach().clone() for p in own] for name, own in self._parameters.items()}

    @torch.no_grad()
    def read_update(self) -> None:
        """Take ``update_ratio`` from the copies, if there are any; NaN where the weights were 0."""
        if not self._copies:
            return
        before = self._columns["param_norm"]
        ratios: Column = {}
        for name, olds in self._copies.items():
            changes = [fast_norm(old.sub_(new)) for old, new in zip(olds, self._parameters[name], strict=True)]
            if changes:
                ratios[name] = torch.where(before[name] == 0, torch.nan, combine_norms(changes) / before[name])
        self._columns["update_ratio"] = ratios
        self._copies = {}

    def read_output_grads(self) -> None:
        """Take ``activation_grad_norm``."""
        self._columns["activation_grad_norm"] = {name: combine_norms(parts) for name, parts in self._outputs.items()}

    def _norms(self, of: Callable[[nn.Parameter], Tensor | None]) -> Column:
        """Return a norm for each layer that has such tensors; a parameter that is shared is read once."""
        known: dict[int, Tensor] = {}
        found: Column = {}
        for name, parameters in self._parameters.items():
            parts: list[Tensor] = []
            for parameter in parameters:
                tensor = of(parameter)
                if tensor is not None:
                    if id(parameter) not in known:
                        known[id(parameter)] = fast_norm(tensor)
                    parts.append(known[id(parameter)])
            if parts:
                found[name] = combine_norms(parts)
        return found

    def to_host(self, metrics: Sequence[str], layers: Sequence[Layer]) -> dict[str, FloatArray]:
        """Copy the numbers of the metrics at once.

        Args:
            metrics: Those that are wanted in this row; others are left out.
            layers: L layers, in the order of the file.

        Returns:
            Metric to (L,) float64: NaN where a layer has none, inf where its tensor held NaN or Inf.
        """
        columns = {name: self._columns[name] for name in metrics if name in self._columns}
        numbers = [number for column in columns.values() for number in column.values()]
        if len({number.device for number in numbers}) > 1:
            numbers = [number.cpu() for number in numbers]
        packed = torch.stack(numbers).cpu().numpy() if numbers else np.empty(0)
        position = {layer.name: i for i, layer in enumerate(layers)}
        values: dict[str, FloatArray] = {}
        start = 0
        for metric, column in columns.items():
            part = packed[start : start + len(column)]
            if metric != "update_ratio":  # there NaN says that the weights were 0
                part = np.where(np.isnan(part), np.inf, part)
            values[metric] = np.full(len(position), np.nan)
            values[metric][[position[name] for name in column]] = part
            start += len(column)
        return values


def _unscale(norm: Tensor, scale: Tensor | None) -> Tensor:
    return norm if scale is None else norm / scale.to(norm.device, torch.float64)
