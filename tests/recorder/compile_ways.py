"""Combinations of torch.compile and the recorder, and what each records, compared with an uncompiled copy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradlens.errors import GradlensWarning
from gradlens.recorder import Recorder
from gradlens.recorder.layers import clean_name
from gradlens.sinks import ListSink
from tests.recorder.case import GRADIENTS_AND_WEIGHTS, Case, rand
from tests.recorder.truth import Truth, find_truth

STEPS = 4
BATCH = 4


class Net(nn.Module):
    """Everything that has been difficult: in-place activations, ``x += shortcut``, an output that is a view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.token, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.relu(self.bn(self.stem(x)))
        x = self.block(shortcut)
        x += shortcut
        x = functional.relu(self.token(self.relu(x).flatten(2).transpose(1, 2)), inplace=True)
        return self.head(x.mean(1))


def inputs(step: int, dtype: torch.dtype = torch.float32, batch: int = BATCH) -> Tensor:
    return rand(batch, 3, 8, 8, seed=step).to(dtype)


def loss_of(output: Tensor) -> Tensor:
    return functional.cross_entropy(output, torch.arange(len(output)) % 3)


@dataclass
class Session:
    """A training in progress."""

    backend: str
    net: Net
    optimizer: torch.optim.Optimizer
    call: Callable[[Tensor], Tensor]
    step: Callable[[], object]
    recorded: nn.Module
    around_backward: Callable[[], Any] = nullcontext
    batch: Callable[[int, int], int] = lambda step, part: BATCH
    """Step and part to the size of the micro-batch."""
    parts: int = 1
    every: int = 1
    metrics: tuple[str, ...] = GRADIENTS_AND_WEIGHTS

    def train_step(self, step: int) -> None:
        self.optimizer.zero_grad()
        for part in range(self.parts):
            with self.around_backward():
                loss_of(self.call(inputs(step * self.parts + part, batch=self.batch(step, part)))).backward()
        self.step()


Act = Callable[[Session], None]


@dataclass(frozen=True)
class Way:
    """One combination: actions at several moments, and what may be missing.

    Args:
        before: Before the recorder is made.
        inside: When it is there, before the first step.
        middle: Before the third step.
        each: Before every step.
        missing: Metrics that may be missing, if a note says so.
        notes: Notes that the run must have although nothing is missing.
    """

    before: Act = lambda session: None
    inside: Act = lambda session: None
    middle: Act = lambda session: None
    each: Act = lambda session: None
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def wrap(**options: Any) -> Act:
    def act(session: Session) -> None:
        session.call = session.recorded = torch.compile(session.net, backend=session.backend, **options)  # type: ignore

    return act


def wrap_unseen(session: Session) -> None:
    """Compile with a wrapper, which the recorder does not know."""
    session.call = torch.compile(session.net, backend=session.backend)  # type: ignore[assignment]


def in_place(**options: Any) -> Act:
    def act(session: Session) -> None:
        session.net.compile(backend=session.backend, **options)

    return act


def block_only(session: Session) -> None:
    session.net.block = torch.compile(session.net.block, backend=session.backend)  # type: ignore[assignment]


def block_in_place(session: Session) -> None:
    session.net.block.compile(backend=session.backend)


def function(**options: Any) -> Act:
    def act(session: Session) -> None:
        net = session.net
        session.call = torch.compile(lambda x: net(x), backend=session.backend, **options)

    return act


def called(act: Act) -> Act:
    """Compile, and train a step before the recorder comes."""

    def both(session: Session) -> None:
        act(session)
        session.train_step(99)

    return both


def evaluate(session: Session) -> None:
    session.net.eval()
    with torch.no_grad():
        session.call(inputs(7, batch=3))
    session.call(inputs(8))
    session.net.train()


class Breaking(Net):
    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.relu(self.bn(self.stem(x)))
        torch._dynamo.graph_break()
        x = self.block(shortcut)
        x += shortcut
        if float(x.detach().sum()) > 1e9:
            return x
        x = functional.relu(self.token(self.relu(x).flatten(2).transpose(1, 2)), inplace=True)
        return self.head(x.mean(1))


def breaking(session: Session) -> None:
    session.net.__class__ = Breaking
    wrap()(session)


def compiled_step(session: Session) -> None:
    wrap()(session)
    session.step = torch.compile(lambda: session.optimizer.step(), backend=session.backend)


