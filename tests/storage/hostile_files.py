"""A generator of run files that are well formed and lie: in form, in size, in what their texts hold."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from h5py import h5s

from gradlens.run import Header, Layer, Row
from gradlens.storage import FileSink
from gradlens.storage.limits import MOST_LAYERS
from gradlens.storage.superblock import lookup3
from tests.storage import known

ROWS = 150
LAYERS = 5
MOST_HEADER = 2048
Way = Callable[[h5py.File], None]


def replace(file: h5py.File, name: str, **options: object) -> h5py.Dataset:
    del file[name]
    return file.create_dataset(name, **options)


def empty(file: h5py.File, name: str, shape: tuple[int, ...], dtype: object) -> None:
    """Declare a dataset in chunks, none of which is stored."""
    replace(file, name, shape=shape, maxshape=(None, *shape[1:]), chunks=(64, *shape[1:]), dtype=dtype)


def set_rows(file: h5py.File, rows: int) -> None:
    """Let all columns and metrics have so many rows, and drop what guards the counts."""
    for name in ("check_a", "check_b"):
        file["state"].pop(name, None)
    file["state/n_steps"][()] = rows
    for name in ("step", "epoch_of_step", *(f"scalar/{name}" for name in file["scalar"])):
        empty(file, name, (rows,), file[name].dtype)
    for name in file["metric"]:
        if name != "layer":
            empty(file, f"metric/{name}", (rows, LAYERS), np.float32)


def rank_three(file: h5py.File) -> None:
    replace(file, "metric/param_norm", data=np.zeros((ROWS, LAYERS, 1), np.float32))


def wrong_width(file: h5py.File) -> None:
    replace(file, "metric/param_norm", data=np.zeros((ROWS, LAYERS + 1), np.float32))


def texts_for_numbers(file: h5py.File) -> None:
    replace(file, "scalar/loss", data=[b"x"] * ROWS)


def lists_for_numbers(file: h5py.File) -> None:
    replace(file, "scalar/loss", shape=(ROWS,), dtype=h5py.vlen_dtype(np.float64))


def references(file: h5py.File) -> None:
    replace(file, "scalar/loss", shape=(ROWS,), dtype=h5py.ref_dtype)


def compound(file: h5py.File) -> None:
    replace(file, "scalar/loss", data=np.zeros(ROWS, [("a", "f8"), ("b", "i4")]))


def no_values(file: h5py.File) -> None:
    del file["step"]
    h5py.h5d.create(file.id, b"step", h5py.h5t.NATIVE_INT64, h5s.create(h5s.NULL))


def group_for_dataset(file: h5py.File) -> None:
    del file["scalar/loss"]
    file.create_group("scalar/loss")


def count_is_a_list(file: h5py.File) -> None:
    replace(file, "state/n_steps", data=np.arange(9))


def count_is_huge(file: h5py.File) -> None:
    for name in ("check_a", "check_b"):
        file["state"].pop(name, None)
    file["state/n_steps"][()] = 2**63 - 1


def count_is_negative(file: h5py.File) -> None:
    for name in ("check_a", "check_b"):
        file["state"].pop(name, None)
    file["state/n_steps"][()] = -5


def rows_are_claimed(file: h5py.File) -> None:
    set_rows(file, 10**12)


def rows_are_claimed_modestly(file: h5py.File) -> None:
    set_rows(file, 3_000_000)


def epochs_are_claimed(file: h5py.File) -> None:
    file["state"].pop("check_a", None)
    file["state/n_epochs"][()] = 10**11
    for name in list(file["epoch"]):
        empty(file, f"epoch/{name}", (10**11,), np.float64)


def large_chunk(file: h5py.File) -> None:
    """One chunk of three gigabytes of zeros, in three megabytes."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    part = stream.compress(bytes(1 << 24)) + stream.flush(zlib.Z_FULL_FLUSH)
    packed = b"\x78\xda" + part * 190
    dataset = replace(
        file, "metric/param_norm", shape=(ROWS, LAYERS), maxshape=(None, LAYERS), chunks=(4096, LAYERS),
        dtype=np.float32, compression="gzip",
    )  # fmt: skip
    dataset.id.write_direct_chunk((0, 0), packed)


