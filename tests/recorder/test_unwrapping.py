"""Optimizers in other libraries' wrappers: the one inside is followed, with the scaler that the wrapper carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from gradlens.errors import RecorderError
from gradlens.recorder import Recorder
from gradlens.recorder.unwrapping import find_optimizers
from gradlens.sinks import ListSink
from tests.recorder.test_recorder import data, mlp, train


class Accelerated(torch.optim.Optimizer):
    """As Accelerate's: an Optimizer that never called ``Optimizer.__init__``, so that its hooks are not there."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None) -> None:
        self.optimizer = optimizer
        self.scaler = scaler

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if self.scaler is None:
            self.optimizer.step(closure)
            return
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Fabric:
    """As Lightning Fabric's: of a class of its own making, with the other's attributes and ``optimizer`` a property."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.__dict__ = {key: value for key, value in vars(optimizer).items() if key not in ("state_dict", "step")}
        self.__class__ = type("Fabric" + type(optimizer).__name__, (type(self), type(optimizer)), {})
        self._optimizer = optimizer

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    def step(self, closure: object = None) -> None:
        self.optimizer.step()


class Private(torch.optim.Optimizer):
    """As Opacus': what is wrapped is ``original_optimizer``, and its step changes the gradients."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.original_optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.original_optimizer.param_groups

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(0.5)
        self.original_optimizer.step()