def compiled_bound_step(session: Session) -> None:
    session.step = torch.compile(session.optimizer.step, backend=session.backend)


def compiled_step_only(session: Session) -> None:
    session.step = torch.compile(lambda: session.optimizer.step(), backend=session.backend)


def whole_step(session: Session) -> None:
    """Compile forward pass, backward pass and optimizer step as one function."""
    net, optimizer = session.net, session.optimizer

    def train(x: Tensor) -> None:
        optimizer.zero_grad()
        loss_of(net(x)).backward()
        optimizer.step()

    compiled = torch.compile(train, backend=session.backend)
    session.train_step = lambda step: compiled(inputs(step))  # type: ignore[method-assign]


def compiled_backward(session: Session) -> None:
    """Compile the backward passes of an eager model."""
    backend = session.backend
    session.around_backward = lambda: torch._dynamo.compiled_autograd._enable(torch.compile(backend=backend))


def whole_step_by_config(session: Session) -> None:
    with torch._dynamo.config.patch(compiled_autograd=True):
        whole_step(session)


def compiled_backward_of_parts(session: Session) -> None:
    compiled_backward(session)
    session.parts = 2


def compiled_both(session: Session) -> None:
    wrap()(session)
    compiled_backward(session)


def other_batch_later(session: Session) -> None:
    """Compile and call before the recorder; micro-batches of another size come after."""
    called(wrap(dynamic=False))(session)
    session.parts, session.batch = 2, lambda step, part: BATCH + part


def function_other_batch_later(session: Session) -> None:
    """The same with a compiled function, of which the recorder does not know."""
    called(function(dynamic=False))(session)
    session.parts, session.batch = 2, lambda step, part: BATCH + part


def other_batch_in_later_steps(session: Session) -> None:
    called(function(dynamic=False))(session)
    session.batch = lambda step, part: BATCH + step % 2


def micro_batches(session: Session) -> None:
    wrap(dynamic=False)(session)
    session.parts, session.batch = 2, lambda step, part: BATCH + part


def every_second(session: Session) -> None:
    wrap()(session)
    session.every = 2


def parameters_only(session: Session) -> None:
    wrap()(session)
    session.metrics = ("param_grad_norm", "param_norm", "update_ratio")


def reset(session: Session) -> None:
    called(wrap())(session)
    torch.compiler.reset()


HIDDEN = ("compiled autograd hides the end of a backward pass, so clipping is not detected",)
ACTIVATION = ("activation_grad_norm",)
WAYS: dict[str, Way] = {
    "torch.compile(model)": Way(wrap()),
    "torch.compile(model), plain model recorded": Way(wrap_unseen),
    "model.compile()": Way(in_place()),
    "torch.compile(model) after the recorder": Way(inside=wrap_unseen),
    "model.compile() after the recorder": Way(inside=in_place()),
    "a compiled function": Way(function()),
    "a compiled submodule": Way(block_only),
    "submodule.compile()": Way(block_in_place),
    "dynamic=True": Way(wrap(dynamic=True)),
    'mode="reduce-overhead"': Way(wrap(mode="reduce-overhead")),
    "evaluations between": Way(wrap(), each=evaluate),
    "graph breaks in the model": Way(breaking),
    "micro-batches": Way(micro_batches),
    "every=2": Way(every_second),
    "parameters only": Way(parameters_only),
    "parameters only, a compiled function": Way(
        lambda session: (function()(session), setattr(session, "metrics", ("param_grad_norm",)))[0]
    ),
    "compiled optimizer step": Way(compiled_step),
    "compiled optimizer step, bound method": Way(compiled_bound_step),
    "compiled optimizer step, eager model": Way(compiled_step_only),
    "the whole step compiled": Way(whole_step),
    "compiled autograd": Way(compiled_both, notes=HIDDEN),
    "compiled autograd, eager model": Way(compiled_backward, notes=HIDDEN),
    "compiled autograd, eager model, micro-batches": Way(compiled_backward_of_parts, notes=HIDDEN),
    "the whole step and compiled autograd": Way(whole_step_by_config, notes=HIDDEN),
    "called before the recorder": Way(called(wrap())),
    "model.compile(), called before": Way(called(in_place())),
    "a compiled function, called before": Way(called(function()), missing=ACTIVATION),
    "a submodule, called before": Way(called(block_only)),
    "called before, other micro-batches after": Way(other_batch_later),
    "a function called before, other micro-batches after": Way(function_other_batch_later, missing=ACTIVATION),
    "a function called before, other batches after": Way(other_batch_in_later_steps, missing=ACTIVATION),
    "plain model recorded, called before": Way(called(wrap_unseen), missing=ACTIVATION),
    "called before, then torch.compiler.reset()": Way(reset),
    "torch.compile(model) in the middle": Way(middle=wrap_unseen, missing=ACTIVATION),
    "model.compile() in the middle": Way(middle=in_place(), missing=ACTIVATION),
    "a submodule in the middle": Way(middle=block_in_place, missing=ACTIVATION),
    "fullgraph=True": Way(wrap(fullgraph=True), missing=ACTIVATION),
    "model.compile(fullgraph=True)": Way(in_place(fullgraph=True), missing=ACTIVATION),
    "a compiled function, fullgraph=True": Way(function(fullgraph=True), missing=ACTIVATION),
}


