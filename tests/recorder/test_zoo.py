"""Every metric of every odd model against the truth, by every way that hooks are placed."""

from __future__ import annotations

import contextlib

import pytest
import torch

from gradlens.metrics import METRICS
from gradlens.recorder import Recorder
from gradlens.recorder.hooks import placement
from gradlens.sinks import ListSink
from tests.recorder.against_truth import assert_right, record_case
from tests.recorder.case import Case
from tests.recorder.zoo import ZOO

STEPS = 4  # the first is recorded by other hooks than the later ones


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize(
    ("name", "directly"),
    [
        *(pytest.param(name, True, id=f"{name}-directly") for name in ZOO),
        *(
            pytest.param(name, False, id=f"{name}-by-forward-hook", marks=[pytest.mark.slow] if place % 4 else [])
            for place, name in enumerate(ZOO)
        ),
    ],
)
def test_every_metric_of_every_odd_model(name: str, directly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not directly:
        monkeypatch.setattr(placement, "_allows_direct_place", lambda module: False)
    assert_right(ZOO[name], *record_case(ZOO[name], STEPS))


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