def large_chunk_declared(file: h5py.File) -> None:
    replace(
        file, "metric/param_norm", shape=(ROWS, LAYERS), maxshape=(None, LAYERS), chunks=(150_000_000, LAYERS),
        dtype=np.float32, compression="gzip",
    )  # fmt: skip


def zeros(file: h5py.File) -> None:
    """Rows of zeros, all of them stored, that inflate to gigabytes."""
    rows = 4_000_000
    set_rows(file, rows)
    packed = zlib.compress(bytes(65536 * LAYERS * 4), 9)
    for name in file["metric"]:
        if name != "layer":
            dataset = replace(
                file, f"metric/{name}", shape=(rows, LAYERS), chunks=(65536, LAYERS), dtype=np.float32,
                compression="gzip",
            )  # fmt: skip
            for start in range(0, rows, 65536):
                dataset.id.write_direct_chunk((start, 0), packed)
    for name in ("step", "epoch_of_step", *(f"scalar/{name}" for name in file["scalar"])):
        replace(file, name, data=np.zeros(rows, file[name].dtype), chunks=(65536,), compression="gzip")


def two_deflates(file: h5py.File) -> None:
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((64, LAYERS))
    for _ in range(2):
        made.set_filter(h5py.h5z.FILTER_DEFLATE, 0, (9,))
    del file["metric/param_norm"]
    space = h5s.create_simple((ROWS, LAYERS))
    h5py.h5d.create(file["metric"].id, b"param_norm", h5py.h5t.IEEE_F32LE, space, made)


def header(file: h5py.File, **changed: object) -> None:
    """Change the description of the run; ``layers``: columns; others: attributes."""
    held = json.loads(bytes(file.attrs["header_json"]))
    held["layers"] |= changed.pop("layers", {})  # type: ignore[operator]
    held["attributes"] |= changed
    del file.attrs["header_json"], file.attrs["header_crc32"]
    file.attrs["header_json"] = np.bytes_(json.dumps(held).encode())


