"""The recorder in common training loops: right rows, at the right moment, without a change of the training."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from gradlens.errors import ConfigError, RecorderError, RunExistsError, RunFileError
from gradlens.recorder import Recorder
from gradlens.recorder.layers import choose_layers, clean_name
from gradlens.recorder.norms import exact_norm
from gradlens.sinks import ListSink
from gradlens.storage.listing_card import find_card


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def data(seed: int = 0, count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, log: Callable = lambda **_: None) -> list:
    losses = []
    for step in range(steps):
        x, y = data(step)
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log(loss=loss)
        losses.append(loss.item())
    return losses


def recorded(model: nn.Module, steps: int = 3, **options) -> ListSink:
    sink = ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer, **options) as recorder:
        train(model, optimizer, steps, recorder.log)
    return sink


def test_the_readme_loop_writes_a_file(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    path = tmp_path / "run.h5"
    with gradlens.record(model, path, optimizer=optimizer, info={"model": "mlp", "seed": 3, "note": "x"}) as recorder:
        losses = train(model, optimizer, 27, recorder.log)
        recorder.log_epoch(epoch=1, train_loss=0.5)
        assert repr(recorder) == "Recorder(recording: Sequential, 3 layers, 27 rows, next step 27)"
    run = gradlens.read_run(path)
    assert (run.model, run.seed, run.status, run.config["note"]) == ("mlp", 3, "complete", "x")
    np.testing.assert_allclose(run.scalars["loss"], losses, rtol=1e-6)
    assert (run.scalars["lr"] == 1e-3).all()
    assert run.metric("param_grad_norm").shape == (27, 3)
    assert np.isfinite(run.metric("update_ratio")).all(axis=1).nonzero()[0].tolist() == [0, 25]
    assert run.epochs["train_loss"].tolist() == [0.5]
    assert run.info["environment"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
    with pytest.raises(RunExistsError, match="already exists"):
        gradlens.record(model, path, optimizer=optimizer)


MOMENTS = ("after record", "after entering", "after a row", "before the end")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", ["run.h5", "runs/deep/run.h5", "../run.h5", Path("run.h5")], ids=str)
def test_a_change_of_the_working_directory_loses_no_rows(
    moment: str, name: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Hydra and notebooks do it: the path is that of the moment when the recorder was made."""
    here, elsewhere = tmp_path / "here", tmp_path / "some" / "where" / "else"
    here.mkdir()
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(here)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def go(now: str) -> None:
        if now == moment:
            os.chdir(elsewhere)

    recorder = gradlens.record(model, name, optimizer=optimizer)
    go("after record")
    with recorder:
        go("after entering")
        train(model, optimizer, 3, recorder.log)
        recorder.log_epoch(epoch=1)  # on the disk now
        go("after a row")
        train(model, optimizer, 3, lambda loss: recorder.log(loss=loss, late=1.0))  # the file is laid out anew
        recorder.log_epoch(epoch=2)
        go("before the end")
    run = gradlens.read_run(here / name)
    assert run.steps.tolist() == list(range(6))
    assert run.epochs["epoch"].tolist() == [1, 2]
    assert run.status == "complete"
    assert find_card((here / name).resolve()) is not None, "it is not packed"
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in (here / name).resolve().parent.iterdir() if path.name.startswith(".")] == []


def test_messages_show_a_relative_path_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (tmp_path / "elsewhere").mkdir()
    recorder = gradlens.record(model, "runs/a.h5", optimizer=optimizer, on_error="raise")

    def remove_meanwhile() -> None:
        with recorder:
            train(model, optimizer, 1)
            recorder.log_epoch(epoch=1)
            with pytest.raises(RunFileError, match=r"^runs/a\.h5 is being written in this process"):
                gradlens.record(model, "runs/a.h5", optimizer=optimizer)
            monkeypatch.chdir(tmp_path / "elsewhere")
            (tmp_path / "runs" / "a.h5").unlink()
            recorder.log_epoch(epoch=2)

    with pytest.raises(RunFileError, match=r"^runs/a\.h5 was removed while it was being written"):
        remove_meanwhile()
    monkeypatch.chdir(tmp_path)
    Path("runs/a.h5").touch()
    with pytest.raises(RunExistsError, match=r"^runs/a\.h5 already exists"):
        gradlens.record(model, "runs/a.h5", optimizer=optimizer)
    with pytest.raises(RunFileError, match=r"^runs is a folder.*tip: runs/run\.h5"):
        gradlens.record(model, "runs", optimizer=optimizer)


