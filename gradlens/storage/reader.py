"""Open a run file: finished, still being written, or left by a writer that was killed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from gradlens.errors import NoRunError, RunFileError
from gradlens.run import FloatArray, Layer, Run, Status
from gradlens.storage.schema import FORMAT, FORMAT_VERSION


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a run file.

    Metrics are read when they are asked for; everything is cut to the rows that were completely written when
    this function was called.

    Args:
        path: The file.

    Returns:
        The run, as numpy arrays.

    Raises:
        NoRunError: There is no such file.
        RunFileError: It is not an HDF5 file, not a gradlens run, of a newer format, or damaged.

    Example::

        run = gradlens.read_run("runs/plain34-s0.h5")
        run.metric("param_grad_norm").shape       # (T, L)
    """
    path = Path(path)
    with open_run_file(path) as file:
        try:
            return _read(path, file)
        except (KeyError, ValueError, TypeError, UnicodeDecodeError, OSError, RuntimeError) as error:
            raise RunFileError(f"{path} is damaged: {error}") from error


def open_run_file(path: Path) -> h5py.File:
    """Open a run file for reading; errors as in ``read_run``."""
    if not path.exists():
        raise NoRunError(f"{path}: there is no such file", tip="gradlens ls shows the runs that there are")
    if path.is_dir():
        raise RunFileError(f"{path} is a folder; expected a run file")
    try:
        file = _open_hdf5(path)
    except OSError as error:
        if not h5py.is_hdf5(path):
            raise RunFileError(f"{path} is not an HDF5 file; expected a gradlens run") from error
        reason = "it is truncated" if "truncated" in str(error) else str(error).splitlines()[0]
        raise RunFileError(f"{path} cannot be opened: {reason}") from error
    try:
        _check_format(path, file)
    except BaseException:
        file.close()
        raise
    return file


def _open_hdf5(path: Path) -> h5py.File:
    """Open a file that was closed as it is, and one that is being written, or whose writer was killed, as SWMR.

    Not always as SWMR: there HDF5 does not compare the file's length with what it should be, and reads what is missing
    from a truncated file again and again, for minutes.
    """
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "truncated" in str(error):
            raise
        return h5py.File(path, "r", swmr=True)


def _check_format(path: Path, file: h5py.File) -> None:
    if file.attrs.get("format") != FORMAT:
        raise RunFileError(f"{path} is an HDF5 file of another program; expected a gradlens run")
    version = int(file.attrs.get("format_version", 0))
    if version > FORMAT_VERSION:
        raise RunFileError(
            f"{path} has format version {version}; this gradlens reads up to {FORMAT_VERSION}",
            tip="a newer gradlens reads it",
        )


def _read(path: Path, file: h5py.File) -> Run:
    n_steps = int(file["state/n_steps"][()])
    n_epochs = int(file["state/n_epochs"][()])
    status = bytes(file["state/status"][()]).decode("ascii").strip(" \0")
    info: dict[str, Any] = {
        key: _plain(file.attrs[key])
        for key in ("model", "seed", "created", "gradlens_version", "format_version")
        if key in file.attrs
    }
    info["config"] = json.loads(file.attrs.get("config_json", "{}"))
    info["environment"] = json.loads(file.attrs.get("environment_json", "{}"))
    info["heartbeat"] = float(file["state/heartbeat"][()])
    state = file["state"]
    info["overhead"] = float(state["overhead"][()]) if "overhead" in state else math.nan
    notes = bytes(state["notes"][()]).decode("utf-8", "ignore").strip("\0") if "notes" in state else ""
    info["notes"] = notes.splitlines()
    info["every"] = {name: int(file["metric"][name].attrs.get("every", 1)) for name in metric_names(file)}
    return Run(
        name=path.stem,
        path=path,
        layers=_read_layers(file["layer"]),
        steps=file["step"][:n_steps],
        epoch_of_step=file["epoch_of_step"][:n_steps],
        scalars={name: file["scalar"][name][:n_steps] for name in file["scalar"]},
        metrics=StoredMetrics(path, metric_names(file), n_steps),
        epochs={name: file["epoch"][name][:n_epochs] for name in file["epoch"]},
        status=cast(Status, status),
        info=info,
    )


def metric_names(file: h5py.File) -> tuple[str, ...]:
    """List the metrics of a file, without the scale that names their layers."""
    return tuple(name for name, dataset in file["metric"].items() if dataset.ndim == 2)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _read_layers(group: h5py.Group) -> tuple[Layer, ...]:
    text = [group[key].asstr()[:] for key in ("name", "kind", "role")]
    numbers = [group[key][:] for key in ("depth", "out_numel", "param_numel")]
    calls = group["calls"][:] if "calls" in group else (numbers[1] > 0).astype(int)
    return tuple(
        Layer(str(name), str(kind), role, *map(int, rest))
        for name, kind, role, *rest in zip(*text, *numbers, calls, strict=True)
    )


class StoredMetrics(Mapping[str, FloatArray]):
    """The metrics of a file, each read when it is asked for and then kept."""

    def __init__(self, path: Path, names: tuple[str, ...], n_steps: int) -> None:
        self._path = path
        self._names = names
        self._n_steps = n_steps
        self._cache: dict[str, FloatArray] = {}

    def __getitem__(self, name: str) -> FloatArray:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._cache:
            with open_run_file(self._path) as file:
                try:
                    self._cache[name] = file["metric"][name][: self._n_steps]
                except OSError as error:
                    raise RunFileError(f"{self._path} is damaged: {error}") from error
        return self._cache[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