def store_metrics(file: h5py.File, make: Callable[[str], np.ndarray]) -> None:
    """Replace all metrics by others, which compress well."""
    for name in list(file["metric"]):
        if name != "layer":
            data = make(name)
            chunks = (max(min(65536, 500_000 // data.shape[1]), 8), data.shape[1])
            replace(file, f"metric/{name}", data=data, chunks=tuple(map(min, chunks, data.shape)), compression="gzip")


def store_rows(file: h5py.File, rows: int, scalars: int = 0) -> None:
    """Let all columns have so many rows that are stored, and more scalars, all of them steps or constants."""
    set_rows(file, rows)
    for name in (*(f"more{i}" for i in range(scalars)),):
        file[f"scalar/{name}"] = np.zeros(1)
    for name in ("step", "epoch_of_step", *(f"scalar/{name}" for name in file["scalar"])):
        data = np.arange(rows) if name == "step" else np.zeros(rows) if name == "epoch_of_step" else np.full(rows, 0.5)
        data = data.astype(file[name].dtype)
        replace(file, name, data=data, chunks=(min(rows, 65536),), compression="gzip", shuffle=True)


def wide_and_long(layers: int, rows: int, *metrics: str) -> Way:
    """Return a way to have as many numbers as a small file may claim: a ramp over layers, some zeros, gaps and Inf."""

    def way(file: h5py.File) -> None:
        many_layers(layers)(file)
        store_rows(file, rows)
        for name in [name for name in file["metric"] if name != "layer"]:
            del file[f"metric/{name}"]
        for name in metrics:
            file[f"metric/{name}"] = np.zeros((1, 1), np.float32)

        def make(name: str) -> np.ndarray:
            values = np.tile(np.repeat(10.0 ** np.linspace(-3, 0, 30), layers // 30).astype(np.float32), (rows, 1))
            values[rows // 3 :, : layers // 4] *= name == "param_norm"
            values[1::9, ::50] = np.nan
            values[::25] = np.where(name == "activation_rms", np.inf, values[::25])
            return np.zeros_like(values) if name == "nonfinite_count" else values

        store_metrics(file, make)

    way.__name__ = f"wide_{layers}x{rows}_{metrics[-1]}"
    return way


def long_of_few_layers(file: h5py.File) -> None:
    """1,500,000 rows of two layers: too few numbers to be read in chunks."""
    held = json.loads(bytes(file.attrs["header_json"]))["layers"]
    header(file, layers={key: values[:2] for key, values in held.items()})
    del file["layer"], file["level"]
    file.create_dataset("layer/name", data=np.zeros(2, "S8"))
    replace(file, "metric/layer", data=np.zeros(2, "S1"))
    store_rows(file, 1_500_000)
    store_metrics(file, lambda name: np.full((1_500_000, 2), name != "nonfinite_count", np.float32))


def long_of_many_scalars(file: h5py.File) -> None:
    """As many rows of 100 scalars as a small file may claim."""
    del file["level"]
    store_rows(file, 239_000, scalars=100)
    store_metrics(file, lambda name: np.full((239_000, LAYERS), name != "nonfinite_count", np.float32))


def many_layers(count: int) -> Way:
    """Return a way to have so many layers, of which the description knows, if it can hold them."""

    def way(file: h5py.File) -> None:
        held = json.loads(bytes(file.attrs["header_json"]))["layers"]
        if count <= MOST_LAYERS:
            columns = {key: (values * (count // LAYERS + 1))[:count] for key, values in held.items()}
            chain = {"parents": ["", *map(str, range(count - 1))], "depth": list(range(1, count + 1))}
            header(file, layers=columns | chain | {"name": [f"l.{i}" for i in range(count)], "role": ["main"] * count})
        del file["layer"], file["level"]
        file.create_dataset("layer/name", data=np.zeros(count, "S8"), compression="gzip")
        file["metric/layer"][...] = ""
        store_metrics(file, lambda name: np.ones((ROWS, count), np.float32))

    way.__name__ = f"layers_{count}"
    return way


def long_name(file: h5py.File) -> None:
    header(file, layers={"name": ["x" * 200_000, *"abcd"]})


def layers_of_objects(file: h5py.File) -> None:
    header(file, layers={"name": [{"a": 1}] * LAYERS})


def depth_is_huge(file: h5py.File) -> None:
    header(file, layers={"depth": [10**400] * LAYERS})


def layers_that_feed_all(file: h5py.File) -> None:
    header(file, layers={"parents": ["", *["0 " * 400_000] * (LAYERS - 1)]})


def seed_is_text(file: h5py.File) -> None:
    header(file, seed="one")


def seed_is_huge(file: h5py.File) -> None:
    header(file, seed=10**300)


def model_is_long(file: h5py.File) -> None:
    header(file, model="m" * 200_000)


def config_is_deep(file: h5py.File) -> None:
    header(file, config_json='{"a":' * 20_000 + "1" + "}" * 20_000)


def config_is_rather_deep(file: h5py.File) -> None:
    header(file, config_json='{"a":' * 300 + "1" + "}" * 300)


def config_is_wide(file: h5py.File) -> None:
    header(file, config_json=json.dumps({f"key {i}": "x" * 20 for i in range(100_000)}))


def config_is_a_list(file: h5py.File) -> None:
    header(file, config_json="[1, 2]")


def config_of_other_types(file: h5py.File) -> None:
    keys = (
        "data", "recipe", "image_size", "data_facts", "activation", "init", "shortcut", "norm", "batch_size", "epochs",
        "lr", "optimizer", "augment", "model", "momentum", "weight_decay", "width", "depth", "schedule", "label_noise",
    )  # fmt: skip
    header(file, config_json=json.dumps({key: [{"a": [key]}] for key in keys}), environment_json='{"device": {}}')


def config_of_huge_numbers(file: h5py.File) -> None:
    keys = ("image_size", "batch_size", "epochs", "lr", "classes", "width", "depth")
    header(file, config_json=json.dumps(dict.fromkeys(keys, 10**400)))


def many_notes(file: h5py.File) -> None:
    for name in ("check_a", "check_b"):
        file["state"].pop(name, None)
    replace(file, "state/notes", data=np.bytes_(b"\n".join(b"note %d" % i for i in range(100_000))))


def many_columns(file: h5py.File) -> None:
    for i in range(4_200):
        file[f"scalar/s{i}"] = file["scalar/loss"]


def many_metrics(file: h5py.File) -> None:
    for i in range(4_000):
        file[f"metric/m{i}"] = file["metric/param_norm"]


def steps_without_sign(file: h5py.File) -> None:
    replace(file, "step", data=np.full(ROWS, 2**64 - 1, np.uint64))


def running_in_the_future(file: h5py.File) -> None:
    for name in ("check_a", "check_b"):
        file["state"].pop(name, None)
    replace(file, "state/status", data=np.bytes_(b"running"))
    file["state/heartbeat"][()] = 1e18


def many_objects(file: h5py.File) -> None:
    for i in range(30_000):
        file.create_group(f"more/{i}")


def deep_groups(file: h5py.File) -> None:
    file.create_group("/".join(["g"] * 500))


def long_column(file: h5py.File) -> None:
    file["scalar/" + "s" * 20_000] = file["scalar/loss"]


def wide_attribute(file: h5py.File) -> None:
    del file.attrs["format_version"]
    file.attrs["format_version"] = np.ones(1000, np.int64)


def long_state(file: h5py.File) -> None:
    replace(file, "state/status", data=np.bytes_(b"complete" * 100_000))


def status_is_another(file: h5py.File) -> None:
    file["state"].pop("check_a", None)
    replace(file, "state/status", data=np.bytes_(b"<b>odd</b>"))


def one_text_many_times(file: h5py.File) -> None:
    """An older file, without a copy of its header: many layers share one long name."""
    del file.attrs["header_json"], file.attrs["header_crc32"]
    for key in ("name", "kind", "role"):
        dataset = replace(file, f"layer/{key}", shape=(40_000,), dtype=h5py.string_dtype(), chunks=(1000,))
        dataset[:1] = "x" * 60_000
        raw = dataset.id.read_direct_chunk((0,))[1]
        reference = raw[:16]
        for start in range(0, 40_000, 1000):
            dataset.id.write_direct_chunk((start,), reference * 1000)


def text_of_gigabytes(file: h5py.File) -> None:
    """A text is said to have two gigabytes, and has a few bytes (found by ``tests.fuzz bytes``)."""
    del file.attrs["header_json"], file.attrs["header_crc32"]
    dataset = replace(file, "layer/name", data=["abcde"] * LAYERS, dtype=h5py.string_dtype(), chunks=(LAYERS,))
    file.flush()
    with open(file.filename, "r+b") as plain:
        plain.seek(dataset.id.get_chunk_info(0).byte_offset)
        plain.write((2**31 - 1).to_bytes(4, "little"))


def older_attributes(file: h5py.File) -> None:
    """Keep the attributes as an older file has them: texts of any length, few enough to lie in the root's header."""
    kept = {key: value for key, value in file.attrs.items() if key not in ("header_json", "header_crc32", "card_json")}
    for key in list(file.attrs):
        del file.attrs[key]
    for key, value in kept.items():
        file.attrs[key] = value
    file.flush()


def lengthen(path: str, name: str, length: int = 2**31 - 1) -> None:
    """Let an attribute that is a text of any length say that it is longer than it is."""
    data = bytearray(Path(path).read_bytes())
    wanted, at, changed = name.encode() + b"\0", 0, False
    while (at := data.find(wanted, at + 1)) >= 0:
        start = max(data.rfind(sign, 0, at) for sign in (b"OHDR", b"OCHK"))
        if data[at - 9] != 3 or data[start:at].count(b"FHDB"):  # of what was deleted from a heap
            continue
        ends = (end for end in range(at, start + MOST_HEADER) if lookup3(bytes(data[start:end])) == word(data, end))
        value = at + sum(struct.unpack_from("<HHH", data, at - 7))
        if (end := next(ends, None)) is not None:
            data[value : value + 4] = length.to_bytes(4, "little")
            data[end : end + 4] = lookup3(bytes(data[start:end])).to_bytes(4, "little")
            changed = True
    assert changed, name
    Path(path).write_bytes(data)


def word(data: bytearray, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def attribute_of_gigabytes(file: h5py.File) -> None:
    """An attribute is said to have two gigabytes, and has a few bytes."""
    older_attributes(file)
    lengthen(file.filename, "model")


def mark_of_gigabytes(file: h5py.File) -> None:
    """So is the attribute by which a run file is known."""
    older_attributes(file)
    lengthen(file.filename, "format")


def nothing_in_it(file: h5py.File) -> None:
    for name in list(file):
        del file[name]


WAYS: list[Way] = [
    rank_three, wrong_width, texts_for_numbers, lists_for_numbers, references, compound, no_values, group_for_dataset,
    count_is_a_list, count_is_huge, count_is_negative, rows_are_claimed, rows_are_claimed_modestly,
    epochs_are_claimed, large_chunk, large_chunk_declared, zeros, two_deflates, many_layers(10_000),
    many_layers(30_000), many_layers(200_000), long_name, layers_of_objects, depth_is_huge, layers_that_feed_all,
    seed_is_text, seed_is_huge, model_is_long, config_is_deep, config_is_rather_deep, config_is_wide, config_is_a_list,
    config_of_other_types, config_of_huge_numbers, many_notes, many_columns, many_metrics, steps_without_sign,
    running_in_the_future, many_objects, deep_groups, long_column, wide_attribute, long_state, status_is_another,
    one_text_many_times, text_of_gigabytes, attribute_of_gigabytes, mark_of_gigabytes, nothing_in_it,
]  # fmt: skip
NOT_COPIED = ("one_text_many_times", "text_of_gigabytes", "attribute_of_gigabytes", "mark_of_gigabytes")
"""A copy would hold each of their texts."""
BY_NAME = {way.__name__: way for way in WAYS}
AT_THE_LIMIT: list[Way] = [
    wide_and_long(30_000, 400, "activation_grad_norm", "nonfinite_count", "param_grad_norm", "param_norm"),
    wide_and_long(30_000, 400, "activation_grad_norm", "param_grad_norm", "update_ratio", "activation_rms"),
    long_of_few_layers, long_of_many_scalars,
]  # fmt: skip
"""Files that are no lies: they hold as many numbers as a small file may claim."""


def make_hostile(folder: Path, names: list[str] | None = None) -> dict[str, Path]:
    """Write the files, each in a folder of its own; return name to file."""
    whole = known.write_run(folder / "whole.h5", ROWS)
    made = {}
    for name in names or list(BY_NAME):
        path = folder / name / "runs" / f"{name}.h5"
        path.parent.mkdir(parents=True)
        shutil.copy(whole, path)
        with h5py.File(path, "r+", libver="latest") as file:
            (BY_NAME | {way.__name__: way for way in AT_THE_LIMIT})[name](file)
        if name not in NOT_COPIED:
            compact(path)
        made[name] = path
    return made


def compact(path: Path) -> None:
    """Copy what a file holds into a new one, so that what was deleted takes no place."""
    small = path.with_name("small.h5")
    with h5py.File(path, "r") as old, h5py.File(small, "w", libver="latest") as new:
        for key, value in old.attrs.items():
            new.attrs[key] = value
        for name in old:
            old.copy(name, new)
    os.replace(small, path)


HOSTILE_TEXT = (
    "\x1b[2J\x1b]0;owned\x07[bold red]x[/] \u202egnp.exe\u2066 =cmd|'/c calc'!A1 $\\frac{$ <b>|`a`\r\n\ud800\x9b31m"
)
"""A text with everything that a terminal, Rich, matplotlib, a spreadsheet, XML or Markdown could obey."""


def write_hostile_texts(path: Path, seed: int = 0, model: str = "plain34", *, claimed: bool = False) -> Path:
    """Write a run whose every text is hostile, but for the name of its model where claims are to be judged."""
    text = HOSTILE_TEXT.encode("utf-8", "ignore").decode()
    layers = tuple(Layer(f"={text}{i}.{text}", text, "main", i + 1, 10, 9, 1, ()) for i in range(6))
    config = {"data": text, text: [text], "recipe": text, "data_facts": {"classes": [text, "b"]}}
    sink = FileSink(path)
    intervals = {"activation_grad_norm": 1, "param_grad_norm": 1}
    sink.open(Header(layers, intervals, model if claimed else model + text, seed, config, {"device": text, text: text}))
    for step in range(40):
        grid = 10.0 ** (np.linspace(-8, 0, 6) + 0.01 * step)
        metrics = {name: grid * (1 + i) for i, name in enumerate(intervals)}
        sink.write_row(Row(step, step // 20, metrics, {"loss": 1.0, f"={text.replace('/', '')}": 2.0}))
    for epoch in (1, 2):
        values = {"epoch": epoch, "train_loss": 1.0, "train_accuracy": 0.5, "val_loss": 2.0, "val_accuracy": 0.4}
        sink.write_epoch(values | {text.replace("/", ""): 3.0})
    sink.write_state(0.01, (text, "resumed at step 1" + text))
    sink.write_facts({"optimizer": {"name": text}, text: text})
    sink.close("complete")
    return path
