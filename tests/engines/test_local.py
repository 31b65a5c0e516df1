"""Experiments: what their files say, which runs come of it, and what becomes of these."""

from __future__ import annotations

import io
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from rich.console import Console

from gradlens import read_run
from gradlens.cli import cli, run_command
from gradlens.config import RunConfig
from gradlens.engine_settings import EngineSettings
from gradlens.engines import jobs as engine_jobs
from gradlens.engines.driver import View, carry_out
from gradlens.engines.jobs import Job, Progress, make_jobs, remove_runs
from gradlens.engines.local import LocalEngine, gpu_shares
from gradlens.engines.notes import note_path, read_note
from gradlens.errors import ConfigError, RunFileError
from gradlens.experiment import DEFAULTS, SETTINGS, Planned, read_experiment
from gradlens.run import Header, Layer
from gradlens.storage import FileSink
from gradlens.terminal.experiment import ExperimentView
from gradlens.terminal.listing import folder_rows
from tests.conftest import RunMaker
from tests.processes import PATIENCE

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("*.toml"))
TINY = """
question = "Does it run?"
seeds = [0, 1]
figures = ["gradlens compare {runs}/small"]

[run]
image_size = 16
epochs = 2
batch_size = 200

[group.small]
models = ["plain8"]

[group.other]
models = ["plain8", "resnet8"]
seeds = [5]
lr = 1
augment = ["crop", "flip"]
"""


def write(folder: Path, text: str = TINY) -> Path:
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


# --- files ----------------------------------------------------------------------------------------------------


