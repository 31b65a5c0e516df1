"""Gradients are read as the optimizer got them, whatever happens between backward pass and step."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradlens.recorder import Recorder
from gradlens.sinks import ListSink
from tests.recorder.small import backward, data, mlp, norms


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


@pytest.mark.parametrize("late", [False, True])
def test_the_clip_coefficient_does_not_depend_on_the_writing_thread(late: bool) -> None:
    class Late(ListSink):
        def __init__(self) -> None:
            super().__init__()
            self.waiting: list = []

        def write_row(self, row) -> None:
            self.waiting.append(row)

        def close(self, status) -> None:
            for row in self.waiting:
                super().write_row(row)
            super().close(status)

    model, sink = mlp(), Late() if late else ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer):
        for step in range(6):
            optimizer.zero_grad()
            backward(model, step)
            if step == 1:
                for p in model.parameters():
                    p.grad.data.mul_(0.5)
            optimizer.step()
    found = [row.scalars.get("clip_coefficient") for row in sink.rows]
    assert found == [None, pytest.approx(0.5), 1.0, 1.0, 1.0, 1.0]


def test_without_clipping_there_is_no_coefficient_and_the_user_may_report_one() -> None:
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


def test_clipping_under_a_scaler_is_distinguished_from_unscaling() -> None:
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
