"""Every command on every hostile file ends in time, in memory, and with a line where it fails; names stay text."""

from __future__ import annotations

import os
import re
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest

from gradlens import read_run, read_runs
from gradlens.cli import run_command
from gradlens.errors import ConfigError, DamagedError, RunFileError
from gradlens.specs import parse_seeds
from gradlens.storage import find_runs, read_card
from gradlens.storage.contents import Contents
from gradlens.storage.run_file import open_run_file
from gradlens.storage.superblock import check_text_attribute
from tests.processes import some_slow
from tests.storage import known
from tests.storage.command_server import Commands
from tests.storage.hostile_files import AT_THE_LIMIT, BY_NAME, make_hostile, write_hostile_texts

LARGEST = 5_000_000
COMMANDS = [
    ["ls"], ["ls", "--format", "json"], ["summary"], ["summary", "--format", "json"], ["heatmap", "-o", "x.png"],
    ["profile", "-o", "x.svg"], ["compare", "--terminal"], ["diagnose"], ["diagnose", "--format", "junit"],
    ["diagnose", "--rules", "smdebug"], ["claims"], ["report", "-o", "x.html"], ["report", "-o", "x.md"],
    ["export", "-o", "x.csv"], ["export", "--table", "layers", "-o", "-"], ["watch"], ["recover"],
]  # fmt: skip
FURTHER_COMMANDS = [
    ["heatmap", "-o", "x.svg"], ["heatmap", "--terminal"], ["heatmap", "--relative", "-o", "y.png"],
    ["diagnose", "--rules", "deepchecker"], ["export", "--table", "layers", "-o", "x.parquet"],
]  # fmt: skip
SAMPLE = [
    "rank_three", "wrong_width", "lists_for_numbers", "count_is_huge", "rows_are_claimed", "large_chunk",
    "two_deflates", "long_name", "config_is_deep", "config_of_other_types", "many_notes", "one_text_many_times",
]  # fmt: skip
SAMPLE_COMMANDS = [["ls"], ["summary"], ["recover"]]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    started = Commands(tmp_path_factory.mktemp("cache"))
    yield started
    started.close()


def failures(files: dict[str, Path], to_run: list[list[str]], commands: Commands) -> list[str]:
    found = []
    for name, path in files.items():
        before = path.read_bytes()
        assert len(before) < LARGEST, (name, len(before))
        for arguments in to_run:
            os.utime(path, (1, 1))  # so that no reader takes it for one that is being written, and waits
            verdict, seconds, megabytes, said = commands.cell(arguments, path.parent.parent)
            if verdict != "ok":
                found.append(
                    f"{name} {' '.join(arguments)}: {verdict} {seconds:.1f} s {megabytes:.0f} MB {said[-300:]}"
                )
            path.write_bytes(before)
    return found


def test_a_sample_of_hostile_files_ends_in_lines(commands: Commands, tmp_path: Path) -> None:
    assert not failures(make_hostile(tmp_path, SAMPLE), SAMPLE_COMMANDS, commands)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_every_command_on_every_hostile_file(name: str, commands: Commands, tmp_path: Path) -> None:
    assert not failures(make_hostile(tmp_path, [name]), COMMANDS, commands)


