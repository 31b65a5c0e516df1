"""Keep the numbers of runs that the claims use, and read them again: a few kilobytes for each run.

The file ``runs.jsonl.gz`` has a line of JSON for each run. Its keys are those of ``StudyRun``: name, place (the path
below the folder that all runs share), model, seed, status, diverged, config, epochs (column to values), and, for plain
and residual networks, gradients (the fields of ``Gradients``), shares (rows of blocks) and, for controls, kinds. NaN is
null, infinities are "inf" and "-inf".
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gradlens.atomic import whole_file, write_errors
from gradlens.errors import RunFileError
from gradlens.format import plain, visible
from gradlens.run import FloatArray, Run
from gradlens.study.run_groups import data_of, short_data, sort_runs, spec_of
from gradlens.study.study_run import COLUMNS, Gradients, StudyRun, as_study_run

FILE = "runs.jsonl.gz"
SCHEMA = 1
"""It rises when a key changes its meaning or goes."""
MOST_BYTES = 1 << 28
"""A file that unpacks to more is refused."""
KEPT_FACTS = ("classes", "val_share_exact_copy_in_train", "val_share_any_copy_in_train")
"""The facts about the data that the claims use."""


def keep_runs(runs: Sequence[Run | StudyRun], folder: Path) -> Path:
    """Write the numbers of runs that the claims use into a folder.

    Args:
        runs: The runs.
        folder: The folder; it is made where it does not exist. A file in it from an earlier call is replaced.

    Returns:
        The file.

    Raises:
        RunFileError: The file cannot be written.
    """
    found = [as_study_run(run) for run in runs]
    ordered = sort_runs(found)
    controls = {id(run) for run in (*ordered.positive, *ordered.negative)}
    common = _common_folder([run.place for run in found])
    data = short_data(data_of(run) for run in found)
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0) as packed:
        for run in sorted(found, key=lambda one: one.place):
            values = _to_dict(run, common, data, with_kinds=id(run) in controls)
            packed.write(json.dumps(values, allow_nan=False, separators=(",", ":")).encode() + b"\n")
    path = folder / FILE
    with write_errors(f"{path} cannot be written"), whole_file(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return path


def read_kept(folder: Path) -> list[StudyRun]:
    """Read what ``keep_runs`` wrote.

    Args:
        folder: The folder, or the file in it.

    Returns:
        The runs, with the numbers that the claims use.

    Raises:
        RunFileError: The file cannot be read, or holds something else.
    """
    path = folder / FILE if folder.is_dir() else folder
    try:
        with gzip.open(path, "rb") as packed:
            text = packed.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunFileError(
            f"{path} cannot be read: {reason}", tip="gradlens claims RUNS --keep FOLDER writes it"
        ) from None
    if len(text) > MOST_BYTES:
        raise RunFileError(f"{path} cannot be read: it unpacks to more than {MOST_BYTES >> 20} MiB")
    try:
        return [KeptRun(json.loads(line)) for line in text.splitlines()]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise RunFileError(
            f"{path} does not hold kept numbers of schema {SCHEMA}: {visible(str(error))[:80]}"
        ) from None


class KeptRun(StudyRun):
    """A run of which only numbers were kept.

    Args:
        values: A line of the file.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema {values['schema']!r}")
        self.source = None
        self.name, self.place, self.model = (visible(str(values[key])) for key in ("name", "place", "model"))
        self.seed, self.status, self.diverged = int(values["seed"]), str(values["status"]), bool(values["diverged"])
        self.config = dict(values["config"])
        self.epochs = {name: _array(values["epochs"][name]) for name in COLUMNS if name in values["epochs"]}
        gradients = values.get("gradients")
        self.__dict__["gradients"] = None if gradients is None else _gradients(gradients)
        shares = [_array(row) for row in values.get("shares", ())]
        self.__dict__["shares"] = np.array(shares) if shares else np.empty((0, 0))
        self.__dict__["kinds"] = tuple(map(str, values.get("kinds", ())))


def _common_folder(places: Sequence[str]) -> str:
    folders = [os.path.dirname(os.path.abspath(place)) for place in places]
    try:
        return os.path.commonpath(folders) if folders else ""
    except ValueError:  # on several drives
        return ""


def _to_dict(run: StudyRun, common: str, data: Mapping[str, str], *, with_kinds: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "name": run.name,
        "place": os.path.relpath(os.path.abspath(run.place), common) if common else run.place,
        **{key: getattr(run, key) for key in ("model", "seed", "status", "diverged")},
        "config": _kept_config(run, data),
        "epochs": run.epochs,
    }
    if spec_of(run.model) is not None:
        found["gradients"] = None if run.gradients is None else asdict(run.gradients)
        found["shares"] = run.shares
    if with_kinds:
        found["kinds"] = list(run.kinds)
    kept: dict[str, Any] = plain(found)
    return kept


def _kept_config(run: StudyRun, data: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings, without folders of the machine on which the run was trained."""
    found, facts = dict(run.config), run.config.get("data_facts")
    if isinstance(facts, Mapping):
        found["data_facts"] = {key: facts[key] for key in KEPT_FACTS if key in facts}
    return {**found, "data": data[data_of(run)]} if "data" in found else found


def _gradients(values: Mapping[str, Any]) -> Gradients:
    arrays = {name: _array(values[name]) for name in ("steps", "ratio", "product", "at_norms", "loss")}
    if len({len(array) for array in arrays.values()}) > 1:
        raise ValueError("rows of different number")
    return Gradients(
        rows=int(values["rows"]), known=int(values["known"]), elements=float(_number(values["elements"])), **arrays
    )


def _array(values: Sequence[Any]) -> FloatArray:
    return np.array([_number(value) for value in values], dtype=np.float64)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