class Deep:
    """As DeepSpeed's: no Optimizer at all."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self, closure: object = None) -> None:
        self.optimizer.step()


WRAPPERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "accelerate": Accelerated,
    "fabric": Fabric,
    "opacus": Private,
    "deepspeed": Deep,
    "deepspeed in accelerate": lambda optimizer: Accelerated(Deep(optimizer)),  # type: ignore[arg-type]
    "opacus in fabric in accelerate": lambda optimizer: Accelerated(Fabric(Private(optimizer))),  # type: ignore[arg-type]
}


def rows_of(wrap: Callable[[torch.optim.Optimizer], Any], steps: int = 4) -> ListSink:
    model, sink = mlp(), ListSink()
    wrapped = wrap(torch.optim.AdamW(model.parameters(), 0.01))
    with Recorder(model, sink, optimizer=wrapped) as recorder:
        for step in range(steps):
            x, y = data(step)
            loss = functional.cross_entropy(model(x), y)
            model.zero_grad()
            loss.backward()
            wrapped.step()
            recorder.log(loss=loss)
    return sink


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_is_wrapped_is_recorded_as_if_it_were_not(name: str) -> None:
    bare, wrapped = rows_of(lambda optimizer: optimizer), rows_of(WRAPPERS[name])
    assert [row.step for row in wrapped.rows] == [0, 1, 2, 3]
    assert all("loss" in row.scalars and row.scalars["lr"] == 0.01 for row in wrapped.rows)
    if "opacus" in name:  # its step halves the gradients: they are read as the optimizer inside gets them
        np.testing.assert_allclose(wrapped.metric("param_grad_norm")[0], bare.metric("param_grad_norm")[0] / 2, 1e-6)
        return
    for metric in ("param_grad_norm", "activation_grad_norm", "update_ratio", "param_norm"):
        np.testing.assert_array_equal(wrapped.metric(metric), bare.metric(metric))


@pytest.mark.parametrize("levels", [1, 2])
def test_a_scaler_that_is_carried_is_used(levels: int) -> None:
    """As Accelerate does with mixed_precision="fp16": the user never sees the scaler."""

    def run(scale: float, **options: Any) -> ListSink:
        model, sink = mlp(), ListSink()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000, enabled=scale > 1)
        wrapped: Any = Accelerated(torch.optim.SGD(model.parameters(), 0.1), scaler)
        for _ in range(levels - 1):
            wrapped = Accelerated(wrapped)
        given = {"scaler": scaler} if options.get("given") else {}
        with Recorder(model, sink, optimizer=wrapped, **given) as recorder:
            for step in range(4):
                x, y = data(step)
                loss = functional.cross_entropy(model(x), y) * (float("inf") if step == 2 and scale > 1 else 1.0)
                model.zero_grad()
                scaler.scale(loss).backward()
                step_inside(wrapped)
                recorder.log(loss=loss)
        return sink

    def step_inside(wrapped: Any) -> None:
        while isinstance(wrapped.optimizer, Accelerated):
            wrapped = wrapped.optimizer
        wrapped.step()

    plain, carried, given = run(1.0), run(1024.0), run(1024.0, given=True)
    assert [row.scalars["skipped"] for row in carried.rows] == [0, 0, 1, 0]
    assert "nonfinite_count" in carried.rows[0].metrics
    for metric in ("param_grad_norm", "activation_grad_norm"):
        np.testing.assert_array_equal(carried.metric(metric), given.metric(metric))
        np.testing.assert_allclose(carried.metric(metric)[:2], plain.metric(metric)[:2], rtol=1e-5)


def test_the_scaler_that_was_given_comes_first() -> None:
    model = mlp()
    inner = torch.optim.SGD(model.parameters(), 0.1)
    carried, given = torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu")
    assert find_optimizers(Accelerated(inner, carried), None)[::2] == ([inner], carried)
    assert find_optimizers(Accelerated(inner, carried), given)[::2] == ([inner], given)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    several = [Accelerated(inner, carried), Accelerated(other, given)]
    with pytest.raises(RecorderError, match="carry different GradScalers"):
        find_optimizers(several, None)
    assert find_optimizers(several, given)[::2] == ([inner, other], given)
    same = [Accelerated(inner, carried), Accelerated(other, carried)]
    assert find_optimizers(same, None)[::2] == ([inner, other], carried)


def test_of_what_wraps_nothing_a_line_says_so() -> None:
    model = mlp()
    inner = torch.optim.SGD(model.parameters(), 0.1)
    hollow = Accelerated(inner)
    hollow.optimizer = None  # type: ignore[assignment]

    class Circle:
        param_groups = ()

        @property
        def optimizer(self) -> object:
            return self

        def step(self) -> None:
            """Do nothing."""

    for wrong in (hollow, Circle(), "adam", model):
        with pytest.raises(RecorderError, match=r"must be a torch.optim.Optimizer or several, got"):
            Recorder(model, ListSink(), optimizer=wrong)  # type: ignore[arg-type]


def test_deepspeed_zero_is_refused_in_one_line() -> None:
    class ZeROOptimizer:  # the base class in deepspeed.runtime.base_optimizer
        pass

    class DeepSpeedZeroOptimizer(ZeROOptimizer):  # stages 1 and 2: it holds the user's optimizer
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer, self.param_groups = optimizer, optimizer.param_groups

        def step(self) -> None:
            self.optimizer.step()

    model = mlp()
    zero = DeepSpeedZeroOptimizer(torch.optim.SGD(model.parameters(), 0.1))
    for given in (zero, Deep(zero)):  # type: ignore[arg-type]
        with pytest.raises(RecorderError, match=r"DeepSpeedZeroOptimizer: DeepSpeed ZeRO keeps .* p\.grad is None"):
            Recorder(model, ListSink(), optimizer=given)  # type: ignore[arg-type]


def test_several_wrapped_optimizers_close_one_row_together() -> None:
    model, sink = mlp(), ListSink()
    halves = [Accelerated(torch.optim.SGD(part.parameters(), 0.1)) for part in (model[:2], model[2:])]

    class Both:
        def zero_grad(self) -> None:
            model.zero_grad()

        def step(self) -> None:
            for half in halves:
                half.step()

    with Recorder(model, sink, optimizer=halves):
        train(model, Both(), 3)  # type: ignore[arg-type]
    assert [row.step for row in sink.rows] == [0, 1, 2]


# --- optimizers that are none of torch's ------------------------------------------------------------------------------


class HomeMade:
    """As students write it: a list of parameters and a rate."""

    def __init__(self, parameters: Any, lr: float = 0.01) -> None:
        self.params, self.lr = list(parameters), lr

    def step(self) -> None:
        with torch.no_grad():
            for parameter in self.params:
                parameter -= self.lr * parameter.grad


class InTuples(HomeMade):
    """As TorchOpt's: its groups are tuples of parameters, and ``step`` may be given a loss or the model."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters)
        self.param_groups = [tuple(self.params)]

    def step(self, *what: Any, model: nn.Module | None = None) -> None:
        assert model is None or isinstance(model, nn.Sequential)
        super().step()


class Collected(HomeMade):
    """As fastai's: collections of a class of its own, in groups that are made anew, each with its settings."""

    class List:
        def __init__(self, items: Any) -> None:
            self.items = list(items)

        def __iter__(self) -> Any:
            return iter(self.items)

        def __len__(self) -> int:
            return len(self.items)

        def __contains__(self, item: object) -> bool:
            return any(item is each for each in self.items)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": self.List([p]), "lr": self.lr} for p in self.params]


