"""The same scalars in TensorBoard's event file: size, time to write, time to load.

    python experiments/storage/events.py runs/plain34-s0.h5 runs/resnet34-s0.h5 --rows 1000,10000

One scalar per layer, metric and row, as a training script writes them with ``SummaryWriter.add_scalar``; a metric that
has no value in a row is left out. Loaded as TensorBoard's own reader does, keeping everything.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from long import RHYTHM, real_rows

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
    from torch.utils.tensorboard import SummaryWriter


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--rows", default="1000,10000")
    parser.add_argument("--layers", type=int, default=200)
    options = parser.parse_args()
    real = real_rows(options.runs, options.layers)
    noise = np.random.default_rng(0).normal(1, 1e-3, (4096, options.layers))
    for rows in map(int, options.rows.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            scalars = 0
            with SummaryWriter(folder) as writer:
                for step in range(rows):
                    for name, rhythm in RHYTHM.items():
                        if step % rhythm == 0:
                            source = real[name]
                            row = source[step // rhythm % len(source)] * noise[(step * 7 + len(name)) % 4096]
                            scalars += len(row)
                            for i, value in enumerate(row):
                                writer.add_scalar(f"{name}/stage{i // 40}.{i % 40}", value, step)
            written = time.perf_counter() - begin
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
            begin = time.perf_counter()
            events = EventAccumulator(folder, size_guidance={SCALARS: 0})
            events.Reload()
            loaded = time.perf_counter() - begin
        facts = {
            "rows": rows,
            "scalars": scalars,
            "megabytes": round(size / 1e6, 1),
            "bytes_per_scalar": round(size / scalars, 1),
            "write_s": round(written, 1),
            "write_us_per_row": round(written / rows * 1e6),
            "load_s": round(loaded, 1),
        }
        print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
