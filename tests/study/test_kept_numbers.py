"""Kept numbers give the judgement of the runs themselves, digit by digit, and say nothing of the machine."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

import gradlens
from gradlens.cli import run_command
from gradlens.errors import ConfigError, RunFileError
from gradlens.run import Run
from gradlens.storage import read_run
from gradlens.study import judge_claims
from gradlens.study.kept_numbers import FILE, keep_runs, read_kept
from tests.study.planted_claims import CONTROLS, FAST, halves, over_depth, pair, planted, seeds


def odd_study() -> list[Run]:
    """Runs of every claim, with what is awkward: zeros, NaN, a diverged run, one that is unfinished, repeats."""
    bare = pair({"decades": [-6.0, -math.inf, -9.5]}, {"decades": 0.5, "accuracy": FAST}, "-nobn", 3)
    rng = np.random.default_rng(0)
    for run in bare:
        run.metrics["activation_grad_norm"][::7] = np.nan
        run.metrics["param_grad_norm"] = run.metrics["activation_grad_norm"] * rng.uniform(0.5, 2)  # type: ignore[index]
        run.metrics["param_norm"] = np.full_like(run.metrics["activation_grad_norm"], 3.0)  # type: ignore[index]
        run.metrics["param_norm"][1::2] = np.nan
        run.scalars["loss"][:20] = rng.uniform(1, 2, size=20)
    diverged = planted("resnet34", 3, accuracy=(0.5,), status="failed", settings={"image_size": 96})
    diverged.scalars["loss"][-1] = math.nan
    extra = [planted("plain34", 9, status="running"), planted("plain34", 0), planted("torchvision:vgg16", 0), diverged]
    rest = [planted("plain34", seed, settings={"image_size": 96}) for seed in (2, 3)]
    runs = [*halves(0.0, 0.6), *bare, *over_depth(-0.1, 0.013, 0.003, size=32), *CONTROLS, *extra, *rest]
    runs += seeds("plain8", 1, status="interrupted")
    for i, run in enumerate(runs):
        object.__setattr__(run, "path", Path(f"/home/someone/runs/{i % 3}/{run.name}-{i}.h5"))
        run.info["config"]["data"] = "csv:/home/someone/photos/train.csv"
    return runs


def test_every_verdict_and_number_is_that_of_the_runs(tmp_path: Path) -> None:
    runs = odd_study()
    path = keep_runs(runs, tmp_path / "new")
    assert path == tmp_path / "new" / FILE
    expected, found = judge_claims(runs), judge_claims(read_kept(tmp_path / "new"))
    assert json.dumps(found.to_dict()) == json.dumps(expected.to_dict())
    assert found.rows() == expected.rows()
    assert found.next_steps == expected.next_steps
    assert sum(one.tested for judged in found.claims for one in judged.verdicts) > 10
    assert keep_runs(read_kept(path), tmp_path / "again").read_bytes() == path.read_bytes()


def test_nothing_of_the_machine_is_kept_and_little_of_the_rows(tmp_path: Path) -> None:
    runs = odd_study()
    path = keep_runs(runs, tmp_path)
    text = gzip.decompress(path.read_bytes()).decode()
    assert "someone" not in text
    assert "csv:train.csv" in text
    assert path.stat().st_size / len(runs) < 2_000_000 / 150 / 4  # rows here are 60, of a run of 30 epochs 660


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no gzip at all", "cannot be read"),
        (gzip.compress(b"not json\n", mtime=0), "does not hold kept numbers of schema 1"),
        (gzip.compress(b"[1]\n", mtime=0), "does not hold kept numbers"),
        (gzip.compress(b'{"schema": 9}\n', mtime=0), "schema 9"),
        (gzip.compress(b"{}\n" * 9, mtime=0)[:-9], "cannot be read"),
    ],
)
def test_what_holds_something_else_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(RunFileError, match=said):
        read_kept(tmp_path)


def test_a_folder_without_kept_numbers_is_a_clear_mistake(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="No such file") as error:
        read_kept(tmp_path)
    assert "--keep FOLDER" in str(error.value.tip)


def test_the_command_and_its_function(make_run, capsys: pytest.CaptureFixture[str]) -> None:
    for model, decades in (("plain34", 2.0), ("resnet34", 1.0)):
        for seed in (0, 1):
            make_run(f"{model}-s{seed}", model=model, seed=seed, decades=decades)
    assert run_command(["claims", "--format", "json", "--keep", "kept"]) == 0
    printed = capsys.readouterr()
    assert printed.err == f"wrote {Path('kept') / FILE}\n"
    assert run_command(["claims", "--format", "json", "--from", "kept"]) == 0
    assert capsys.readouterr().out == printed.out
    assert gradlens.claims(kept="kept").to_dict() == gradlens.claims(keep="kept").to_dict()
    assert run_command(["claims", "runs", "--from", "kept"]) == 2
    assert "takes the place of RUNS" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="take the place of runs"):
        gradlens.claims("runs", kept="kept")
    first = read_kept(Path("kept"))[0]
    assert first.name == "plain34-s0"
    with pytest.raises(ValueError, match="only numbers of plain34-s0 were kept"):
        _ = first.run
    assert read_run("runs/plain34-s0.h5").name == first.name
