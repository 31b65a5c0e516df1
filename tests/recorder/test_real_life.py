"""What users do around a recorder: everything is kept, or a line says what is not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import gradlens
from gradlens.errors import GradlensWarning, RecorderError, RunFileError
from gradlens.recorder import Recorder
from gradlens.sinks import ListSink
from gradlens.storage import finish_abandoned
from tests.processes import PATIENCE
from tests.recorder.small import backward, mlp

NO_CLOSE = "recorder.close() was not called"


def parts() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = mlp()
    return model, torch.optim.SGD(model.parameters(), 0.1)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, recorder=None) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        loss = backward(model, step)
        optimizer.step()
        if recorder is not None:
            recorder.log(loss=loss)


# --- log ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "abc", "1.5", b"1.5", None, 1j, torch.ones(3), torch.ones(0), torch.tensor(1j), [1.0], np.ones(2), 10**400,
        np.complex64(1), torch.empty(1, device="meta"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_that_is_no_number_is_refused_where_it_is_logged_and_the_others_are_kept(value: object) -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer) as recorder:
        train(model, optimizer, 1)
        with pytest.raises(RecorderError, match=r"^bad must be one number, got .*tip: log its mean"):
            recorder.log(before=1.0, bad=value, after=2.0)
        with pytest.raises(RecorderError, match=r"^bad must be one number"):
            recorder.log_epoch(epoch=1, bad=value, train_loss=3.0)
        train(model, optimizer, 1)
    assert {key: sink.rows[0].scalars[key] for key in ("before", "after")} == {"before": 1.0, "after": 2.0}
    assert "bad" not in sink.rows[0].scalars
    assert sink.epochs == [{"epoch": 1.0, "train_loss": 3.0}]
    assert (len(sink.rows), sink.status) == (2, "complete")


@pytest.mark.parametrize("name", ["", " ", "/", ".", "..", "a\0b", "a\nb", "\ud800", "step", "x" * 256], ids=ascii)
def test_a_name_that_the_file_cannot_have_is_refused_where_it_is_logged(name: str) -> None:
    model, optimizer = parts()
    with gradlens.record(model, "a.h5", optimizer=optimizer) as recorder:
        train(model, optimizer, 1)
        with pytest.raises(RecorderError, match=r"is no name for a value|is a name that rows have already"):
            recorder.log(**{"before": 1.0, name: 1.0, "a/b": 2.0})
        train(model, optimizer, 2)
    run = gradlens.read_run("a.h5")
    assert (run.scalars["before"][0], run.scalars["a.b"][0], len(run.steps)) == (1.0, 2.0, 3)


def test_several_bad_values_are_one_error_and_numbers_of_any_kind_are_taken() -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, sink, optimizer=optimizer) as recorder:
        train(model, optimizer, 1)
        with pytest.raises(RecorderError, match=r"^a must be one number, got None; 'x\\ny' is no name"):
            recorder.log(**{"a": None, "x\ny": 1.0})
        recorder.log(flag=True, whole=3, array=np.ones((1, 1)), half=np.float16(0.5), tensor=torch.ones(1, 1))
    wanted = {"flag": 1.0, "whole": 3.0, "array": 1.0, "half": 0.5, "tensor": 1.0}
    assert {key: sink.rows[0].scalars[key] for key in wanted} == wanted


def test_a_name_for_each_step_is_refused_before_no_reader_takes_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlens.recorder.scalars.MOST_NAMES", 30)
    model, optimizer = parts()
    with gradlens.record(model, "a.h5", optimizer=optimizer) as recorder:
        train(model, optimizer, 1)
        with pytest.raises(
            RecorderError, match=r"^step-28.x is one name too many: a run holds 30.*; and 4 more .*tip:"
        ):
            recorder.log(loss=0.5, more=1.0, **{f"step-{k}/x": 1.0 for k in range(41)}, late=2.0)
        train(model, optimizer, 1)
        recorder.log(loss=0.25)
        with pytest.raises(RecorderError, match=r"too many"):
            recorder.log_epoch(**{f"e{k}": 1.0 for k in range(31)})
        recorder.log_epoch(e0=2.0)
    run = gradlens.read_run("a.h5")
    assert run.scalars["loss"].tolist() == [0.5, 0.25]
    assert (len(run.steps), "step-27.x" in run.scalars, "late" in run.scalars) == (2, True, False)
    assert run.epochs["e0"].tolist() == [1.0, 2.0]


def test_the_names_of_every_run_that_is_continued_add_up_to_a_file_that_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gradlens.storage.writer.MOST_COLUMNS", 20)
    for start in (0, 10, 20):
        model, optimizer = parts()
        with gradlens.record(model, "a.h5", optimizer=optimizer, resume=start > 0) as recorder:
            for step in range(4):
                train(model, optimizer, 1)
                recorder.log(loss=start + step, **{f"v{start + k}": 1.0 for k in range(5 + step)})
    run = gradlens.read_run("a.h5")
    assert (len(run.scalars), len(run.steps)) == (20, 12)
    assert run.scalars["loss"].tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]


# --- in one process -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["run.h5", "sub/run.h5", Path("sub") / "run.h5"])
def test_the_path_is_that_of_the_call(path: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = parts()
    recorder = gradlens.record(model, path, optimizer=optimizer)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recorder.start()
    train(model, optimizer, 20, recorder)
    recorder.log_epoch(epoch=1)
    monkeypatch.chdir("/")
    recorder.log_epoch(epoch=2)
    train(model, optimizer, 20, recorder)
    recorder.close()
    assert len(gradlens.read_run(tmp_path / path).steps) == 40
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("again", ["overwrite", "resume"])
def test_a_cell_that_is_run_again_takes_the_file_over(again: str) -> None:
    model, optimizer = parts()
    first = gradlens.record(model, "a.h5", optimizer=optimizer).start()
    train(model, optimizer, 30, first)
    with pytest.raises(RunFileError, match=r"being written in this process.*overwrite=True closes that"):
        gradlens.record(model, "a.h5", optimizer=optimizer)
    with pytest.warns(GradlensWarning, match=r"a.h5 was still being written by an earlier recorder \(30 rows\)"):
        second = gradlens.record(model, "a.h5", optimizer=optimizer, **{again: True})  # type: ignore[arg-type]
    assert first.counts == (30, 30)
    before = gradlens.read_run("a.h5")
    assert (before.status, len(before.steps)) == ("interrupted", 30)
    assert before.info["notes"][0].startswith("ended by a new recorder of the same file")
    with second:
        train(model, optimizer, 10, second)
    run = gradlens.read_run("a.h5")
    assert (run.status, len(run.steps)) == ("complete", 40 if again == "resume" else 10)
    first.close()  # a second close does nothing


@pytest.mark.parametrize("error", [ValueError("boom\nand more"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_the_file_says_which_exception_ended_it(error: BaseException) -> None:
    model, optimizer = parts()

    def fail() -> None:
        with gradlens.record(model, "a.h5", optimizer=optimizer) as recorder:
            train(model, optimizer, 5, recorder)
            raise error

    with pytest.raises(type(error)):
        fail()
    run = gradlens.read_run("a.h5")
    notes = {
        ValueError: "ended by ValueError: boom",
        KeyboardInterrupt: "ended by KeyboardInterrupt (SIGINT)",
        SystemExit: "ended by SystemExit: 3",
    }
    assert run.info["notes"] == [notes[type(error)]]
    assert run.status == ("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")


def test_a_recorder_that_is_collected_closes_its_file() -> None:
    model, optimizer = parts()
    recorder = gradlens.record(model, "a.h5", optimizer=optimizer).start()
    train(model, optimizer, 20, recorder)
    recorder.__del__()  # hooks that autograd holds keep a leaked recorder alive to the end of the interpreter, mostly
    finish_abandoned()
    run = gradlens.read_run("a.h5")
    assert (run.status, len(run.steps)) == ("interrupted", 20)
    assert run.info["notes"] == [f"ended because the recorder was garbage-collected; {NO_CLOSE}"]


def wait_for(what: Callable[[], bool], seconds: float = PATIENCE) -> float:
    """Wait until something is so, and return how long that took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return time.monotonic() - began


