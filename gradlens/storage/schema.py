"""The layout of a run file, format version 1.

::

    /            attributes: format="gradlens" format_version=1 gradlens_version created model seed
                 config_json environment_json · card_json (of a finished file, for quick listings) · header_json and
                 header_crc32 (all of these but the card, and /layer, once more: see ``describe_run``)
    /layer/      name (L,) kind role (main | shortcut | norm) depth out_numel param_numel calls · tags (words separated
                 by spaces: see ``gradlens.run.TAGS``) · parents (indices of the layers that feed it, separated by
                 spaces; in older files both are missing)
    /step        (T,) int64, a dimension scale          /epoch_of_step (T,) int32, index into /epoch
    /scalar/     loss (T,) · lr (T,) · ...
    /metric/     <name> (T, L) float32, dimension scales step and layer; attribute ``every`` (rows)
                 layer (L,) the scale: the layers' names, where netCDF readers (xarray) look for it
    /epoch/      epoch (E,) · train_loss · train_accuracy · val_loss · val_accuracy · lr · seconds
    /state/      status · n_steps · n_epochs · heartbeat (seconds since 1970) · overhead (the recorder's time over
                 the training's) · notes (lines of text) · facts_json (a line of JSON and a line with its CRC-32, see
                 ``docs/facts.md``; a scalar in a finished file, before that an array of 0 or 1 text) · check_a,
                 check_b; all but ``facts_json`` are scalar datasets
    /level/      <rows> (B, M, L, 5) float32: of each whole chunk of so many rows (64, 256, ... 65536):
                 min, mean, max, count, zeros of each metric and layer; first_<rows> (B,) the block's first
                 step; metric, layer, statistic: the scales
    /check/      block (N, 2 + M) uint32, in a file that is being written: level (0 for the rows themselves, in
                 blocks of 64; else rows per block), number of the block, CRC-32 of its bytes for each metric

Rows are written before ``n_steps``, so a reader that cuts every array to ``n_steps`` never sees half a
row. In ten lines of plain h5py::

    with h5py.File("run.h5", "r", swmr=True) as f:
        n = int(f["state/n_steps"][()])
        norms = f["metric/activation_grad_norm"][:n]        # (T, L)
        names = f["layer/name"].asstr()[:]

While it is written, nothing in the file is compressed: what is compressed cannot be appended to without writing it
again, and HDF5 never gives the old place back while others may read. When the run ends, the file is packed: shuffled
and deflated in chunks of about 256 kB, each with the checksum of its zlib stream. Until then ``/check`` guards it, and
in both states ``check_a`` or ``check_b`` (whichever has the same ``n_steps``) guards the counts and the columns, and
``header_crc32`` the header; ``gradlens.storage.checksums`` says how. ``level``, ``check`` and the checksums came after
the first files of version 1, as did ``facts_json``: a reader does without them where they are missing.

The mean of a block is geometric, over finite positive values (``count`` of them), for a metric whose attribute
``scale`` is "log"; arithmetic, over finite values, where it is "linear".
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gradlens._version import __version__
from gradlens.metrics import get_metric
from gradlens.row_chunks import LEVELS, STATISTICS
from gradlens.run import EPOCH_COLUMNS, Header, jsonable
from gradlens.storage.checksums import CHECK_BYTES, header_crc
from gradlens.storage.limits import NOTES_BYTES
from gradlens.storage.stored_facts import FACTS_BYTES

FORMAT = "gradlens"
FORMAT_VERSION = 1
LIBVER = ("v110", "v110")
"""Versions of HDF5's own format: SWMR needs that of 1.10, and what is newer an older h5py does not read."""
CHUNK_ROWS = 64
LEVEL_CHUNK = 16
"""Chunks of rows in an HDF5 chunk of a level, while it is written."""
PACKED_CHUNK = 65536
"""Numbers in a chunk of a finished file: 256 kB."""
SCALARS = ("loss", "lr")
MISSING_SCALARS = {"discarded_passes": 0.0}
"""Scalars whose value is known in rows that do not have them; it is NaN for others."""
LAYER_TEXTS = ("name", "kind", "role")
LAYER_NUMBERS = ("depth", "out_numel", "param_numel", "calls")
LAYER_LISTS = ("tags", "parents")
"""Columns of words separated by spaces."""


