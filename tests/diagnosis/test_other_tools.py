"""Rule packs: each rule fires beyond its threshold and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from gradlens import read_run
from gradlens.diagnosis.other_tools import PACKS, diagnose_by
from gradlens.diagnosis.recorded_rows import run_of_arrays
from tests.conftest import SAMPLE

ROWS, LAYERS = 30, 6


def kinds(pack: str, scalars: dict | None = None, **changes: np.ndarray) -> set[str]:
    """Return a pack's findings on a healthy recording with some metrics replaced; layers have one parameter each."""
    metrics = {
        "param_grad_norm": np.full((ROWS, LAYERS), 0.1),
        "update_ratio": np.full((ROWS, LAYERS), 1e-3),
    }
    return set(diagnose_by(run_of_arrays(metrics | changes, scalars=scalars), pack).kinds)


def grid(value: float, layer: int | None = None, rest: float = 0.1) -> np.ndarray:
    found = np.full((ROWS, LAYERS), rest if layer is not None else value)
    if layer is not None:
        found[:, layer] = value
    return found


@pytest.mark.parametrize("pack", PACKS)
def test_a_healthy_recording_is_healthy_to_all(pack: str) -> None:
    assert kinds(pack) == set()
    assert diagnose_by(run_of_arrays({"param_grad_norm": grid(0.1)}), pack).kind == "healthy"


@pytest.mark.parametrize("pack", PACKS)
def test_all_find_non_finite_values(pack: str) -> None:
    broken = grid(0.1)
    broken[20, 2] = np.inf
    found = diagnose_by(run_of_arrays({"param_grad_norm": broken}), pack)
    assert found.kind == "nonfinite"
    assert (found.findings[0].layers, found.findings[0].steps) == (("layer3",), (20, 20))


@pytest.mark.parametrize(
    ("pack", "line"), [("smdebug", 1e-7), ("deepchecker", 1e-6), ("deepdiagnosis", 1e-7), ("autotrainer", 1e-4)]
)
def test_absolute_thresholds_of_vanishing(pack: str, line: float) -> None:
    assert kinds(pack, param_grad_norm=grid(line * 0.9, 0)) == {"vanishing"}
    assert kinds(pack, param_grad_norm=grid(line * 1.1, 0)) == set()


@pytest.mark.parametrize("pack", ["smdebug", "deepchecker", "deepdiagnosis"])
def test_they_report_a_fault_near_convergence(pack: str) -> None:
    assert "vanishing" in kinds(pack, param_grad_norm=grid(1e-9))
    assert kinds("autotrainer", param_grad_norm=grid(1e-9)) == set()  # its ratio is 1


def test_autotrainer_requires_low_accuracy() -> None:
    falls = grid(1e-5, 0)
    assert kinds("autotrainer", {"accuracy": np.full(ROWS, 0.5)}, param_grad_norm=falls) == {"vanishing"}
    assert kinds("autotrainer", {"accuracy": np.full(ROWS, 0.7)}, param_grad_norm=falls) == set()
    assert kinds("autotrainer", param_grad_norm=grid(7.1, 0)) == {"exploding"}
    assert kinds("autotrainer", param_grad_norm=grid(6.9, 0)) == set()


@pytest.mark.parametrize(
    ("pack", "low", "high"), [("smdebug", 1e-8, 10), ("deepchecker", 1e-4, 0.1), ("deepdiagnosis", 1e-5, 0.1)]
)
def test_thresholds_of_the_update(pack: str, low: float, high: float) -> None:
    assert kinds(pack, update_ratio=grid(low * 0.9)) == {"vanishing"}
    assert kinds(pack, update_ratio=grid(low * 1.1)) == set()
    assert kinds(pack, update_ratio=grid(high * 1.1)) == {"exploding"}
    assert kinds(pack, update_ratio=grid(high * 0.9)) == set()


def test_three_rows_without_a_change() -> None:
    still = grid(1e-3)
    still[5:7, 1] = 0
    assert kinds("smdebug", update_ratio=still) == set()
    still[5:8, 1] = 0
    assert kinds("smdebug", update_ratio=still) == {"frozen"}
    sparse = grid(1e-3)
    sparse[:, 1] = 0
    sparse[np.arange(ROWS) % 10 != 0] = np.nan  # weights have a coarser rhythm: steps recorded count
    assert kinds("smdebug", update_ratio=sparse) == {"frozen"}


def test_five_rows_of_growth_or_fall() -> None:
    for factor, kind in ((2.1, "exploding"), (0.5, "vanishing")):
        moves = grid(1.0)
        moves[10:15] = factor ** np.arange(1, 6)[:, None]
        moves[15:] = factor**5
        assert kinds("deepchecker", param_grad_norm=moves) == {kind}
        moves = grid(1.0)
        moves[10:14] = factor ** np.arange(1, 5)[:, None]
        moves[14:] = factor**4
        assert kinds("deepchecker", param_grad_norm=moves) == set()


@pytest.mark.parametrize(
    ("pack", "line"), [("smdebug", 0.745), ("autotrainer", 0.7), ("deepchecker", 0.725), ("deepdiagnosis", 0.7)]
)
def test_thresholds_of_dead_units(pack: str, line: float) -> None:
    assert kinds(pack, zero_fraction=grid(line + 0.01)) == {"dead"}
    assert kinds(pack, zero_fraction=grid(line - 0.01)) == set()


def test_the_sample_is_exploding_to_autotrainer_only() -> None:
    assert {pack: diagnose_by(read_run(SAMPLE), pack).kind for pack in PACKS} == {
        "smdebug": "healthy", "autotrainer": "exploding", "deepchecker": "healthy", "deepdiagnosis": "healthy",
    }  # fmt: skip
