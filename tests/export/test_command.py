"""``gradlens export`` as a user meets it: formats, places, mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gradlens.cli import run_command
from gradlens.export import csvfile, tables
from gradlens.export import tensorboard_events as events
from tests.export.files import read_csv, read_scalars
from tests.processes import PATIENCE


def everything() -> list[Path]:
    return sorted(path for path in Path().rglob("*") if path.is_file() and path.suffix != ".h5")


def test_the_newest_run_goes_to_its_default_place(make_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(steps=20, layers=6)
    assert run_command(["export"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "wrote exports/net-s0.csv: 120 rows of 1 run\n"
    assert run_command(["export", "--to", "parquet"]) == 0
    assert "wrote exports/net-s0.parquet: 120 rows" in capsys.readouterr().err
    assert run_command(["export", "--to", "tensorboard"]) == 0
    assert "wrote exports/net-s0: 20 steps of 1 run" in capsys.readouterr().err
    for table, count in (("scalars", 20), ("epochs", 2), ("layers", 6)):
        assert run_command(["export", "--table", table]) == 0
        assert f"wrote exports/net-s0-{table}.csv: {count} rows" in capsys.readouterr().err
    assert len(read_csv(Path("exports/net-s0.csv"))) == pq.read_table("exports/net-s0.parquet").num_rows == 120
    assert len(read_scalars(Path("exports/net-s0"))["activation_grad_norm/stage0.0"]) == 20
    assert [path.name for path in Path("exports").rglob(".*")] == []


def test_the_ending_names_the_format(make_run) -> None:
    make_run()
    for output in ("a.csv", "b/c.PARQUET", "logs", "dotted.logs/"):
        assert run_command(["export", "net-s0", "-o", output]) == 0
    assert run_command(["export", "--to", "tensorboard", "-o", "v1.2"]) == 0
    assert run_command(["export", "--to", "csv", "-o", "table.txt"]) == 0
    assert Path("a.csv").read_bytes() == Path("table.txt").read_bytes()
    assert pq.read_table("b/c.PARQUET").num_rows == 120
    assert read_scalars(Path("logs")) == read_scalars(Path("dotted.logs")) == read_scalars(Path("v1.2"))


def test_csv_goes_to_stdout(make_run, capfd: pytest.CaptureFixture[str]) -> None:
    make_run()
    command = [sys.executable, "-m", "gradlens", "export", "-o", "-", "--metric", "param_norm"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE)
    assert done.stderr == b""
    assert run_command(["export", "-o", "file.csv", "--metric", "param_norm"]) == 0
    assert done.stdout == Path("file.csv").read_bytes()
    assert done.stdout.splitlines()[0] == b"run,step,epoch,layer,depth,role,param_norm"
    assert len(done.stdout.splitlines()) == 1 + 2 * 6


def test_a_reader_that_leaves_early_is_no_error(make_run) -> None:
    make_run(layers=300, steps=100)
    command = f"set -o pipefail; {sys.executable} -m gradlens export -o - | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("run,step")


def test_several_runs_go_into_one_table_and_a_folder_each(make_run, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        make_run(f"net-s{seed}", seed=seed)
    make_run("net-s1", folder="more", seed=1)
    assert run_command(["export", "runs"]) == 0
    assert {row["run"] for row in read_csv(Path("exports/net-s0-net-s1.csv"))} == {"net-s0", "net-s1"}
    assert run_command(["export", "runs", "more", "--to", "tensorboard", "--metric", "param_norm"]) == 0
    assert "wrote exports/runs-net-s0-runs-net-s1-more-net-s1: 60 steps of 3 runs" in capsys.readouterr().err
    top = Path("exports/runs-net-s0-runs-net-s1-more-net-s1")
    assert sorted(path.parent.relative_to(top).as_posix() for path in top.rglob("*.gradlens")) == [
        "more/net-s1",
        "runs/net-s0",
        "runs/net-s1",
    ]
    tags = read_scalars(top / "more" / "net-s1")
    assert "param_norm/stage0.0" in tags
    assert not any(tag.startswith("activation_grad_norm") for tag in tags)
    make_run("net-s2", seed=2)
    assert run_command(["export", "runs", "more"]) == 0
    assert "wrote exports/net-4-runs.csv" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["csv", "parquet", "tensorboard"])
def test_nothing_is_overwritten_unasked(form: str, make_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(steps=20)
    assert run_command(["export", "--to", form]) == 0
    before = {path: path.read_bytes() for path in everything()}
    assert run_command(["export", "--to", form]) == 1
    err = capsys.readouterr().err
    assert "already exists, and nothing is overwritten without --overwrite" in err
    assert "Tip: --overwrite replaces it" in err
    assert {path: path.read_bytes() for path in everything()} == before
    Path("runs/net-s0.h5").unlink()
    make_run(steps=30)
    assert run_command(["export", "--to", form, "--overwrite"]) == 0
    assert len(everything()) == 1
    assert {path: path.read_bytes() for path in everything()} != before


@pytest.mark.parametrize("form", ["csv", "parquet", "tensorboard"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["ctrl-c", "full"])
def test_no_half_made_file_is_left(
    form: str, error: BaseException, make_run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run()
    assert run_command(["export", "--to", form]) == 0
    before = {path: path.read_bytes() for path in everything()}

    def fail(*_: object) -> None:
        raise error

    if form == "tensorboard":
        monkeypatch.setattr(events, "metric_rows", fail)
    else:
        monkeypatch.setattr(tables, "metric_rows", fail)
    for options in (["--overwrite"], ["-o", f"new.{form}"]):
        assert run_command(["export", "--to", form, *options]) == (130 if isinstance(error, KeyboardInterrupt) else 1)
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert isinstance(error, KeyboardInterrupt) or "cannot be written: No space left on device" in err
    assert {path: path.read_bytes() for path in everything()} == before
    assert not Path(f"new.{form}").exists()


def test_a_folder_with_other_files_is_never_replaced(make_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    Path("logs").mkdir()
    assert run_command(["export", "-o", "logs"]) == 0  # an empty folder is free
    Path("logs/diary.txt").write_text("mine")
    assert run_command(["export", "-o", "logs", "--overwrite"]) == 1
    assert "logs holds files that gradlens export did not write" in capsys.readouterr().err
    assert Path("logs/diary.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--to", "excel"], 2, "'excel' is not one of"),
        (["-o", "table.xlsx"], 2, "the ending of table.xlsx names no format"),
        (["--to", "csv", "-o", "a.parquet"], 2, "contradict each other"),
        (["--to", "parquet", "-o", "-"], 2, "contradict each other"),
        (["--to", "tensorboard", "-o", "a.csv"], 2, "contradict each other"),
        (["--to", "tensorboard", "--table", "metrics"], 2, "--table is for csv and parquet"),
        (["--table", "epochs", "--metric", "param_norm"], 2, "not of epochs"),
        (["--metric", "loss"], 2, "no run here holds a metric 'loss'; available: activation_grad_norm"),
        (["none"], 1, "none: there is no such run"),
        (["--to", "csv", "-o", "runs"], 1, "runs is a folder"),
        (["--to", "csv", "-o", "runs/net-s0.h5", "--overwrite"], 2, "is the run itself"),
        (["-o", "runs/net-s0.h5/a.csv"], 1, "cannot be written"),
        (["-o", "runs/net-s0.h5/a.parquet"], 1, "cannot be written"),
        (["--to", "tensorboard", "-o", "runs/net-s0.h5"], 1, "is a file; expected the name of a folder"),
        (["-o", "runs", "--overwrite"], 1, "holds files that gradlens export did not write"),
        (["-o", "."], 2, "is the working folder or one of its parents"),
        (["-o", ".."], 2, "is the working folder or one of its parents"),
    ],
)
def test_a_mistake_ends_in_one_line_and_its_code(
    arguments: list[str], code: int, said: str, make_run, capsys: pytest.CaptureFixture[str]
) -> None:
    content = make_run().read_bytes()
    assert run_command(["export", *arguments]) == code
    out, err = capsys.readouterr()
    assert said in err
    assert "Traceback" not in err
    assert out == ""
    assert everything() == []
    assert Path("runs/net-s0.h5").read_bytes() == content


@pytest.mark.parametrize(
    ("form", "modules"),
    [
        ("parquet", ["pyarrow", "pyarrow.parquet"]),
        ("tensorboard", ["tensorboard", "tensorboard.compat.proto.event_pb2"]),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    form: str, modules: list[str], make_run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run()
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    assert run_command(["export", "--to", form]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert f"{form} needs {modules[0]}" in err
    assert f"pip install 'gradlens-toolkit[{form}]'" in err
    assert not Path("exports").exists()
    assert run_command(["export"]) == 0  # CSV needs nothing


def test_a_run_that_is_still_written_is_exported_as_far_as_it_is(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(status="running")
    monkeypatch.setattr(csvfile, "CHUNK_ROWS", 7)
    assert run_command(["export"]) == 0
    assert len(read_csv(Path("exports/net-s0.csv"))) == 120
