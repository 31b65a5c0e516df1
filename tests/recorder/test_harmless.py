"""The recorder changes nothing in the training, and leaves nothing behind."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from gradlens.errors import GradlensWarning, RecorderError
from gradlens.metrics import METRICS
from gradlens.recorder import Recorder, measuring
from gradlens.sinks import ListSink
from tests.recorder.small import backward, data, lstm, mlp, norms


@pytest.mark.filterwarnings("ignore:gradlens. no row was recorded")
@pytest.mark.parametrize("rows", [0, 2])  # the first row is recorded by other hooks than the later ones
@pytest.mark.parametrize("build", [mlp, lstm])
def test_a_copy_or_pickle_of_the_model_holds_nothing_of_the_recorder(build, rows: int, tmp_path: Path) -> None:
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, ListSink(), optimizer=optimizer):
        for step in range(rows):
            backward(model, step)
            optimizer.step()
        backward(model, rows)
        clone = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
    raw = (tmp_path / "model.pt").read_bytes()
    assert b"gradlens" not in raw
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (clone, loaded):
        assert all("_compiled_call_impl" not in module.__dict__ for module in other.modules())
        assert torch.equal(other(data(1)[0]), model(data(1)[0]))
        other(data(1)[0]).sum().backward()


@pytest.mark.parametrize("where", ["hook", "sink", "row"])
@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_an_error_in_recording_kills_a_training_only_if_asked(where: str, on_error: str, monkeypatch) -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def broken(*_: object, **__: object) -> None:
        raise OSError("no space left")

    target = {
        "hook": (gradlens.recorder.hooks.layer_hooks, "_Hooks"),
        "sink": (sink, "write_row"),
        "row": (gradlens.recorder.parameters.ParameterGradients, "read"),
    }[where]

    def train() -> None:
        for step in range(4):
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()
            recorder.log(loss=1.0)
            if step == 1:
                monkeypatch.setattr(*target, broken)

    with Recorder(model, sink, optimizer=optimizer, on_error=on_error) as recorder:
        if on_error == "raise":
            with pytest.raises(OSError, match="no space left"):
                train()
        else:
            with pytest.warns(GradlensWarning, match="recording ended at step 2, training goes on: OSError: no space"):
                train()
            assert recorder.counts[1] == 2
            recorder.log_epoch(epoch=1)
    assert sink.status == "failed"
    assert sink.notes == ("recording ended at step 2: OSError: no space left",)
    assert all(not module._forward_hooks for module in model.modules())
    assert not optimizer._optimizer_step_pre_hooks


def test_an_exception_in_the_users_backward_pass_leaves_nothing_behind() -> None:
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            raise ValueError("in the backward pass")

    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer):
        hidden = model[:3](data(0)[0])
        with pytest.raises(ValueError, match="in the backward pass"):
            model[3:](Bad.apply(hidden)).sum().backward()
        optimizer.zero_grad()
        backward(model, 0)
        want = norms(model)
        optimizer.step()
    np.testing.assert_allclose(sink.metric("param_grad_norm"), [want], rtol=1e-6)


def test_a_layer_that_is_added_or_replaced_has_a_note() -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer) as recorder:
        backward(model, 0)
        optimizer.step()
        model[4] = nn.Linear(8, 3)
        model.append(nn.Linear(3, 3))
        backward(model, 1)
        optimizer.step()
        with pytest.warns(GradlensWarning) as warned:
            recorder.log_epoch(epoch=1)
        recorder.log_epoch(epoch=2)  # warns only once
    assert sorted(str(one.message).split(";")[0] for one in warned) == [
        "gradlens: 4: replaced or removed after recording began, and not recorded since then",
        "gradlens: 5: added to the model after recording began, and not recorded since then",
    ]
    assert len(sink.notes) == 2
    assert np.isnan(sink.metric("activation_grad_norm")[1, 2])


def test_a_parameter_that_is_replaced_has_a_note() -> None:
    model, sink = mlp(), ListSink()
    torch.nn.utils.parametrizations.weight_norm(model[2])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer) as recorder:
        for step in range(3):
            backward(model, step)
            optimizer.step()
        torch.nn.utils.parametrize.remove_parametrizations(model[2], "weight")
        optimizer.param_groups[0]["params"] = list(model.parameters())
        backward(model, 3)
        optimizer.step()
        with pytest.warns(GradlensWarning, match=r"2: parameters were replaced .* and the new ones are in no row"):
            recorder.log_epoch(epoch=1)
    assert not [item for item in sink.facts["parameters"] if item["optimizer"] is None]  # not in no optimizer


def test_notes_in_the_file_list_what_is_missing(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.frozen, self.unused, self.head, self.owner = (nn.Linear(4, 4) for _ in range(5))
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(self.head(self.used(self.frozen(x))), self.owner.weight)

    model = Net()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer):
        for step in range(3):
            backward(model, step)
            optimizer.step()
    run = gradlens.read_run(tmp_path / "run.h5")
    assert run.info["notes"] == [
        "the output had no gradient in any row: frozen",
        "used without a call that hooks see (a weight in a function, tied, fused): owner",
        "never called (unused, or used inside a fused operation): unused",
        "the parameters had no gradient in any row (frozen, unused, or cleared before the step): frozen, unused",
    ]
    assert run.info["overhead"] > 0
    calls = {"frozen": 1, "unused": 0, "used": 1, "head": 1, "owner": 0}
    assert {layer.name: layer.calls for layer in run.layers} == calls


@pytest.mark.slow
def test_memory_does_not_grow() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)), nn.Linear(64, 3))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    class Drop(ListSink):
        def write_row(self, row) -> None:
            row() if callable(row) else row

    x, y = torch.randn(32, 64), torch.randint(0, 3, (32,))
    with Recorder(model, Drop(), optimizer=optimizer) as recorder:
        for step in range(1_100):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
            if step == 99:
                before = resident()
    assert resident() - before < 4_000_000


def test_hooks_are_off_on_steps_that_are_not_recorded() -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    hooked = []
    with Recorder(model, sink, optimizer=optimizer, every=3):
        for step in range(7):
            hooked.append(len(model[0]._forward_hooks) + ("_compiled_call_impl" in model[0].__dict__))
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()
    assert hooked == [1, 0, 0, 1, 0, 0, 1]
    assert [row.step for row in sink.rows] == [0, 3, 6]
    assert np.isfinite(sink.metric("activation_grad_norm")).all()


def test_no_hook_asks_the_host() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                self.asked.append(str(func))
            return func(*args, **(kwargs or {}))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 300), nn.ReLU(inplace=True), nn.Linear(300, 300), nn.Linear(300, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(100, 4)  # outputs of both sides of the limit between small and large
    with Recorder(model, ListSink(), optimizer=optimizer), Count() as count:
        for _ in range(3):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), torch.randint(0, 3, (100,))).backward()
            optimizer.step()
        assert count.asked == []
        float(x.sum())
        assert len(count.asked) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_never_waited_for(tmp_path: Path) -> None:
    model = mlp().cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches = [[part.cuda() for part in data(step)] for step in range(25)]
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step, (x, y) in enumerate(batches):
            if step == 2:
                torch.cuda.set_sync_debug_mode("error")
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
        torch.cuda.set_sync_debug_mode("default")
    run = gradlens.read_run(tmp_path / "run.h5")
    assert np.isfinite(run.metric("param_grad_norm")).all()
    assert np.isfinite(run.scalars["loss"]).all()


# --- warnings -------------------------------------------------------------------------------------------------


def test_warnings_of_a_training_that_goes_well_are_none(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    with warnings.catch_warnings(), gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer):
        warnings.simplefilter("error")
        for step in range(3):
            backward(model, step)
            optimizer.step()
    assert gradlens.read_run(tmp_path / "run.h5").info["notes"] == []


def test_a_wrapped_optimizer_is_refused_in_a_line() -> None:
    class Wrapped:
        pass

    with pytest.raises(RecorderError, match="got Wrapped"):
        Recorder(mlp(), ListSink(), optimizer=Wrapped())


def with_all_attributes(module: nn.Module) -> nn.Module:
    """Return a module with the attributes of another one and weights of its own, as meta-learning libraries make it."""
    new = type(module).__new__(type(module))
    vars(new).update(vars(module))
    new._parameters = {name: None if p is None else p * 2 for name, p in module._parameters.items()}
    new._modules = {name: with_all_attributes(child) for name, child in module._modules.items()}
    return new


def test_a_copy_of_all_attributes_runs_itself() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = data(0)[0]
    with Recorder(model, ListSink(), optimizer=optimizer, on_error="raise"):
        for step in range(4):
            bare = functional.linear(x, model[0].weight * 2, model[0].bias * 2)
            torch.testing.assert_close(with_all_attributes(model)[0](x), bare)
            model.zero_grad()
            backward(model, step)
            optimizer.step()


class Counted(nn.Module):
    """A parametrization with a state: each call changes it, as the power iteration of spectral norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight * 1.0