@pytest.mark.slow
@pytest.mark.parametrize("name", [way.__name__ for way in AT_THE_LIMIT])
def test_every_command_keeps_to_its_memory_with_as_many_numbers_as_a_small_file_may_claim(
    name: str, commands: Commands, tmp_path: Path
) -> None:
    """They may take longer than ten seconds: see SECURITY.md."""
    found = failures(make_hostile(tmp_path, [name]), [*COMMANDS, *FURTHER_COMMANDS], commands)
    assert not [text for text in found if ": SLOW " not in text]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rank_three", "metric/param_norm has rank 3, 2 expected"),
        ("wrong_width", "metric/param_norm has 6 layers, 5 expected"),
        ("lists_for_numbers", "scalar/loss does not hold numbers"),
        ("count_is_huge", "step holds 150 values of 9223372036854775807"),
        ("rows_are_claimed", "bytes of numbers; a file of this size may hold"),
        ("large_chunk_declared", "metric/param_norm has chunks of 3,000,000,000 bytes"),
        ("two_deflates", "metric/param_norm is compressed in a way that gradlens does not use"),
        ("long_name", "the name of a layer has more than 1,000 characters"),
        ("many_notes", "state/notes has values of"),
        ("text_of_gigabytes", "layer/name claims a text of 2,147,483,647 bytes; the file has"),
        ("attribute_of_gigabytes", "attribute model claims a text of 2,147,483,647 bytes; the file has"),
        ("mark_of_gigabytes", "attribute format claims a text of 2,147,483,647 bytes; the file has"),
        ("many_metrics", "it has 4,005 metrics, at most 256 expected"),
        ("steps_without_sign", "step does not hold signed integers"),
    ],
)
def test_a_lie_is_named_in_one_line(name: str, said: str, tmp_path: Path) -> None:
    path = make_hostile(tmp_path, [name])[name]
    with pytest.raises(DamagedError, match=re.escape(said)) as caught:
        read_run(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("libver", ["earliest", "v110"])
@pytest.mark.parametrize("more", [0, 40])
@pytest.mark.parametrize("user_block", [0, 512])
def test_texts_of_any_length_are_found_wherever_hdf5_keeps_attributes(
    libver: str, more: int, user_block: int, tmp_path: Path
) -> None:
    """In the header of the root, in its continuation, in a heap of many; with other versions of the messages."""
    old = Path(__file__).parents[1] / "data" / "plain34-s0.h5"
    path = tmp_path / "run.h5"
    with h5py.File(old, "r") as source, h5py.File(path, "w", libver=libver, userblock_size=user_block) as file:
        for i in range(more):
            file.attrs[f"more {i}"] = "formatting"
        for key, value in source.attrs.items():
            file.attrs[key] = value
        for name in source:
            source.copy(name, file)
    run, whole = read_run(path), read_run(old)
    assert (run.info["model"], run.info["config"]) == (whole.info["model"], whole.info["config"])
    assert run.metric("param_grad_norm").tobytes() == whole.metric("param_grad_norm").tobytes()
    data = bytearray(path.read_bytes())
    at = data.index(b"model\0")
    while data[at - 9] != 3 and data[at - 8] != 1:
        at = data.index(b"model\0", at + 1)
    sizes = [int.from_bytes(data[at - back : at - back + 2], "little") for back in (6, 4, 2)]
    if data[at - 9] == 3:
        value = at + sum(int.from_bytes(data[at - back : at - back + 2], "little") for back in (7, 5, 3))
    else:
        value = at + sum(-(-size // 8) * 8 for size in sizes)
    data[value : value + 4] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(data)
    os.utime(path, (1, 1))
    with pytest.raises(ValueError, match="attribute model claims a text of 2,147,483,647 bytes"):
        check_text_attribute(path, "model")
    if libver == "earliest":  # the headers of the other have checksums
        with pytest.raises(DamagedError, match="attribute model claims"):
            read_run(path)


def test_a_chunk_that_inflates_to_gigabytes_is_not_inflated(tmp_path: Path) -> None:
    path = make_hostile(tmp_path, ["large_chunk"])["large_chunk"]
    run = read_run(path)
    with pytest.raises(DamagedError, match="has a chunk of"):
        run.metric("param_norm")


# --- chunks that are inflated here ---------------------------------------------------------------------------


def test_chunks_are_read_as_hdf5_reads_them(tmp_path: Path) -> None:
    path = known.write_run(tmp_path / "run.h5", 900, count=12)
    with h5py.File(path) as file:
        plain = {name: file[f"metric/{name}"][()] for name in read_run(path).metrics}
    run = read_run(path)
    for name, values in plain.items():
        assert run.metric(name).tobytes() == values.tobytes()
        assert run.metric_rows(name, 70, 130).tobytes() == values[70:130].tobytes()
        again = read_run(path).row_chunks(name, least=10)
        assert np.isfinite(again.count).all()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8", "i1", "i8", ">i2"])
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"fletcher32": True}, {"compression": None}])
def test_every_allowed_way_to_pack_is_read(dtype: str, options: dict[str, object], tmp_path: Path) -> None:
    """Also chunks that were left out."""
    path = known.write_run(tmp_path / "run.h5", 150)
    values = np.random.default_rng(0).integers(-100, 100, 150).astype(dtype)
    with h5py.File(path, "r+") as file:
        del file["scalar/loss"], file["state/check_a"]
        packed = {"compression": "gzip"} | options
        made = file.create_dataset("scalar/loss", (150,), dtype, chunks=(64,), fillvalue=7, **packed)
        made[:100] = values[:100]
        assert made.id.get_num_chunks() == 2
    read = read_run(path).scalars["loss"]
    assert read.dtype == np.dtype(dtype)
    assert read.tolist() == [*values[:100].tolist(), *[7] * 50]


@pytest.mark.parametrize("mask", [0, 1, 2, 3])
@pytest.mark.parametrize("length", [1, 24, 1199, 1201, 100_000])
@pytest.mark.parametrize("name", ["scalar/loss", "step"])
def test_a_chunk_that_is_too_short_shows_nothing_of_the_reader(
    name: str, length: int, mask: int, tmp_path: Path
) -> None:
    """HDF5 returns what lies behind such a chunk in memory, which an export or a page would show."""
    path = known.write_run(tmp_path / "run.h5", 150)
    with h5py.File(path, "r+") as file:
        del file["state/check_a"]
        dtype = file[name].dtype
        del file[name]
        made = file.create_dataset(name, (150,), dtype, chunks=(150,), compression="gzip", shuffle=True)
        made.id.write_direct_chunk((0,), bytes(length) if mask & 2 else zlib.compress(bytes(length)), filter_mask=mask)
    with pytest.raises(DamagedError, match=re.escape(name)):
        read_run(path)


