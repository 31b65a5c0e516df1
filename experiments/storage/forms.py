"""Forms that a finished run's numbers could have in HDF5: size, cost of writing, cost of reading.

    python experiments/storage/forms.py runs/plain34-s0.h5 runs/resnet34-s0.h5

Each form holds the gradient norms of real runs (see ``long.py``), 65,536 rows of 68 layers, none of them NaN. Medians
of three rounds, all forms in turn; processor time of one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from long import real_rows

from gradlens.storage.packing import deflate

ROWS, LAYERS = 65536, 68
LIKE_GZIP = {"shuffle": True, "compression": "gzip", "compression_opts": 1}
CHUNKS = ((64, 68), (512, 68), (1024, 68), (4096, 68), (4096, 8), (1024, 1))


def with_filters(**filters: object) -> Callable[[h5py.File, np.ndarray, tuple[int, int]], None]:
    """Write through HDF5's own filters, a chunk's rows at a time."""

    def write(file: h5py.File, values: np.ndarray, chunks: tuple[int, int]) -> None:
        dataset = file.create_dataset("x", values.shape, np.float32, chunks=chunks, **filters)
        for start in range(0, len(values), chunks[0]):
            dataset[start : start + chunks[0]] = values[start : start + chunks[0]]

    return write


def packed(file: h5py.File, values: np.ndarray, chunks: tuple[int, int]) -> None:
    """Write as ``gradlens.storage.packing`` does: run-length matching, chunks handed to HDF5 as they are."""
    dataset = file.create_dataset("x", values.shape, np.float32, chunks=chunks, **LIKE_GZIP)
    for i in range(0, values.shape[0], chunks[0]):
        for j in range(0, values.shape[1], chunks[1]):
            part = np.full(chunks, np.nan, dtype=np.float32)
            cut = values[i : i + chunks[0], j : j + chunks[1]]
            part[: cut.shape[0], : cut.shape[1]] = cut
            dataset.id.write_direct_chunk((i, j), deflate(part))


WAYS = {
    "as it is": with_filters(),
    "shuffle, gzip 1": with_filters(**LIKE_GZIP),
    "shuffle, gzip 4": with_filters(**{**LIKE_GZIP, "compression_opts": 4}),
    "gzip 1 without shuffle": with_filters(compression="gzip", compression_opts=1),
    "shuffle, gzip 1, fletcher32": with_filters(**LIKE_GZIP, fletcher32=True),
    "packed (shuffle, zlib's Z_RLE)": packed,
}


def measure(path: Path, write: Callable, values: np.ndarray, chunks: tuple[int, int]) -> dict[str, float]:
    """Write and read once."""
    begin = time.process_time()
    with h5py.File(path, "w", libver="latest") as file:
        write(file, values, chunks)
    written = time.process_time() - begin
    with h5py.File(path, "r") as file:
        begin = time.process_time()
        assert np.array_equal(file["x"][:], values)
        read = time.process_time() - begin
        begin = time.process_time()
        for start in range(1000, 21000, 1000):
            file["x"][start : start + 64]
        some = (time.process_time() - begin) / 20
    return {
        "bytes_per_number": path.stat().st_size / values.size,
        "write_mb_s": values.nbytes / 1e6 / written,
        "read_mb_s": values.nbytes / 1e6 / read,
        "read_64_rows_ms": some * 1e3,
    }


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Round to so many bits of mantissa: what a smaller file would cost in precision."""
    raw = values.view(np.uint32).astype(np.uint64)
    step = 1 << (23 - bits)
    return ((raw + step // 2) // step * step).astype(np.uint32).view(np.float32)


def main() -> None:
    """Measure all forms, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    real = real_rows(options.runs, LAYERS)["activation_grad_norm"]
    rng = np.random.default_rng(0)
    values = (np.resize(real, (ROWS, LAYERS)) * rng.normal(1, 1e-3, (ROWS, LAYERS))).astype(np.float32)
    found: dict[tuple[str, tuple[int, int]], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(3):
            for name, write in WAYS.items():
                for chunks in CHUNKS if name.startswith(("packed", "as")) else CHUNKS[:4]:
                    found.setdefault((name, chunks), []).append(measure(Path(folder) / "x.h5", write, values, chunks))
    print("| form | chunk, rows x layers | bytes per number | write MB/s | read MB/s | 64 rows, ms |")
    print("|---|---|---|---|---|---|")
    rows = []
    for (name, chunks), runs in found.items():
        row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        rows.append({"form": name, "chunk": chunks, **row})
        cells = [f"{row['bytes_per_number']:.2f}", *(f"{row[key]:.0f}" for key in ("write_mb_s", "read_mb_s"))]
        print(f"| {name} | {chunks[0]} x {chunks[1]} | {' | '.join(cells)} | {row['read_64_rows_ms']:.1f} |")
    for bits in (23, 20, 19, 16):
        size = len(deflate(rounded(values[:4096], bits))) / values[:4096].size
        print(f"{bits} bits of mantissa (relative error {2.0 ** -(bits + 1):.0e}): {size:.2f} bytes per number")
    best = (
        len(zlib.compress(np.ascontiguousarray(values[:4096].view(np.uint8).reshape(-1, 4).T), 9)) / values[:4096].size
    )
    print(f"zlib at its slowest: {best:.2f}")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
