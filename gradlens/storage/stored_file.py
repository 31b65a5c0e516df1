"""What a run file holds, cut to what was completely written, and compared with its checksums."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from gradlens.run import FloatArray, Layer, Status
from gradlens.storage.block_checks import BLOCK, BlockChecks
from gradlens.storage.checksums import crc, header_crc, is_sealed, state_crc
from gradlens.storage.contents import BROKEN, Contents
from gradlens.storage.counts import read_counts
from gradlens.storage.damage import line_of, tells_damage
from gradlens.storage.description import described_layers, read_description
from gradlens.storage.limits import MOST_LAYERS, MOST_METRICS
from gradlens.storage.schema import column_names, metric_names
from gradlens.storage.stored_facts import FACTS_BYTES, decode_facts

METRIC_BYTES, COLUMN_BYTES = 4, 8


class StoredFile:
    """What a run file holds, cut to what was completely written when it was opened; each part read when asked for.

    Args:
        path: The file.
        contents: What it holds.
        closed: Whether its writer has closed it.
        salvage: Columns that do not fit their checksum are returned as they are, with NaN (or -1) in place of what
            cannot be read at all, and a sentence for each in ``doubts``. The rows of metrics are compared all the same.
        known: Whether the numbers of rows and epochs were believed before.

    Raises:
        DamagedError: By all its methods, where the file is not as it was written.
    """

    def __init__(
        self, path: Path, contents: Contents, closed: bool, *, salvage: bool = False, known: bool = False
    ) -> None:
        self.path = path
        self.contents = contents
        self.closed = closed
        self.salvage = salvage
        self.doubts: list[str] = []
        counts = read_counts(contents)
        self.n_steps, self.n_epochs = counts.n_steps, counts.n_epochs
        self._slots = counts.slots
        self._slot = self._slots[0] if self._slots else None
        if counts.are_doubtful and not (salvage and self._slots):  # with a slot whose counts are taken, nothing is lost
            self._doubt("the numbers of its rows and epochs do not fit their checksum")
        inside = self.contents
        held = inside.names("metric")
        if len(held) > MOST_METRICS:  # each is read with a file opened for it
            raise ValueError(f"it has {len(held):,} metrics, at most {MOST_METRICS:,} expected")
        self.metrics = metric_names({name: inside.rank(f"metric/{name}") for name in held})
        self.columns = column_names(inside.names("scalar"), inside.names("epoch"))
        if not known:
            self._check_counts()
        self.verify = True
        """Whether checksums are compared."""
        self._checks = BlockChecks(contents, self._slot, len(self.columns), self.metrics)
        self._described: tuple[dict[str, Any], dict[str, list[Any]]] | None = None

    def _check_counts(self) -> None:
        """Believe the numbers of rows and epochs, on which the length of all that is read depends, if they fit."""
        for kind, name in (("n_steps", "step"), ("n_epochs", "epoch/epoch")):
            count, there = getattr(self, kind), self.contents.dataset(name).shape[0]
            if count < 0 or count > there:
                self._doubt(f"{name} holds {there} values of {count}")
                setattr(self, kind, there)
        rows = sum(not name.startswith("epoch/") for name in self.columns)
        for metric in self.metrics:
            if (width := self.width(metric)) != self.n_layers:
                raise ValueError(f"metric/{metric} has {width} layers, {self.n_layers} expected")
        if self.n_layers > MOST_LAYERS:
            raise ValueError(f"it has {self.n_layers:,} layers, at most {MOST_LAYERS:,} expected")
        numbers = self.n_steps * self.n_layers * len(self.metrics)
        columns = self.n_steps * rows + self.n_epochs * (len(self.columns) - rows)
        claimed = max(numbers * METRIC_BYTES, columns * COLUMN_BYTES)
        if claimed > self.contents.believed_bytes:
            raise ValueError(
                f"it claims {claimed:,} bytes of numbers; a file of this size may hold {self.contents.believed_bytes:,}"
            )

    # --- what is written once -----------------------------------------------------------------------------

    @property
    @tells_damage
    def attributes(self) -> dict[str, Any]:
        """The root attributes that each file has, as plain values."""
        return self._describe()[0]

    @tells_damage
    def layer_columns(self) -> dict[str, list[Any]]:
        """Return the table of layers by column.

        Raises:
            DamagedError: Its checksum does not fit.
        """
        return self._describe()[1]

    def _describe(self) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """Return the root attributes and the columns of the table of layers, and compare their checksum."""
        if self._described is not None:
            return self._described
        attributes, columns = read_description(self.contents)
        expected = self.contents.attribute("header_crc32")
        if self.verify and expected is not None and int(expected) != header_crc(attributes, columns):
            self._doubt("its description of the model and the run does not fit its checksum")
        if "calls" not in columns:
            columns["calls"] = [int(size > 0) for size in columns["out_numel"]]
        self._described = attributes, columns
        return self._described

    @tells_damage
    def layers(self) -> tuple[Layer, ...]:
        """Return the layers."""
        return described_layers(self.layer_columns(), self.n_layers)

    @tells_damage
    def status(self) -> Status:
        """Return how the run ended, or that it has not."""
        text = bytes(self.contents.value("state/status")).decode("ascii", "replace").strip(" \0")
        if text not in get_args(Status):
            self._doubt(f"status {text!r}")
            return "running"
        return cast(Status, text)

    @tells_damage
    def state(self) -> dict[str, Any]:
        """Return status, heartbeat, overhead, notes and facts, the latter as they are stored."""
        overhead = float(self.contents.value("state/overhead")) if "state/overhead" in self.contents else math.nan
        notes = bytes(self.contents.value("state/notes")) if "state/notes" in self.contents else b""
        heartbeat = float(self.contents.value("state/heartbeat"))
        status = bytes(self.contents.value("state/status"))
        expected = {value for slot in self._slots for value in slot.states} if self.verify else set()
        if expected and state_crc(overhead, notes, status, heartbeat) not in expected:
            if state_crc(overhead, notes) not in expected:
                self._doubt("its status, overhead and notes do not fit their checksum")
            if not is_sealed(heartbeat):
                self._doubt("its heartbeat does not fit its checksum")
        return {
            "status": self.status(),
            "heartbeat": heartbeat,
            "overhead": overhead,
            "notes": notes.decode("utf-8", "ignore").strip("\0"),
            "facts": self._stored_facts(),
        }

    @tells_damage
    def facts(self) -> dict[str, Any]:
        """Return the facts of the run; none in files that were made before there were any."""
        return decode_facts(self._stored_facts())

    def _stored_facts(self) -> bytes:
        """Return the facts as they are stored, if they are whole."""
        if "state/facts_json" not in self.contents:
            return b""
        dataset_name = "state/facts_json"
        dataset = self.contents.dataset(dataset_name)
        try:
            if (
                dataset.shape not in ((), (0,), (1,))
                or dataset.dtype.kind != "S"
                or dataset.dtype.itemsize > FACTS_BYTES
            ):
                raise ValueError(f"its facts are {dataset.dtype} of shape {dataset.shape}")
            values = self.contents.read(dataset_name, 0, 1) if dataset.shape else [self.contents.value(dataset_name)]
            stored = b"".join(map(bytes, values))
            decode_facts(stored)
        except BROKEN as error:
            self._doubt(line_of(error))
            return b""
        return stored

    @tells_damage
    def every(self) -> dict[str, int]:
        """Return each metric's interval in rows."""
        return {name: int(self.contents.attribute("every", 1, of=f"metric/{name}")) for name in self.metrics}

    @tells_damage
    def attribute_json(self, name: str) -> dict[str, Any]:
        """Return an attribute that holds a mapping as JSON."""
        return dict(json.loads(self.attributes.get(name, "{}")))

    # --- columns ------------------------------------------------------------------------------------------

    @tells_damage
    def column(self, name: str, start: int = 0) -> NDArray[Any]:
        """Return a column from a row on; its checksum is compared where the whole of it is read.

        Args:
            name: One of ``columns``.
            start: The first row, or epoch.
        """
        count = self.n_epochs if name.startswith("epoch/") else self.n_steps
        try:
            values = self.contents.read(name, start, count)
            if len(values) != max(count - start, 0):
                raise ValueError(f"{name} holds {start + len(values)} values of {count}")
        except BROKEN as error:
            if not self.salvage:
                raise
            self._doubt(f"a part of {name} ({line_of(error)})")
            return self._salvage_column(name, count)[start:]
        crcs = self._slot.crcs if self.verify and start == 0 and self._slot is not None else ()
        if crcs and crc(values) != crcs[self.columns.index(name)]:
            self._doubt(f"a value of {name}: it does not fit its checksum")
        return values

    def _salvage_column(self, name: str, count: int) -> NDArray[Any]:
        """Read a column as far as it goes, with NaN (or -1) in place of what cannot be read."""
        dataset = self.contents.dataset(name)
        values = np.full(count, np.nan if np.issubdtype(dataset.dtype, np.floating) else -1, dtype=dataset.dtype)
        for start in range(0, count, BLOCK):
            with contextlib.suppress(*BROKEN):
                part = self.contents.read(name, start, min(start + BLOCK, count))
                values[start : start + len(part)] = part
        return values

    def _doubt(self, sentence: str) -> None:
        """Raise a ValueError, or while salvaging keep the sentence."""
        if not self.salvage:
            raise ValueError(sentence)
        if sentence not in self.doubts:
            self.doubts.append(sentence)

    @tells_damage
    def last_epoch(self, names: Iterable[str]) -> dict[str, float]:
        """Return some columns' values in the last row of the table of epochs; NaN where there is none."""
        if not self.n_epochs:
            return dict.fromkeys(names, math.nan)
        return {name: float(self.column(f"epoch/{name}")[-1]) for name in names}

    # --- metrics ------------------------------------------------------------------------------------------

    @tells_damage
    def rows(self, metric: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows of a metric, (stop - start, L), and compare the checksums of the blocks that they touch."""
        start, stop = max(start, 0), min(stop, self.n_steps)
        if stop <= start:
            return np.empty((0, self.width(metric)), dtype=np.float32)
        if not (self.verify and "check" in self.contents):
            return self._read(metric, start, stop)
        begin = start // BLOCK * BLOCK
        end = min(-(-stop // BLOCK) * BLOCK, self.n_steps)
        values = self._read(metric, begin, end)
        self._checks.compare_rows(metric, begin, values)
        return values[start - begin : stop - begin]

    @tells_damage
    def width(self, metric: str) -> int:
        """Return how many layers a metric has values of."""
        return int(self.contents.dataset(f"metric/{metric}").shape[1])

    def _read(self, metric: str, start: int, stop: int) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self.contents.read(f"metric/{metric}", start, stop)
        if len(values) != stop - start:
            raise ValueError(f"metric/{metric} holds {start + len(values)} rows of {stop}")
        return values

    # --- levels -------------------------------------------------------------------------------------------

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return int(self.contents.dataset("layer/name").shape[0])

    @property
    def packed(self) -> bool:
        """Whether it is in the form that a run has when it has ended; see ``schema``."""
        return "check" not in self.contents

    @property
    def has_levels(self) -> bool:
        """Whether the file holds chunks of rows."""
        return "level" in self.contents

    @tells_damage
    def level(self, rows: int, metric: str, start: int, stop: int) -> FloatArray:
        """Return whole chunks of so many rows of a metric, (stop - start, L, 5) float64.

        Args:
            rows: One of ``gradlens.row_chunks.LEVELS``.
            metric: Its name.
            start: Number of the first block.
            stop: Number of the block after the last; all must be whole.
        """
        column = self.metrics.index(metric)
        shape, wanted = self.contents.dataset(f"level/{rows}").shape[1:], (len(self.metrics), self.n_layers, 5)
        if shape != wanted:
            raise ValueError(f"level {rows} has shape {shape}, {wanted} expected")
        values = self.contents.read(f"level/{rows}", start, stop, column)
        if len(values) != stop - start:
            raise ValueError(f"level {rows} holds {start + len(values)} blocks of {stop}")
        if self.verify and "check" in self.contents:
            self._checks.compare_level(rows, metric, start, values)
        return values.astype(np.float64)
