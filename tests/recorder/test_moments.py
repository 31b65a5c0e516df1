"""The right moment: what the optimizer got, whatever stands between backward pass and step."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from gradlens.errors import ConfigError, GradlensWarning, RecorderError
from gradlens.recorder import Recorder, log_spaced
from gradlens.recorder.rhythm import AutoEvery, Clock
from gradlens.run import ListSink


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


class LastOfSequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.view(-1, 2, 2).transpose(0, 1))[0][-1])


def lstm() -> nn.Module:
    torch.manual_seed(0)
    return LastOfSequence()


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 4, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def backward(model: nn.Module, step: int, factor: float = 1.0) -> Tensor:
    x, y = data(step)
    loss = functional.cross_entropy(model(x), y) * factor
    loss.backward()
    return loss


def norms(model: nn.Module) -> list[float]:
    """Return the gradient norm of each linear layer as it stands."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [
        float(np.sqrt(sum(np.linalg.norm(p.grad.numpy().astype(np.float64)) ** 2 for p in layer.parameters())))
        for layer in linear
    ]


def total(model: nn.Module) -> float:
    return float(np.linalg.norm(norms(model)))


Change = Callable[[nn.Module], object]

CHANGES: dict[str, Change] = {
    "by-norm": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.05),
    "by-value": lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.003),
    "own": lambda model: [p.grad.mul_(0.25) for p in model.parameters()],
    "own-data": lambda model: [p.grad.data.clamp_(-0.003, 0.003) for p in model.parameters()],
    "own-new-tensor": lambda model: [setattr(p, "grad", p.grad * 0.5) for p in model.parameters()],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("parts", [1, 3])
def test_clipping_is_seen_and_its_coefficient_kept(change: Change, parts: int) -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    got, coefficients = [], []
    with Recorder(model, sink, optimizer=optimizer):
        for step in range(6):
            optimizer.zero_grad()
            for part in range(parts):
                backward(model, parts * step + part, 1 / parts)
            before = total(model)
            change(model)
            got.append(norms(model))
            coefficients.append(total(model) / before)
            optimizer.step()
    np.testing.assert_allclose(sink.metric("param_grad_norm"), got, rtol=1e-6)
    assert max(coefficients) < 0.999
    assert [row.scalars["clip_coefficient"] for row in sink.rows] == pytest.approx(coefficients, rel=1e-5)


def test_clipping_that_begins_late_is_seen_from_then_on() -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with Recorder(model, sink, optimizer=optimizer):
        for step in range(12):
            optimizer.zero_grad()
            backward(model, step)
            if step >= 8:
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
    found = [row.scalars.get("clip_coefficient") for row in sink.rows]
    assert found[:9] == [None] * 9  # in the first such row nobody had looked before the clipping
    assert all(0 < coefficient < 0.1 for coefficient in found[9:])
    assert sink.metric("param_grad_norm")[8:].max() < 0.011


def test_without_clipping_there_is_no_coefficient_and_the_user_may_say_one() -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer) as recorder:
        for step in range(3):
            optimizer.zero_grad()
            backward(model, step)
            if step == 1:
                recorder.clipped(torch.tensor(0.5))
            optimizer.step()
    assert [row.scalars.get("clip_coefficient") for row in sink.rows] == [None, 0.5, None]


def test_clipping_under_a_scaler_is_told_from_unscaling() -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    expected = []
    with Recorder(model, sink, optimizer=optimizer, scaler=scaler):
        for step in range(5):
            optimizer.zero_grad()
            x, y = data(step)
            scaler.scale(functional.cross_entropy(model(x), y)).backward()
            scaler.unscale_(optimizer)
            before = total(model)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            expected.append(total(model) / before)
            scaler.step(optimizer)
            scaler.update()
    assert [row.scalars["clip_coefficient"] for row in sink.rows] == pytest.approx(expected, rel=1e-5)


def test_micro_batches_in_an_order_that_forgets_to_zero() -> None:
    """A loop without zero_grad: the optimizer gets the running sum, and so does the row."""
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    got = []
    with Recorder(model, sink, optimizer=optimizer):
        for step in range(4):
            backward(model, step)
            got.append(norms(model))
            optimizer.step()
    np.testing.assert_allclose(sink.metric("param_grad_norm"), got, rtol=1e-6)


def distance(layer: nn.Module, other: nn.Module | None = None) -> float:
    """Return the norm of a layer's weights, or of the difference to another's."""
    weights = nn.utils.parameters_to_vector(layer.parameters()).detach()
    return float(
        (weights - (0 if other is None else nn.utils.parameters_to_vector(other.parameters()).detach())).norm()
    )


