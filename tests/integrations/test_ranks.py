"""Two processes train one model in a framework: one file, with the gradients of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradlens
from gradlens.integrations.framework_recording import OWN_PART
from tests.integrations.reference import TOLERANCE, worst_error
from tests.processes import PATIENCE, free_port

ROOT = Path(__file__).parents[2]
GIVEN = ("wrapped", "bare")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what both trainings left."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    shared = {"PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.integrations.framework_ranks"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **shared},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("given", GIVEN)
def test_one_file_with_the_gradients_of_all_ranks(given: str, trained: Path) -> None:
    run = gradlens.read_run(trained / f"{given}.h5")
    expected = json.loads((trained / f"{given}.json").read_text())
    prefixed = [{layer.name: row[layer.name.removeprefix("module.")] for layer in run.layers} for row in expected]
    assert worst_error(run, prefixed) < TOLERANCE
    assert run.steps.tolist() == [0, 1, 2]
    assert np.isfinite(run.scalars["loss"]).all()
    assert (OWN_PART in run.info["notes"]) == (given == "bare")