@pytest.mark.parametrize("build", [mlp, lstm])
def test_a_parametrization_is_not_called_once_more(build) -> None:
    def train(recorded: bool) -> float:
        model = build()
        first = next(module for module in model.modules() if next(module.parameters(recurse=False), None) is not None)
        name = next(iter(first._parameters))
        torch.nn.utils.parametrize.register_parametrization(first, name, Counted())
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with Recorder(model, ListSink(), optimizer=optimizer, metrics=tuple(METRICS)) if recorded else nullcontext():
            for step in range(4):
                backward(model, step)
                optimizer.step()
        return float(first.parametrizations[name][0].calls)

    assert train(recorded=True) == train(recorded=False)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("part", ["all", "one layer"])
def test_torchscript_is_recorded_without_gradients_of_outputs(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "has_compiled", lambda: True)  # another model of the process
    model, sink = mlp(), ListSink()
    if part == "all":
        model = torch.jit.script(model)
    else:
        model[0] = torch.jit.script(model[0])
    optimizer, got = torch.optim.SGD(model.parameters(), 0.1), []
    warns = pytest.warns(GradlensWarning, match=r"torch\.jit") if part == "all" else nullcontext()
    with warns, Recorder(model, sink, optimizer=optimizer, metrics=tuple(METRICS)):
        for step in range(4):
            optimizer.zero_grad()
            backward(model, step)
            grads = [p.grad.double() for p in model.parameters()]  # weight and bias of each layer in succession
            got.append([float(torch.cat([w.flatten(), b]).norm()) for w, b in zip(*[iter(grads)] * 2, strict=True)])
            optimizer.step()
    np.testing.assert_allclose(sink.metric("param_grad_norm"), got, rtol=1e-5)
    missing = np.isnan(sink.metric("activation_grad_norm")).all(axis=0)
    assert missing.tolist() == [True, part == "all", part == "all"]
    assert any("missing" in note or "used without a call" in note for note in sink.notes)


def operations(model: nn.Module, x: Tensor) -> list[str]:
    return [node.kind() for node in torch.jit.trace(model, x).inlined_graph.nodes()]


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_trace_of_the_model_holds_nothing_of_the_recorder() -> None:
    model = mlp()
    optimizer, x = torch.optim.SGD(model.parameters(), 0.1), data(1)[0]
    plain = operations(model, x)
    with Recorder(model, ListSink(), optimizer=optimizer):
        for step in range(3):
            assert operations(model, x) == plain  # and no TracerWarning, which is an error here
            backward(model, step)
            optimizer.step()