@dataclass
class Outcome:
    """The result of one combination."""

    sink: ListSink
    truths: list[Truth]
    said: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    """Metric to the largest relative error of the numbers that are there."""
    missing: dict[str, int] = field(default_factory=dict)
    """Metric to how many numbers are not there."""


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Keep the recorder's warnings, and drop those of torch and of Python's libraries."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [str(one.message) for one in caught if issubclass(one.category, GradlensWarning)]


def find_double_truth(session: Session, step: int) -> Truth:
    """Train an uncompiled copy in float64 for one step."""
    copy = type(session.net)().double()
    state = {clean_state_name(name): value for name, value in session.net.state_dict().items()}
    copy.load_state_dict(state)
    calls: list[int] = []

    def call_parts(loss: Tensor) -> None:
        loss.backward()
        for part in range(1, session.parts):
            x = inputs(step * session.parts + part, torch.float64, session.batch(step, part))
            calls.append(part)
            loss_of(case_model[0](x)).backward()

    case_model: list[nn.Module] = []
    case = Case(
        Net,
        lambda step: ((inputs(step * session.parts, torch.float64, session.batch(step, 0)),), {}),
        loss_of,
        optimizer=lambda model: (case_model.append(model), torch.optim.SGD(model.parameters(), 0.05))[1],
        backward=call_parts,
    )
    return find_truth(case, copy, step)


def clean_state_name(name: str) -> str:
    module, _, tensor = name.rpartition(".")
    return f"{clean_name(module)}.{tensor}"


def run_way(way: Way, backend: str) -> Outcome:
    """Train a few steps with this combination, and compare with the truth."""
    torch.compiler.reset()
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    session = Session(backend, net, optimizer, net, optimizer.step, net)
    sink = ListSink()
    truths = []
    with quiet() as said:
        way.before(session)
        recorder = Recorder(
            session.recorded, sink, optimizer=optimizer, metrics=session.metrics, every=session.every, on_error="raise"
        )
        with recorder:
            way.inside(session)
            for step in range(STEPS):
                if step == 2:
                    way.middle(session)
                way.each(session)
                truth = find_double_truth(session, step)
                if step % session.every == 0:
                    truths.append(truth)
                session.train_step(step)
    outcome = Outcome(sink, truths, [*said, *sink.notes])
    compare(outcome, session.metrics)
    return outcome


def compare(outcome: Outcome, metrics: tuple[str, ...]) -> None:
    """Fill in the errors of an outcome."""
    header = outcome.sink.header
    if header is None or len(outcome.sink.rows) != len(outcome.truths):
        outcome.missing = dict.fromkeys(metrics, -1)
        return
    names = [layer.name for layer in header.layers]
    for row, truth in zip(outcome.sink.rows, outcome.truths, strict=True):
        for metric, found in row.metrics.items():
            expected = np.array([getattr(truth, metric)[name] for name in names])
            there = ~np.isnan(found)
            error = np.abs(found - expected) / np.where(expected == 0, 1, np.abs(expected))
            largest = float(np.nan_to_num(error[there], nan=np.inf).max(initial=0))
            outcome.errors[metric] = max(outcome.errors.get(metric, 0.0), largest)
            gone = int((~there & ~np.isnan(expected)).sum())
            outcome.missing[metric] = outcome.missing.get(metric, 0) + gone
