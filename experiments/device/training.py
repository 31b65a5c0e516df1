"""Training small models with the recorder on, and what its rows should hold."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import gradlens
from experiments.device.checks import NOT_MEASURED, Found, last_line
from experiments.device.models import Case
from experiments.device.truth import (
    METRICS,
    Spy,
    Truth,
    find_reference,
    gradients_of,
    largest_error,
    norms_of,
    to_host,
    update_ratios,
    weights_of,
)

STEPS = 27
"""So that the metrics that come in every 25th row come twice."""
FEW_STEPS = 4
WEIGHTS_EVERY = 25
LOOKED_AT = (0, 1, 2, 25, 26)
"""Steps whose rows are compared."""
RATE = 0.02

MakeOptimizer = Callable[[list[nn.Parameter], float], Optimizer]


def momentum(parameters: list[nn.Parameter], rate: float) -> Optimizer:
    """Make the optimizer that is used where nothing else is said."""
    return torch.optim.SGD(parameters, rate, momentum=0.9)


@dataclass
class Setup:
    """How a case is trained.

    Args:
        case: The model and its data.
        device: "cuda" or "cpu".
        make_optimizer: Gets the parameters and the learning rate.
        dtype: Of autocast; None: without.
        scaler: Makes a GradScaler; None: without.
        clip: Norm to which gradients are clipped.
        unscale: Whether they are unscaled before the step.
        spoiled: Step whose inputs hold an infinity.
        steps: How many.
        looked_at: Those of them whose rows are compared with truth.
        reference: Whether truth is found by a float64 copy too.
        spy: Whether truth is found from the very gradients.
        wrap: Is given the model, and returns what is recorded and called.
        record: More options of ``gradlens.record``.
    """

    case: Case
    device: str
    make_optimizer: MakeOptimizer = momentum
    dtype: torch.dtype | None = None
    scaler: Callable[[], torch.amp.GradScaler] | None = None
    clip: float | None = None
    unscale: bool = False
    spoiled: int | None = None
    steps: int = STEPS
    looked_at: tuple[int, ...] = LOOKED_AT
    reference: bool = False
    spy: bool = True
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    record: dict[str, Any] = field(default_factory=dict)


@dataclass
class Rows:
    """A run as it was read from its file.

    Args:
        layers: (L,) names, in execution order.
        steps: (T,) the optimizer step of each row.
        metrics: Name to (T, L), in float64.
        scalars: Name to (T,).
    """

    layers: list[str]
    steps: list[int]
    metrics: dict[str, np.ndarray]
    scalars: dict[str, np.ndarray]

    def row(self, step: int) -> int | None:
        """Return which row is that of a step."""
        return self.steps.index(step) if step in self.steps else None


@dataclass
class Recorded:
    """What came of a training.

    Args:
        rows: What was recorded; None where there is no file.
        exact: Step to truth from the very gradients.
        references: Step to truth from a float64 copy.
        losses: Of every step.
        skipped: Steps that a GradScaler skipped.
        said: Warnings of gradlens and notes of the run.
    """

    rows: Rows | None = None
    exact: dict[int, Truth] = field(default_factory=dict)
    references: dict[int, Truth] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


class Trainer:
    """A model in training.

    Args:
        setup: How.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.model = setup.case.build().to(setup.device)
        self.called = setup.wrap(self.model)
        self.optimizer = setup.make_optimizer(list(self.model.parameters()), RATE / setup.case.scale)
        self.scaler = setup.scaler() if setup.scaler is not None else None
        self.losses: list[Tensor] = []

    def inputs(self, step: int) -> Tensor:
        """Return the batch of a step on the CPU."""
        x = self.setup.case.inputs(step)
        if step == self.setup.spoiled:
            x.view(-1)[0] = float("inf")
        return x

    def backward(self, x: Tensor) -> None:
        """Make the forward and the backward pass of a batch on the device."""
        setup = self.setup
        self.optimizer.zero_grad()
        context = torch.autocast(setup.device, setup.dtype) if setup.dtype is not None else nullcontext()
        with context:
            output = self.called(x)
        loss = setup.case.loss(output)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.losses.append(loss.detach())

    def prepare(self) -> None:
        """Unscale and clip, where that is wanted."""
        if self.setup.unscale and self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.setup.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.setup.clip)

    def update(self) -> None:
        """Let the optimizer step."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def step(self, x: Tensor) -> Tensor:
        """Make one training step, without a look at anything, and return the loss on its device."""
        self.backward(x)
        self.prepare()
        self.update()
        return self.losses[-1]


def train(setup: Setup) -> Recorded:
    """Train with the recorder on, and find what the rows of some steps should hold."""
    trainer = Trainer(setup)
    spy = Spy(trainer.model) if setup.spy else None
    with recording(trainer, setup.record) as (recorder, recorded):
        for step in range(setup.steps):
            if spy is not None:
                spy.on = step in setup.looked_at
            if step in setup.looked_at:
                _look(trainer, spy, step, recorded)
            else:
                trainer.step(trainer.inputs(step).to(setup.device))
            recorder.log(loss=trainer.losses[-1])
    recorded.losses = [float(loss) for loss in trainer.losses]
    return recorded


def _look(trainer: Trainer, spy: Spy | None, step: int, recorded: Recorded) -> None:
    """Make one training step, and find what its row should hold."""
    setup, x = trainer.setup, trainer.inputs(step)
    before = weights_of(trainer.model)
    if setup.reference:
        state = {name: to_host(value) for name, value in trainer.model.state_dict().items()}
        truth = find_reference(setup.case, state, trainer.optimizer, x)
        recorded.references[step] = _due(truth, step)
    scale = 1.0 if trainer.scaler is None else trainer.scaler.get_scale()
    trainer.backward(x.to(setup.device))
    outputs = {} if spy is None else spy.take(1 / scale)
    trainer.prepare()
    gradients = norms_of(gradients_of(trainer.model), 1 if setup.unscale else 1 / scale)
    trainer.update()
    if trainer.scaler is not None and trainer.scaler.get_scale() < scale:
        recorded.skipped.append(step)
    if spy is not None:
        truth = {"activation_grad_norm": outputs, "param_grad_norm": gradients, "param_norm": norms_of(before)}
        truth["update_ratio"] = update_ratios(before, weights_of(trainer.model))
        recorded.exact[step] = _due(truth, step)


def _due(truth: Truth, step: int) -> Truth:
    """Leave out the metrics that the row of this step does not have."""
    rare = () if step % WEIGHTS_EVERY == 0 else ("param_norm", "update_ratio")
    return {name: values for name, values in truth.items() if name not in rare}


@contextmanager
def recording(trainer: Trainer, options: dict[str, Any]) -> Iterator[tuple[Any, Recorded]]:
    """Record a training into a temporary file; afterwards the run is read, and what was said is kept."""
    recorded = Recorded()
    options = {"optimizer": trainer.optimizer, "on_error": "raise", "scaler": trainer.scaler} | options
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = Path(folder) / "run.h5"
        with gradlens.record(trainer.called, path, **options) as recorder:
            yield recorder, recorded
        recorded.said = [str(each.message) for each in caught if issubclass(each.category, gradlens.GradlensWarning)]
        if path.exists():
            recorded.rows, notes = read_rows(path)
            recorded.said += [note for note in notes if note not in " ".join(recorded.said)]


def read_rows(path: Path) -> tuple[Rows, list[str]]:
    """Read a run file, and return its rows and its notes."""
    run = gradlens.read_run(path)
    metrics = {name: np.array(run.metric(name), dtype=np.float64) for name in run.metrics}
    scalars = {name: np.array(values, dtype=np.float64) for name, values in run.scalars.items()}
    rows = Rows([layer.name for layer in run.layers], [int(step) for step in run.steps], metrics, scalars)
    return rows, list(run.info.get("notes", []))


def unless_bare_fails(setup: Setup, act: Callable[[], Found]) -> Found:
    """Make a check; where training fails without the recorder too, it is none of the recorder's."""
    try:
        return act()
    except Exception:
        failure = _failure_without_recorder(setup)
        if failure is None:
            raise
        return {"status": NOT_MEASURED, "reason": f"fails without the recorder too: {failure}"}


