"""The gradient through time of recurrent layers: what the last time step tells the first one.

A norm per layer sums over time steps, and with a loss at every time step even the gradients of the states do not show
what comes from far away. So the recurrence is run once more, in rows where the metric is due: the gradient of the last
hidden state, from its output alone, goes back through all time steps, ``g[t-1] = (ds[t] / ds[t-1])^T g[t]``. The value
is ``|g[1]| / |g[T]|``, for an LSTM over its hidden and its cell state. A linear recurrence by rho times an orthogonal
matrix has exactly ``rho^(T-1)``.

Stacked layers of one module are followed together, without the dropout between them; of both directions, the forward
one. It is unknown (NaN) for projected, stacked bidirectional and parametrized layers, and where T is 1.

Source: Pascanu, Mikolov & Bengio 2013, On the difficulty of training recurrent neural networks, section 2.1.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence

from gradlens.metrics import DEFAULT_METRICS, GRADIENT_THROUGH_TIME
from gradlens.recorder.hooks.compiled import outside_graphs
from gradlens.recorder.hooks.layer_hooks import is_transformed
from gradlens.recorder.layers import takes_hooks
from gradlens.recorder.measured_row import Part
from gradlens.recorder.measurer import Context, Measurer
from gradlens.recorder.measurers.activations import CallHook
from gradlens.recorder.norms import NO_FLOAT64, plain
from gradlens.recorder.ratios import FIRST_STATE, LAST_STATE

States = list[Tensor]
"""The states after a time step: hidden states of all stacked layers, for an LSTM each with its cell state."""
CELLS: dict[str, Callable[..., Any]] = {
    "RNN_TANH": torch.rnn_tanh_cell,
    "RNN_RELU": torch.rnn_relu_cell,
    "GRU": torch.gru_cell,
    "LSTM": torch.lstm_cell,
}
MOST_STATES = 1 << 24
"""Most numbers in the states of all time steps, 64 MiB in float32; of larger batches, the first sequences count."""


def is_recurrent(module: nn.Module) -> bool:
    """Return whether a module is a recurrent layer of torch, or a cell."""
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase))


def default_metrics(model: nn.Module) -> tuple[str, ...]:
    """Return the metrics that a model is recorded with by default; models with recurrent layers have one more."""
    return (*DEFAULT_METRICS, GRADIENT_THROUGH_TIME) if any(map(is_recurrent, model.modules())) else DEFAULT_METRICS


@dataclass(eq=False)
class TimeSteps:
    """One pass of sequences through a recurrent layer, or the calls of a cell.

    Args:
        layer: Index of the layer.
        step: States and input of a time step to the next states.
        inputs: (T,) inputs of the time steps.
        start: States before the first time step.
    """

    layer: int
    step: Callable[[States, Tensor], States]
    inputs: list[Tensor]
    start: States
    ends: dict[int, Tensor] = field(default_factory=dict)
    """Index of a state to the gradient of its value after the last time step."""
    newest: weakref.ref[Tensor] | None = None
    """The hidden state that the newest call of a cell returned; the call that is given it goes on from there."""

    def add(self, state: int, grad: Tensor) -> None:
        """Add a gradient of a state after the last time step."""
        self.ends[state] = self.ends[state] + grad if state in self.ends else grad


class GradientThroughTime(Measurer):
    """Measures the gradient through time of recurrent layers.

    Args:
        context: What is measured.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        found = [(i, module) for i, module in enumerate(context.modules.values()) if is_recurrent(module)]
        self._modules = [(i, module) for i, module in found if _is_followed(module)]
        self._handles: list[Any] = []
        self.clear()

    def begin_step(self, due: Sequence[str], row: int) -> None:
        """Place the hooks if the metric is due, and remove them otherwise."""
        now = GRADIENT_THROUGH_TIME in due and not self.context.learned.compiled
        if now == bool(self._handles):
            return
        self.remove_hooks()
        for layer, module in self._modules if now else ():
            see = self._see_cell if isinstance(module, nn.RNNCellBase) else self._see_layer
            hook = CallHook(functools.partial(see, layer), self.context.on_error, whole=True)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def remove_hooks(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def clear(self) -> None:
        """Forget the step in progress, and release its tensors."""
        self._cells: dict[int, TimeSteps] = {}
        self._reached: dict[TimeSteps, None] = {}
        self._norms: list[tuple[int, Tensor, Tensor]] = []

    @property
    def pending(self) -> bool:
        """Whether the backward pass in progress reached a recurrent layer."""
        return bool(self._reached)

    def take_pass(self) -> list[tuple[int, Tensor, Tensor]]:
        """Return layer, and norms of the gradients of the first and the last state, for what the pass reached."""
        reached, self._reached = self._reached, {}
        return [norms for each in reached if (norms := _go_back(each)) is not None]

    def add_pass(self, taken: list[tuple[int, Tensor, Tensor]], layers: NDArray[np.bool_] | None) -> None:
        """Add what a pass brought to the step."""
        self._norms += [item for item in taken if layers is None or layers[item[0]]]

    def end_pass(self) -> None:
        """Begin new sequences of calls of cells."""
        self._cells = {}

    def parts(self, scale: Tensor | float | None) -> dict[str, list[Part]]:
        """Return the norms of the gradients of the first and of the last state."""
        found: dict[str, list[Part]] = {FIRST_STATE: [], LAST_STATE: []}
        for layer, *both in self._norms:
            for name, value in zip(found, both, strict=True):
                values = value.reshape(1)
                number = Part(np.array([layer]), values.numpy() if values.is_cpu else values, None, scale)
                found[name].append(number)
        return found

    # --- the forward pass ---------------------------------------------------------------------------------

    def _see_layer(self, layer: int, module: Any, given: Any, output: Any) -> None:
        """Keep the inputs of a layer, and wait for the gradients of its last outputs."""
        if is_parametrized(module):  # to read such a weight computes it once more, which may change its state
            return
        (args, kwargs), (out, last) = given, output
        x = args[0] if args else kwargs["input"]
        hx = args[1] if len(args) > 1 else kwargs.get("hx")
        series = _Series(module, x, out)
        if len(series.inputs) < 2 or not series.output.requires_grad:
            return
        here = TimeSteps(layer, _stacked_step(module), series.inputs, series.start(hx))
        per_layer = 2 if module.mode == "LSTM" else 1
        top = (module.num_layers - 1) * per_layer

        def from_output(grad: Tensor) -> None:
            here.add(top, series.last_of(grad)[..., : module.hidden_size])

        self._attach(here, series.output, from_output)
        for k, state in enumerate(last if isinstance(last, tuple) else (last,)):

            def from_state(grad: Tensor, k: int = k) -> None:
                for level, values in enumerate(series.states_of(grad)[: module.num_layers]):
                    here.add(level * per_layer + k, values)

            self._attach(here, state, from_state)

    def _see_cell(self, layer: int, module: Any, given: Any, output: Any) -> None:
        """Add a call of a cell to its sequence; the gradient of the last call is the one that goes back."""
        if is_parametrized(module):
            return
        args, kwargs = given
        x = args[0] if args else kwargs["input"]
        hx = args[1] if len(args) > 1 else kwargs.get("hx")
        outputs = output if isinstance(output, tuple) else (output,)
        if not outputs[0].requires_grad:
            return
        known = self._cells.get(layer)
        given_states = hx if isinstance(hx, tuple) else (hx,)
        if known is None or known.newest is None or known.newest() is not given_states[0]:
            start = (
                [torch.zeros_like(_kept(out)) for out in outputs]
                if hx is None
                else [_kept(state) for state in given_states]
            )
            known = self._cells[layer] = TimeSteps(layer, _cell_step(module), [], start)
        known.inputs.append(_kept(x))
        known.newest = weakref.ref(outputs[0])
        index = len(known.inputs)
        series = known

        def from_state(grad: Tensor) -> None:
            if index == len(series.inputs):
                series.add(0, grad)

        self._attach(series, outputs[0], from_state)  # on some devices, a hook on the cell state sees the hidden one's

    def _attach(self, sequence: TimeSteps, tensor: Tensor, on_grad: Callable[[Tensor], None]) -> None:
        if not tensor.requires_grad or is_transformed(tensor):
            return

        @outside_graphs
        @torch.no_grad()
        def arrived(grad: Tensor) -> None:
            try:
                self.context.on_pass()
                on_grad(plain(grad))
                self._reached[sequence] = None
            except Exception as error:
                self.context.on_error(error)

        tensor.register_hook(arrived)  # type: ignore[no-untyped-call]


class _Series:
    """The time steps of a call of a recurrent layer, whatever the form of its input."""

    def __init__(self, module: Any, x: Any, out: Any) -> None:
        self._module, self._packed, self._batched = module, x if isinstance(x, PackedSequence) else None, True
        self.output: Tensor = out.data if self._packed is not None else out
        if self._packed is not None:  # only the longest sequences have all time steps
            sizes = self._packed.batch_sizes.tolist()
            self._take = self._fit(sizes[-1], len(sizes))
            starts = np.cumsum([0, *sizes[:-1]]).tolist()
            self.inputs = [_kept(self._packed.data[at : at + self._take]) for at in starts]
            self._last = starts[-1]
            return
        self._batched = x.dim() == 3
        steps = _kept(x) if self._batched else _kept(x).unsqueeze(1)
        self._time = 1 if module.batch_first and self._batched else 0
        steps = steps.transpose(0, self._time)
        self._take = self._fit(steps.shape[1], len(steps))
        self.inputs = list(steps[:, : self._take].unbind(0))

    def _fit(self, batch: int, steps: int) -> int:
        per_sequence = steps * self._module.hidden_size * self._module.num_layers
        return max(1, min(int(batch), MOST_STATES // max(int(per_sequence), 1)))

    def last_of(self, grad: Tensor) -> Tensor:
        """Return the gradient (B, H) of the outputs of the last time step."""
        if self._packed is not None:
            return grad[self._last : self._last + self._take]
        return (grad if self._batched else grad.unsqueeze(1)).transpose(0, self._time)[-1, : self._take]

    def states_of(self, states: Tensor) -> Tensor:
        """Return states, or their gradients, as (layers, B, H): those of the sequences that are followed."""
        if not self._batched:
            states = states.unsqueeze(1)
        if self._packed is not None and self._packed.sorted_indices is not None:
            states = states.index_select(1, self._packed.sorted_indices)
        return states[:, : self._take]

    def start(self, hx: Any) -> States:
        """Return the states before the first time step, in the order of ``States``."""
        module = self._module
        kinds = 2 if module.mode == "LSTM" else 1
        if hx is None:
            zeros = self.inputs[0].new_zeros(self._take, module.hidden_size)
            return [zeros] * (kinds * module.num_layers)
        given = [self.states_of(_kept(each)) for each in (hx if isinstance(hx, tuple) else (hx,))]
        return [states[level] for level in range(module.num_layers) for states in given]


def _kept(tensor: Tensor) -> Tensor:
    """Return the values of a tensor without its graph."""
    return plain(tensor).detach()


def _is_followed(module: Any) -> bool:
    if not takes_hooks(module):
        return False
    if isinstance(module, nn.RNNCellBase):
        return True
    return not module.proj_size and not (module.bidirectional and module.num_layers > 1)


def _stacked_step(module: Any) -> Callable[[States, Tensor], States]:
    """Return one time step of a layer: all stacked layers, in the forward direction."""
    cell, kinds = CELLS[module.mode], 2 if module.mode == "LSTM" else 1
    names = ("weight_ih_l{}", "weight_hh_l{}", "bias_ih_l{}", "bias_hh_l{}")[: 4 if module.bias else 2]
    weights = [[getattr(module, name.format(i)).detach() for name in names] for i in range(module.num_layers)]

    def step(states: States, x: Tensor) -> States:
        found: States = []
        for level, own in enumerate(weights):
            before = tuple(states[level * kinds : (level + 1) * kinds])
            after = cell(x.to(own[0].dtype), before if kinds == 2 else before[0], *own)
            found += after if kinds == 2 else [after]
            x = found[level * kinds]
        return found

    return step


def _cell_step(module: Any) -> Callable[[States, Tensor], States]:
    """Return one call of a cell, by its own weights."""
    mode = {"LSTMCell": "LSTM", "GRUCell": "GRU"}.get(_cell_class(module).__name__, "")
    mode = mode or f"RNN_{module.nonlinearity.upper()}"
    cell, own = CELLS[mode], [module.weight_ih.detach(), module.weight_hh.detach()]
    own += [module.bias_ih.detach(), module.bias_hh.detach()] if module.bias else []

    def step(states: States, x: Tensor) -> States:
        x = x.to(own[0].dtype)
        return list(cell(x, tuple(states), *own)) if mode == "LSTM" else [cell(x, states[0], *own)]

    return step


def _cell_class(module: nn.Module) -> type:
    return next(each for each in (nn.LSTMCell, nn.GRUCell, nn.RNNCell) if isinstance(module, each))


def _go_back(sequence: TimeSteps) -> tuple[int, Tensor, Tensor] | None:
    """Return layer, and norms of the gradients of the first and the last state; None where there is one time step.

    The gradient is scaled to norm 1 after every time step, and the logarithms of the factors are summed, so that it
    does not underflow. Nothing waits for a device.
    """
    if len(sequence.inputs) < 2 or not sequence.ends:
        return None
    with torch.no_grad(), torch.autocast(sequence.inputs[0].device.type, enabled=False):
        before = [sequence.start]
        for x in sequence.inputs[:-1]:
            before.append(sequence.step(before[-1], x))
        like = before[-1]
    grads = [sequence.ends.get(k, torch.zeros_like(state)).to(state.dtype) for k, state in enumerate(like)]
    last = norm = _norm(grads)
    logs = torch.zeros_like(last)
    for states, x in reversed(list(zip(before[1:], sequence.inputs[1:], strict=True))):
        logs = logs + norm.log()
        divisor = torch.where(norm == 0, 1, norm)
        grads = [grad / divisor.to(grad.dtype) for grad in grads]
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            free = [state.detach().requires_grad_() for state in states]
            found = torch.autograd.grad(sequence.step(free, x), free, grads, allow_unused=True)
        grads = [torch.zeros_like(state) if grad is None else grad for grad, state in zip(found, states, strict=True)]
        norm = _norm(grads)
    first = (logs + norm.log()).exp()
    return sequence.layer, torch.where(last == 0, torch.zeros_like(first), first), last


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of all tensors together, in float64 where the device has it."""
    dtype = torch.float32 if tensors[0].device.type in NO_FLOAT64 else torch.float64
    norm: Tensor = torch.linalg.vector_norm(torch.cat([each.to(dtype).flatten() for each in tensors]))
    return norm


MEASURER = GradientThroughTime
