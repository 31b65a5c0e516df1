"""What ``gradlens watch`` costs: its share of a core while a run grows, and what it sends to the terminal.

A process writes a run at a steady pace; another shows it in a pseudo-terminal whose output is read at once. The time
on the processor comes from /proc, so this needs Linux.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import numpy as np

from gradlens.run import Header, Layer, Row
from gradlens.storage import FileSink

RHYTHM = {"activation_grad_norm": 1, "param_grad_norm": 1, "param_norm": 25, "update_ratio": 25}
TICK = os.sysconf("SC_CLK_TCK")
EPOCH = 5000


def write(path: str, rate: float, layers: int, seconds: float) -> None:
    """Write a run of noisy norms, at a given number of rows per second."""
    table = tuple(Layer(f"stage{i // 10}.{i % 10}", "Conv2d", "main", i + 1, 100 * (i + 1), 9) for i in range(layers))
    sink = FileSink(path, overwrite=True)
    sink.open(Header(table, RHYTHM, model="net", seed=0))
    rng, depth = np.random.default_rng(0), np.linspace(-2, 0, layers)
    began, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        for step in range(done, int(passed * rate)):
            norms = 10 ** (depth + 0.2 * rng.standard_normal(layers) - step / 1e6)
            metrics = {"activation_grad_norm": norms, "param_grad_norm": 2 * norms}
            if step % 25 == 0:
                metrics |= {"param_norm": np.ones(layers), "update_ratio": np.full(layers, 1e-3)}
            loss = 2 / (1 + step / 5000) + 0.1 * rng.random()
            sink.write_row(Row(step, step // EPOCH, metrics, {"loss": loss, "lr": 0.1}))
            if (step + 1) % EPOCH == 0:
                number = (step + 1) // EPOCH
                share = number / (number + 1)
                sink.write_epoch({"epoch": number, "train_loss": 1 - share, "train_accuracy": share,
                                  "val_loss": 1.1 - share, "val_accuracy": 0.9 * share})  # fmt: skip
        done = int(passed * rate)
        time.sleep(0.02)
    sink.close("complete")


def cpu_seconds(pid: int) -> float:
    """Return the time on the processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


class Shown:
    """A program in a pseudo-terminal with a given number of columns and lines, whose output is counted."""

    def __init__(self, command: list[str], columns: int, lines: int) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
        os.close(slave)
        self.bytes = self.pictures = 0

    def drain(self, seconds: float) -> None:
        """Read for a given time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.master], [], [], left)[0]:
                try:
                    data = os.read(self.master, 1 << 16)
                except OSError:  # it has ended
                    return
                self.bytes += len(data)
                self.pictures += data.count(b"\x1b[?2026h")

    def press(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.master, keys)

    def leave(self) -> int:
        """Press q, and return the exit code."""
        self.press(b"q")
        self.drain(2.0)
        return self.process.wait(10)


def measure(columns: int, lines: int, options: argparse.Namespace) -> dict[str, object]:
    """Watch a run in a window of one size."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net-s0.h5"
        total = options.warmup + options.windows * options.seconds + 3
        arguments = [str(path), str(options.rate), str(options.layers), str(total)]
        writer = subprocess.Popen([sys.executable, __file__, "--write", *arguments])
        while not path.exists():
            time.sleep(0.05)
        shown = Shown([sys.executable, "-m", "gradlens", "watch", str(path), *options.options], columns, lines)
        shown.drain(options.warmup)
        start, shares, sent = cpu_seconds(shown.process.pid), [], []
        shown.press(options.keys.encode())
        for _ in range(options.windows):
            before, bytes_before, at = cpu_seconds(shown.process.pid), shown.bytes, time.perf_counter()
            shown.drain(options.seconds)
            passed = time.perf_counter() - at
            shares.append(100 * (cpu_seconds(shown.process.pid) - before) / passed)
            sent.append((shown.bytes - bytes_before) / passed)
        pictures = shown.pictures / (options.warmup + options.windows * options.seconds)
        code = shown.leave()
        writer.wait()
    return {
        "window": f"{columns}x{lines}",
        "percent": [round(share, 2) for share in shares],
        "median_percent": round(statistics.median(shares), 2),
        "mean_percent": round(statistics.mean(shares), 2),
        "start_s": round(start, 2),
        "kilobytes_per_s": round(statistics.median(sent) / 1000, 2),
        "pictures_per_s": round(pictures, 2),
        "exit_code": code,
    }


def main() -> None:
    """Measure, print a table, and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=1000, help="rows a second")
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--windows", type=int, default=12, help="time windows")
    parser.add_argument("--seconds", type=float, default=10, help="of each")
    parser.add_argument("--warmup", type=float, default=10, help="seconds before, among them the start")
    parser.add_argument("--sizes", nargs="+", default=["80x24", "160x48"])
    parser.add_argument("--keys", default="", help="pressed after the warm-up, r for the next range")
    parser.add_argument("--json", type=Path)
    parser.add_argument("options", nargs="*", help="of gradlens watch")
    options = parser.parse_args()
    found = []
    for size in options.sizes:
        columns, lines = map(int, size.split("x"))
        one = measure(columns, lines, options)
        found.append(one)
        shares = one["percent"]
        print(
            f"{size}: {one['median_percent']} % of a core (median of {len(shares)} windows of {options.seconds:.0f} s; "
            f"{min(shares)} to {max(shares)}; mean {one['mean_percent']}), start {one['start_s']} s, "
            f"{one['pictures_per_s']} pictures/s, "
            f"{one['kilobytes_per_s']} kB/s",
            flush=True,
        )
    if options.json:
        about = {"python": platform.python_version(), "processor": processor(), "cores": os.cpu_count()}
        settings = {name: getattr(options, name) for name in ("rate", "layers", "seconds", "warmup", "keys")}
        options.json.write_text(json.dumps({"about": about, "settings": settings, "found": found}, indent=2) + "\n")


def processor() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
    else:
        main()
