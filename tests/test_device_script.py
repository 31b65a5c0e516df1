"""The script for a GPU, as far as it can be tried without one: on the CPU, and with a GPU that is only pretended."""

from __future__ import annotations

import ast
import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.device import checks, child, graphs, run, streams, study, training, values, waits
from experiments.device.models import LSTM, MLP, Case, Silent
from gradlens.experiment import read_experiment
from gradlens.specs import parse_seeds
from gradlens.study.kept_numbers import read_kept

FOLDER = Path(run.__file__).parent
ALLOWED = {"torch", "numpy", "gradlens", "experiments", *sys.stdlib_module_names}


def statuses(found: dict[str, Any]) -> dict[str, str]:
    return {check["check"]: check["status"] for check in found["checks"]}


def make_part(**options: Any) -> checks.Part:
    return checks.Part("cpu", quick=True, deadline=time.time() + 1000, **options)


def test_it_needs_torch_and_numpy_alone() -> None:
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert {name.split(".")[0] for name in names} <= ALLOWED, path.name


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_all_that_can_be_measured_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "device.json"
    assert run.main(["--device", "cpu", "--quick", "--minutes", "20", "-o", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert (found["format"], found["status"], found["device"]) == ("gradlens device 1", "complete", "cpu")
    parts = {part["part"]: part for part in found["parts"]}
    assert list(parts) == list(run.PLANS)
    assert {part["status"] for part in parts.values()} == {"done"}
    assert parts["machine"]["torch"] == torch.__version__
    assert parts["machine"]["gpu"] == "not measured: no CUDA"
    assert set(statuses(parts["values"]).values()) == {"pass"}
    assert any(name.startswith("GradScaler") for name in statuses(parts["values"]))
    for name in ("waits", "streams", "graphs"):
        assert {(check["status"], check["reason"]) for check in parts[name]["checks"]} == {("not measured", "no CUDA")}
    for name in ("cost-resnet34", "cost-gpt", "cost-mlp"):
        timed, memory = parts[name]["checks"]
        assert timed["equal_losses"] == {"every=1": True, "every=10": True}
        assert all(timed[way]["median"] > 0 for way in ("null", "every=1", "every=10"))
        assert memory["reason"] == "no CUDA"
    assert parts["study"]["reason"] == "no --data"
    assert "12 pass" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["device.json"]


def test_numbers_that_are_wrong_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = values.make_setup(make_part(), MLP, reference=True)
    read_rows = training.read_rows

    def spoil(metric: str, act: Callable[[Any], Any]) -> None:
        def read(path: Path) -> Any:
            rows, notes = read_rows(path)
            return replace(rows, metrics=rows.metrics | {metric: act(rows.metrics[metric])}), notes

        monkeypatch.setattr(training, "read_rows", read)

    assert values.check(setup)["status"] == "pass"
    spoil("activation_grad_norm", lambda numbers: numbers * (1 + 5e-6))
    found = values.check(setup)
    assert found["status"] == "fail"
    assert 4e-6 < found["errors"]["activation_grad_norm"] < 6e-6
    assert found["errors"]["param_grad_norm"] < 1e-6
    spoil("update_ratio", lambda numbers: numbers * float("nan"))
    assert values.check(setup)["errors"]["update_ratio"] == float("inf")


def test_a_zero_must_be_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("silent", Silent, (4, 16))
    assert values.check(values.make_setup(make_part(), case))["status"] == "pass"
    read_rows = training.read_rows

    def read(path: Path) -> Any:
        rows, notes = read_rows(path)
        rows.metrics["param_grad_norm"][rows.metrics["param_grad_norm"] == 0] = 1e-30
        return rows, notes

    monkeypatch.setattr(training, "read_rows", read)
    assert values.check(values.make_setup(make_part(), case))["errors"]["param_grad_norm"] == float("inf")


def test_a_skipped_step_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = values.setups(make_part())["GradScaler: float16"]
    read_rows = training.read_rows

    def read(path: Path) -> Any:
        rows, notes = read_rows(path)
        rows.scalars["skipped"][:] = 0
        return rows, notes

    monkeypatch.setattr(training, "read_rows", read)
    found = values.check(setup)
    assert found["status"] == "fail"
    assert (found["skipped"], found["recorded_as_skipped"]) == ([2], [])


def test_what_fails_without_the_recorder_is_not_the_recorder_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("no such\nluck")

    part, setup = make_part(), values.make_setup(make_part(), LSTM)
    part.check("bad check", lambda: training.unless_bare_fails(setup, fail))
    assert part.found["checks"][0]["status"] == "error"
    assert part.found["checks"][0]["reason"] == "ValueError: no such"
    assert "test_device_script.py" in part.found["checks"][0]["where"][-1]
    monkeypatch.setattr(training.Trainer, "step", lambda self, x: fail())
    part.check("bad model", lambda: training.unless_bare_fails(setup, fail))
    assert part.found["checks"][1]["status"] == "not measured"
    assert "fails without the recorder too: ValueError" in part.found["checks"][1]["reason"]


def test_a_part_has_its_time() -> None:
    saved: list[Any] = []
    part = checks.Part("cpu", quick=True, deadline=time.time() + 5, save=lambda found: saved.append(str(found)))
    part.check("long", lambda: {"status": "pass"}, needs=60)
    part.check("short", lambda: {"status": "pass"}, needs=1)
    assert statuses(part.found) == {"long": "skipped", "short": "pass"}
    assert "needs 60 s" in part.found["checks"][0]["reason"]
    assert "'in_progress': 'short'" in saved[1]  # a part that is killed tells in which check
    assert "in_progress" not in saved[-1]


def test_parts_for_which_no_time_is_left_are_skipped(tmp_path: Path) -> None:
    out = tmp_path / "device.json"
    assert run.main(["--device", "cpu", "--minutes", "0.3", "--part", "graphs", "compile", "-o", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))["parts"]
    assert {part["status"] for part in found} == {"skipped"}
    assert found[1]["reason"].endswith("needs 50 s")


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    checks.write_json(tmp_path / "new" / "x.json", {"a": float("inf"), "b": [float("nan"), 1.5], "c": {1: None}})
    assert json.loads((tmp_path / "new" / "x.json").read_text()) == {"a": "inf", "b": ["nan", 1.5], "c": {"1": None}}


# --- a process for each part ------------------------------------------------------------------------------

WRITES = "import json, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(json.dumps({'checks': [1]})); "


def watch(tmp_path: Path, code: str, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    out, taken = tmp_path / "found.json", dict[str, Any]()
    ended = child.watch([sys.executable, "-c", code, str(out)], out, time.time() + seconds, taken.update)
    return ended, taken


@pytest.mark.slow
def test_a_process_over_its_time_is_killed_and_what_it_found_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "PATIENCE_SECONDS", 0.5)
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WRITES + "time.sleep(600)"
    began = time.time()
    ended, taken = watch(tmp_path, code, 3)
    assert time.time() - began < 60
    assert ended["status"] == "killed"
    assert taken == {"checks": [1]}


def test_a_process_that_dies_tells_its_last_words(tmp_path: Path) -> None:
    ended, taken = watch(tmp_path, WRITES + "sys.exit('out of luck')", 60)
    assert (ended["status"], ended["reason"]) == ("failed", "ended with exit code 1")
    assert ended["log"] == "out of luck"
    assert taken == {"checks": [1]}
    assert watch(tmp_path, WRITES, 60) == ({}, {"checks": [1]})


# --- a pretended GPU: every line but the calls to the GPU runs -----------------------------------------------


class Pretended:
    """Stands for a stream, an event or a graph."""

    def __init__(self, **options: Any) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: Pretended) -> float:
        return 1000 * (other.at - self.at)

    def wait_stream(self, other: Any) -> None: ...
    def synchronize(self) -> None: ...
    def replay(self) -> None: ...


class GpuPart(checks.Part):
    on_cuda = True


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> checks.Part:
    def nothing(*arguments: Any) -> None: ...

    calls: dict[str, Any] = {
        "synchronize": nothing,
        "set_sync_debug_mode": nothing,
        "_sleep": lambda cycles: time.sleep(cycles / 1e9),
        "current_stream": lambda *arguments: Pretended(),
        "stream": lambda stream: contextlib.nullcontext(),
        "graph": lambda graph: contextlib.nullcontext(),
        "make_graphed_callables": lambda model, inputs: model,
        "Stream": Pretended,
        "Event": Pretended,
        "CUDAGraph": Pretended,
    }
    for name, call in calls.items():
        monkeypatch.setattr(torch.cuda, name, call, raising=False)
    monkeypatch.setattr(torch.Tensor, "record_stream", nothing)
    for module in (streams, graphs):
        monkeypatch.setattr(module, "compute_precisely", nothing)
    return GpuPart("cpu", quick=True, deadline=time.time() + 1000)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_graphs_are_judged(gpu: checks.Part, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs.measure(gpu)
    before, within, captured = gpu.found["checks"]
    assert (before["outcome"], within["outcome"]) == ("right", "right")
    assert (captured["status"], captured["outcome"]) == ("fail", "wrong, silently")  # the capture trains here
    assert captured["missing"]["param_grad_norm"] == 6 * 5  # steps that are only replayed, and layers

    monkeypatch.setattr(graphs, "_train_captured", lambda trainer: 1 / 0)
    graphs.measure(gpu)
    assert "without the recorder too" in gpu.found["checks"][-1]["reason"]


def test_a_recorder_that_breaks_a_capture_fails(gpu: checks.Part) -> None:
    calls: list[int] = []

    def act(trainer: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("operation not permitted when stream is capturing")

    found = graphs.check("cpu", graphs._nothing, act)
    assert (found["status"], found["outcome"]) == ("fail", "training broken")


@pytest.mark.usefixtures("one_thread")
def test_a_wait_is_found(gpu: checks.Part, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = waits.setups("cpu")["every=3"]
    found = waits.check_steps(setup)
    assert (found["status"], found["rows"]) == ("pass", 9)

    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def wait() -> dict[str, float]:
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return {}

    monkeypatch.setattr("gradlens.recorder.recorder.to_numbers", lambda *scalars: wait())
    found = waits.check_steps(setup)
    assert found["status"] == "fail"
    assert any("recorder.py" in line for line in found["first_wait"]["where"])
    monkeypatch.setattr(training.Trainer, "update", lambda self: wait())
    found = waits.check_steps(setup)
    assert found["reason"] == "training waits without the recorder too"


@pytest.mark.usefixtures("one_thread")
def test_a_step_that_waits_for_a_busy_gpu_is_found(gpu: checks.Part, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"bare": 0.01, "first row": 0.1, "ordinary row": 0.02}

    def pretend(setup: Any, cycles: int, *, recorded: bool) -> dict[str, float]:
        found = {name: seconds for name, seconds in times.items() if recorded == (name != "bare")}
        return found | ({"ordinary row": 0.02 + waits.BUSY_SECONDS} if cycles and recorded else {})

    seconds = waits.host_seconds(replace(waits.setups("cpu")["every=3"], record={}), 0, recorded=True)
    assert list(seconds) == ["first row", "ordinary row", "row with the metrics of weights"]
    monkeypatch.setattr(waits, "host_seconds", pretend)
    found = waits.check_behind("cpu")
    assert (found["status"], found["reason"]) == ("fail", "waited: ordinary row")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_streams_are_compared(gpu: checks.Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STEPS", 3)
    monkeypatch.setattr(streams, "check_branches", lambda device: {"status": "pass"})
    streams.measure(gpu)
    assert set(statuses(gpu.found).values()) == {"pass"}
    monkeypatch.setattr(training, "RATE", 0.5)
    apart = streams._apart(MLP, streams._train_on(MLP, streams._here, "cpu"), training.Recorded())
    assert apart == {f"rows, {MLP.name}": float("inf")}


# --- the study ---------------------------------------------------------------------------------------------


def test_the_list_of_the_study(tmp_path: Path) -> None:
    for line in study.read_list(FOLDER / "study.txt"):  # every line is one that gradlens run plans
        name, _, seeds, *_ = line.split()
        experiment = read_experiment(FOLDER.parent / f"{name}.toml")
        assert len(experiment.plan(tmp_path, {}, parse_seeds(seeds))) > 1
    assert study.read_list(tmp_path / "none.txt") == []
    (tmp_path / "study.txt").write_text("# first\nplain20 --seed 0   # a run\n\nresnet20 --seed 0\n")
    options = {"study": tmp_path / "study.txt", "folder": tmp_path, "data": f"folder:{tmp_path}/none"}
    assert study.read_list(options["study"]) == ["plain20 --seed 0", "resnet20 --seed 0"]
    part = make_part(options=options)
    study.measure(part)
    assert part.found["reason"].endswith("there is no such file or folder")
    late = checks.Part("cpu", quick=True, deadline=time.time() + 5, options=options | {"data": "patterns"})
    study.measure(late)
    assert statuses(late.found) == {"study: plain20 --seed 0": "skipped", "study: resnet20 --seed 0": "skipped"}


def test_the_numbers_of_the_runs_are_kept_also_where_the_list_is_cut_off(tmp_path: Path, make_run: Any) -> None:
    for model in ("plain34", "resnet34"):
        assert make_run(f"{model}-s0", model=model, seed=0).parent == tmp_path / "runs"
    (tmp_path / "study.txt").write_text("plain20 --seed 0\n")
    options = {"study": tmp_path / "study.txt", "folder": tmp_path, "data": "patterns"}
    part = checks.Part("cpu", quick=True, deadline=time.time() + study.LEAST_SECONDS, options=options)
    study.measure(part)
    assert statuses(part.found) == {"study: plain20 --seed 0": "skipped", "study: numbers kept": "measured"}
    assert len(read_kept(tmp_path / "kept")) == 2


@pytest.mark.slow
def test_a_run_of_the_study(tmp_path: Path) -> None:
    part = make_part(options={"folder": tmp_path})
    line = "plain20 --epochs 1 --image-size 16 --every 10"
    assert study.run_line(part, line, "patterns")["exit_code"] == 0
    assert (tmp_path / "runs" / "plain20-s0.h5").exists()
    again = study.run_line(part, line, "patterns")  # the run is there
    assert (again["status"], again["exit_code"]) == ("error", 1)
    assert again["last_line"]
    short = checks.Part(
        "cpu",
        quick=True,
        deadline=time.time() + study.CLOSING_SECONDS + study.KEEPING_SECONDS + 1,
        options=part.options,
    )
    assert study.run_line(short, "resnet20 --epochs 50", "patterns")["status"] == "stopped"
