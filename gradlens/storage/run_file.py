"""A run file, open for reading: finished, being written, or left by a writer that was killed."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import h5py
import numpy as np
from numpy.typing import NDArray

from gradlens.errors import DamagedError, GradlensError, NoRunError, RunFileError
from gradlens.row_chunks import LEVELS
from gradlens.run import FloatArray, Layer, Role, Status
from gradlens.storage.checksums import Slot, crc, header_crc, is_sealed, state_crc
from gradlens.storage.contents import BROKEN, Contents
from gradlens.storage.limits import MOST_EDGES, MOST_LAYERS, MOST_METRICS, MOST_NAME, MOST_TEXT_BYTES
from gradlens.storage.locate import check_plain, tip_of_missing
from gradlens.storage.one_thread import alone
from gradlens.storage.schema import (
    FORMAT,
    FORMAT_VERSION,
    LAYER_LISTS,
    LAYER_NUMBERS,
    LAYER_TEXTS,
    column_names,
    metric_names,
)
from gradlens.storage.stored_facts import FACTS_BYTES, decode_facts
from gradlens.storage.superblock import ClosedView, check_heaps

BLOCK = LEVELS[0]
TRIES = 8
PAUSE_SECONDS = 0.02
"""A file that is being written may be met between two writes: it is opened again, so often and after so long."""
RECOVER = "gradlens recover keeps what is whole"
METRIC_BYTES, COLUMN_BYTES = 4, 8
INT64 = np.iinfo(np.int64)


T = TypeVar("T")


def reading(path: str | os.PathLike[str], use: Callable[[StoredFile], T], *, known: bool = False) -> T:
    """Open a run file, use it, and close it; again where it is being written and was met between two writes.

    Args:
        path: The file.
        use: What to do with it.
        known: Whether it was read before, so that only what is read now is checked for lying in another file.

    Returns:
        What ``use`` returns.

    Raises:
        NoRunError: There is no such file.
        RunFileError: It is not an HDF5 file, not a gradlens run, of a newer format, damaged, or refers to another file.
    """
    path = Path(path)
    for _ in range(TRIES - 1):
        try:
            with open_run_file(path, known=known) as stored:
                return use(stored)
        except DamagedError:
            if not _may_be_written(path):
                raise
        time.sleep(PAUSE_SECONDS)
    with open_run_file(path, known=known) as stored:
        return use(stored)


@contextlib.contextmanager
def open_run_file(path: Path, *, salvage: bool = False, known: bool = False) -> Iterator[StoredFile]:
    """Open a run file, once, and close it; errors as in ``reading``.

    Args:
        path: The file.
        salvage: Read as much as can be read of a damaged file; see ``StoredFile``.
        known: As in ``reading``.

    Yields:
        The file, open for reading.
    """
    try:
        if not path.exists():
            raise NoRunError(f"{path}: there is no such file", tip=tip_of_missing(path))
        if path.is_dir():
            raise RunFileError(f"{path} is a folder; expected a run file")
        check_plain(path)
    except PermissionError as error:
        raise RunFileError(f"{path} cannot be read: you may not look into its folder") from error
    with alone(), contextlib.ExitStack() as stack:
        with telling_damage(path):
            file, closed = _open_hdf5(path, stack)
            contents = Contents(path, file)
            _check_format(path, contents)
            try:
                stored = StoredFile(path, contents, closed, salvage=salvage, known=known)
            finally:
                # Not before the counts are read: of a file that is being written, datasets would be opened too short.
                if not known:
                    contents.check_all()
        yield stored


@contextlib.contextmanager
def telling_damage(path: Path) -> Iterator[None]:
    """Turn what h5py says of a broken file into a line that names the file."""
    try:
        yield
    except GradlensError:
        raise
    except BROKEN as error:
        raise DamagedError(f"{path} is damaged: {line_of(error)}", tip=RECOVER) from error


def line_of(error: Exception) -> str:
    """Return what an error says, in one line."""
    said = str(error).strip("'\"")
    return said.splitlines()[0] if said else type(error).__name__


Method = TypeVar("Method", bound=Callable[..., Any])


def tells_damage(method: Method) -> Method:
    """Let a method of ``StoredFile`` raise a DamagedError for whatever a broken file makes h5py say."""

    @functools.wraps(method)
    def wrapped(self: StoredFile, *arguments: Any, **options: Any) -> Any:
        with telling_damage(self.path):
            return method(self, *arguments, **options)

    return cast(Method, wrapped)


def _open_hdf5(path: Path, stack: contextlib.ExitStack) -> tuple[h5py.File, bool]:
    try:
        return stack.enter_context(h5py.File(path, "r", locking=False)), True
    except OSError as error:
        reason = error
    if isinstance(reason, PermissionError) or not os.access(path, os.R_OK):
        raise RunFileError(f"{path} cannot be read: you may not") from reason
    try:
        view = stack.enter_context(ClosedView(path))
    except ValueError:
        if not h5py.is_hdf5(path):
            raise RunFileError(f"{path} is not an HDF5 file; expected a gradlens run") from reason
        text = "it is truncated" if "truncated" in str(reason) else str(reason).splitlines()[0]
        raise DamagedError(f"{path} cannot be opened: {text}", tip=RECOVER) from reason
    return stack.enter_context(h5py.File(view, "r")), False


def _may_be_written(path: Path) -> bool:
    """Return whether a file changed so recently that a fault in it may be a write in progress."""
    with contextlib.suppress(OSError):
        return abs(time.time() - path.stat().st_mtime) < 30
    return False


def _check_format(path: Path, contents: Contents) -> None:
    if contents.attribute("header_json") is None:
        check_heaps(path)
        if contents.attribute("format") != FORMAT:
            raise RunFileError(f"{path} is an HDF5 file of another program; expected a gradlens run")
    version = int(contents.attribute("format_version", 0))
    if version > FORMAT_VERSION:
        raise RunFileError(
            f"{path} has format version {version}; this gradlens reads up to {FORMAT_VERSION}",
            tip="a newer gradlens reads it",
        )


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
        self.n_steps = int(self.contents.value("state/n_steps"))
        self.n_epochs = int(self.contents.value("state/n_epochs"))
        self._slots = self._find_slots()
        self._slot = self._slots[0] if self._slots else None
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
        self._records: dict[int, NDArray[np.uint32]] | None = None
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

    def _find_slots(self) -> list[Slot]:
        """Return the slots that guard the counts; none in files that were made before there were any."""
        names = [name for name in ("state/check_a", "state/check_b") if name in self.contents]
        if not names:
            return []
        counts = self.n_steps, self.n_epochs
        decoded = (Slot.decode(bytes(self.contents.value(name))) for name in names)
        slots = [slot for slot in decoded if slot is not None]
        found = [slot for slot in slots if (slot.n_steps, slot.n_epochs) == counts]
        if (
            not found
            and len(slots) == 2
            and all(count in pair for count, pair in zip(counts, _counts(slots), strict=True))
        ):
            # Its writer ended between the one count and the other: all that the newer slot guards was written before.
            found = [max(slots, key=lambda slot: (slot.n_steps, slot.n_epochs))]
            self.n_steps, self.n_epochs = found[0].n_steps, found[0].n_epochs
        if not found:
            self._doubt("the numbers of its rows and epochs do not fit their checksum")
            found = self._take_newest(slots)
        return found

    def _take_newest(self, slots: list[Slot]) -> list[Slot]:
        """Take the counts from the slot with the most rows, where they are damaged themselves."""
        if not slots:
            return []
        newest = max(slots, key=lambda slot: (slot.n_steps, slot.n_epochs))
        self.n_steps, self.n_epochs = newest.n_steps, newest.n_epochs
        self.doubts.clear()  # nothing is lost
        return [newest]

    # --- what stands once ---------------------------------------------------------------------------------

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
        attributes, columns = self._read_copy() or self._read_description()
        _check_attributes(attributes)
        expected = self.contents.attribute("header_crc32")
        if self.verify and expected is not None and int(expected) != header_crc(attributes, columns):
            self._doubt("its description of the model and the run does not fit its checksum")
        if "calls" not in columns:
            columns["calls"] = [int(size > 0) for size in columns["out_numel"]]
        self._described = attributes, columns
        return self._described

    def _read_copy(self) -> tuple[dict[str, Any], dict[str, list[Any]]] | None:
        """Read the description from ``header_json``; None where there is none."""
        text = self.contents.attribute("header_json")
        if text is None:
            return None
        found = json.loads(bytes(text))
        return dict(found["attributes"]), dict(found["layers"])

    def _read_description(self) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        inside, held = self.contents, self.contents.names("layer")
        texts = (*LAYER_TEXTS, *(key for key in LAYER_LISTS if key in held))
        columns: dict[str, list[Any]] = {key: inside.texts(f"layer/{key}") for key in texts}
        columns |= {key: inside.read(f"layer/{key}", 0, MOST_LAYERS).tolist() for key in LAYER_NUMBERS if key in held}
        found = {name: inside.attribute(name) for name in ROOT_ATTRIBUTES}
        return {name: _plain(value) for name, value in found.items() if value is not None}, columns

    @tells_damage
    def layers(self) -> tuple[Layer, ...]:
        """Return the layers."""
        columns = self.layer_columns()
        count = len(columns["name"])
        _check_layers(columns, self.n_layers)
        tags, parents = ([text.split() for text in columns.get(key, [""] * count)] for key in LAYER_LISTS)
        graph = checked_graph([[int(word) for word in words] for words in parents])
        rows = zip(*(columns[key] for key in (*LAYER_TEXTS, *LAYER_NUMBERS)), tags, graph, strict=True)
        return tuple(
            Layer(name, kind, role, depth, size, own, calls, tuple(words), feeding)
            for name, kind, role, depth, size, own, calls, words, feeding in rows
        )

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
        self._compare(metric, begin, values)
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

    def _compare(self, metric: str, begin: int, values: NDArray[np.float32]) -> None:
        column = self.metrics.index(metric)
        whole = len(values) // BLOCK
        blocks = values[: whole * BLOCK].reshape(whole, BLOCK, values.shape[1])
        first = begin // BLOCK
        expected = self._expected(0, first, first + whole)[:, column]
        for i, block in enumerate(blocks):
            if crc(block) != expected[i]:
                raise ValueError(
                    f"rows {begin + i * BLOCK} to {begin + (i + 1) * BLOCK} of {metric} do not fit their checksum"
                )
        rest = values[whole * BLOCK :]
        crcs = self._slot.crcs if self._slot is not None else ()
        if len(rest) and crcs and crc(rest) != crcs[len(self.columns) + column]:
            raise ValueError(f"the last {len(rest)} rows of {metric} do not fit their checksum")

    def _expected(self, level: int, start: int, stop: int) -> NDArray[np.uint32]:
        """Return the checksums of blocks of a level, (stop - start, M)."""
        if self._records is None:
            count = self._slot.records if self._slot is not None else 0
            table = self.contents.read("check/block", 0, count)
            if len(table) != count:
                raise ValueError("its table of checksums is cut off")
            self._records = {int(key): table[table[:, 0] == key] for key in np.unique(table[:, 0])}
        found = self._records.get(level, np.empty((0, 2 + len(self.metrics)), dtype=np.uint32))[start:stop]
        if len(found) != stop - start or not np.array_equal(found[:, 1], np.arange(start, stop)):
            raise ValueError("its table of checksums has gaps")
        return found[:, 2:]

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
            expected = self._expected(rows, start, stop)[:, column]
            for i, block in enumerate(values):
                if crc(block) != expected[i]:
                    raise ValueError(f"block {start + i} of level {rows} of {metric} does not fit its checksum")
        return values.astype(np.float64)


def _check_attributes(attributes: Mapping[str, Any]) -> None:
    """Check the attributes of a run, which may hold anything.

    Raises:
        ValueError: One is not of its type, or too long.
    """
    for name, value in attributes.items():
        if name in ("seed", "format_version"):
            if type(value) is not int or not INT64.min <= value <= INT64.max:
                raise ValueError(f"its {name} is no whole number of 64 bits")
        elif not isinstance(value, str):
            raise ValueError(f"its {name} is no text")
        elif len(value) > (MOST_TEXT_BYTES if name.endswith("_json") else MOST_NAME):
            raise ValueError(f"its {name} has {len(value):,} characters")


def _check_layers(columns: Mapping[str, list[Any]], count: int) -> None:
    """Check the table of layers, whose JSON may hold anything.

    Raises:
        ValueError: It is not a table of so many layers.
    """
    for key in (*LAYER_TEXTS, *LAYER_LISTS, *LAYER_NUMBERS):
        if key in columns and (not isinstance(columns[key], list) or len(columns[key]) != count):
            raise ValueError(f"the column {key} of its table of layers is not one of {count} layers")
    for key in (*LAYER_TEXTS, *(key for key in LAYER_LISTS if key in columns)):
        if not set(map(type, columns[key])) <= {str}:
            raise ValueError(f"the {key} of a layer is no text")
        most = MOST_TEXT_BYTES if key in LAYER_LISTS else MOST_NAME
        if max(map(len, columns[key]), default=0) > most:
            raise ValueError(f"the {key} of a layer has more than {most:,} characters")
    for key in LAYER_NUMBERS:
        values = columns[key]
        if not set(map(type, values)) <= {int} or (values and not INT64.min <= min(values) <= max(values) <= INT64.max):
            raise ValueError(f"the {key} of a layer is no whole number of 64 bits")
    if not set(columns["role"]) <= set(get_args(Role)):
        raise ValueError(f"a layer has an unknown role; expected {', '.join(get_args(Role))}")
    if " ".join(columns.get("parents", ())).count(" ") > MOST_EDGES + count:
        raise ValueError(f"its layers are fed by others more than {MOST_EDGES:,} times")


def _counts(slots: list[Slot]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(slot.n_steps for slot in slots), tuple(slot.n_epochs for slot in slots)


def checked_graph(parents: list[list[int]]) -> list[tuple[int, ...]]:
    """Return the layers that feed each layer, if each is a layer, and none feeds itself, directly or through others.

    Args:
        parents: (L,) indices of layers.

    Raises:
        ValueError: The graph is not that of a model.
    """
    waits_for = [set(feeding) for feeding in parents]
    if any(not 0 <= parent < len(parents) for feeding in parents for parent in feeding):
        raise ValueError("its layers are fed by layers that it does not have")
    feeds: list[list[int]] = [[] for _ in parents]
    for i, feeding in enumerate(waits_for):
        for parent in feeding:
            feeds[parent].append(i)
    ready = [i for i, feeding in enumerate(waits_for) if not feeding]
    for layer in ready:
        for after in feeds[layer]:
            waits_for[after].remove(layer)
            if not waits_for[after]:
                ready.append(after)
    if len(ready) < len(parents):
        raise ValueError("its layers feed each other in a circle")
    return [tuple(feeding) for feeding in parents]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


ROOT_ATTRIBUTES = (
    "format", "format_version", "gradlens_version", "created", "model", "seed", "config_json", "environment_json",
)  # fmt: skip
