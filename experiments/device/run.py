"""Measure gradlens on a GPU: correctness, cost, and runs of the study, within a few minutes.

    PYTHONPATH=. python3 -m experiments.device                        # everything, eight minutes at most
    PYTHONPATH=. python3 -m experiments.device --device cpu --quick   # what can be tried without a GPU

``README.md`` in this folder says what is measured and how to read the results.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from experiments.device import child
from experiments.device.checks import ERROR, FAIL, FOLDER, SKIPPED, Found, Part, describe_error, write_json
from experiments.device.tables import write_tables

MINUTES = 8.0
CLOSING_SECONDS = 12.0
"""Kept free at the end: to end a part that is over its time, and to write what was found."""


@dataclass(frozen=True)
class Plan:
    """When a part is done, and for how long.

    Args:
        name: Of the part.
        module: In this folder; its ``measure`` is called with the part and the argument, if there is one.
        least: Seconds without which the part is not begun.
        most: Seconds that it may take when there are eight minutes; None: all that are left.
        argument: See ``module``.
        alone: Whether it gets a process of its own, so that neither a crash nor a hang ends the others.
    """

    name: str
    module: str
    least: float
    most: float | None
    argument: str | None = None
    alone: bool = True

    def measure(self, part: Part) -> None:
        """Run the part in this process."""
        module = importlib.import_module(f"experiments.device.{self.module}")
        module.measure(part, *(() if self.argument is None else (self.argument,)))


PLANS = {
    plan.name: plan
    for plan in (
        Plan("machine", "machine", 0, 20, alone=False),
        Plan("waits", "waits", 20, 60),
        Plan("values", "values", 20, 80),
        Plan("streams", "streams", 15, 30),
        Plan("graphs", "graphs", 15, 30),
        Plan("cost-resnet34", "cost", 35, 70, "resnet34"),
        Plan("cost-gpt", "cost", 40, 80, "gpt"),
        Plan("cost-mlp", "cost", 30, 45, "mlp"),
        Plan("compile", "compiled", 50, 110),
        Plan("study", "study", 50, None, alone=False),
    )
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m experiments.device", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="JSON file (default: device.json in $OUT, else in results/)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"time for everything ({MINUTES:g})")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cuda where there is a GPU, else cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes and few steps: to try the script")
    parser.add_argument("--part", nargs="+", choices=PLANS, metavar="PART", help=f"of {', '.join(PLANS)} (all)")
    parser.add_argument("--alone", action="store_true", help="a process for each part on the CPU too")
    parser.add_argument("--data", help="for the study: as in gradlens run --data")
    parser.add_argument("--study", type=Path, default=FOLDER / "study.txt", help="the list of the study's runs")
    child.add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error("--minutes must be above 0")
    if options.device is None:
        options.device = "cuda" if _has_gpu() else "cpu"
    elif options.device == "cuda" and not _has_gpu():
        parser.error("--device cuda: torch sees no GPU here")
    folder = Path(os.environ["OUT"]) if os.environ.get("OUT") else FOLDER / "results"
    options.output = options.output or folder / "device.json"
    return options


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)


class Script:
    """The whole script: its time, its parts and its file.

    Args:
        options: The parsed command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._began = time.time()
        self._end = self._began + 60 * options.minutes
        self.found: Found = {
            "format": "gradlens device 1",
            "command": shlex.join(["python3", "-m", "experiments.device", *sys.argv[1:]]),
            "device": options.device,
            "quick": options.quick,
            "minutes": options.minutes,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
            "status": "running",
            "parts": [],
        }

    def run(self) -> None:
        """Run all chosen parts, in order."""
        for name in self._options.part or PLANS:
            self._do(PLANS[name])
        self.found["status"] = "complete"
        self.save()

    def save(self) -> None:
        """Write what was found so far."""
        self.found["seconds"] = round(time.time() - self._began, 1)
        write_json(self._options.output, self.found)

    def _do(self, plan: Plan) -> None:
        began = time.time()
        left = self._end - CLOSING_SECONDS - began
        found: Found = {"part": plan.name, "status": "running"}
        self.found["parts"].append(found)
        least = 0 if self._options.quick else plan.least
        if left < least:
            found |= {"status": SKIPPED, "reason": f"{max(left, 0):.0f} s left, needs {least:.0f} s"}
        else:
            most = left if plan.most is None else min(left, plan.most * self._options.minutes / MINUTES)
            self._measure(plan, found, began + most)
        found["seconds"] = round(time.time() - began, 1)
        self.save()
        print(f"{plan.name}: {found['status']}, {found['seconds']:.0f} s", file=sys.stderr, flush=True)

    def _measure(self, plan: Plan, found: Found, deadline: float) -> None:
        def take(values: Found) -> None:
            found.pop("in_progress", None)
            found.update(values)
            self.save()

        if plan.alone and (self._options.device == "cuda" or self._options.alone):
            found |= child.run(plan.name, self._options, deadline, take)
        else:
            found |= do_part(plan, make_part(self._options, deadline, take))


def make_part(options: argparse.Namespace, deadline: float, save: Callable[[Found], None]) -> Part:
    """Return a part that measures with the options of the command line."""
    more: dict[str, Any] = {"data": options.data, "study": options.study, "folder": options.output.parent}
    return Part(options.device, quick=options.quick, deadline=deadline, save=save, options=more)


def do_part(plan: Plan, part: Part) -> Found:
    """Run a part in this process, and return how it ended; an error ends the part and not the script."""
    try:
        plan.measure(part)
    except Exception as error:
        return describe_error(error) | {"status": "failed"}
    return {"status": "done"}


def is_right(found: Found) -> bool:
    """Return whether nothing failed."""
    bad = [part for part in found["parts"] if part["status"] in ("failed", "killed")]
    return not bad and all(check["status"] not in (FAIL, ERROR) for part in found["parts"] for check in checks_of(part))


def checks_of(part: Found) -> list[Found]:
    """Return the checks of a part."""
    checks: list[Found] = part.get("checks", [])
    return checks


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(arguments: list[str] | None = None) -> int:
    """Run everything; return 0 if nothing failed, else 1."""
    options = parse(arguments)
    if options.child:
        return child.work(options, PLANS[options.child], functools.partial(make_part, options), do_part)
    if options.quick and options.device == "cpu":
        _use_one_thread()
    before = signal.signal(signal.SIGTERM, _stop)
    script = Script(options)
    try:
        script.run()
    except BaseException as error:
        script.found["status"] = f"ended early: {type(error).__name__}"
        script.save()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        print(write_tables(script.found))
        print(options.output, file=sys.stderr)
    return 0 if is_right(script.found) else 1