def test_a_failed_run_of_no_step_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), gradlens.record(mlp(), tmp_path / "run.h5"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_epochs_and_rare_rows_go_together(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    rare = gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer, every=lambda step: step >= 5)
    with rare as recorder:
        for epoch in range(2):
            train(model, optimizer, 4, recorder.log)
            recorder.log(**{"loss/ce": 1.0})
            recorder.log_epoch(**{"epoch": epoch + 1, "val/acc": 0.5})
    run = gradlens.read_run(tmp_path / "run.h5")
    assert run.steps.tolist() == [5, 6, 7]
    assert run.epochs["val.acc"].tolist() == [0.5, 0.5]
    assert run.scalars["loss.ce"][-1] == 1.0
    assert [layer.name for layer in run.layers] == ["0", "2", "4"]
    assert run.layers[0].out_numel == 16 * 8


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed"), (None, "complete")]
)
def test_hooks_go_and_the_status_says_how_it_ended(error: type[BaseException] | None, status: str) -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    try:
        with Recorder(model, sink, optimizer=optimizer) as recorder:
            train(model, optimizer, 2)
            if error is not None:
                raise error
    except (KeyboardInterrupt, RuntimeError):
        pass
    assert sink.status == status
    assert len(sink.rows) == 2
    assert all(not module._forward_hooks for module in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    train(model, optimizer, 1)
    assert len(sink.rows) == 2
    recorder.close()  # a second close does nothing
    with pytest.raises(RecorderError, match="this recorder is closed"), recorder:
        pass


def test_training_is_bit_identical_with_the_recorder_on() -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(64, 3))
        return model, torch.optim.Adam(model.parameters(), 1e-2)

    model, optimizer = build()
    torch.manual_seed(2)
    bare = train(model, optimizer, 50)
    watched, optimizer = build()
    with Recorder(watched, ListSink(), optimizer=optimizer) as recorder:
        torch.manual_seed(2)
        assert train(watched, optimizer, 50, recorder.log) == bare
    for a, b in zip(model.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:gradlens. no row was recorded")
def test_the_model_can_be_copied_pickled_and_saved_meanwhile() -> None:
    model = mlp()
    keys = list(model.state_dict())
    with Recorder(model, ListSink(), optimizer=torch.optim.SGD(model.parameters(), 0.1)):
        assert list(model.state_dict()) == keys
        copy.deepcopy(model.state_dict())
        pickle.loads(pickle.dumps(model.state_dict()))


def test_micro_batches_are_combined_into_one_row() -> None:
    def run(parts: int) -> ListSink:
        model, sink = mlp(), ListSink()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with Recorder(model, sink, optimizer=optimizer):
            x, y = data()
            for xs, ys in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (functional.cross_entropy(model(xs), ys) / parts).backward()
            optimizer.step()
        return sink

    whole, parts = run(1), run(4)
    assert len(parts.rows) == 1
    for metric in ("activation_grad_norm", "param_grad_norm", "update_ratio"):
        np.testing.assert_allclose(parts.metric(metric), whole.metric(metric), rtol=1e-5)


def test_evaluation_in_between_is_never_counted() -> None:
    def run(evaluate: bool) -> ListSink:
        model, sink = mlp(), ListSink()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with Recorder(model, sink, optimizer=optimizer):
            for _ in range(3):
                if evaluate:
                    with torch.no_grad():
                        model(data(9, 100)[0])
                train(model, optimizer, 1)
                if evaluate:
                    model(data(9, 100)[0])  # with a graph, but without a backward pass
        return sink

    watched, bare = run(True), run(False)
    assert watched.header is not None
    assert [layer.out_numel for layer in watched.header.layers] == [16 * 8, 16 * 8, 16 * 3]
    np.testing.assert_array_equal(watched.metric("activation_grad_norm"), bare.metric("activation_grad_norm"))


@pytest.mark.parametrize(
    ("every", "steps"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (lambda s: s in (1, 5), [1, 5]), (100, [0])]
)
def test_every(every, steps: list[int]) -> None:
    sink = recorded(mlp(), steps=6, every=every)
    assert [row.step for row in sink.rows] == steps
    full = recorded(mlp(), steps=6)
    np.testing.assert_array_equal(sink.metric("param_grad_norm"), full.metric("param_grad_norm")[steps])
    assert [row.scalars["loss"] for row in sink.rows] == [full.rows[step].scalars["loss"] for step in steps]


@pytest.mark.parametrize("every", [0, -1, 1.5, "often", True])
def test_a_wrong_every_says_so(every) -> None:
    with pytest.raises(ConfigError, match="every must be"):
        Recorder(mlp(), ListSink(), every=every)


def test_without_an_optimizer_the_user_closes_the_row() -> None:
    model, sink, losses = mlp(), ListSink(), []
    with Recorder(model, sink) as recorder:
        for step in range(3):
            x, y = data(step)
            model.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            recorder.step(loss=loss)
            losses.append(loss.item())
    assert [row.scalars["loss"] for row in sink.rows] == losses
    assert sink.metric("param_grad_norm").shape == (3, 3)
    assert np.isfinite(sink.metric("activation_grad_norm")).all()
    assert sink.header is not None
    assert "update_ratio" not in sink.header.metrics


def test_wrong_calls_say_what_to_do() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, ListSink(), optimizer=optimizer) as recorder:
        with pytest.raises(RecorderError, match=r"optimizer\.step\(\) closes rows"):
            recorder.step()
        train(model, optimizer, 1)
        with pytest.raises(RecorderError, match=r"loss must be one number, got a tensor of shape \(2,\)"):
            recorder.log(loss=torch.zeros(2))
    unused = Recorder(model, ListSink(), optimizer=optimizer)
    for call in (unused.log, unused.log_epoch, unused.step):
        with pytest.raises(RecorderError, match=r"the recorder is ready, not recording \(tip: with gradlens"):
            call(loss=1.0)
    unused.close()
    with pytest.raises(ConfigError, match="must be a mapping"):
        Recorder(model, ListSink(), info={"config": 3})
    with pytest.raises(RecorderError, match=r"optimizer must be a torch\.optim\.Optimizer or several, got int"):
        Recorder(model, ListSink(), optimizer=3)
    with pytest.raises(ConfigError, match="on_error must be"):
        Recorder(model, ListSink(), on_error="ignore")
    with pytest.raises(ConfigError, match="unknown metric 'x'; expected one of activation_grad_norm"):
        Recorder(model, ListSink(), metrics=["x"])
    with pytest.raises(RecorderError, match="no module that owns a weight"):
        Recorder(nn.Sequential(nn.ReLU()), ListSink())
    with pytest.raises(RecorderError, match="no module that layers='zzz' takes"):
        Recorder(model, ListSink(), layers="zzz")


