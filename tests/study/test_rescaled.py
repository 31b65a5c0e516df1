"""The analysis of the rescaled network, on values whose answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from experiments.interventions.arms import PLAIN, WHOLE, Learned
from experiments.rescaled.analyse import RESCALED, answer, largest_deviation, table
from tests.study.planted_claims import planted

SCATTER = (-0.01, 0.0, 0.015)


def learned(rescaled: float, residual: float = 0.9) -> Learned:
    values = {
        arm: {seed: mean + SCATTER[seed] * (1 + i % 2) for seed in range(3)}
        for i, (arm, mean) in enumerate({PLAIN: 0.5, RESCALED: rescaled, WHOLE: residual}.items())
    }
    return Learned(values, values)


@pytest.mark.parametrize(
    ("rescaled", "residual", "expected"),
    [
        (0.82, 0.9, "supported"),
        (0.55, 0.9, "refuted"),
        (0.70, 0.9, "undecided"),
        (0.82, 0.5, "no verdict: no gap is shown"),
    ],
)
def test_the_answer_to_known_values(rescaled: float, residual: float, expected: str) -> None:
    found = learned(rescaled, residual)
    assert answer(found) == expected
    assert ("no gap is shown" in table(found)) == (residual == 0.5)
    if residual > 0.5:
        share = (found.speed[RESCALED][1] - 0.5) / (found.speed[WHOLE][1] - 0.5)
        assert found.share(RESCALED, "speed").mean == pytest.approx(share, abs=0.01)


def test_the_deviation_from_a_profile() -> None:
    run = planted("plain34", 0)
    norms = np.random.default_rng(0).uniform(1, 2, (60, len(run.layers)))
    other = norms * np.arange(1, 61)[:, None]  # rows of another size, but of the same profile
    a, b = (dataclasses.replace(run, metrics={"param_grad_norm": values}) for values in (norms, other))
    assert largest_deviation(b, a) == pytest.approx(0, abs=1e-12)
    other[7, 3] *= 1.01
    assert largest_deviation(b, a) == pytest.approx(0.01)
