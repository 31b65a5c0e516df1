"""The layout of a run file, format version 1.

::

    /            attributes: format="gradlens" format_version=1 gradlens_version created model seed
                 config_json environment_json
    /layer/      name (L,) kind role (main | shortcut | norm) depth out_numel param_numel calls
    /step        (T,) int64, a dimension scale          /epoch_of_step (T,) int32, index into /epoch
    /scalar/     loss (T,) · lr (T,) · ...
    /metric/     <name> (T, L) float32, dimension scales step and layer; attribute ``every`` (rows)
                 layer (L,) the scale: the layers' names, where netCDF readers (xarray) look for it
    /epoch/      epoch (E,) · train_loss · train_accuracy · val_loss · val_accuracy · lr · seconds
    /state/      status · n_steps · n_epochs · heartbeat (seconds since 1970) · overhead (the recorder's time over
                 the training's) · notes (lines of text), scalar datasets

Rows are written before ``n_steps``, so a reader that cuts every array to ``n_steps`` never sees half a
row. In ten lines of plain h5py::

    with h5py.File("run.h5", "r", swmr=True) as f:
        n = int(f["state/n_steps"][()])
        norms = f["metric/activation_grad_norm"][:n]        # (T, L)
        names = f["layer/name"].asstr()[:]
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import h5py
import numpy as np

import gradlens
from gradlens.metrics import get_metric
from gradlens.run import EPOCH_COLUMNS, Header, jsonable

FORMAT = "gradlens"
FORMAT_VERSION = 1
CHUNK_ROWS = 64
SCALARS = ("loss", "lr")
NOTES_BYTES = 4096
"""Room for notes: text of any length cannot be changed while a file is written and read at once."""


def create_layout(
    file: h5py.File,
    header: Header,
    scalars: Iterable[str],
    epoch_columns: Iterable[str],
    created: str | None = None,
) -> None:
    """Make every attribute, group and dataset of an empty run.

    All of it must stand before SWMR mode begins: HDF5 shows no object made later to readers.
    """
    file.attrs.update(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "gradlens_version": gradlens.__version__,
            "created": created or time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "model": header.model,
            "seed": header.seed,
            "config_json": jsonable(dict(header.config)),
            "environment_json": jsonable(dict(header.environment)),
        }
    )
    _create_layers(file, header)
    step = _column(file, "step", np.int64)
    step.make_scale("step")
    _column(file, "epoch_of_step", np.int32).dims[0].attach_scale(step)
    for name in dict.fromkeys((*SCALARS, *scalars)):
        _column(file, f"scalar/{name}", np.float64).dims[0].attach_scale(step)
    for name, every in header.metrics.items():
        _create_metric(file, name, every, len(header.layers))
    for name in dict.fromkeys((*EPOCH_COLUMNS, *epoch_columns)):
        _column(file, f"epoch/{name}", np.float64)
    file.create_dataset("state/status", data=np.bytes_("running"), dtype="S16")
    file["state/n_steps"] = np.int64(0)
    file["state/n_epochs"] = np.int64(0)
    file["state/heartbeat"] = np.float64(time.time())
    file["state/overhead"] = np.float64(np.nan)
    file.create_dataset("state/notes", data=np.bytes_(b""), dtype=f"S{NOTES_BYTES}")


def _create_layers(file: h5py.File, header: Header) -> None:
    layers = header.layers
    text = h5py.string_dtype("utf-8")
    for key in ("name", "kind", "role"):
        file.create_dataset(f"layer/{key}", data=[getattr(layer, key) for layer in layers], dtype=text)
    for key in ("depth", "out_numel", "param_numel", "calls"):
        file.create_dataset(f"layer/{key}", data=[getattr(layer, key) for layer in layers], dtype=np.int64)
    file.create_dataset("metric/layer", data=[layer.name for layer in layers], dtype=text).make_scale("layer")


def _create_metric(file: h5py.File, name: str, every: int, n_layers: int) -> None:
    dataset = file.create_dataset(
        f"metric/{name}",
        shape=(0, n_layers),
        maxshape=(None, n_layers),
        chunks=(CHUNK_ROWS, max(n_layers, 1)),
        dtype=np.float32,
        fillvalue=np.nan,
    )
    metric = get_metric(name)
    dataset.attrs.update({"every": every, "title": metric.title, "reading": metric.reading, "combine": metric.combine})
    dataset.dims[0].attach_scale(file["step"])
    dataset.dims[1].attach_scale(file["metric/layer"])


def _column(file: h5py.File, name: str, dtype: Any) -> h5py.Dataset:
    fill = np.nan if np.issubdtype(dtype, np.floating) else 0
    return file.create_dataset(
        name, shape=(0,), maxshape=(None,), chunks=(CHUNK_ROWS * 8,), dtype=dtype, fillvalue=fill
    )
