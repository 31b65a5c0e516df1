"""The largest relative error of every metric, over all layers and rows: torchvision's models and the zoo of the tests.

The truth is found on an independent copy, with a zero added to each layer's output (a probe), whose gradient autograd
gives; its norms are taken in float64.

    python experiments/accuracy/models.py            # all, a few minutes
    python experiments/accuracy/models.py resnet18 vit
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.recorder.against_truth import largest_errors, record_case
from tests.recorder.case import Case
from tests.recorder.torchvision_zoo import QUICK, SLOW
from tests.recorder.zoo import ZOO

METRICS = ("activation_grad_norm", "param_grad_norm", "param_norm", "update_ratio", "nonfinite_count")
STEPS = 3


def print_table(title: str, cases: Mapping[str, Case]) -> None:
    """Print a table in Markdown, a line as soon as it is known."""
    if not cases:
        return
    print(f"\n### {title}\n\n| model | layers | {' | '.join(METRICS)} |\n|---|---:|{'---:|' * len(METRICS)}")
    for name, case in cases.items():
        started = time.perf_counter()
        sink, truths = record_case(case, STEPS)
        errors = largest_errors(case, sink, truths)
        assert sink.header is not None
        numbers = [f"{errors[metric]:.0e}" if errors[metric] else "0" for metric in METRICS]
        print(f"| {name} | {len(sink.header.layers)} | {' | '.join(numbers)} |", flush=True)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


def main() -> None:
    """Record and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of the names of the cases; all if left out")
    wanted = parser.parse_args().names
    warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {platform.machine()}, {STEPS} steps")
    for title, cases in (("torchvision", {**QUICK, **SLOW}), ("zoo", ZOO)):
        chosen = {name: case for name, case in cases.items() if not wanted or any(word in name for word in wanted)}
        print_table(title, chosen)


if __name__ == "__main__":
    main()
