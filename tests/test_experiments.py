"""The experiments run: briefly, and without looking at the numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PATIENCE

ROOT = Path(__file__).parent.parent
MEASURE = ROOT / "experiments" / "overhead" / "measure.py"


def measure(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(MEASURE), *arguments], capture_output=True, text=True, timeout=3 * PATIENCE, check=False
    )


@pytest.mark.slow
def test_overhead_is_measured_and_written(tmp_path: Path) -> None:
    out, others = tmp_path / "results.json", tmp_path / "others.json"
    arguments = ["--subject", "mlp", "--steps", "3", "--warmup", "1", "--seconds", "1"]
    done = measure(*arguments, "--way", "gradlens", "--memory-runs", "1", "--json", str(out))
    assert done.returncode == 0, done.stderr
    told = measure(*arguments, "--way", "forum", "tensorboard", "--memory-runs", "0", "--json", str(others))
    assert told.returncode == 0, told.stderr
    pairs = {
        pair["way"]: pair for path in (out, others) for pair in json.loads(path.read_text(encoding="utf-8"))["pairs"]
    }
    assert list(pairs) == ["gradlens", "forum", "tensorboard"]
    assert "memory" in pairs["gradlens"]
    if "missing" in pairs["tensorboard"]:  # the extra "bench" is not installed
        assert "not installed: tensorboard" in told.stdout
        del pairs["tensorboard"]
    for pair in pairs.values():
        assert pair["rounds"] == 3
        assert pair["ratio"]["median"] > 0
        assert pair["equal_losses"]
    assert pairs["gradlens"]["bytes_per_step"] > 0
    assert pairs["gradlens"]["own_account"] > 0
    assert pairs["forum"]["bytes_per_step"] == 0
    again = measure("--tables", str(out), "--markdown", str(tmp_path / "tables.md"))
    assert again.stdout == done.stdout == (tmp_path / "tables.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_wrong_subject_is_refused() -> None:
    done = measure("--subject", "nothing")
    assert done.returncode == 2
    assert "invalid choice: 'nothing'" in done.stderr


@pytest.mark.slow
def test_the_cost_of_checksums_is_measured() -> None:
    script = ROOT / "experiments" / "storage" / "checksums.py"
    done = subprocess.run(
        [sys.executable, str(script), "--rounds", "3", "--layers", "4"],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ratio") == 3


@pytest.mark.slow
def test_the_cost_of_watching_is_measured(tmp_path: Path) -> None:
    script, out = ROOT / "experiments" / "watch" / "measure.py", tmp_path / "results.json"
    options = ["--rate", "100", "--layers", "4", "--windows", "2", "--seconds", "1", "--warmup", "3"]
    done = subprocess.run(
        [sys.executable, str(script), *options, "--sizes", "80x24", "--json", str(out)],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(out.read_text(encoding="utf-8"))["found"]
    assert found["exit_code"] == 0
    assert len(found["percent"]) == 2
    assert found["pictures_per_s"] > 0