def test_the_five_experiments_are_there() -> None:
    assert {"report", "norm", "depth", "controls", "cause"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_of_ours_can_be_planned_and_is_described(name: str) -> None:
    experiment = read_experiment(ROOT / "experiments" / f"{name}.toml")
    planned = experiment.plan(Path("runs"), {"data": "csv:a.csv"})
    assert all(one.config.data == "csv:a.csv" for one in planned)
    if name not in ("collapse", "rescaled", "sgd"):  # their questions need no coherence
        assert all("grad_coherence" in one.config.metrics for one in planned)
    seeds = {"report": 5, "full": 5, "cause": 10, "interventions": 10, "rescaled": 10, "collapse": 5}
    assert len({one.config.seed for one in planned}) == seeds.get(name, 3)
    for one in planned:
        assert_parsed(one)
    assert experiment.figures
    for command in experiment.commands(Path("runs")):
        program, verb, *arguments = shlex.split(command)
        assert program == "gradlens"
        with click.Context(cli.commands[verb]) as context:
            assert cli.commands[verb].make_context(verb, arguments, parent=context).params
    text = (ROOT / "experiments" / f"{name}.md").read_text()
    for part in ("**Question.**", f"gradlens run {name} ", "**Result.**", "**Figure.**"):
        assert part in text


def assert_parsed(planned: Planned) -> None:
    """What a child is told is what was planned."""
    verb, model, *arguments = planned.arguments()
    assert verb == "run"
    command = cli.commands["run"]
    with click.Context(command) as context:
        given = command.make_context("run", [model, *arguments], parent=context).params
    for key in SETTINGS:
        if given[key] is not None and key not in ("augment", "metrics"):
            assert str(given[key]) == str(getattr(planned.config, key)), key
        elif key not in planned.options:
            assert given[key] is None
    assert given["out"] / f"{planned.config.run_name}.h5" == planned.path


def test_the_report_is_the_reports_recipe_with_both_splits() -> None:
    planned = read_experiment(ROOT / "experiments" / "report.toml").plan(Path("runs"), {})
    assert planned[0].path == Path("runs/report/grouped/plain34-s0.h5")
    assert {(one.config.split, one.path.parent.name) for one in planned} == {("group", "grouped"), ("random", "random")}
    assert {(one.config.recipe, one.config.epochs, one.config.patience) for one in planned} == {("report", 30, 10)}
    assert len(planned) == 20


def test_a_file_is_read_and_the_command_line_goes_before_it(tmp_path: Path) -> None:
    experiment = read_experiment(write(tmp_path))
    planned = experiment.plan(tmp_path / "out", {"epochs": 3})
    assert [one.label for one in planned] == [
        "small/plain8-s0", "small/plain8-s1", "other/plain8-s5", "other/resnet8-s5",
    ]  # fmt: skip
    assert planned[0].config == RunConfig("plain8", image_size=16, epochs=3, batch_size=200)
    assert planned[2].config.augment == ("crop", "flip")
    assert planned[2].config.lr == 1
    assert planned[2].path == tmp_path / "out" / "tiny" / "other" / "plain8-s5.h5"
    assert [one.config.seed for one in experiment.plan(tmp_path, {}, seeds=(7,))] == [7, 7, 7]
    assert experiment.commands(tmp_path) == [f"gradlens compare {tmp_path}/tiny/small"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("question", "qestion", "tiny.toml: qestion is not known; expected one of question, measured"),
        ('question = "Does it run?"', "", "tiny.toml: question is missing: expected a text"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "seeds must be a list of whole numbers such as [0, 1, 2], each once"),
        ("seeds = [0, 1]", 'seeds = "0,1"', "seeds must be a list of whole numbers"),
        ("epochs = 2", 'epochs = "2"', "tiny.toml: run.epochs must be a whole number, got '2'"),
        ("epochs = 2", "epochs = true", "run.epochs must be a whole number, got True"),
        ("epochs = 2", "epoch = 2", "tiny.toml: run.epoch is not known; expected one of data, recipe, epochs"),
        ("epochs = 2", "models = []", "run.models is not known"),
        ("lr = 1", 'lr = "1"', "group.other.lr must be a number, got '1'"),
        ("lr = 1", "lr = -1", "tiny.toml: group.other: lr must be at least 0, got -1.0"),
        ("lr = 1", "seed = 1", "group.other.seed is not known"),
        ('["crop", "flip"]', '"crop"', "group.other.augment must be a list of texts"),
        ('["plain8"]', "[]", "group.small.models must be at least one model"),
        ('["plain8"]', '["plain9"]', "tiny.toml: group.small: plain9: there is no model of depth 9"),
        ('["plain8"]', '["plain8", "plain8"]', "two runs are to be written to"),
        ('models = ["plain8"]', "", "group.small.models is missing"),
        ("[group.small]", '[group."a/b"]', "the name of a group is that of a folder"),
        ("image_size = 16", "image_size = ", "tiny.toml is no TOML"),
        ("image_size = 16", "amp = 1", "run.amp must be true or false, got 1"),
        ("image_size = 16", 'metrics = ["nothing"]', "group.small: unknown metric 'nothing'"),
        ("[run]", "[engine]\npartion = 1\n[run]", "engine.partion is not known; expected one of name, at_once"),
        ("[run]", "[engine]\npartion = 1\n[run]", "did you mean engine.partition?"),
        ("[run]", '[engine]\nname = "pbs"\n[run]', "engine.name must be one of local, slurm, ray, got 'pbs'"),
        ("[run]", '[engine]\ntime = "4 hours"\n[run]', 'engine.time must be a time such as "4:00:00"'),
        ("[run]", "[engine]\nat_once = 0\n[run]", "engine.at_once must be a whole number of at least 1, got 0"),
        ("[run]", "[engine]\ngpus = 1.5\n[run]", "engine.gpus must be a whole number, or a share below 1"),
        ("[run]", "[engine]\ncores = true\n[run]", "engine.cores must be a whole number of at least 1, got True"),
        ("[run]", "[engine.slurm]\nmem = 1\n[run]", "engine.slurm.mem cannot be set: engine.memory_gb is the memory"),
        ("[run]", "[engine.slurm]\nqos = [1]\n[run]", "engine.slurm.qos must be a text of one line, got [1]"),
        ("[run]", "[[engine]]\n[run]", "engine must be a table [engine]"),
    ],
)
def test_a_wrong_file_is_told_in_a_line_with_its_key(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in TINY
    with pytest.raises(ConfigError) as caught:
        read_experiment(write(tmp_path, TINY.replace(old, new, 1))).plan(tmp_path, {})
    assert said in str(caught.value)
    assert "\n" not in caught.value.message


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", str(tmp_path / "absent.toml")]) == 2
    assert "absent.toml cannot be read: No such file or directory" in capsys.readouterr().err.replace("\n", "")
    assert run_command(["run", "plain8", "--jobs", "2"]) == 2
    assert "--jobs is for experiments" in capsys.readouterr().err


def test_the_engine_of_a_file(tmp_path: Path) -> None:
    table = '[engine]\nname = "slurm"\ntime = "1-02:03:04"\ngpus = 0.5\n[engine.slurm]\naccount = "lab"\n[run]'
    assert read_experiment(write(tmp_path, TINY.replace("[run]", table))).engine == EngineSettings(
        "slurm", minutes=26 * 60 + 4, gpus=0.5, slurm={"account": "lab"}
    )
    assert read_experiment(write(tmp_path)).engine == EngineSettings()


def test_every_setting_has_a_type_that_is_checked() -> None:
    assert {type(getattr(DEFAULTS, key)) for key in SETTINGS} == {str, int, float, bool, tuple}


# --- processes, with others in the place of trainings ----------------------------------------------------------


COMPLETE = """
import sys
from gradlens.run import Header, Layer
from gradlens.storage import FileSink
sink = FileSink(sys.argv[1], overwrite=True)
sink.open(Header((Layer("layer", "Linear", "main", 1, 1, 1),), {"param_grad_norm": 1}))
sink.flush()
sink.close("complete")
"""


def job(label: str, code: str, folder: Path) -> Job:
    path = folder / f"{label}.h5"
    return Job(label, path, 2, [sys.executable, "-c", code, str(path)])


def carry(jobs: list[Job], at_once: int, view: View = lambda one: None, *, cores: int = 1, retries: int = 0) -> None:
    carry_out(jobs, LocalEngine(at_once, cores, None), retries, view)


def test_a_failed_one_leaves_the_others_going_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    jobs = [
        job("bad", "import sys; sys.exit('Error: no luck')", tmp_path),
        job("worse", "import os; os.abort()", tmp_path),
        job("good", f"import os; assert os.environ['OMP_NUM_THREADS'] == '4'\n{COMPLETE}", tmp_path),
        job("silent", "pass", tmp_path),
        job("kept", "raise SystemExit(1)", tmp_path),
    ]
    jobs[4].state = "kept"
    seen = []
    console = Console(width=100, record=True, file=io.StringIO())
    with ExperimentView(console, jobs) as view:
        carry(jobs, 2, lambda one: (view(one), seen.append(one and (one.label, one.state)))[0], cores=4)
    assert [one.state for one in jobs] == ["failed", "failed", "complete", "failed", "kept"]
    assert [one.error for one in jobs[:3]] == ["no luck", "killed by signal 6", ""]
    assert jobs[3].error == "it ended without an error, but its run file is not complete"  # an exit code is no proof
    assert ("bad", "failed") in seen
    said = console.export_text()
    assert "kept: kept, as it is complete" in said
    assert "bad: failed: no luck" in said
    assert "good: complete" in said
    rows = {row["run"]: row for row in folder_rows(tmp_path)}
    assert (rows["bad"]["status"], rows["bad"]["note"]) == ("failed", "no luck")
    assert rows["good"]["status"] == "complete"
    assert not note_path(jobs[2].path).exists()


def test_a_failed_one_is_started_again_and_its_reasons_are_kept(tmp_path: Path) -> None:
    once = "import pathlib, sys\nmark = pathlib.Path(sys.argv[1] + '.mark')\nif not mark.exists():\n"
    once += "    mark.touch()\n    sys.exit('Error: the first time')\n"
    jobs = [job("late", once + COMPLETE, tmp_path), job("never", "import sys; sys.exit('Error: again')", tmp_path)]
    carry(jobs, 2, retries=2)
    assert [(one.state, one.reasons) for one in jobs] == [("complete", ["the first time"]), ("failed", ["again"] * 3)]
    assert jobs[1].error == "again (attempt 3)"
    note = read_note(jobs[1].path)
    assert note is not None
    assert (note.failed, note.reasons) == (True, ("again",) * 3)


def test_one_that_another_process_writes_is_waited_for(tmp_path: Path) -> None:
    mine = job("mine", COMPLETE, tmp_path)
    other = subprocess.Popen([sys.executable, "-c", SLOW, str(mine.path)], env=environment(), stdin=subprocess.PIPE)
    end = time.monotonic() + PATIENCE
    while not mine.is_written():
        assert time.monotonic() < end
        time.sleep(0.05)
    seen = []
    assert other.stdin is not None
    other.stdin.close()  # it ends in a second
    carry([mine], 1, lambda one: seen.append(one.state) if one else None)
    assert other.wait() == 0
    assert seen == ["running", "complete"]
    assert (mine.reasons, read_run(mine.path).seed) == ([], 7)


@pytest.mark.parametrize(("asked", "got"), [(None, "4"), ("2", "2"), ("16", "4"), ("2,1", "4"), ("0", "4")])
def test_a_run_uses_no_more_threads_than_the_user_asked_for(
    asked: str | None, got: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
        if asked is not None:
            monkeypatch.setenv(name, asked)
    found = engine_jobs.environment(4)
    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == (got, got)


SLOW = COMPLETE.replace('"param_grad_norm": 1}', '"param_grad_norm": 1}, seed=7').replace(
    'sink.close("', 'import time; sys.stdin.read(); time.sleep(1)\nsink.close("'
)
WAITS = """
import signal, sys, time, pathlib
def end(*_):
    pathlib.Path(sys.argv[1]).write_text("closed"); sys.exit(130)
signal.signal(signal.SIGINT, end)
pathlib.Path(sys.argv[1]).write_text("open")
time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_are_stopped_where_this_one_is(number: int, tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    jobs = [Job(f.name, tmp_path / f"{f.name}.h5", 2, [sys.executable, "-c", WAITS, str(f)]) for f in files]
    jobs += [job(name, "pass", tmp_path) for name in ("later", "last")]

    def view(one: Job | None) -> None:
        if one is None and all(f.exists() and f.read_text() == "open" for f in files):
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        carry(jobs, 2, view)
    assert [f.read_text() for f in files] == ["closed", "closed"]
    assert [one.state for one in jobs] == ["interrupted", "interrupted", "waiting", "waiting"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert {(row["run"], row["status"]) for row in folder_rows(tmp_path)} >= {("later", "waiting"), ("last", "waiting")}


def test_a_waiting_run_that_nobody_starts_is_listed_so(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name, process in (("dead", dead.pid), ("alive", os.getpid())):
        note = {"engine": "local", "reasons": [], "host": platform.node(), "process": process}
        note_path(tmp_path / f"{name}.h5").write_text(json.dumps(note))
    note_path(tmp_path / "broken.h5").write_text("{")
    rows = {row["run"]: (row["status"], row["note"]) for row in folder_rows(tmp_path)}
    assert rows["alive"] == ("waiting", "")
    assert rows["dead"] == ("waiting", "nobody starts it any more; the same command does")


@pytest.mark.parametrize(
    ("gpus", "there", "shares"),
    [
        (None, [], []),
        (None, ["0", "1"], ["0", "1"]),
        (0, ["0"], []),
        (1, ["0", "3"], ["0", "3"]),
        (0.5, ["0", "1"], ["0", "1", "0", "1"]),
        (2, ["0", "1", "2", "3", "4"], ["0,1", "2,3"]),
    ],
)
def test_gpus_are_shared(gpus: float | None, there: list[str], shares: list[str]) -> None:
    assert gpu_shares(gpus, there) == shares


TELL = f"""
import os, pathlib, sys, time
mine = pathlib.Path(sys.argv[1]).with_suffix(".began")
mine.touch()
wanted = 2 if mine.stem in "ab" else 4  # both of a pair hold their share at the same time
end = time.monotonic() + {PATIENCE}
while len(list(mine.parent.glob("*.began"))) < wanted and time.monotonic() < end:
    time.sleep(0.02)
sys.exit("Error: " + os.environ["CUDA_VISIBLE_DEVICES"])
"""


def test_every_run_gets_its_share_of_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    jobs = [job(name, TELL, tmp_path) for name in "abcd"]
    engine = LocalEngine(8, None, 1)
    assert engine.at_once == 2  # not more than there are GPUs
    carry_out(jobs, engine, 0, lambda one: None)
    assert [sorted(one.error for one in pair) for pair in (jobs[:2], jobs[2:])] == [["4", "7"]] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"engine\.gpus is 1, and this machine shows 0"):
        LocalEngine(1, None, 1)


def test_slurm_without_its_commands_or_without_submitit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_command(["run", "tiny.toml", "--engine", "slurm"]) == 2
    assert "the command sbatch was not found\nTip: log in where jobs are submitted" in capsys.readouterr().err
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert run_command(["run", "tiny.toml", "--engine", "slurm"]) == 1
    assert (
        "needs submitit, which is not installed\nTip: pip install 'gradlens-toolkit[slurm]'" in capsys.readouterr().err
    )
    assert run_command(["run", "tiny.toml", "--cancel"]) == 2
    assert "--cancel: runs of the engine local end with their command" in capsys.readouterr().err


def test_the_view_tells_epochs_loss_and_time(tmp_path: Path) -> None:
    jobs = [job("a", "", tmp_path), job("b", "", tmp_path)]
    console = Console(width=100, record=True, file=io.StringIO())
    jobs[0].state = "running"
    with ExperimentView(console, jobs) as view:
        jobs[0].progress = Progress(1, 2, 1.25, 90.0)
        view(None)
        view(None)
        console.print(view._render())
    said = console.export_text()
    assert said.count("a: epoch 1 of 2, loss 1.250, ") == 1
    assert "epoch 1/2" in said
    assert "0 of 2 done, 1 running, 1 waiting" in said
    assert not math.isnan(jobs[0].progress.seconds_left)


# --- trainings -------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"}


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gradlens", "run", *arguments],
        cwd=cwd,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_an_experiment_is_interrupted_resumed_and_kept(tmp_path: Path) -> None:
    epochs = 8
    write(tmp_path, TINY.replace('["plain8", "resnet8"]', '["plain8"]').replace("epochs = 2", f"epochs = {epochs}"))
    small = tmp_path / "runs" / "tiny" / "small"
    paths = [tmp_path / "runs" / "tiny" / group / "plain8-s0.h5" for group in ("small", "other")]
    first = ("tiny.toml", "--seeds", "0", "--jobs", "2")
    child = start(*first, cwd=tmp_path)
    end = time.monotonic() + PATIENCE
    while not any(path.exists() and len(read_run(path).epochs["epoch"]) for path in paths):
        assert time.monotonic() < end
        assert child.poll() is None
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    assert "interrupted" in child.communicate(timeout=PATIENCE)[1]
    assert child.returncode == 130
    begun = [read_run(path) for path in paths if path.exists()]
    assert {run.status for run in begun} == {"interrupted"}
    assert all(len(run.epochs["epoch"]) < epochs for run in begun)

    child = start(*first, cwd=tmp_path)
    said, told = child.communicate(timeout=3 * PATIENCE)
    assert child.returncode == 0, told
    assert "2 runs, 2 to train, 2 at a time, in runs/tiny" in told
    assert f"small/plain8-s0: complete after epoch {epochs} of {epochs}" in told
    assert "figure: gradlens compare runs/tiny/small" in told
    assert "1 run in runs/tiny/small" in said
    assert [read_run(path).status for path in paths] == ["complete", "complete"]
    assert all(len(read_run(path).epochs["epoch"]) == epochs for path in paths)
    before = (small / "plain8-s0.h5").read_bytes()

    child = start("tiny.toml", "--seeds", "0,1", "--jobs", "2", cwd=tmp_path)
    said, told = child.communicate(timeout=3 * PATIENCE)
    assert child.returncode == 0, told
    assert "4 runs, 2 to train" in told
    assert told.count("kept, as it is complete") == 2
    assert f"small/plain8-s1: complete after epoch {epochs} of {epochs}" in told
    assert (small / "plain8-s0.h5").read_bytes() == before

    child = start("tiny.toml", "--seeds", "0", "--epochs", str(epochs + 1), cwd=tmp_path)  # others are there already
    told = child.communicate(timeout=PATIENCE)[1]
    assert told.count(f"was made with other settings: epochs: {epochs} there, {epochs + 1} here") == 1
    assert child.returncode == 2


@pytest.mark.slow
def test_a_run_that_cannot_be_trained_is_named_at_the_end(tmp_path: Path) -> None:
    models = TINY.replace('["plain8"]', '["torchvision:nothing"]', 1).replace('["plain8", "resnet8"]', '["resnet8"]')
    write(tmp_path, models)
    child = start("tiny.toml", "--seeds", "0", "--epochs", "1", "--out", "elsewhere", cwd=tmp_path)
    _, told = child.communicate(timeout=3 * PATIENCE)
    assert child.returncode == 1
    assert "1 of 2 runs failed: small/torchvision-nothing-s0: torchvision has no model 'nothing'" in told
    assert (tmp_path / "elsewhere" / "tiny" / "other" / "resnet8-s0.h5").exists()


def test_jobs_are_made_of_what_is_missing(tmp_path: Path) -> None:
    planned = read_experiment(write(tmp_path)).plan(tmp_path, {})
    jobs = make_jobs(planned, overwrite=False)
    assert [one.state for one in jobs] == ["waiting"] * 4
    assert jobs[0].command[1:5] == ["-m", "gradlens", "run", "plain8"]
    assert jobs[0].command[-1] == "--resume"
    assert make_jobs(planned, overwrite=True)[0].command[-1] == "--resume"  # the old file is removed once


def test_runs_to_be_replaced_are_removed_but_none_that_is_written(tmp_path: Path, make_run: RunMaker) -> None:
    jobs = [job(name, "", tmp_path / "runs") for name in ("a", "b")]
    paths = [make_run(name) for name in ("a", "b")] + [tmp_path / "runs" / "a.ckpt"]
    paths[2].touch()
    sink = FileSink(paths[1], overwrite=True)
    sink.open(Header((Layer("layer", "Linear", "main", 1, 1, 1),), {"param_grad_norm": 1}))
    with pytest.raises(RunFileError, match=r"b\.h5 is being written, so it is not replaced"):
        remove_runs(jobs)
    assert all(path.exists() for path in paths)
    sink.close("complete")
    remove_runs(jobs)
    assert not any(path.exists() for path in paths)
