"""Which steps are recorded, and what that costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import gradlens
from gradlens.errors import ConfigError
from gradlens.recorder import log_spaced
from gradlens.recorder.schedule import AutoEvery, Clock
from tests.recorder.small import backward, mlp


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


def test_auto_records_and_stores_its_overhead(tmp_path: Path) -> None:
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