class TestSeveralOptimizers:
    @staticmethod
    def build() -> tuple[nn.Sequential, list[torch.optim.Optimizer]]:
        model = mlp()
        head = list(model[4].parameters())
        rest = [p for p in model.parameters() if all(p is not h for h in head)]
        return model, [torch.optim.SGD(rest, 0.1), torch.optim.Adam(head, 1e-3)]

    def test_a_row_when_each_has_stepped(self) -> None:
        model, optimizers = self.build()
        sink = ListSink()
        got, updates = [], []
        with Recorder(model, sink, optimizer=optimizers):
            for step in range(3):
                model.zero_grad()
                backward(model, step)
                got.append(norms(model))
                before = copy.deepcopy(model)
                for optimizer in optimizers:
                    optimizer.step()
                pairs = [(model[i], before[i]) for i in (0, 2, 4)]
                updates.append([distance(new, old) / distance(old) for new, old in pairs])
        assert [row.step for row in sink.rows] == [0, 1, 2]
        np.testing.assert_allclose(sink.metric("param_grad_norm"), got, rtol=1e-6)
        np.testing.assert_allclose(sink.metric("update_ratio")[0], updates[0], rtol=1e-4)
        assert sink.rows[0].scalars["lr"] == 0.1
        assert sink.rows[0].scalars["lr_2"] == 1e-3

    def test_each_is_read_at_its_own_step(self) -> None:
        """As in a GAN: between the two steps the gradients are made anew."""
        model, optimizers = self.build()
        sink = ListSink()
        got = []
        with Recorder(model, sink, optimizer=optimizers):
            for step in range(3):
                model.zero_grad()
                backward(model, 2 * step)
                first = norms(model)[:2]
                optimizers[0].step()
                model.zero_grad()
                backward(model, 2 * step + 1, 5.0)
                got.append([*first, norms(model)[2]])
                optimizers[1].step()
        np.testing.assert_allclose(sink.metric("param_grad_norm"), got, rtol=1e-6)

    def test_one_that_steps_twice_begins_a_new_row(self) -> None:
        model, optimizers = self.build()
        sink = ListSink()
        with Recorder(model, sink, optimizer=optimizers):
            for step in range(4):
                model.zero_grad()
                backward(model, step)
                optimizers[0].step()
                if step % 2:
                    optimizers[1].step()
        grads = sink.metric("param_grad_norm")
        assert [row.step for row in sink.rows] == [0, 1, 2, 3]
        assert np.isfinite(grads[:, :2]).all()
        assert np.isnan(grads[:, 2]).tolist() == [True, False, True, False]


def test_several_steps_of_one_backward_pass() -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer):
        backward(model, 0)
        optimizer.step()
        optimizer.step()
    params, outputs = sink.metric("param_grad_norm"), sink.metric("activation_grad_norm")
    np.testing.assert_array_equal(params[0], params[1])
    assert np.isfinite(outputs[0]).all()
    assert np.isnan(outputs[1]).all()  # no backward pass came with that step


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_is_recorded_where_the_step_begins(kind, keyword: bool) -> None:
    model, bare, sink = mlp(), mlp(), ListSink()
    got: list[list[float]] = []

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, seen: list) -> list[float]:
        losses = []
        for step in range(3):
            calls: list[list[float]] = []

            def closure(step: int = step, calls: list = calls) -> Tensor:
                optimizer.zero_grad()
                loss = backward(model, step)
                calls.append(norms(model))
                return loss

            losses.append((optimizer.step(closure=closure) if keyword else optimizer.step(closure)).item())
            seen.append(calls[0])
        return losses

    optimizer = kind(model.parameters(), lr=0.1)
    with Recorder(model, sink, optimizer=optimizer):
        losses = train(model, optimizer, got)
    assert losses == train(bare, kind(bare.parameters(), lr=0.1), [])
    np.testing.assert_allclose(sink.metric("param_grad_norm"), got, rtol=1e-6)
    assert np.isfinite(sink.metric("activation_grad_norm")).all()
    assert (sink.metric("update_ratio")[0] > 0).all()
    truth = mlp()
    outputs: list[Tensor] = []
    for module in (truth[0], truth[2], truth[4]):
        module.register_forward_hook(lambda m, a, out: outputs.append(out))
    truth[1].inplace = False
    x, y = data(0)
    grads = torch.autograd.grad(functional.cross_entropy(truth(x), y), outputs)
    expected = [grad.double().norm().item() for grad in grads]
    np.testing.assert_allclose(sink.metric("activation_grad_norm")[0], expected, rtol=1e-5)