def root_attributes(header: Header, created: str | None = None) -> dict[str, Any]:
    """Return the attributes of a new file."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "gradlens_version": __version__,
        "created": created or time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "model": header.model,
        "seed": header.seed,
        "config_json": jsonable(dict(header.config)),
        "environment_json": jsonable(dict(header.environment)),
    }


def create_layout(
    file: h5py.File,
    header: Header,
    scalars: Iterable[str],
    epoch_columns: Iterable[str],
    created: str | None = None,
) -> None:
    """Make every attribute, group and dataset of an empty run that is going to be written.

    All of it must exist before SWMR mode begins: HDF5 shows no object made later to readers.
    """
    describe_run(file, root_attributes(header, created), header)
    create_column(file, "step", np.int64).make_scale("step")
    create_column(file, "epoch_of_step", np.int32).dims[0].attach_scale(file["step"])
    for name in dict.fromkeys((*SCALARS, *scalars)):
        create_column(file, f"scalar/{name}", np.float64).dims[0].attach_scale(file["step"])
    for name, every in header.metrics.items():
        describe_metric(file, create_rows(file, name, len(header.layers), CHUNK_ROWS), name, every)
    create_epochs(file, (*EPOCH_COLUMNS, *epoch_columns))
    create_state(file)
    metrics = sorted(header.metrics)
    if metrics:
        create_level_scales(file, metrics, header)
        for level in LEVELS:
            create_level(file, level, len(metrics), len(header.layers), LEVEL_CHUNK)
        width = 2 + len(metrics)
        file.create_dataset(
            "check/block", shape=(0, width), maxshape=(None, width), chunks=(512, width), dtype=np.uint32
        )


def describe_run(file: h5py.File, attributes: Mapping[str, Any], header: Header) -> None:
    """Write what is written once: the root attributes and the table of layers.

    Text of any length lies in HDF5's global heap, which no checksum guards, and which HDF5 2.0 reads for ever where it
    is damaged. So gradlens itself reads the copy ``header_json``, a text of fixed length.
    """
    file.attrs.update(attributes)
    columns = create_layers(file, header)
    text = json.dumps({"attributes": dict(attributes), "layers": columns})
    file.attrs["header_json"] = np.bytes_(text.encode())
    file.attrs["header_crc32"] = header_crc(attributes, columns)


def create_layers(file: h5py.File, header: Header) -> dict[str, list[Any]]:
    """Make the table of layers; return its columns."""
    layers = header.layers
    text = h5py.string_dtype("utf-8")
    columns = {key: [getattr(layer, key) for layer in layers] for key in (*LAYER_TEXTS, *LAYER_NUMBERS)}
    columns |= {key: [" ".join(map(str, getattr(layer, key))) for layer in layers] for key in LAYER_LISTS}
    for key, values in columns.items():
        file.create_dataset(f"layer/{key}", data=values, dtype=np.int64 if key in LAYER_NUMBERS else text)
    file["layer/name"].make_scale("name")
    for key in columns:
        if key != "name":
            file[f"layer/{key}"].dims[0].attach_scale(file["layer/name"])
    file.create_dataset("metric/layer", data=columns["name"], dtype=text).make_scale("layer")
    return columns


def create_rows(file: h5py.File, name: str, n_layers: int, chunk_rows: int, **filters: Any) -> h5py.Dataset:
    """Make the dataset of a metric, empty."""
    return file.create_dataset(
        f"metric/{name}",
        shape=(0, n_layers),
        maxshape=(None, n_layers),
        chunks=(chunk_rows, max(n_layers, 1)),
        dtype=np.float32,
        fillvalue=np.nan,
        **filters,
    )


def describe_metric(file: h5py.File, dataset: h5py.Dataset, name: str, every: int) -> None:
    """Say what a metric is, and along what it lies."""
    metric = get_metric(name)
    dataset.attrs.update(
        {
            "every": every,
            "title": metric.title,
            "reading": metric.reading,
            "combine": metric.combine,
            "scale": metric.scale,
        }
    )
    dataset.dims[0].attach_scale(file["step"])
    dataset.dims[1].attach_scale(file["metric/layer"])


def create_epochs(file: h5py.File, names: Iterable[str], **filters: Any) -> None:
    """Make the table of epochs, empty."""
    for name in dict.fromkeys(names):
        create_column(file, f"epoch/{name}", np.float64, **filters)
    file["epoch/epoch"].make_scale("epoch")
    for name, column in file["epoch"].items():
        if name != "epoch":
            column.dims[0].attach_scale(file["epoch/epoch"])


def create_state(file: h5py.File, values: Mapping[str, Any] | None = None, check: bytes | None = None) -> None:
    """Make the scalar datasets that tell how far the run is.

    Args:
        file: The file.
        values: Their contents in a finished run.
        check: The slot that guards them in a finished run; there is room for no other.
    """
    values = values or {}
    status = np.bytes_(values.get("status", "running"))
    file.create_dataset("state/status", data=status, dtype="S16")
    file["state/n_steps"] = np.int64(values.get("n_steps", 0))
    file["state/n_epochs"] = np.int64(values.get("n_epochs", 0))
    file["state/heartbeat"] = np.float64(values.get("heartbeat", time.time()))
    file["state/overhead"] = np.float64(values.get("overhead", np.nan))
    notes = notes_bytes(values.get("notes", ""))
    file.create_dataset("state/notes", data=notes, dtype=f"S{NOTES_BYTES if check is None else max(len(notes), 1)}")
    if check is not None:
        facts = bytes(values.get("facts", b""))
        file.create_dataset("state/facts_json", data=np.bytes_(facts), dtype=f"S{max(len(facts), 1)}")
        file.create_dataset("state/check_a", data=np.bytes_(check))
        return
    for slot in ("check_a", "check_b"):
        file.create_dataset(f"state/{slot}", data=np.bytes_(b""), dtype=f"S{CHECK_BYTES}")
    # Its place in the file is found when there are facts: data before the header would make a cut file unreadable.
    room = file.create_dataset("state/facts_json", shape=(0,), maxshape=(1,), chunks=(1,), dtype=f"S{FACTS_BYTES}")
    room.make_scale("facts_json")  # xarray expects a name for every dimension


def notes_bytes(text: str) -> np.bytes_:
    """Return notes as they are stored: UTF-8, cut between characters."""
    return np.bytes_(text.encode()[:NOTES_BYTES].decode("utf-8", "ignore").encode())


def create_level_scales(file: h5py.File, metrics: list[str], header: Header) -> None:
    """Make the coordinates of the levels."""
    text = h5py.string_dtype("utf-8")
    layers = [layer.name for layer in header.layers]
    for name, values in (("metric", metrics), ("layer", layers), ("statistic", list(STATISTICS))):
        file.create_dataset(f"level/{name}", data=values, dtype=text).make_scale(name)


def create_level(file: h5py.File, level: int, n_metrics: int, n_layers: int, chunk: int, **filters: Any) -> None:
    """Make one level, empty."""
    shape = (n_metrics, n_layers, len(STATISTICS))
    dataset = file.create_dataset(
        f"level/{level}",
        shape=(0, *shape),
        maxshape=(None, *shape),
        chunks=(chunk, 1, max(n_layers, 1), len(STATISTICS)),
        dtype=np.float32,
        fillvalue=np.nan,
        **filters,
    )
    create_column(file, f"level/first_{level}", np.int64, **filters).make_scale(f"first_{level}")
    for axis, scale in enumerate((f"first_{level}", "metric", "layer", "statistic")):
        dataset.dims[axis].attach_scale(file[f"level/{scale}"])


def create_column(file: h5py.File, name: str, dtype: Any, chunk: int = CHUNK_ROWS * 8, **filters: Any) -> h5py.Dataset:
    """Make a column, empty."""
    fill = np.nan if np.issubdtype(dtype, np.floating) else 0
    return file.create_dataset(
        name, shape=(0,), maxshape=(None,), chunks=(chunk,), dtype=dtype, fillvalue=fill, **filters
    )


def column_names(scalars: Iterable[str], epoch_columns: Iterable[str]) -> tuple[str, ...]:
    """List the columns of a file that have one value per row, and then those with one per epoch, each sorted.

    Args:
        scalars: What lies in ``/scalar``.
        epoch_columns: What lies in ``/epoch``.

    Returns:
        The names, from the root of the file.
    """
    rows = ("step", "epoch_of_step", *(f"scalar/{name}" for name in sorted(scalars)))
    return (*rows, *(f"epoch/{name}" for name in sorted(epoch_columns)))


def metric_names(ranks: Mapping[str, int]) -> tuple[str, ...]:
    """List the metrics of a file, sorted, without the scale that names their layers.

    Args:
        ranks: Name to rank of what lies in ``/metric``.

    Returns:
        The names of the metrics.
    """
    return tuple(sorted(name for name, rank in ranks.items() if rank == 2))


def pack_chunk_rows(numbers_per_row: int) -> int:
    """Return how many rows a chunk of a finished file holds: a power of two, at least 64."""
    rows = CHUNK_ROWS
    while rows < 4096 and 2 * rows * max(numbers_per_row, 1) <= PACKED_CHUNK:
        rows *= 2
    return rows


def as_float32(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Round to float32 without turning a nonzero value into 0 or a finite one into infinity."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = values.astype(np.float32)
    limits = np.finfo(np.float32)
    vanished = (rounded == 0) & (values != 0)
    rounded[vanished] = np.copysign(limits.smallest_subnormal, values[vanished])
    overflowed = np.isinf(rounded) & np.isfinite(values)
    rounded[overflowed] = np.copysign(limits.max, values[overflowed])
    return rounded