@pytest.mark.parametrize("size", [0, 8, 1199, 1201])
@pytest.mark.parametrize("name", ["scalar/loss", "layer/name"])
def test_a_plain_chunk_of_another_length_shows_nothing_of_the_reader(name: str, size: int, tmp_path: Path) -> None:
    """An older index has a length of its own for each chunk, and HDF5 believes it."""
    path = tmp_path / "older.h5"
    values = np.array([b"main"] * 5, "S240") if name == "layer/name" else np.arange(150.0)
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset(name, data=values, chunks=values.shape)
        file.create_dataset("scalar/whole", data=values, chunks=values.shape)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"TREE\x01", 0, data.rindex(b"TREE\x01")) + 24
    assert int.from_bytes(data[at : at + 4], "little") == 1200
    data[at : at + 4] = size.to_bytes(4, "little")
    path.write_bytes(data)
    with h5py.File(path, "r") as file:
        contents = Contents(path, file)
        read = contents.texts if name == "layer/name" else lambda name: contents.read(name, 0, 150).tolist()
        if name == "scalar/loss":
            assert read("scalar/whole") == values.tolist()
        with pytest.raises(ValueError, match="has a chunk that is not 1,200 bytes long"):
            read(name)


def test_texts_of_a_chunk_that_is_too_short_show_nothing_of_the_reader(tmp_path: Path) -> None:
    path = make_hostile(tmp_path, ["attribute_of_gigabytes"])["attribute_of_gigabytes"]
    with h5py.File(path, "r+") as file:
        for key in ("name", "kind", "role"):
            del file[f"layer/{key}"]
            made = file.create_dataset(f"layer/{key}", (5,), "S200", chunks=(5,), compression="gzip")
            made.id.write_direct_chunk((0,), zlib.compress(b"main"))
    with open_run_file(path) as stored, pytest.raises(ValueError, match="has a chunk that is not 1,000 bytes long"):
        stored.contents.texts("layer/role")


# --- only plain files ----------------------------------------------------------------------------------------


@pytest.fixture
def odd_folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "runs"
    known.write_run(folder / "good.h5", 80)
    os.mkfifo(folder / "pipe.h5")
    os.symlink("/dev/zero", folder / "device.h5")
    held = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(folder)
    held.bind("socket.h5")
    os.chdir(here)
    yield folder
    held.close()


