"""The recorder reproduces the laws; a recorder that did not would be found out."""

from __future__ import annotations

import math
import sys
import time

import numpy as np
import pytest
import torch

from gradlens.cli import run_command
from gradlens.probe import verify as laws
from gradlens.probe.verify import SETTINGS, verify
from gradlens.theory.laws import Check

QUICK = (laws._ratios, laws._branch_shares, laws._noise, laws._scaled_weight)


@pytest.mark.parametrize("setting", QUICK, ids=lambda f: f.__name__)
def test_the_cheap_laws_hold(setting, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    torch.manual_seed(SETTINGS.index(setting))
    checks = list(setting())
    assert checks
    assert all(check.passed for check in checks), checks


def test_a_recorder_that_is_wrong_fails(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    measure = laws._measure

    def wrong(*arguments, **options) -> np.ndarray:
        norms = measure(*arguments, **options)
        return norms * (1 + 0.05 * np.arange(norms.shape[1]))

    monkeypatch.setattr(laws, "_measure", wrong)
    torch.manual_seed(0)
    assert not all(check.passed for check in laws._branch_shares())


def test_what_passes() -> None:
    check = Check("a", "b", "c", -0.5, -0.55, 0.15)
    assert check.error == pytest.approx(0.1)
    assert check.passed
    assert not Check("a", "b", "c", -0.5, -0.7, 0.15).passed
    assert not Check("a", "b", "c", 1.0, math.nan, 0.15).passed


@pytest.mark.parametrize(("measured", "code"), [(1.001, 0), (1.2, 3)])
def test_the_exit_code_of_the_command(
    measured: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("a law", "Someone 2000", "width 5", 1.0, measured, 0.01), Check("b", "x", "y", 2.0, 2.0, 0.01)]
    monkeypatch.setattr(sys.modules["gradlens.probe.verify"], "verify", lambda: iter(checks))
    assert run_command(["verify"]) == code
    out, err = capsys.readouterr()
    assert "Someone 2000" in out
    assert ("2 of 2 checks are within" in out) == (code == 0)
    assert ("Error: 1 of 2 checks failed: a law" in err) == (code == 3)
    assert run_command(["verify", "--format", "csv"]) == code
    assert capsys.readouterr().out.splitlines()[0] == "law,source,setting,value,measured,tolerance,passed"
    assert run_command(["verify", "--format", "json"]) == code
    assert f'"passed": {"true" if code == 0 else "false"}' in capsys.readouterr().out


def test_random_generators_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laws, "SETTINGS", (laws._scaled_weight,))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(verify())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
def test_all_laws_hold_within_two_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.process_time()
    assert run_command(["verify"]) == 0, capsys.readouterr()
    assert time.process_time() - started < 120  # of its own, on however busy a machine
    assert "17 of 17 checks are within" in capsys.readouterr().out
