"""Tensor parallelism records what float64 in one process shows of the whole model (sharded_recording_cases.py)."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

import gradlens
from tests.processes import PATIENCE
from tests.recorder.sharded_recording_cases import (
    BATCH,
    CLASSES,
    LENGTH,
    LOOPED,
    PIPELINES,
    SHARDED_PIPELINES,
    TRUE,
    WIDTH,
    truth,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not hasattr(os, "fork"), reason="no gloo"),
    pytest.mark.usefixtures("one_thread"),
]

ROOT = Path(__file__).parents[2]
WAYS = {2: ("columns", "sequence", "tensors", *PIPELINES), 4: ("fsdp+sequence",)}
OTHERS = {2: (), 4: (*SHARDED_PIPELINES, "ddp+columns")}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory):
    """Return a function from a number of processes to the folder of their files."""

    @functools.cache
    def train(world: int) -> Path:
        folder = tmp_path_factory.mktemp(f"sharded-{world}")
        command = [
            sys.executable,
            "-m",
            "tests.recorder.sharded_recording_cases",
            str(folder),
            str(world),
            *WAYS[world],
            *OTHERS[world],
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
        return folder

    return train


@pytest.fixture(scope="module")
def true() -> dict[str, dict[str, list[float]]]:
    return truth()


@pytest.mark.parametrize(
    ("world", "way"), [(world, way) for world, ways in WAYS.items() for way in ways if way not in PIPELINES]
)
def test_norms_are_those_of_the_whole_model(world: int, way: str, sharded, true) -> None:
    run = gradlens.read_run(sharded(world) / "of-rank-0" / f"{way}.h5")
    partial = {"blocks.0.norm", "blocks.1.norm", "norm"} if way == "tensors" else set()
    layers = [layer.name for layer in run.layers]
    for metric in TRUE:
        names = set(true[metric]) - (partial if metric == "activation_grad_norm" else set())
        expected = {name: values for name, values in true[metric].items() if name in names}
        got = {name: run.metric(metric)[:, layers.index(name)].tolist() for name in names}
        rtol = 1e-4 if metric == "update_ratio" else 1e-5  # the update is a small difference of float32 weights
        np.testing.assert_allclose(
            [got[name] for name in sorted(names)], [expected[name] for name in sorted(names)], rtol=rtol, err_msg=metric
        )
    numel = {layer.name: layer.out_numel for layer in run.layers}
    width = {"head": CLASSES, **{name: 2 * WIDTH for name in numel if name.endswith((".up", ".act"))}}
    assert numel == {name: BATCH * LENGTH * width.get(name, WIDTH) for name in numel}
    said = [note for note in run.info["notes"] if "partial sum" in note]
    assert len(said) == bool(partial)
    assert all(name in said[0] for name in partial)


@pytest.mark.parametrize("way", PIPELINES)
def test_each_stage_of_a_pipeline_records_what_the_whole_model_has(way: str, sharded, true) -> None:
    seen = set()
    for rank in range(2):
        run = gradlens.read_run(sharded(2) / f"of-rank-{rank}" / f"{way}.h5")
        assert not gradlens.diagnose(run).findings
        assert all(each["finite_output"] and each["largest"] < 100 for each in run.facts["inputs"])
        assert "clip_coefficient" not in run.scalars
        names = [layer.name.partition(".")[2] if way in LOOPED else layer.name for layer in run.layers]
        seen |= set(names)
        for metric in ("activation_grad_norm", "param_grad_norm", "param_norm"):
            for i, name in enumerate(names):
                if way == "zerobubble" and metric == "activation_grad_norm":
                    assert np.isnan(run.metric(metric)).all()
                elif name in true[metric]:
                    np.testing.assert_allclose(run.metric(metric)[:, i], true[metric][name], rtol=1e-5)
    assert seen == set(true["activation_grad_norm"])


@pytest.mark.parametrize("way", SHARDED_PIPELINES)
def test_each_sharded_stage_of_a_pipeline_records_what_the_whole_model_has(way: str, sharded, true) -> None:
    seen = set()
    for rank in (0, 2):  # the first of each stage
        run = gradlens.read_run(sharded(4) / f"of-rank-{rank}" / f"{way}.h5")
        assert run.info["notes"] == []
        seen |= {layer.name for layer in run.layers}
        for metric in ("activation_grad_norm", "activation_rms", "param_grad_norm", "param_norm"):
            for i, layer in enumerate(run.layers):
                if layer.name in true[metric]:
                    np.testing.assert_allclose(run.metric(metric)[:, i], true[metric][layer.name], rtol=1e-5)
        for layer in run.layers:  # without what the stage tried out before
            width = {"head": CLASSES}.get(layer.name, 2 * WIDTH if layer.name.endswith((".up", ".act")) else WIDTH)
            assert layer.out_numel == BATCH * LENGTH * width
    assert seen == set(true["activation_grad_norm"])


def test_shards_that_look_like_whole_weights_are_refused_in_a_line(sharded) -> None:
    for rank in range(4):
        said, tip = json.loads((sharded(4) / f"rank{rank}.json").read_text())["ddp+columns"]
        assert said == (
            "DistributedDataParallel over tensor parallelism turns each shard into a parameter of its own, so no norm "
            "is that of the whole weight"
        )
        assert "fully_shard over the same mesh" in tip


@pytest.mark.parametrize("world", WAYS)
def test_nothing_is_said_and_one_rank_writes(world: int, sharded) -> None:
    folder = sharded(world)
    files = {path.name for path in folder.glob("of-rank-[1-9]/*.h5")}
    assert files == {f"{way}.h5" for way in (PIPELINES if world == 2 else SHARDED_PIPELINES)}
    for rank in range(world):
        said = json.loads((folder / f"rank{rank}.json").read_text())
        assert {way for way in said if said[way] and way != "ddp+columns"} == set(PIPELINES).intersection(said)
        for way in PIPELINES if world == 2 else ():
            assert "as the stages of a pipeline should" in said[way][0]
            assert ["(zero bubble)" in text for text in said[way][1:]] == [True] * (way == "zerobubble")
