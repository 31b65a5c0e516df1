"""The run file: what is written is read, while it is written and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradlens import read_run
from gradlens.errors import ConfigError, NoRunError, RunExistsError, RunFileError
from gradlens.run import Header, Layer, Row
from gradlens.storage import FileSink, find_runs, newest_run, resolve_runs
from gradlens.storage.live_file import LiveFile
from gradlens.storage.schema import as_float32
from tests.conftest import SAMPLE, make_layers
from tests.processes import PATIENCE
from tests.storage import known

HEADER = Header(make_layers(4), {"activation_grad_norm": 1, "param_norm": 2}, model="net", seed=7, config={"a": 1})


def row(step: int, **scalars: float) -> Row:
    values = np.arange(4) + step + 0.5
    metrics = {"activation_grad_norm": values}
    if step % 2 == 0:
        metrics["param_norm"] = values * 2
    return Row(step, step // 5, metrics, {"loss": float(step), **scalars})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "new" / "a.h5")
    sink.open(HEADER)
    for step in range(10):
        sink.write_row(row(step))
        if step % 5 == 4:
            sink.write_epoch({"epoch": step // 5 + 1, "val_accuracy": step / 10})
    sink.close("complete")
    run = read_run(tmp_path / "new" / "a.h5")
    assert (run.status, run.model, run.seed, run.config, run.name) == ("complete", "net", 7, {"a": 1}, "a")
    assert run.layers == HEADER.layers
    assert run.steps.tolist() == list(range(10))
    assert run.epoch_of_step.tolist() == [0] * 5 + [1] * 5
    assert run.scalars["loss"].tolist() == list(range(10))
    assert np.isnan(run.scalars["lr"]).all()
    metric = run.metric("activation_grad_norm")
    assert metric.dtype == np.float32
    np.testing.assert_array_equal(metric, np.arange(4) + np.arange(10)[:, None] + 0.5)
    assert np.isnan(run.metric("param_norm")[1::2]).all()
    assert np.isfinite(run.metric("param_norm")[::2]).all()
    assert run.info["every"] == {"activation_grad_norm": 1, "param_norm": 2}
    assert run.epochs["val_accuracy"].tolist() == [0.4, 0.9]
    assert np.isnan(run.epochs["train_loss"]).all()
    with pytest.raises(ConfigError, match="holds no metric 'x'; it holds activation_grad_norm, param_norm"):
        run.metric("x")


def test_the_layout_is_that_of_the_contract(make_run) -> None:
    with h5py.File(make_run(), "r") as file:
        assert file.attrs["format"] == "gradlens"
        assert file.attrs["format_version"] == 1
        for key in ("gradlens_version", "created", "model", "seed", "config_json", "environment_json"):
            assert key in file.attrs
        assert set(file) == {"layer", "step", "epoch_of_step", "scalar", "metric", "epoch", "state", "level"}
        assert set(file["layer"]) == {
            "name",
            "kind",
            "role",
            "depth",
            "out_numel",
            "param_numel",
            "calls",
            "tags",
            "parents",
        }
        assert set(file["state"]) == {
            "status",
            "n_steps",
            "n_epochs",
            "heartbeat",
            "overhead",
            "notes",
            "facts_json",
            "check_a",
        }
        assert set(file["epoch"]) >= {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"}
        assert {"loss", "lr"} <= set(file["scalar"])
        assert file["metric/layer"].asstr()[:].tolist() == file["layer/name"].asstr()[:].tolist()
        metrics = [dataset for name, dataset in file["metric"].items() if name != "layer"]
        assert len(metrics) == 4
        for metric in metrics:
            assert metric.dtype == np.float32
            assert metric.dims[0][0] == file["step"]
            assert metric.dims[1][0] == file["metric/layer"]
        assert file["metric/param_norm"].attrs["every"] == 10


def test_ten_lines_of_plain_h5py_read_it(make_run) -> None:
    with h5py.File(make_run(steps=12), "r", swmr=True) as f:
        n = int(f["state/n_steps"][()])
        norms = f["metric/activation_grad_norm"][:n]
        names = f["layer/name"].asstr()[:]
    assert norms.shape == (12, 6)
    assert names[0] == "stage0.0"


def test_a_scalar_that_comes_later_is_filled_with_nan_before(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "a.h5")
    sink.open(HEADER)
    for step in range(3):
        sink.write_row(row(step))
    sink.write_row(row(3, extra=5.0))
    sink.write_epoch({"epoch": 1, "top5": 0.9})
    sink.close("complete")
    run = read_run(tmp_path / "a.h5")
    np.testing.assert_array_equal(run.scalars["extra"], [np.nan, np.nan, np.nan, 5.0])
    assert run.epochs["top5"].tolist() == [0.9]
    assert len(run.metric("activation_grad_norm")) == 4
    assert list(tmp_path.iterdir()) == [tmp_path / "a.h5"]


def test_a_resumed_file_keeps_what_it_should_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for resume, steps in ((None, range(10)), ((6, 1), range(6, 12))):
        sink = FileSink(path, resume_at=resume)
        sink.open(HEADER)
        for step in steps:
            sink.write_row(row(step))
            if step % 5 == 4:
                sink.write_epoch({"epoch": step // 5 + 1})
        sink.close("complete")
    run = read_run(path)
    assert run.steps.tolist() == list(range(12))
    assert run.epochs["epoch"].tolist() == [1, 2]
    np.testing.assert_array_equal(run.metric("activation_grad_norm")[:, 0], np.arange(12) + 0.5)


def test_a_write_that_was_broken_off_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = FileSink(tmp_path / "a.h5")
    sink.open(HEADER)
    sink.write_row(row(0))
    sink.write_row(row(1))
    original, calls = LiveFile._write, []

    def breaks(*arguments):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LiveFile, "_write", breaks)
        with pytest.raises(KeyboardInterrupt):
            sink.flush()
    sink.close("interrupted")
    run = read_run(tmp_path / "a.h5")
    assert run.status == "interrupted"
    assert run.steps.tolist() == [0, 1]
    assert run.scalars["loss"].tolist() == [0, 1]


@pytest.mark.parametrize("resume", [False, True])
def test_a_rebuild_that_fails_loses_nothing(resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    if resume:
        first = FileSink(path)
        first.open(HEADER)
        for step in range(8):
            first.write_row(row(step))
        first.close("interrupted")
    sink = FileSink(path, overwrite=True, resume_at=(5, 0) if resume else None)
    sink.open(HEADER)
    for step in range(5 if resume else 0, 10):
        sink.write_row(row(step))

    def full(*arguments):  # type: ignore[no-untyped-def]
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gradlens.storage.live_file.create_layout", full)
        with pytest.raises(RunFileError, match="cannot be written: No space left"):
            sink.write_epoch({"epoch": 1, "new": 2.0})
    sink.close("failed")
    run = read_run(path)
    assert run.steps.tolist() == list(range(10))
    assert run.scalars["loss"].tolist() == list(range(10))
    assert run.epochs["new"].tolist() == [2.0]
    assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_was_recorded_there_is_no_file_and_none_is_replaced(make_run) -> None:
    path = make_run()
    for target in (path, path.with_name("new.h5")):
        sink = FileSink(target, overwrite=True)
        sink.open(HEADER)
        sink.close("failed")
    assert len(read_run(path).steps) == 20
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_overwritten_unasked(make_run) -> None:
    path = make_run()
    with pytest.raises(RunExistsError, match="already exists"):
        FileSink(path)
    sink = FileSink(path, overwrite=True)
    assert len(read_run(path).steps) == 20  # still there until the new run has a row
    sink.open(HEADER)
    sink.write_row(row(0))
    sink.close("complete")
    assert len(read_run(path).steps) == 1


def test_a_file_made_meanwhile_is_not_overwritten(tmp_path: Path, make_run) -> None:
    sink = FileSink(tmp_path / "runs" / "net-s0.h5")
    sink.open(HEADER)
    make_run("other").rename(tmp_path / "runs" / "net-s0.h5")
    with pytest.raises(RunExistsError, match="somebody else"):
        sink.write_row(row(0))
    assert len(read_run(tmp_path / "runs" / "net-s0.h5").steps) == 20
    with pytest.raises(RunExistsError, match="somebody else"):
        sink.close("failed")
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="is a folder"):
        FileSink(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFileError, match="cannot be written"):
        FileSink(tmp_path / "file" / "a.h5")


WRITER = textwrap.dedent(
    """
    import sys, time, numpy as np
    from gradlens.run import Header, Layer, Row
    from gradlens.storage import FileSink
    sink = FileSink(sys.argv[1])
    layers = tuple(Layer(f"l{i}", "Linear", "main", i + 1, 1, 1) for i in range(4))
    sink.open(Header(layers, {"activation_grad_norm": 1}))
    for step in range(100000):
        sink.write_row(Row(step, 0, {"activation_grad_norm": np.full(4, step + 1.0)}, {"loss": step}))
        if step % 10 == 9:
            sink.flush()
            print(step + 1, flush=True)
            time.sleep(0.01)
    """
)


@pytest.mark.parametrize("killed", [False, True], ids=["live", "after SIGKILL"])
def test_another_process_reads_every_flushed_row(tmp_path: Path, killed: bool) -> None:
    path = tmp_path / "live.h5"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    try:
        for _ in range(8):
            flushed = int(writer.stdout.readline())
        if killed:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait(PATIENCE)
        run = read_run(path)
        assert run.status == ("interrupted" if killed else "running")
        assert len(run.steps) >= flushed
        metric = run.metric("activation_grad_norm")
        np.testing.assert_array_equal(metric, np.repeat(run.steps[:, None] + 1.0, 4, axis=1))
        assert run.steps.tolist() == list(range(len(run.steps)))
        if not killed:
            while int(writer.stdout.readline()) <= len(run.steps):
                pass
            assert len(read_run(path).steps) > len(run.steps)
    finally:
        writer.kill()
        writer.wait(PATIENCE)
        writer.stdout.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"hello", "is not an HDF5 file"), (b"", "is not an HDF5 file"), (None, "there is no such file")],
)
def test_what_is_no_run_says_so(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "x.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunFileError, match=said):
        read_run(path)


def test_files_of_others_and_of_the_future_say_so(make_run, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(RunFileError, match="another program"):
        read_run(tmp_path / "other.h5")
    path = make_run()
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(RunFileError, match="format version 2; this gradlens reads up to 1"):
        read_run(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 1
        del file["step"]
    with pytest.raises(RunFileError, match="damaged"):
        read_run(path)
    with pytest.raises(RunFileError, match="is a folder"):
        read_run(tmp_path)


def test_a_truncated_file_says_so(make_run) -> None:
    path = make_run()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RunFileError, match=str(path)):
        read_run(path).metric("activation_grad_norm")


@given(hnp.arrays(np.float64, 20, elements=st.floats(allow_nan=True, allow_infinity=True)))
def test_rounding_to_float32_keeps_zero_nonzero_and_finite(values: np.ndarray) -> None:
    rounded = as_float32(values)
    np.testing.assert_array_equal(rounded == 0, values == 0)
    np.testing.assert_array_equal(np.isfinite(rounded), np.isfinite(values))
    ordinary = (np.abs(values) > 1e-37) & (np.abs(values) < 1e38)
    np.testing.assert_allclose(rounded[ordinary], values[ordinary], rtol=1e-7)


def test_runs_are_found_by_what_a_user_names(make_run, tmp_path: Path) -> None:
    first, second = make_run("a"), make_run("b")
    os.utime(first, (1, 1))
    assert newest_run() == Path("runs/b.h5")
    assert find_runs() == [Path("runs/a.h5"), Path("runs/b.h5")]
    assert resolve_runs([], default="newest") == [Path("runs/b.h5")]
    assert resolve_runs([], default="all") == [Path("runs/a.h5"), Path("runs/b.h5")]
    assert resolve_runs(["a", str(second), "runs"], default="all") == [Path("runs/a.h5"), second, Path("runs/b.h5")]
    with pytest.raises(NoRunError, match="no such run"):
        resolve_runs(["c"], default="all")
    deep = make_run("c", folder="runs/x/y")
    os.utime(deep, (4e9, 4e9))
    assert newest_run() == Path("runs/x/y/c.h5")
    assert find_runs() == [Path("runs/a.h5"), Path("runs/b.h5"), Path("runs/x/y/c.h5")]
    assert find_runs(deep=False) == [Path("runs/a.h5"), Path("runs/b.h5")]
    for named in ("x", "x/y", "x/y/c", "runs/x"):
        assert resolve_runs([named], default="all") == [Path("runs/x/y/c.h5")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoRunError, match="there is no run in empty"):
        resolve_runs(["empty"], default="all")


def test_without_any_run_the_tip_says_how_to_make_one() -> None:
    for default in ("newest", "all"):
        with pytest.raises(NoRunError, match="gradlens run plain34 makes one"):
            resolve_runs([], default=default)


def test_the_real_run_that_is_kept_is_read() -> None:
    run = read_run(SAMPLE)
    assert SAMPLE.stat().st_size < 1_000_000
    assert (run.model, run.status, len(run.layers)) == ("plain34", "complete", 34)
    assert run.metric("activation_grad_norm").shape == (len(run.steps), 34)
    assert np.isfinite(run.metric("activation_grad_norm")).all()
    assert run.layers[0] == Layer("conv1", "Conv2d", "main", 1, run.layers[0].out_numel, 64 * 3 * 49)
    assert len(run.epochs["epoch"]) >= 1


@pytest.mark.parametrize(
    ("layers", "said"),
    [(50_001, "50,001 layers.*at most 50,000"), (["x" * 1001], "1,001 characters; .* at most 1,000")],
)
def test_what_no_reader_would_take_is_not_written(layers: int | list[str], said: str, tmp_path: Path) -> None:
    names = [str(i) for i in range(layers)] if isinstance(layers, int) else layers
    header = replace(known.header(), layers=[Layer(name, "Linear", "main", i, 1, 1) for i, name in enumerate(names)])
    with pytest.raises(ConfigError, match=said):
        FileSink(tmp_path / "run.h5").open(header)
    assert not list(tmp_path.iterdir())