def _failure_without_recorder(setup: Setup) -> str | None:
    try:
        trainer = Trainer(setup)
        for step in range(3):
            float(trainer.step(trainer.inputs(step).to(setup.device)))
    except Exception as error:
        return last_line(error)
    return None


def rows_apart(rows: Rows, others: Rows) -> dict[str, float]:
    """Return the largest relative error between two recordings; inf where they do not have the same rows."""
    if rows.steps != others.steps or rows.layers != others.layers:
        return dict.fromkeys(METRICS, float("inf"))
    return {name: largest_error(rows.metrics[name], others.metrics[name]) for name in METRICS}


def compare(rows: Rows, truths: Mapping[int, Truth]) -> dict[str, float]:
    """Return the largest relative error of each metric over layers and steps; inf where 0 or NaN disagree.

    Args:
        rows: What was recorded.
        truths: Step to what its row should hold.
    """
    worst: dict[str, float] = {}
    for step, truth in truths.items():
        for metric, values in truth.items():
            worst[metric] = max(worst.get(metric, 0.0), _error(rows, step, metric, values))
    return worst


def _error(rows: Rows, step: int, metric: str, truth: Mapping[str, float]) -> float:
    row = rows.row(step)
    if row is None or set(rows.layers) != truth.keys() or metric not in rows.metrics:
        return float("inf")
    return largest_error(rows.metrics[metric][row], np.array([truth[name] for name in rows.layers]))
