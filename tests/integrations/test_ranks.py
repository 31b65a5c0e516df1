"""Two processes train one model in a framework: one file, with the gradients of both."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradlens
from gradlens.integrations.framework_recording import OWN_PART
from tests.integrations.reference import TOLERANCE, worst_error
from tests.processes import PATIENCE

ROOT = Path(__file__).parents[2]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("given", ["wrapped", "bare"])
def test_one_file_with_the_gradients_of_all_ranks(given: str) -> None:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    shared = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integrations.framework_ranks", given],
            env={**shared, "RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=PATIENCE)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    run = gradlens.read_run("a.h5")
    expected = json.loads(Path("norms.json").read_text())
    prefixed = [{layer.name: row[layer.name.removeprefix("module.")] for layer in run.layers} for row in expected]
    assert worst_error(run, prefixed) < TOLERANCE
    assert run.steps.tolist() == [0, 1, 2]
    assert np.isfinite(run.scalars["loss"]).all()
    assert (OWN_PART in run.info["notes"]) == (given == "bare")