def rows_of(path: str) -> int:
    with contextlib.suppress(RunFileError):
        return len(gradlens.read_run(path).steps)
    return 0


def test_a_row_is_on_the_disk_before_the_next_step_and_a_late_value_is_in_it() -> None:
    model, optimizer = parts()
    with gradlens.record(model, "a.h5", optimizer=optimizer) as recorder:
        for step in range(3):
            train(model, optimizer, 1, recorder)
            if step < 2:
                wait_for(lambda step=step: rows_of("a.h5") == step + 1)
                assert recorder.last_row is not None
                assert recorder.last_row.step == step
            recorder.log(late=float(step), loss=step)
    run = gradlens.read_run("a.h5")
    assert run.steps.tolist() == [0, 1, 2]
    assert run.scalars["late"].tolist() == [0.0, 1.0, 2.0]
    assert np.isfinite(run.scalars["loss"]).all()
    assert np.isfinite(run.metric("param_grad_norm")).all()


# --- programs -------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str
    folder: Path

    def run(self, name: str = "run.h5") -> tuple[int, str, list[str]]:
        """Return rows, status and notes of the file."""
        run = gradlens.read_run(self.folder / name)
        return len(run.steps), run.status, run.info["notes"]


class Programs:
    """Runs programs, one after another."""

    def __init__(self) -> None:
        server = Path(__file__).with_name("program_server.py")
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
        self.server = subprocess.Popen(
            [sys.executable, str(server)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, program: str, folder: Path, during: Callable[[int], None] = lambda process: None) -> Ended:
        """Run a program in a folder, and do something with its process meanwhile."""
        (folder / "program.py").write_text(program)
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(f"{folder}\n")
        self.server.stdin.flush()
        process = int(self.server.stdout.readline())
        during(process)
        code = int(self.server.stdout.readline())
        return Ended(code, *((folder / name).read_text() for name in ("out.txt", "err.txt")), folder)


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    started = Programs()
    yield started
    assert started.server.stdin is not None
    started.server.stdin.close()
    assert started.server.stdout is not None
    started.server.stdout.close()
    started.server.wait(PATIENCE)


RECORD = """
m, o = parts()
r = gradlens.record(m, "run.h5", optimizer=o)
"""
START = RECORD + "r.start()\ntrain(m, o, 200, r)\n"


ENDS = [
    (START + "sys.exit(3)", 3, "interrupted", f"ended by the end of the interpreter; {NO_CLOSE}"),
    (START + "raise ValueError('boom\\nmore')", 1, "failed", f"ended by ValueError: boom; {NO_CLOSE}"),
    (START + "raise KeyboardInterrupt", -2, "interrupted", f"ended by KeyboardInterrupt (SIGINT); {NO_CLOSE}"),
    (RECORD + "with r:\n train(m, o, 200, r); sys.exit(3)", 3, "failed", "ended by SystemExit: 3"),
]


@pytest.mark.parametrize(
    ("program", "code", "status", "note"),
    [
        (START, 0, "interrupted", f"ended by the end of the interpreter; {NO_CLOSE}"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ENDS),
    ],
)
def test_a_program_that_ends_without_close_keeps_every_row(
    program: str, code: int, status: str, note: str, programs: Programs, tmp_path: Path
) -> None:
    ended = programs(program, tmp_path)
    assert ended.code in ((code, 1) if code < 0 else (code,)), ended.err
    assert ended.run() == (200, status, [note])
    assert "gradlens" not in ended.err


@pytest.mark.slow
def test_an_exit_past_python_keeps_what_was_flushed(programs: Programs, tmp_path: Path) -> None:
    ended = programs(START + "wait_for_rows(200)\nos._exit(4)", tmp_path)
    assert ended.code == 4
    assert ended.run() == (200, "interrupted", [])


@pytest.mark.slow
@pytest.mark.parametrize("more", [0, 1, 12])
def test_quick_ctrl_c_closes_the_file_whole(more: int, programs: Programs, tmp_path: Path) -> None:
    def interrupt(process: int) -> None:
        wait_for(lambda: (tmp_path / "started").exists())
        time.sleep(0.3)
        for _ in range(1 + more):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGINT)
            time.sleep(0.01)

    program = RECORD + "with r:\n train(m, o, 500, r); open('started', 'w').close(); train(m, o, 10**6, r)"
    ended = programs(program, tmp_path, interrupt)
    assert ended.code in (-signal.SIGINT, 1), ended.err  # 1 where a library runs code at the end of the interpreter
    assert "KeyboardInterrupt" in ended.err
    rows, status, notes = ended.run()
    assert rows >= 500
    assert status == "interrupted"
    assert notes[0].startswith("ended by KeyboardInterrupt (SIGINT)")