def test_an_evaluation_with_a_graph_before_the_first_step_is_not_counted() -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer):
        model(data(9)[0])
        backward(model, 0)
        optimizer.step()
    assert sink.header is not None
    assert [layer.out_numel for layer in sink.header.layers] == [16 * 8, 16 * 8, 16 * 3]
    assert [layer.calls for layer in sink.header.layers] == [1, 1, 1]


# --- harmless -----------------------------------------------------------------------------------------------


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
        "hook": (gradlens.recorder.hooks, "_Hooks"),
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


def test_a_layer_that_is_added_or_replaced_is_said() -> None:
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
        recorder.log_epoch(epoch=2)  # said once
    assert sorted(str(one.message).split(";")[0] for one in warned) == [
        "gradlens: 4: replaced or removed after recording began, and not recorded since",
        "gradlens: 5: added to the model after recording began, and not recorded since",
    ]
    assert len(sink.notes) == 2
    assert np.isnan(sink.metric("activation_grad_norm")[1, 2])


def test_what_is_missing_is_said_in_the_file(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.frozen, self.unused, self.head = (nn.Linear(4, 4) for _ in range(4))
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.used(self.frozen(x)))

    model = Net()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer):
        for step in range(3):
            backward(model, step)
            optimizer.step()
    run = gradlens.read_run(tmp_path / "run.h5")
    assert run.info["notes"] == [
        "no gradient came to the output of frozen",
        "never called, unused or used by a fused operation: unused",
        "no gradient came to the parameters (frozen or unused) of frozen, unused",
    ]
    assert run.info["overhead"] > 0
    assert {layer.name: layer.calls for layer in run.layers} == {"frozen": 1, "unused": 0, "used": 1, "head": 1}


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


# --- rhythm -------------------------------------------------------------------------------------------------


def test_log_spaced_is_dense_first_and_even_in_the_logarithm() -> None:
    wanted = log_spaced(10)
    steps = [step for step in range(100_000) if wanted(step)]
    assert steps[:5] == [0, 1, 2, 3, 4]
    for low in (100, 1_000, 10_000):
        assert sum(low <= step < 10 * low for step in steps) == pytest.approx(10, abs=1)
    with pytest.raises(ConfigError, match="per_decade"):
        log_spaced(0)


@pytest.mark.parametrize(("cost", "interval"), [(0.0, 1), (0.5e-3, 1), (1e-3, 1), (5e-3, 5), (0.2, 200)])
def test_auto_chooses_what_the_budget_allows(cost: float, interval: int) -> None:
    clock = Clock()
    auto = AutoEvery(clock, budget=0.01)
    now = recorded = 0.0
    steps = 4_000
    for step in range(steps):
        spent = 0.0
        if auto(step):
            spent, recorded = cost, recorded + 1
            clock.add_row(cost)
        clock.add_step(0.1 + spent, spent)
        if spent or auto(step):
            auto.note_row(step)
        now += 0.1 + spent
    assert recorded == pytest.approx(steps / interval, abs=2)
    assert clock.overhead <= 0.0101
    assert clock.overhead == pytest.approx(recorded * cost / (0.1 * steps), rel=1e-6)


def test_auto_makes_up_for_a_first_row_that_cost_more() -> None:
    clock = Clock()
    auto = AutoEvery(clock, budget=0.01)
    rows = []
    for step in range(4_000):
        spent = 0.0
        if auto(step):
            spent = 0.1 if step == 0 else 0.005
            rows.append(step)
            if step:
                clock.add_row(spent)
        clock.add_step(0.1 + spent, spent)
        if spent:
            auto.note_row(step)
    assert rows[2] == 11  # twice the interval that is due, as long as the first row is not made up for
    assert rows[-1] - rows[-2] == 5
    assert clock.overhead <= 0.0101


def test_auto_records_and_says_what_it_cost(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer, every="auto") as recorder:
        for step in range(300):
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()
    run = gradlens.read_run(tmp_path / "run.h5")
    assert run.steps[0] == 0
    assert 3 <= len(run.steps) < 100  # so short a step cannot afford a row each time
    assert np.isfinite(run.metric("activation_grad_norm")).all()
    assert recorder.overhead == pytest.approx(run.info["overhead"], rel=0.1)


def test_warnings_of_a_training_that_goes_well_are_none(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    with warnings.catch_warnings(), gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer):
        warnings.simplefilter("error")
        for step in range(3):
            backward(model, step)
            optimizer.step()


def test_a_wrapped_optimizer_is_refused_in_a_line() -> None:
    class Wrapped:
        pass

    with pytest.raises(RecorderError, match="got Wrapped"):
        Recorder(mlp(), ListSink(), optimizer=Wrapped())