def test_layers_can_be_chosen() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))
    assert list(choose_layers(net)) == ["0", "2.0"]
    assert list(choose_layers(net, r"^2\.")) == ["2.0", "2.1"]
    assert list(choose_layers(net, lambda name, module: isinstance(module, nn.BatchNorm2d))) == ["1"]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("module.conv1", "conv1"),
        ("_orig_mod.a.b", "a.b"),
        ("module._orig_mod.a", "a"),
        ("_forward_module.module.a", "a"),
        ("_module.a", "a"),
        ("modules.a", "modules.a"),
    ],
)
def test_names_are_cleaned_of_wrappers(raw: str, clean: str) -> None:
    assert clean_name(raw) == clean


def test_a_layer_without_a_gradient_is_nan_and_a_gradient_of_zero_is_zero() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.frozen, self.unused, self.zero = (nn.Linear(4, 4) for _ in range(4))
            self.head = nn.Linear(4, 3)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.frozen(self.used(x))
            return self.head(x + 0 * self.zero(x))

    torch.manual_seed(0)
    sink = recorded(Net())
    assert sink.header is not None
    at = {layer.name: i for i, layer in enumerate(sink.header.layers)}
    grads, activations = sink.metric("param_grad_norm"), sink.metric("activation_grad_norm")
    assert np.isnan(grads[:, at["frozen"]]).all()
    assert np.isnan(grads[:, at["unused"]]).all()
    assert np.isnan(activations[:, at["unused"]]).all()
    assert (grads[:, at["zero"]] == 0).all()
    assert (activations[:, at["zero"]] == 0).all()
    assert (activations[:, at["frozen"]] > 0).all()
    assert [layer.name for layer in sink.header.layers] == ["used", "frozen", "unused", "zero", "head"]


def test_a_gradient_that_is_not_finite_is_inf_not_missing() -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer):
        x, y = data()
        (functional.cross_entropy(model(x), y) * float("nan")).backward()
        optimizer.step()
    assert np.isinf(sink.metric("param_grad_norm")).all()
    assert np.isinf(sink.metric("activation_grad_norm")).all()


class Out(NamedTuple):
    first: Tensor
    second: Tensor


@pytest.mark.parametrize(
    "wrap", [lambda a, b: (a, b), lambda a, b: {"a": a, "b": [b]}, Out, lambda a, b: [a, (b, None, 3)]]
)
def test_outputs_of_several_tensors_are_combined(wrap) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, x: Tensor):
            out = x @ self.weight
            return wrap(out[:, :2], out[:, 2:])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: Tensor) -> Tensor:
            out = self.two(x)
            values = out.values() if isinstance(out, dict) else out
            first, second = list(values)[:2]
            second = second[0] if isinstance(second, list | tuple) else second
            return torch.cat([first, second], dim=1)

    torch.manual_seed(0)
    model, sink = Net(), ListSink()
    with Recorder(model, sink) as recorder:
        out = model(data()[0])
        out.retain_grad()
        out.square().sum().backward()
        recorder.step()
    assert sink.metric("activation_grad_norm")[0, 0] == pytest.approx(out.grad.norm().item(), rel=1e-5)


