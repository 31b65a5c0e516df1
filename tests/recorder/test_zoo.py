"""Every metric of every odd model against the truth, by every way that hooks are placed."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from gradlens.metrics import METRICS
from gradlens.recorder import Recorder, placing
from gradlens.run import ListSink
from tests.recorder.zoo import ZOO, Case, Truth, find_truth

STEPS = 4  # the first is recorded by other hooks than the later ones


def record_case(case: Case) -> tuple[ListSink, list[Truth]]:
    torch.manual_seed(0)
    model, sink = case.build(), ListSink()
    lazy = any(isinstance(p, torch.nn.UninitializedParameter) for p in model.parameters())
    if lazy:  # an optimizer needs to know the parameters, so a dry run goes before, as PyTorch demands
        args, kwargs = case.inputs(0)
        model(*args, **kwargs)
    truths = []
    optimizer = case.optimizer(model)
    with Recorder(model, sink, optimizer=optimizer, metrics=METRICS, layers=case.layers, on_error="raise") as recorder:
        for step in range(STEPS):
            case.before_step(model, step)
            truths.append(find_truth(case, model, step))
            args, kwargs = case.inputs(step)
            torch.manual_seed(step)
            optimizer.zero_grad()
            case.backward(case.loss(model(*args, **kwargs)))
            optimizer.step()
            recorder.log(loss=0.0)
    return sink, truths


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize("directly", [True, False], ids=["directly", "by-forward-hook"])
@pytest.mark.parametrize("name", ZOO)
def test_every_metric_of_every_odd_model(name: str, directly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not directly:
        monkeypatch.setattr(placing, "_has_short_way", lambda module: False)
    case = ZOO[name]
    sink, truths = record_case(case)
    assert sink.header is not None
    names = [layer.name for layer in sink.header.layers]
    assert len(sink.rows) == STEPS
    for row, truth in zip(sink.rows, truths, strict=True):
        for metric, found in row.metrics.items():
            expected = np.array([getattr(truth, metric)[layer] for layer in names])
            if metric == "activation_grad_norm":
                expected[[layer in case.silent for layer in names]] = np.nan
            np.testing.assert_allclose(found, expected, rtol=case.rtol, err_msg=f"{metric}, step {row.step}")


def train(case: Case, steps: int, record: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    model = case.build()
    args, kwargs = case.inputs(0)
    model(*args, **kwargs)  # lazy modules become what they are
    optimizer = case.optimizer(model)
    recorder = Recorder(model, ListSink(), optimizer=optimizer, metrics=METRICS, layers=case.layers, on_error="raise")
    with recorder if record else contextlib.nullcontext():
        for step in range(steps):
            case.before_step(model, step)
            args, kwargs = case.inputs(step)
            optimizer.zero_grad()
            case.backward(case.loss(model(*args, **kwargs)))
            optimizer.step()
    return [*model.state_dict().values()], torch.get_rng_state()


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize("name", ZOO)
def test_training_is_bit_identical_in_every_odd_model(name: str) -> None:
    bare, bare_rng = train(ZOO[name], 5, record=False)
    watched, watched_rng = train(ZOO[name], 5, record=True)
    for a, b in zip(bare, watched, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
    assert torch.equal(bare_rng, watched_rng)


def test_the_zoo_is_large_enough() -> None:
    assert len(ZOO) >= 25
