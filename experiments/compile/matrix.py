"""What of torch.compile works with the recorder, from real runs: way x backend x metric.

python experiments/compile/matrix.py                     # all, some minutes
python experiments/compile/matrix.py --backends eager aot_eager --ways fullgraph
"""

from __future__ import annotations

import argparse
import logging
import platform
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.recorder.compile_ways import WAYS, Outcome, run_way

BACKENDS = ("eager", "aot_eager", "inductor")


def describe(outcome: Outcome, metrics: tuple[str, ...]) -> str:
    """Describe the outcome of these metrics in a few words."""
    present = [metric for metric in metrics if metric in outcome.missing]
    if not present:
        return "not asked for"
    error = max((outcome.errors.get(metric, 0.0) for metric in present), default=0.0)
    gone = [outcome.missing[metric] for metric in present if outcome.missing[metric]]
    if -1 in gone:
        return f"**{len(outcome.sink.rows)} rows**"
    text = f"exact ({error:.0e})" if error < 1e-4 else f"**WRONG ({error:.0e})**"
    if gone:
        text = f"{sum(gone)} missing, {'said' if outcome.said else '**NOT SAID**'}" + (
            "; else " + text if error else ""
        )
    return text


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="*", default=BACKENDS)
    parser.add_argument("--ways", nargs="*", help="parts of names; all if left out")
    arguments = parser.parse_args()
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    print(f"torch {torch.__version__}, {platform.machine()}, CPU\n")
    print("| way | backend | activation gradients | parameters | said |\n|---|---|---|---|---|")
    for name, way in WAYS.items():
        if arguments.ways and not any(word in name for word in arguments.ways):
            continue
        for backend in arguments.backends:
            try:
                outcome = run_way(way, backend)
            except Exception as error:
                print(
                    f"| {name} | {backend} | **{type(error).__name__}: {str(error).splitlines()[0]}** | | |", flush=True
                )
                continue
            activation = describe(outcome, ("activation_grad_norm",))
            rest = describe(outcome, ("param_grad_norm", "param_norm", "update_ratio", "nonfinite_count"))
            said = "; ".join(outcome.sink.notes)
            print(f"| {name} | {backend} | {activation} | {rest} | {said} |", flush=True)


if __name__ == "__main__":
    main()