def test_a_module_called_twice_is_combined() -> None:
    torch.manual_seed(0)
    layer, sink = nn.Linear(4, 4), ListSink()
    model = nn.Sequential(layer, nn.Tanh(), layer)
    with Recorder(model, sink) as recorder:
        outputs: list[Tensor] = []
        handle = layer.register_forward_hook(lambda m, a, o: outputs.append(o) or o.retain_grad())
        model(data()[0]).square().sum().backward()
        recorder.step()
        handle.remove()
    truth = torch.cat([output.grad.flatten() for output in outputs]).norm().item()
    assert len(outputs) == 2
    assert sink.metric("activation_grad_norm")[0] == pytest.approx([truth], rel=1e-5)


def test_frozen_layers_keep_their_place_and_out_numel_counts_all_micro_batches() -> None:
    model, sink = mlp(), ListSink()
    model[0].requires_grad_(False)
    with Recorder(model, sink) as recorder:
        for part in data()[0].chunk(4):
            model(part).sum().backward()
        recorder.step()
    assert sink.header is not None
    assert [layer.name for layer in sink.header.layers] == ["0", "2", "4"]
    assert [layer.out_numel for layer in sink.header.layers] == [16 * 8, 16 * 8, 16 * 3]


def test_the_update_of_weights_that_were_zero_has_no_ratio() -> None:
    model = mlp()
    nn.init.zeros_(model[4].weight)
    nn.init.zeros_(model[4].bias)
    ratios = recorded(model, steps=1).metric("update_ratio")[0]
    assert np.isnan(ratios[2])
    assert (ratios[:2] == 0).all()  # no gradient gets past a zero weight in the first step


def test_roles_and_depth() -> None:
    from gradlens.models import build_model

    model, sink = build_model("resnet18", num_classes=3, shortcut="B"), ListSink()
    with Recorder(model, sink) as recorder:
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        recorder.step()
    assert sink.header is not None
    layers = sink.header.layers
    assert [layer.depth for layer in layers if layer.role == "main"] == list(range(1, 19))
    shortcuts = [layer.name for layer in layers if layer.role == "shortcut"]
    assert shortcuts == [f"layer{i}.0.downsample.0" for i in (2, 3, 4)]
    by_name = {layer.name: layer for layer in layers}
    assert by_name["layer2.0.downsample.0"].depth == by_name["layer2.0.conv2"].depth
    assert by_name["conv1"].out_numel == 2 * 64 * 16 * 16


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_unscaled_and_a_skipped_step_has_a_row_of_its_own(fused: bool, log: bool) -> None:
    def run(scale: float) -> ListSink:
        model, sink = mlp(), ListSink()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        with Recorder(model, sink, optimizer=optimizer, scaler=scaler) as recorder:
            for step in range(4):
                x, y = data(step)
                for factor in [float("inf"), 1.0] if step == 2 and scale > 1 else [1.0]:
                    optimizer.zero_grad()
                    loss = functional.cross_entropy(model(x), y) * factor
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
                    if log:
                        recorder.log(loss=loss)
        return sink

    plain, scaled = run(1.0), run(1024.0)
    assert [row.step for row in scaled.rows] == [0, 1, 2, 3, 4]
    assert [row.scalars["skipped"] for row in scaled.rows] == [0, 0, 1, 0, 0]
    for metric in ("activation_grad_norm", "param_grad_norm"):
        np.testing.assert_allclose(np.delete(scaled.metric(metric), 2, 0), plain.metric(metric), rtol=1e-5)
        assert np.isinf(scaled.metric(metric)[2]).all()
    parameters = [sum(p.numel() for p in mlp()[i].parameters()) for i in (0, 2, 4)]
    assert scaled.metric("nonfinite_count").tolist() == [[0] * 3, [0] * 3, parameters, [0] * 3, [0] * 3]
    assert "clip_coefficient" not in scaled.rows[1].scalars or scaled.rows[1].scalars["clip_coefficient"] == 1
    if log:
        assert np.isinf(scaled.rows[2].scalars["loss"])
        assert np.isfinite(scaled.rows[3].scalars["loss"])


@pytest.mark.filterwarnings("ignore:gradlens. no row was recorded")
def test_the_hooks_never_ask_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        asked = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                self.asked += 1
            return func(*args, **(kwargs or {}))

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, ListSink(), optimizer=optimizer), Count() as count:
        x, y = data()
        functional.cross_entropy(model(x), y).backward()
        exact_norm(torch.randn(100_000))  # what a hook calls for large tensors on a GPU
        assert count.asked == 0
        float(x.sum())
        assert count.asked == 1