def test_a_folder_scan_opens_plain_files_only(odd_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [path.name for path in find_runs(odd_folder)] == ["good.h5"]
    assert [run.name for run in read_runs(odd_folder)] == ["good"]
    for arguments in (["ls"], ["summary", "runs"], ["recover"]):
        assert run_command(arguments) == 0, capsys.readouterr().err
    for name in ("pipe", "device", "socket"):
        with pytest.raises(RunFileError, match="is a pipe, a socket or a device"):
            read_run(odd_folder / f"{name}.h5")
        with pytest.raises(RunFileError, match="is a pipe, a socket or a device"):
            read_card(odd_folder / f"{name}.h5")
        assert run_command(["summary", f"runs/{name}.h5"]) == 1


# --- one bad file spoils nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"], ["claims"], ["report", "-o", "x.html"], ["compare", "--terminal"], ["summary", "runs"],
        ["heatmap", "runs", "--terminal"], ["profile", "runs", "--terminal"], ["diagnose", "runs"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_bad_file_is_left_out_and_named(arguments: list[str], make_run, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("plain8", "resnet8"):
        for seed in (0, 1):
            make_run(f"{model}-s{seed}", model=model, seed=seed)
    Path("runs/bad.h5").write_bytes(b"no run")
    assert run_command(arguments) == 0
    out, err = capsys.readouterr()
    assert "bad.h5 is not an HDF5 file" in (out if arguments == ["ls"] else err).replace("\n", " ")
    if arguments == ["ls"]:
        return
    for path in Path("runs").glob("*-s*.h5"):
        path.write_bytes(b"no run")
    assert run_command(arguments) == 1
    assert "none of 5 files can be read" in capsys.readouterr().err


def test_a_gate_does_not_pass_over_a_bad_file(make_run, capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    Path("runs/bad.h5").write_bytes(b"no run")
    assert run_command(["diagnose", "runs", "--fail-on", "nonfinite"]) == 1
    assert "bad.h5" in capsys.readouterr().err


# --- names are text ------------------------------------------------------------------------------------------

TEXT_COMMANDS = [
    ["ls"], ["summary"], ["heatmap"], ["profile"], ["compare"], ["diagnose"], ["diagnose", "--format", "junit"],
    ["diagnose", "--format", "csv"], ["claims", "--detail"], ["report", "-o", "x.html"], ["report", "-o", "x.md"],
    ["report", "-o", "x.pdf"], ["export", "-o", "-"], ["export", "--table", "scalars", "-o", "-"],
    ["export", "--table", "layers", "-o", "-"], ["recover", "--repack"], ["summary", "runs/nowhere\x1b[2J.h5"],
]  # fmt: skip
SPINNER = b"\r\x1b[K"
"""Clears the line of gradlens's own progress; a text of the run that had it would leave its other half."""
OBEYED = re.compile(rb"\x1b\[2J|\x1b\]|\x07|\x9b|\xe2\x80\xae|\xe2\x81\xa6|\r(?!\n)")


@pytest.fixture(scope="module")
def hostile_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for seed in (0, 1):
        for model in ("plain34", "resnet34"):
            write_hostile_texts(folder / "runs" / f"{model}\x1b[2J\u202e=[bold]$x{seed}.h5", seed, model)
    return folder


@pytest.mark.parametrize(
    "arguments", some_slow(TEXT_COMMANDS, 2), ids=lambda words: " ".join(words).encode("unicode_escape").decode()
)
def test_no_text_of_a_run_reaches_a_terminal_as_a_command(
    arguments: list[str], commands: Commands, hostile_runs: Path
) -> None:
    runs = [] if any(word.startswith("runs") for word in arguments) or arguments[0] == "ls" else ["runs"]
    extra = ["--overwrite"] if arguments[0] == "export" and "-" not in arguments else []
    code, said = commands.on_terminal([*arguments, *runs, *extra], hostile_runs)
    assert b"Traceback" not in said, said[-2000:].decode(errors="replace")
    assert code in (0, 1, 2), said[-500:]
    said = said.replace(SPINNER, b"")
    found = OBEYED.search(said)
    assert found is None, said[max(found.start() - 80, 0) : found.end() + 80] if found else ""


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")
def test_figures_and_their_json_hold_no_hidden_character(
    hostile_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An SVG with one in its metadata is no XML."""
    os.chdir(hostile_runs)
    assert run_command(["profile", "runs", "-o", "hidden.svg"]) == 0, capsys.readouterr().err
    ElementTree.parse("hidden.svg")
    for name in ("hidden.svg", "hidden.json"):
        assert Path(name).read_text(encoding="utf-8").replace("\n", "").isprintable(), name


def test_cells_of_csv_are_no_formulas(hostile_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.chdir(hostile_runs)
    capsys.readouterr()
    assert run_command(["export", "--table", "layers", "-o", "safe.csv", "--overwrite"]) == 0
    assert run_command(["export", "--table", "layers", "--no-safe", "-o", "exact.csv", "--overwrite"]) == 0
    safe, exact = (Path(name).read_text(encoding="utf-8") for name in ("safe.csv", "exact.csv"))
    assert "'=" in safe
    assert "'=" not in exact
    assert safe.replace("'=", "=") == exact
    assert "\r" not in exact


def test_names_that_are_alike_but_for_hidden_characters_are_refused(tmp_path: Path) -> None:
    path = known.write_run(tmp_path / "run.h5", 80)
    with h5py.File(path, "r+") as file:
        file["scalar/\x1b"] = file["scalar/loss"]
        file["scalar/\\x1b"] = file["scalar/loss"]
    with pytest.raises(DamagedError, match="same name but for hidden characters"):
        read_run(path)


def test_names_in_memory_are_shown_and_on_disk_kept(tmp_path: Path) -> None:
    path = write_hostile_texts(tmp_path / "run.h5")
    assert all(layer.name.isprintable() for layer in read_run(path).layers)
    from gradlens.storage.run_file import open_run_file

    with open_run_file(path) as stored:
        assert "\x1b[2J" in stored.layers()[0].name


def test_names_of_files_that_no_system_has_end_in_a_line(capsys: pytest.CaptureFixture[str], make_run) -> None:
    make_run()
    for name in ("x" * 5000, "\udc80\udcff"):
        for arguments in (
            ["summary", name],
            ["ls", name],
            ["heatmap", "-o", f"{name}.png"],
            ["export", "-o", f"{name}.csv"],
        ):
            code = run_command(arguments)
            err = capsys.readouterr().err
            assert code in (0, 1, 2), arguments
            assert "Traceback" not in err
            assert len(err) < 6000


# --- other sizes ---------------------------------------------------------------------------------------------


def test_many_seeds_are_refused_before_they_are_counted() -> None:
    with pytest.raises(ConfigError, match="at most 10,000"):
        parse_seeds("0-999999999")
    with pytest.raises(ConfigError):
        parse_seeds("9" * 5000)
