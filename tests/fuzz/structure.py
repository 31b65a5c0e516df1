"""Run files whose structure lies: well-formed HDF5 in which objects, types, sizes, links and attributes were changed.

Hypothesis draws the changes and, where a reader fails, finds the fewest that show it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import strategies as st

MEMORY = 500 * 2**20
"""Bytes that a file under 5 MB may cost a reader."""

TYPES: tuple[Any, ...] = (
    "f2", "f4", "f8", "i1", "i8", "u8", "?", "c16", "S5", "V8",
    h5py.string_dtype(), h5py.vlen_dtype("f4"), h5py.ref_dtype, h5py.enum_dtype({"a": 1}), [("a", "f4"), ("b", "i8")],
)  # fmt: skip
SHAPES = ((), (0,), (1,), (3,), (700,), (700, 12), (12, 700), (700, 0), (2, 3, 4), (2**31,), (10**12, 12), (2**62,))
VALUES: tuple[Any, ...] = (
    None, "", "plain8", "x" * 70_000, "[" * 2000, "{}", '{"layers": 3}', b"\xff\xfe", "a\x1b]0;b\x07\u202ec\nd",
    0, 1, -1, 2**31, 2**63 - 1, 1e300, float("nan"), float("inf"), True, [], [1, 2, 3], [[1.0]], ["a", "b"], 1 + 2j,
)  # fmt: skip
NUMBERS = (np.nan, np.inf, -np.inf, -1, 0, 1, 2**31, 2**62, 1e300)
NAMES = ("metrics", "x", "..", "a b", "\x1b[31m", "é" * 300, "param_grad_norm")
MOST_CUT = 10**6
"""Values that are read, or cut off, at most: a change of more takes hours or all memory."""
Change = tuple[Any, ...]


def objects(path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """List the objects of a file, and its (object, attribute) pairs."""
    names = ["/"]
    with h5py.File(path) as file:
        file.visit(names.append)
        return names[1:], [(name, attribute) for name in names for attribute in file[name].attrs]


def changes(path: Path) -> st.SearchStrategy[list[Change]]:
    """Return a strategy of one to five changes to a file."""
    names, attributes = objects(path)
    name, value = st.sampled_from(names), st.sampled_from(VALUES)
    place = st.sampled_from(attributes) | st.tuples(name, st.sampled_from(NAMES))
    kept = st.sampled_from(("contiguous", "compact", "chunked", "deflate", "external", "virtual"))
    change = st.one_of(
        st.tuples(st.just("delete"), name),
        st.tuples(st.just("dataset"), name, st.sampled_from(TYPES), st.sampled_from(SHAPES), kept),
        st.tuples(st.just("resize"), name, st.sampled_from((0, 1, 699, 701, 100_000, 10**12, 2**62))),
        st.tuples(st.just("number"), name, st.integers(0, 10**6), st.sampled_from(NUMBERS)),
        st.tuples(st.just("attribute"), place, value),
        st.tuples(st.just("no attribute"), st.sampled_from(attributes)),
        st.tuples(st.just("link"), name, st.sampled_from(("soft", "itself", "external", "cycle", "other")), name),
        st.tuples(st.just("group"), name),
        st.tuples(st.just("add"), name, st.sampled_from(NAMES), value),
    )
    return st.lists(change, min_size=1, max_size=5)


def apply(file: h5py.File, change: Change) -> None:
    """Make one change; one that HDF5 refuses is none."""
    with contextlib.suppress(Exception):
        MAKERS[change[0]](file, *change[1:])


def write_changed(path: Path, data: bytes, made: list[Change]) -> None:
    """Write a file with changes.

    Args:
        path: Where.
        data: The file that is changed.
        made: See ``changes``.
    """
    path.write_bytes(data)
    with h5py.File(path, "r+") as file:
        for change in made:
            apply(file, change)


def _dataset(file: h5py.File, name: str, dtype: Any, shape: tuple[int, ...], kept: str) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    if kept == "virtual":
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource("other.h5", "x", shape)
        made = file.create_virtual_dataset(name, layout)
    elif kept == "external":
        made = file.create_dataset(name, shape, dtype, external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])
    else:
        chunks = tuple(max(1, min(n, 64)) for n in shape) if kept in ("chunked", "deflate") else None
        made = file.create_dataset(
            name, shape, dtype, chunks=chunks or None, compression="gzip" if kept == "deflate" else None,
            maxshape=(None, *shape[1:]) if chunks else None,
        )  # fmt: skip
    for key, value in attributes.items():
        made.attrs[key] = value


def _resize(file: h5py.File, name: str, rows: int) -> None:
    dataset = file[name]
    if dataset.shape[0] - rows > MOST_CUT:  # HDF5 looks for each chunk that is cut off, for hours
        raise ValueError(rows)
    dataset.resize(rows, axis=0)


def _number(file: h5py.File, name: str, at: int, value: float) -> None:
    if file[name].size > MOST_CUT:  # it would be read whole
        raise ValueError(name)
    with np.errstate(all="ignore"):
        values = file[name][()]
        values.flat[at % values.size] = np.asarray(value).astype(values.dtype)
        file[name][...] = values


def _attribute(file: h5py.File, place: tuple[str, str], value: Any) -> None:
    file[place[0]].attrs[place[1]] = h5py.Empty("f4") if value is None else value


def _link(file: h5py.File, name: str, kind: str, other: str) -> None:
    target = file[other]
    del file[name]
    links: dict[str, Any] = {
        "soft": h5py.SoftLink("/"),
        "itself": h5py.SoftLink("/" + name),
        "external": h5py.ExternalLink("other.h5", "/"),
        "cycle": file["/"],
        "other": target,
    }
    file[name] = links[kind]


def _group(file: h5py.File, name: str) -> None:
    del file[name]
    file.create_group(name)


def _add(file: h5py.File, name: str, key: str, value: Any) -> None:
    group = file[name] if isinstance(file[name], h5py.Group) else file[name].parent
    group[key] = h5py.Empty("f4") if value is None else value


def _delete(file: h5py.File, name: str) -> None:
    del file[name]


def _no_attribute(file: h5py.File, place: tuple[str, str]) -> None:
    del file[place[0]].attrs[place[1]]


MAKERS: dict[str, Callable[..., None]] = {
    "delete": _delete,
    "dataset": _dataset,
    "resize": _resize,
    "number": _number,
    "attribute": _attribute,
    "no attribute": _no_attribute,
    "link": _link,
    "group": _group,
    "add": _add,
}


def forget_peak() -> None:
    """Let the kernel's peak of this process's memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(kind: str) -> int:
    """Return the bytes of memory that this process has (VmRSS), or had at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))
