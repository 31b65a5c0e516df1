"""Measure each arm before training, as the plan says: size, growth and direction of the gradient, forward identity.

    python experiments/interventions/start.py RUNS -o experiments/results/interventions-start.csv

Size and growth are read from the first row of a run, direction from its first ten rows; the forward identity is that
of the run's model before training, on noise in place of images.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.interventions.arms import ARMS, EXPLANATIONS, arm_of
from gradlens.analysis.gradient_ratio import gradient_ratio
from gradlens.analysis.profile import layer_values
from gradlens.atomic import whole_file
from gradlens.models import build_model
from gradlens.models.blocks import Block
from gradlens.run import Run
from gradlens.storage import read_runs
from gradlens.study.study_run import StudyRun

FIRST_ROWS = 10
IMAGES = 16


def forward_identity(model: nn.Module, side: int) -> float:
    """Return how much of the signal passes the shortcuts: the product over blocks of their share of the mean square.

    Args:
        model: A plain or residual model.
        side: Height and width of the images in pixels.

    Returns:
        From 0 (no shortcut passes a value) to 1 (the model is its shortcuts); each factor is cut at 1.
    """
    product = 1.0

    def measure(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal product
        assert isinstance(block, Block)
        (x,) = inputs
        if not block.residual or block.carries == "gradient":
            product = 0.0
            return
        branch = block.bn2(block.conv2(block.activation(block.bn1(block.conv1(x)))))
        branch = branch if block.alpha is None else branch * block.alpha
        value = x if block.downsample is None else block.downsample(x)
        product *= min(float(value.square().mean() / (branch + value).square().mean()), 1.0)

    hooks = [block.register_forward_hook(measure) for block in model.modules() if isinstance(block, Block)]
    with torch.no_grad():
        model.train()(torch.randn(IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0)))
    for hook in hooks:
        hook.remove()
    return product


def measure_run(run: Run) -> dict[str, float]:
    """Return the value of each explanation for a run."""
    ratio = gradient_ratio(run)
    decades = math.nan if ratio is None else float(ratio.decades[0, 0])
    cosines = layer_values(run, "batch_coherence")[:FIRST_ROWS]
    config = run.config
    model = build_model(run.model, num_classes=len(config["data_facts"]["classes"]), seed=run.seed, init=config["init"])
    return {
        "size": abs(decades),
        "growth": decades,
        "direction": float(np.nanmean(cosines)),
        "identity": forward_identity(model, int(config["image_size"])),
    }


def main() -> None:
    """Measure all runs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for run in read_runs(given.runs):
        arm = arm_of(StudyRun(run))
        if arm is not None:
            values = measure_run(run)
            rows.append({"arm": arm, "seed": run.seed, **{name: f"{values[name]:.6g}" for name in EXPLANATIONS}})
            print(*rows[-1].values(), flush=True)
    with whole_file(given.output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["arm", "seed", *EXPLANATIONS])
        table.writeheader()
        table.writerows(sorted(rows, key=lambda row: (row["seed"], list(ARMS.values()).index(row["arm"]))))


if __name__ == "__main__":
    main()