@pytest.mark.slow
def test_recorders_in_two_threads(programs: Programs, tmp_path: Path) -> None:
    """Torch's functions that are observed for facts are those of all threads: reading gradients there was a crash."""
    program = """
import threading
def work(k):
    m, o = parts(k)
    with gradlens.record(m, f"run{k}.h5", optimizer=o) as r:
        train(m, o, 150, r)
for repeat in range(4):
    threads = [threading.Thread(target=work, args=(2 * repeat + k,)) for k in range(2)]
    [each.start() for each in threads]
    [each.join() for each in threads]
"""
    ended = programs(program, tmp_path)
    assert ended.code == 0, ended.err
    for k in range(8):
        assert ended.run(f"run{k}.h5") == (150, "complete", [])


@pytest.mark.slow
def test_a_thread_that_still_trains_at_the_end(programs: Programs, tmp_path: Path) -> None:
    program = """
import threading
m, o = parts()
def work():
    with gradlens.record(m, "run.h5", optimizer=o) as r:
        train(m, o, 10**9, r)
threading.Thread(target=work, daemon=True).start()
wait_for_rows(11)
"""
    ended = programs(program, tmp_path)
    rows, status, notes = ended.run()
    assert rows > 10
    assert (status, notes) == ("interrupted", [f"ended by the end of the interpreter; {NO_CLOSE}"])
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_a_forked_child_writes_nothing(programs: Programs, tmp_path: Path) -> None:
    program = """
child = os.fork()
if not child:
    {child}
    sys.exit(0)
print(os.waitpid(child, 0)[1]); train(m, o, 100, r); r.close()
"""
    for number, child in enumerate(("train(m, o, 50, r)", "r.close()", "pass")):
        folder = tmp_path / str(number)
        folder.mkdir()
        ended = programs(START + program.format(child=child), folder)
        assert (ended.code, ended.out) == (0, "0\n"), ended.err
        assert ended.run() == (300, "complete", [])
        assert ("was forked from the one that writes the run" in ended.err) == (number == 0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_recorder_in_a_process_of_multiprocessing(method: str, programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(
        "import gradlens, torch\n"
        "def work():\n"
        "    m = torch.nn.Linear(2, 2); o = torch.optim.SGD(m.parameters(), 0.1)\n"
        "    r = gradlens.record(m, 'run.h5', optimizer=o).start()\n"
        "    for _ in range(50):\n"
        "        o.zero_grad(); loss = m(torch.ones(1, 2)).sum(); loss.backward(); o.step(); r.log(loss=loss)\n"
    )
    program = f"""
sys.path.insert(0, ".")
import multiprocessing, work
sys.modules["__main__"].__spec__ = None
sys.modules["__main__"].__file__ = None
process = multiprocessing.get_context({method!r}).Process(target=work.work)
process.start(); process.join(); print(process.exitcode)
"""
    ended = programs(program, tmp_path)
    assert ended.out == "0\n", ended.err
    assert ended.run() == (50, "interrupted", [f"ended by the end of the interpreter; {NO_CLOSE}"])


@pytest.mark.slow
@pytest.mark.parametrize("clock", ["real() - 10 * 86400", "-5.0", "0.0"])
def test_a_clock_that_is_set_back(clock: str, programs: Programs, tmp_path: Path) -> None:
    program = START + f"real = time.time\ntime.time = lambda: {clock}\n" + "train(m, o, 100, r, 0.02)\nr.close()"
    ended = programs(program, tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.run() == (300, "complete", [])


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 2.5])
def test_rows_finished_two_seconds_ago_are_on_the_disk(pause: float, programs: Programs, tmp_path: Path) -> None:
    """At any rate of steps, with a process that is stopped meanwhile and goes on.

    On a busy machine, a thread that only sleeps shows by how much the machine was late; so much is added.
    """
    late = []

    def delay() -> float:
        return float((tmp_path / "delay").read_text())

    def assert_written(done: int) -> None:
        ends = time.monotonic() + delay()
        while rows_of(str(tmp_path / "run.h5")) < done:
            assert time.monotonic() < ends
            time.sleep(0.02)

    def follow(process: int) -> None:
        wait_for(lambda: (tmp_path / "first").exists())
        late.append(wait_for(lambda: rows_of(str(tmp_path / "run.h5")) > 0))
        wait_for(lambda: (tmp_path / "delay").exists())
        late.append(delay())
        for number in range(8):
            done = int((tmp_path / "done").stat().st_size)
            time.sleep(2.0)
            assert_written(done)
            if number == 4:
                os.kill(process, signal.SIGSTOP)
                time.sleep(0.5)
                assert rows_of(str(tmp_path / "run.h5")) >= done
                os.kill(process, signal.SIGCONT)

    program = RECORD + (
        "import collections, os, threading\n"
        "def sleep_on(pause=0.05, last=collections.deque(maxlen=60)):\n"
        " while True:\n"
        "  slept = time.monotonic(); time.sleep(pause); last.append(time.monotonic() - slept - pause)\n"
        "  open('delay.new', 'w').write(str(max(last))); os.replace('delay.new', 'delay')\n"
        "threading.Thread(target=sleep_on, daemon=True).start()\n"
        "with r, open('done', 'ab', buffering=0) as done:\n"
        " for step in range(10**9):\n"
        "  train(m, o, 1, r); done.write(b'.')\n"
        "  if not step: open('first', 'w').close(); began = time.monotonic()\n"
        f"  time.sleep({pause})\n"
        "  if time.monotonic() - began > 19: break\n"
    )
    ended = programs(program, tmp_path, follow)
    assert ended.code == 0, ended.err
    assert late[0] < 1.5 + late[1]  # a second, and what a busy machine adds
    assert ended.run()[:2] == ((tmp_path / "done").stat().st_size, "complete")
