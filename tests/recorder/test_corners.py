"""Unusual training loops: everything is recorded right, or a note says what is missing."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradlens
from gradlens.errors import ConfigError, GradlensWarning
from gradlens.recorder import Recorder
from gradlens.run import Header, Layer, Row
from gradlens.sinks import ListSink
from gradlens.storage import BackgroundSink, FileSink, read_run
from tests.recorder.small import backward, mlp, norms


def smooth() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.01)


def physics(model: nn.Module, step: int) -> Tensor:
    """Return the loss of a model whose derivative is to be small; its gradient is another backward pass."""
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step), requires_grad=True)
    out = model(x)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return (slope**2).sum() + (out**2).sum()


def probed(model: nn.Sequential, loss, step: int) -> list[float]:
    """Return the gradient norms of linear outputs: of leaves, which ``torch.autograd.grad`` leaves alone."""
    probes: list[Tensor] = []

    def add(module: nn.Module, args: object, out: Tensor) -> Tensor:
        probes.append(torch.zeros_like(out, requires_grad=True))
        return out + probes[-1]

    handles = [module.register_forward_hook(add) for module in model if isinstance(module, nn.Linear)]
    loss(model, step).backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return [float(probe.grad.norm()) for probe in probes]


def plain(model: nn.Module, step: int) -> Tensor:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
    return (model(x) ** 2).sum()


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("begins", [0, 5])
def test_passes_of_autograd_grad_are_not_counted(begins: int, to_none: bool) -> None:
    model, sink = smooth(), ListSink()
    optimizer = sgd(model)
    expected = []
    with Recorder(model, sink, optimizer=optimizer):
        for step in range(10):
            loss = physics if step >= begins else plain
            other = smooth()
            other.load_state_dict(model.state_dict())
            expected.append(probed(other, loss, step))
            optimizer.zero_grad(set_to_none=to_none)
            loss(model, step).backward()
            optimizer.step()
    found = sink.metric("activation_grad_norm")
    right = [step for step in range(10) if step != begins or begins == 0]  # where it begins late, that row shows it
    np.testing.assert_allclose(found[right], np.array(expected)[right], rtol=1e-5)
    assert any("torch.autograd.grad" in note for note in sink.notes)
    assert any("may have been counted before" in note for note in sink.notes) == (begins > 0)
    assert sink.header.layers[0].out_numel == 5 * 8


def test_a_frozen_model_whose_input_is_trained_has_its_gradients() -> None:
    model, sink = smooth().requires_grad_(False), ListSink()
    x = torch.randn(5, 4, requires_grad=True)
    optimizer = torch.optim.SGD([x], 0.01)
    with Recorder(model, sink, optimizer=optimizer):
        for _ in range(5):
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
    assert np.isfinite(sink.metric("activation_grad_norm")).all()
    assert sink.header.layers[0].out_numel == 5 * 8
    assert not any("autograd.grad" in note for note in sink.notes)


def test_a_suspicion_that_is_false_ends() -> None:
    class Repeating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.times = nn.Linear(4, 4), 1

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.times):
                x = torch.tanh(self.layer(x))
            return x

    model, sink = Repeating(), ListSink()
    optimizer = sgd(model)
    with Recorder(model, sink, optimizer=optimizer):
        for step in range(16):
            model.times = 3 if step > 2 else 1
            optimizer.zero_grad()
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            watched_closely = bool(model.layer._forward_hooks)
            assert watched_closely == (3 <= step < 11)
    assert np.isfinite(sink.metric("activation_grad_norm")).all()
    assert sink.notes == ()


def test_a_skipped_step_leaves_nothing_to_a_later_row() -> None:
    model, sink = mlp(), ListSink()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=8.0)
    with Recorder(model, sink, optimizer=optimizer, scaler=scaler, every=3):
        for step in range(5):
            optimizer.zero_grad()
            x = torch.full((16, 4), torch.inf) if step == 0 else torch.ones(16, 4)
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    model_alone, sink_alone = mlp(), ListSink()
    optimizer = sgd(model_alone)
    with Recorder(model_alone, sink_alone, optimizer=optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            model_alone(torch.ones(16, 4)).square().mean().backward()
            optimizer.step()
    assert [row.scalars["skipped"] for row in sink.rows] == [1.0, 0.0]
    later = sink.metric("activation_grad_norm")[1]
    np.testing.assert_allclose(later, sink_alone.metric("activation_grad_norm")[2], rtol=1e-5)


def test_parameters_that_an_optimizer_gets_later_are_its_own() -> None:
    model, sink = mlp(), ListSink()
    last = list(model[4].parameters())
    optimizer = torch.optim.SGD(last, 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    expected = []
    with Recorder(model, sink, optimizer=optimizer, scaler=scaler):
        for step in range(4):
            if step == 2:
                optimizer.add_param_group({"params": list(model[:4].parameters())})
            model.zero_grad()
            scaler.scale(model(torch.ones(16, 4)).square().mean()).backward()
            scaler.unscale_(optimizer)
            own = norms(model)
            expected.append(own if step >= 2 else [n / 1024 for n in own[:2]] + own[2:])
            scaler.step(optimizer)
            scaler.update()
    np.testing.assert_allclose(sink.metric("param_grad_norm"), expected, rtol=1e-5)
    assert all(row.scalars.get("clip_coefficient", 1.0) == 1.0 for row in sink.rows)


def test_epochs_before_the_first_row_wait_for_it(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        with torch.no_grad():
            model(torch.ones(99, 4))
        recorder.log_epoch(epoch=0, val_accuracy=0.1)
        for step in range(3):
            backward(model, step)
            optimizer.step()
        assert not model[0]._forward_hooks  # the hooks that learn are gone
        recorder.log_epoch(epoch=1, val_accuracy=0.2)
    run = read_run(tmp_path / "run.h5")
    assert run.layers[0].out_numel == 16 * 8
    assert run.epochs["epoch"].tolist() == [0, 1]
    assert run.epoch_of_step.tolist() == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:gradlens. no row was recorded")
def test_an_epoch_without_any_row_is_kept(tmp_path: Path) -> None:
    model = mlp()
    with gradlens.record(model, tmp_path / "run.h5", optimizer=sgd(model)) as recorder:
        recorder.log_epoch(epoch=0, val_accuracy=0.1)
    assert read_run(tmp_path / "run.h5").epochs["val_accuracy"].tolist() == [0.1]


def test_several_optimizers_with_closures_have_all_their_passes() -> None:
    def train(closures: bool) -> ListSink:
        model, sink = mlp(), ListSink()
        first, second = sgd(model[:3]), sgd(model[3:])
        with Recorder(model, sink, optimizer=[first, second]):
            for step in range(4):

                def closure(step: int = step) -> Tensor:
                    model.zero_grad()
                    return backward(model, step)

                for optimizer in (first, second):
                    if closures:
                        optimizer.step(closure)
                    else:
                        closure()
                        optimizer.step()
        return sink

    for metric in ("activation_grad_norm", "param_grad_norm"):
        np.testing.assert_array_equal(train(True).metric(metric), train(False).metric(metric))


def test_a_scaler_needs_its_optimizer() -> None:
    with pytest.raises(ConfigError, match="scaler= without optimizer="):
        Recorder(mlp(), ListSink(), scaler=torch.amp.GradScaler("cpu"))


@pytest.mark.parametrize("call", ["close", "flush", "write_state"])
def test_a_file_that_fails_at_the_end_never_raises_into_the_training(call: str) -> None:
    class Broken(ListSink):
        def _break(self, *args: object) -> None:
            raise OSError("no space left")

    setattr(Broken, call, Broken._break)
    model = mlp()
    optimizer = sgd(model)

    def train() -> None:
        with Recorder(model, Broken(), optimizer=optimizer):
            backward(model, 0)
            optimizer.step()

    with pytest.warns(GradlensWarning, match="no space left"):
        train()


def test_an_error_amid_the_hooks_of_an_optimizer_leaves_the_others_alone() -> None:
    class Broken(ListSink):
        def write_row(self, row: object) -> None:
            raise OSError("no space left")

    model, calls = mlp(), []
    optimizer = sgd(model)
    with Recorder(model, Broken(), optimizer=optimizer):
        optimizer.register_step_pre_hook(lambda *args: calls.append("before"))
        optimizer.register_step_post_hook(lambda *args: calls.append("after"))

        def train() -> None:
            for step in range(3):
                backward(model, step)
                optimizer.step()

        with pytest.warns(GradlensWarning, match="no space left"):
            train()
    assert calls == ["before", "after"] * 3
    assert len(optimizer._optimizer_step_pre_hooks) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_torchs_defaults_do_not_affect_the_recorder(dtype: torch.dtype, device: str) -> None:
    model, sink = mlp(), ListSink()
    optimizer = sgd(model)
    usual = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device), Recorder(model, sink, optimizer=optimizer, on_error="raise"):
            for _ in range(4):
                optimizer.zero_grad()
                with torch.device("cpu"):
                    x = torch.ones(16, 4, dtype=torch.float32)
                model(x).square().mean().backward()
                optimizer.step()
    finally:
        torch.set_default_dtype(usual)
    assert np.isfinite(sink.metric("activation_grad_norm")).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_neither_waits_nor_writes(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        backward(model, 0)
        optimizer.step()
        recorder.log_epoch(epoch=0)
        child = os.fork()
        if child == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                recorder.log_epoch(epoch=1)
                recorder.close()
            os._exit(0 if repr(recorder).startswith("Recorder(closed") else 1)
        assert os.waitpid(child, 0)[1] == 0
        backward(model, 1)
        optimizer.step()
    run = read_run(tmp_path / "run.h5")
    assert run.epochs["epoch"].tolist() == [0]
    assert run.steps.tolist() == [0, 1]


def test_two_recorders_of_one_model_do_not_interfere() -> None:
    model, sinks = mlp(), [ListSink(), ListSink()]
    optimizer = sgd(model)
    with Recorder(model, sinks[0], optimizer=optimizer, every=2):
        for step in range(3):
            backward(model, step)
            optimizer.step()
        with Recorder(model, sinks[1], optimizer=optimizer, every=3):
            for step in range(3, 16):
                optimizer.zero_grad()
                backward(model, step)
                optimizer.step()
    for sink in sinks:
        assert np.isfinite(sink.metric("activation_grad_norm")).all()
        assert sink.notes == ()
    assert all("_compiled_call_impl" not in module.__dict__ for module in model)
    assert all(not module._forward_hooks for module in model)


def test_a_row_that_is_looked_at_early_makes_no_false_note(tmp_path: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(20):
            backward(model, step)
            optimizer.step()
        assert recorder.last_row.step == 19
    assert read_run(tmp_path / "run.h5").info["notes"] == []


def test_a_rule_that_fails_at_once_leaves_no_hook() -> None:
    model = mlp()
    optimizer = sgd(model)

    def rule(step: int) -> bool:
        raise KeyError(step)

    with pytest.raises(KeyError), Recorder(model, ListSink(), optimizer=optimizer, every=rule):
        pass
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_run_that_goes_on_in_another_order_keeps_its_columns(tmp_path: Path) -> None:
    layers = [Layer(name, "Linear", "main", i + 1, 8, 8) for i, name in enumerate("abc")]
    path, intervals = tmp_path / "run.h5", {"activation_grad_norm": 1}
    sink = BackgroundSink(FileSink(path))
    sink.open(Header(tuple(layers), intervals))
    sink.write_row(Row(0, 0, {"activation_grad_norm": np.array([1.0, 2.0, 3.0])}, {}))
    sink.close("interrupted")
    sink = BackgroundSink(FileSink(path, resume_at=(1, 0)))
    sink.open(Header((layers[2], layers[0], layers[1]), intervals))
    sink.write_row(Row(1, 0, {"activation_grad_norm": np.array([3.0, 1.0, 2.0])}, {}))
    sink.close("complete")
    assert read_run(path).metric("activation_grad_norm").tolist() == [[1, 2, 3], [1, 2, 3]]
