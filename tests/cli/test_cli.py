"""The command line as a user meets it: exit codes, streams, formats, defaults, mistakes."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gradlens import read_run
from gradlens.cli import cli, run_command
from gradlens.config import make_config
from tests.conftest import SAMPLE
from tests.processes import PATIENCE


@pytest.fixture
def few_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlens.data.patterns.TRAIN_IMAGES", 20)
    monkeypatch.setattr("gradlens.data.patterns.VAL_IMAGES", 10)


TINY = ["--image-size", "16", "--batch-size", "10", "--epochs", "1"]


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: gradlens {name}")
    assert len(cli.commands[name].help or "") > 20


def options_of_tip(err: str) -> list[list[str]]:
    """Return the options that a tip names, each with its value."""
    tip = re.search(r"Tip: (.*)", err)
    assert tip is not None
    return [shlex.split(way) for way in re.findall(r"(--\S+(?: \S+)?) (?:writes|replaces|continues) ", tip[1])]


def test_a_tip_names_only_ways_that_are_open(make_run, capsys: pytest.CaptureFixture[str]) -> None:
    own = make_run("plain8-s0", seed=-1)
    before = own.read_bytes()
    for option in ([], ["--resume"]):  # a run that gradlens did not make is never continued, nor replaced by it
        assert run_command(["run", "plain8", *option]) != 0
        assert ["--out", "runs/again"] in (ways := options_of_tip(capsys.readouterr().err))
        assert ["--resume"] not in ways
    assert own.read_bytes() == before
    config = make_config("plain8", "quick").to_dict()
    own.unlink()
    own = make_run("plain8-s0", status="interrupted", config=config, model="plain8")
    for resumable in (False, True):
        if resumable:
            own.with_suffix(".ckpt").write_bytes(b"")
        assert run_command(["run", "plain8"]) != 0
        assert (["--resume"] in options_of_tip(capsys.readouterr().err)) == resumable
    assert run_command(["run", "plain8", "--lr", "0.5"]) != 0
    assert ["--resume"] not in options_of_tip(capsys.readouterr().err)  # another learning rate: it would be refused
    Path("runs/again").mkdir()
    Path("runs/again/plain8-s0.h5").write_bytes(b"")
    assert run_command(["run", "plain8"]) != 0
    assert ["--out", "runs/again-2"] in options_of_tip(capsys.readouterr().err)


@pytest.mark.usefixtures("few_patterns")
def test_run_writes_a_file_and_shows_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "plain8", *TINY]) == 0
    out, err = capsys.readouterr()
    assert read_run("runs/plain8-s0.h5").status == "complete"
    assert "Depth profile" in out
    assert "complete after 1 epoch" in err
    assert "next: gradlens heatmap runs/plain8-s0.h5" in err
    assert run_command(["run", "plain8", *TINY]) == 1
    err = capsys.readouterr().err
    assert "Error: runs/plain8-s0.h5 already exists" in err
    ways = options_of_tip(err)
    assert ways == [["--out", "runs/again"], ["--overwrite"]]  # a complete run cannot be resumed
    for way in ways:
        assert run_command(["run", "plain8", *TINY, *way]) == 0
    assert read_run("runs/again/plain8-s0.h5").status == "complete"
    capsys.readouterr()
    assert run_command(["ls", "--format", "json"]) == 0
    assert [row["run"] for row in json.loads(capsys.readouterr().out)] == ["again/plain8-s0", "plain8-s0"]
    assert run_command(["run", "plain8", "--resume"]) == 0
    assert "nothing to resume" in capsys.readouterr().err


@pytest.mark.usefixtures("few_patterns")
def test_run_takes_several_seeds_and_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--data", "patterns", "--recipe", "report", "--lr", "0.01", "--optimizer", "sgd", "--weight-decay", "0",
        "--label-smoothing", "0", "--schedule", "cosine", "--patience", "3", "--augment", "flip,crop",
        "--split", "random", "--init", "default", "--shortcut", "B", "--every", "2", "--device", "cpu",
        "--workers", "0", "--val-fraction", "0.3", "--on-nonfinite", "continue", "--skip-broken", "--amp",
        "--on-record-error", "continue", "--out", "here",
    ]  # fmt: skip
    assert run_command(["run", "resnet8", "--seeds", "3,4", *TINY, *options]) == 0
    out = capsys.readouterr().out
    assert "2 runs in here" in out
    run = read_run("here/resnet8-s4.h5")
    expected = {
        "recipe": "report", "lr": 0.01, "optimizer": "sgd", "weight_decay": 0, "label_smoothing": 0, "every": 2,
        "schedule": "cosine", "patience": 3, "augment": ["flip", "crop"], "split": "random", "init": "default",
        "shortcut": "B", "epochs": 1, "batch_size": 10, "image_size": 16, "amp": True, "seed": 4, "val_fraction": 0.3,
        "on_record_error": "continue", "on_nonfinite": "continue", "skip_broken": True,
        "device": "cpu", "workers": 0, "data": "patterns",
    }  # fmt: skip
    assert {key: run.config[key] for key in expected} == expected
    assert run.steps.tolist() == [0]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "plain35"], 2, "no model of depth 35"),
        (["run"], 2, "Missing argument 'MODEL'"),
        (["run", "plain34", "--data", "nothing"], 2, "unknown data 'nothing'"),
        (["run", "plain34", "--lr", "fast"], 2, "'fast' is not a valid float"),
        (["run", "plain34", "--lr", "-1"], 2, "lr must be at least 0"),
        (["run", "plain34", "--seed", "1", "--seeds", "1,2"], 2, "choose one of them"),
        (["run", "plain34", "--resume", "--overwrite"], 2, "choose one of them"),
        (["run", "plain34", "--seeds", "a"], 2, "expected whole numbers"),
        (["run", "plain34", "--data", "csv:none.csv"], 1, "none.csv: there is no such file"),
        (["run", "nets.py:build", "--data", "patterns"], 1, "nets.py: there is no such file"),
        (["summary"], 1, "there is no folder runs"),
        (["heatmap", "none"], 1, "none: there is no such run"),
        (["compare"], 1, "there is no folder runs"),
        (["ls", "none"], 1, "there is no folder none"),
        (["paint"], 2, "No such command 'paint'"),
        (["heatmap", "--metric", "loss"], 2, "Logged scalars, such as the loss, are shown by gradlens summary"),
        (["profile", "--metric", "grad_norm"], 2, "Did you mean 'param_grad_norm'?"),
        (["run", "plain34", "--lr", "0,1"], 2, "Write 0.1 with a point"),
        (["run", "plan34"], 2, "did you mean plain34?"),
        (["run", "net.py"], 2, "expected net.py:FACTORY"),
        (["run", "plain34", "--data", "."], 2, "Tip: --data folder:."),
        (["run", "torchvision:resnet19"], 1, "expected resnet18"),
    ],
)
def test_a_mistake_ends_in_one_line_and_its_code(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) == code
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in err
    assert out == ""
    assert not Path("runs").exists()


def test_heatmap_shows_and_writes(capsys: pytest.CaptureFixture[str], make_run) -> None:
    make_run("plain34-s0", model="plain34")
    assert run_command(["heatmap"]) == 0
    out, err = capsys.readouterr()
    assert "stage0.0" in out
    assert "wrote figures/heatmap-plain34-s0.png" in err
    assert Path("figures/heatmap-plain34-s0.json").exists()
    assert run_command(["heatmap", "-o", "a.svg", "-o", "b.pdf", "plain34-s0", "runs"]) == 0
    assert Path("a.svg").exists()
    assert Path("b.json").exists()
    before = sorted(Path().rglob("*"))
    assert run_command(["heatmap", "--terminal", "--metric", "update_ratio"]) == 0
    assert run_command(["heatmap", "--terminal", "-o", "c.png"]) == 2
    assert run_command(["heatmap", "-o", "c.txt"]) == 2
    assert sorted(Path().rglob("*")) == before


def test_compare_shows_and_writes_in_every_format(capsys: pytest.CaptureFixture[str], make_run) -> None:
    for model, accuracy in (("plain34", 0.5), ("resnet34", 0.9)):
        for seed in (0, 1):
            make_run(f"{model}-s{seed}", model=model, seed=seed, accuracy=accuracy + seed / 100)
    assert run_command(["compare", "--terminal", "--with-report"]) == 0
    assert "original study, resnet34" in capsys.readouterr().out  # as the option was called before
    assert run_command(["compare", "--with-study"]) == 0
    out, err = capsys.readouterr()
    assert "0.505 ± 0.007" in out
    assert "0.7379" in out
    assert "wrote figures/compare-plain34-resnet34-4-runs.png" in err
    assert run_command(["compare", "--terminal", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["quantity"] == "training accuracy"
    assert rows[0]["plain34"] == pytest.approx(0.505)
    assert rows[0]["plain34 n"] == 2
    assert run_command(["compare", "--terminal", "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert float(table[1]["resnet34"]) == pytest.approx(0.8 * 0.905)


def test_summary_and_ls_in_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").mkdir()
    shutil.copy(SAMPLE, "runs")
    for arguments in (["summary"], ["ls"], ["summary", "runs"], ["summary", "plain34-s0"]):
        assert run_command(arguments) == 0
        assert "plain34" in capsys.readouterr().out
    assert run_command(["summary", "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"] == "plain34"
    assert len(facts["layers"]) == 34
    assert run_command(["summary", "--format", "csv"]) == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 34
    for form in ("json", "csv"):
        assert run_command(["ls", "--format", form]) == 0
        assert "plain34-s0" in capsys.readouterr().out


def test_results_and_talk_go_to_their_streams_without_colour_when_piped(make_run, tmp_path: Path) -> None:
    make_run()
    done = subprocess.run(
        [sys.executable, "-m", "gradlens", "heatmap"], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert "\x1b" not in done.stdout + done.stderr
    assert "stage0.0" in done.stdout
    assert done.stderr.startswith("wrote figures/heatmap-net-s0.png")


def test_no_color_is_honoured(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run()
    environment = {**os.environ, "FORCE_COLOR": "1", "COLORTERM": "truecolor"}
    command = [sys.executable, "-m", "gradlens", "heatmap", "--terminal"]
    coloured = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE, env=environment)
    bare = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=PATIENCE, env={**environment, "NO_COLOR": "1"}
    )
    assert "38;2;" in coloured.stdout
    assert "38;2;" not in bare.stdout
    assert "▀" not in bare.stdout


def test_a_reader_that_leaves_early_does_not_lose_the_picture(make_run) -> None:
    make_run(layers=300)
    command = f"{sys.executable} -m gradlens heatmap | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert "Traceback" not in done.stderr
    assert Path("figures/heatmap-net-s0.png").exists()


@pytest.mark.slow
def test_a_factory_in_a_module_of_the_working_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_nets_here.py").write_text("from torch import nn\ndef build(): return nn.Flatten()\n")
    script = "import sys; sys.path = [p for p in sys.path if p]; from gradlens.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, "run", "my_nets_here:build", "--image-size", "16"],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert "my_nets_here:build has no parameters" in done.stderr
    assert done.returncode == 1


def test_a_column_without_numbers_is_listed(make_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(accuracy=float("nan"))
    for form in ("table", "json", "csv"):
        assert run_command(["ls", "--format", form]) == 0
        assert run_command(["summary", "--format", form]) == 0
        assert run_command(["compare", "--terminal", "--format", form]) == 0


@pytest.mark.slow
def test_ctrl_c_closes_the_file_and_exits_130_and_the_run_can_go_on() -> None:
    command = [sys.executable, "-m", "gradlens", "run", "plain8", "--image-size", "16", "--epochs", "400"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.time() + PATIENCE
    while time.time() < deadline and not Path("runs/plain8-s0.ckpt").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    assert "interrupted after" in err
    run = read_run("runs/plain8-s0.h5")
    assert run.status == "interrupted"
    done = subprocess.run(
        [sys.executable, "-m", "gradlens", "run", "plain8", "--resume", "--lr", "0.5"],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 2
    assert "lr: 0.0006 there, 0.5 here" in done.stderr


def test_heatmap_takes_metrics_looks_and_another_run(capsys: pytest.CaptureFixture[str], make_run) -> None:
    for seed in (0, 1):
        make_run(f"net-s{seed}", seed=seed)
    several = ["--metric", "param_grad_norm,param_norm", "--metric", "update_ratio"]
    assert run_command(["heatmap", "net-s0", *several, "--theme", "dark", "--width", "two", "--by", "epoch"]) == 0
    out, err = capsys.readouterr()
    assert out.count("net-s0  ") == 3
    assert "wrote figures/heatmap-param_grad_norm-param_norm-update_ratio-epochs-dark-two-column-net-s0.png" in err
    assert run_command(["heatmap", "net-s0", "--minus", "net-s1", "--no-marks"]) == 0
    out, err = capsys.readouterr()
    assert "net-s0 over net-s1" in out
    assert "wrote figures/heatmap-minus-net-s1-net-s0.png" in err
    facts = json.loads(Path("figures/heatmap-minus-net-s1-net-s0.json").read_text())
    assert [run["file"] for run in facts["runs"]] == ["net-s0.h5", "net-s1.h5"]
    assert run_command(["heatmap", "net-s0", "--minus", "runs"]) == 2
    assert "expected one run, got 2" in capsys.readouterr().err
    assert run_command(["heatmap", "net-s0", "--relative", "--terminal"]) == 0
    assert "relative to the last hidden layer" in " ".join(capsys.readouterr().out.split())
    assert run_command(["heatmap", "net-s0", "--metric", "coherent_grad_norm"]) == 2
    assert "lacks grad_coherence" in capsys.readouterr().err
    assert run_command(["heatmap", "net-s0", "--metric", "param_norm,nothing"]) == 2
    assert "'nothing' is not one of" in capsys.readouterr().err


def test_a_pipe_whose_reader_has_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(**_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(cli.commands["ls"], "callback", write)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    said: list[str] = []
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=said.append, flush=lambda: None, close=lambda: None))
    assert run_command(["ls"]) == 0
    assert not said