class Hidden:
    """As fastai's OptimWrapper: what it wraps has another name, and the groups are its own."""

    def __init__(self, parameters: Any) -> None:
        self.opt = torch.optim.SGD(parameters, 0.01)
        self.param_groups = [dict(group) for group in self.opt.param_groups]

    def step(self) -> None:
        self.opt.step()


class Together:
    """Holds several and steps them one after the other, as those that give matrices to one and the rest to another."""

    def __init__(self, parameters: Any) -> None:
        own = list(parameters)
        self.matrices = torch.optim.SGD([p for p in own if p.ndim == 2], 0.01)
        self.rest = {"vectors": HomeMade(p for p in own if p.ndim < 2)}
        self.param_groups: list[Any] = []

    def step(self) -> None:
        self.matrices.step()
        self.rest["vectors"].step()


class Rateless(torch.optim.SGD):
    """As Adafactor: the rate is None, and chosen in ``step``."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, 0.01)
        self.param_groups[0]["lr"] = None

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.param_groups[0]["lr"] = 0.01
        super().step()
        self.param_groups[0]["lr"] = None


@pytest.mark.parametrize("kind", [HomeMade, InTuples, Collected, Hidden, Together, Rateless])
def test_what_is_no_optimizer_of_torch_is_followed(kind: Callable[[Any], Any]) -> None:
    def rows(make: Callable[[Any], Any], **given: Any) -> ListSink:
        model, sink = mlp(), ListSink()
        optimizer = make(model.parameters())
        before = dict(vars(optimizer))
        with Recorder(model, sink, optimizer=optimizer, on_error="raise") as recorder:
            for step in range(4):
                x, y = data(step)
                model.zero_grad()
                functional.cross_entropy(model(x), y).backward()
                optimizer.step(**dict.fromkeys(given, model))
                recorder.log(loss=step)
        assert vars(optimizer).keys() == before.keys()  # its own step is back
        return sink

    bare = rows(lambda parameters: torch.optim.SGD(parameters, 0.01))
    other = rows(kind, **{"model": True} if kind is InTuples else {})
    assert [row.step for row in other.rows] == [0, 1, 2, 3]
    assert all(("lr" in row.scalars) == (kind is not Rateless) for row in other.rows)
    assert other.rows[0].scalars.get("lr", 0.01) == 0.01
    for metric in ("param_grad_norm", "activation_grad_norm", "update_ratio"):
        np.testing.assert_allclose(other.metric(metric), bare.metric(metric), rtol=1e-6)
    assert not other.notes


def test_a_mapping_of_optimizers() -> None:
    model = mlp()
    halves = {name: torch.optim.SGD(model[k].parameters(), 0.1) for name, k in (("first", 0), ("last", -1))}
    assert find_optimizers(halves, None).optimizers == list(halves.values())
    with pytest.raises(RecorderError, match=r"got tests\.recorder\.small\.Nothing|got .*Nothing"):
        find_optimizers(type("Nothing", (), {"step": lambda self: None})(), None)  # type: ignore[arg-type]


class Wrapping(torch.optim.SGD):
    """Calls ``step`` of its base class, whose hooks torch calls too once an SGD was made."""

    fails = False

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.fails:
            raise ValueError("no step")
        super().step(closure)


@pytest.mark.parametrize("by_closure", [False, True])
def test_a_step_that_calls_that_of_its_base_class_is_one_step(by_closure: bool) -> None:
    def rows(kind: type[torch.optim.SGD]) -> ListSink:
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)  # puts hooks around SGD.step
        model, sink = mlp(), ListSink()
        optimizer = kind(model.parameters(), 0.01)
        with Recorder(model, sink, optimizer=optimizer, on_error="raise") as recorder:
            for step in range(5):

                def closure(step: int = step) -> torch.Tensor:
                    x, y = data(step)
                    model.zero_grad()
                    loss = functional.cross_entropy(model(x), y)
                    loss.backward()
                    return loss

                optimizer.fails = step == 2
                loss = None if by_closure else closure()
                if step != 2:
                    optimizer.step(closure if by_closure else None)
                elif kind is Wrapping:
                    with pytest.raises(ValueError, match="no step"):
                        optimizer.step()
                recorder.log(loss=step if loss is None else loss)
        return sink

    bare, twice = rows(torch.optim.SGD), rows(Wrapping)
    assert [row.step for row in twice.rows] == [row.step for row in bare.rows] == [0, 1, 2, 3]
    rows_without_failure = [0, 1, 3]
    for metric in ("param_grad_norm", "activation_grad_norm", "update_ratio"):
        got, expected = (sink.metric(metric)[rows_without_failure] for sink in (twice, bare))
        np.testing.assert_array_equal(got, expected)
