"""Record the first steps of plain34 without batch norm, step by step, and keep what shows which signal goes first.

The settings of the groups are those of ``experiments/collapse.toml``; the group ``size-free`` is added here, because
Adam's ``eps`` is no setting of ``gradlens run``. The values of a step are those before its update.

    python experiments/collapse/measure.py --seeds 0-4 -o experiments/results/collapse.csv

A run whose rows are in the file already is not trained again. ``experiments/collapse/analyse.py`` reads the file.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gradlens.analysis.gradient_ratio import gradient_ratio
from gradlens.config import RunConfig
from gradlens.data import load_data, make_batches
from gradlens.experiment import read_experiment
from gradlens.models import build_model
from gradlens.recorder import record
from gradlens.specs import parse_seeds
from gradlens.storage import read_run

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
"""The horizon: so many steps of every run, whatever happens in them."""
EPS = 1e-8
"""Adam's term beside the root of the second moment; PyTorch's default."""
TINY_EPS = 1e-30
"""With this, a gradient's size does not matter to Adam as long as its square is a float32 number."""
SIZE_FREE = {"no-decay": "size-free"}
"""Group of the experiment to the group in which ``eps`` is tiny as well."""
COLUMNS = (
    "group", "seed", "step", "loss", "spread", "first_spread", "dead", "most_dead",
    "ratio", "grad_first", "grad_last", "weight_first", "update_first",
)  # fmt: skip
"""The columns of the file; see ``Watch`` and ``rows_of``."""


def relative_spread(outputs: Tensor) -> float:
    """Return the standard deviation over the batch, relative to the root mean square: 0 if no image matters.

    Args:
        outputs: (B, ...) one output per image.

    Returns:
        The root mean square over elements of their standard deviation over images, divided by the root mean square of
        the outputs; NaN if these are all 0.
    """
    flat = outputs.double().flatten(1)
    size = float(flat.square().mean().sqrt())
    return float(flat.var(dim=0, unbiased=False).mean().sqrt()) / size if size > 0 else math.nan


@dataclass
class Watch:
    """Hooks that look at the forward pass of one step.

    Args:
        model: A plain or residual model.
    """

    model: nn.Module

    def __post_init__(self) -> None:
        self.spread = self.first_spread = math.nan
        self.dead: list[float] = []
        for module in self.model.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(self._see_units)
        self.model.avgpool.register_forward_hook(self._see_features)  # type: ignore[operator, union-attr]
        self.model.conv1.register_forward_hook(self._see_first)  # type: ignore[operator, union-attr]

    def _see_first(self, module: nn.Module, inputs: object, outputs: Tensor) -> None:
        self.first_spread = relative_spread(outputs.detach())
        self.dead = []

    def _see_units(self, module: nn.Module, inputs: object, outputs: Tensor) -> None:
        self.dead.append(float((outputs.detach().amax(dim=(0, 2, 3)) == 0).double().mean()))

    def _see_features(self, module: nn.Module, inputs: object, outputs: Tensor) -> None:
        self.spread = relative_spread(outputs.detach())

    def scalars(self) -> dict[str, float]:
        """Return spread of the pooled features and of the first layer's output; mean and largest share of channels
        of a layer that are 0 for every image and place of the batch.
        """
        return {
            "spread": self.spread,
            "first_spread": self.first_spread,
            "dead": float(np.mean(self.dead)),
            "most_dead": max(self.dead),
        }


def measure(config: RunConfig, path: Path, *, eps: float = EPS, steps: int = STEPS) -> None:
    """Train the first steps of a run and record every one of them.

    Args:
        config: The settings.
        path: The run file to write.
        eps: Adam's.
        steps: How many.
    """
    splits = load_data(config)
    batches, _ = make_batches(
        splits.train, splits.val, batch_size=config.batch_size, seed=config.seed, augment=config.augment,
        side=config.image_size, workers=0,
    )  # fmt: skip
    torch.manual_seed(config.seed)
    model = build_model(config.model, num_classes=len(splits.classes), seed=config.seed, init=config.init)  # type: ignore[arg-type]
    watch = Watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, eps=eps)
    every = {"activation_grad_norm": 1, "param_grad_norm": 1, "param_norm": 1}
    first = model.get_parameter("conv1.weight")
    info = {"model": config.model, "seed": config.seed, "config": config.to_dict()}
    with record(
        model, path, optimizer=optimizer, every=every, info=info, metrics="-dead_fraction,-update_ratio"
    ) as recorder:
        done, epoch = 0, 0
        while done < steps:
            epoch += 1
            for images, labels in batches.epoch(epoch):
                loss = cross_entropy(model(images), labels, label_smoothing=config.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                before = first.detach().clone()
                optimizer.step()
                update = float((first.detach() - before).double().square().mean().sqrt())
                recorder.log(loss=loss, update_first=update, **watch.scalars())
                done += 1
                if done == steps:
                    break


def rows_of(path: Path, group: str, seed: int) -> list[dict[str, str]]:
    """Return the rows of a run for the file.

    ``ratio``, ``grad_first`` and ``grad_last`` are log10: the gradient's norm at the first layer's output over that at
    the last hidden one's, the root mean square of the gradient of the first layer's parameters, and that of the last
    hidden layer's. ``weight_first`` is log10 of the root mean square of the first layer's parameters, ``update_first``
    that of their update.

    Args:
        path: The run file.
        group: The group's name.
        seed: The seed.
    """
    run = read_run(path)
    ratio = gradient_ratio(run)
    decades = np.full(len(run.steps), np.nan)
    first, last = 0, len(run.layers) - 2
    if ratio is not None:
        decades[ratio.rows] = ratio.decades[:, 0]
        first, last = int(ratio.indices[0]), int(ratio.indices[-2])
    elements = np.sqrt([layer.param_numel for layer in run.layers])
    with np.errstate(divide="ignore", invalid="ignore"):
        grads = np.log10(np.asarray(run.metric("param_grad_norm"), dtype=np.float64) / elements)
        weights = np.log10(np.asarray(run.metric("param_norm"), dtype=np.float64) / elements)
        updates = np.log10(np.asarray(run.scalars["update_first"], dtype=np.float64))
    columns = {
        **{name: np.asarray(run.scalars[name]) for name in ("loss", "spread", "first_spread", "dead", "most_dead")},
        "ratio": decades,
        "grad_first": grads[:, first],
        "grad_last": grads[:, last],
        "weight_first": weights[:, first],
        "update_first": updates,
    }
    found = []
    for i, step in enumerate(run.steps):
        numbers = {name: f"{float(values[i]):.6g}" for name, values in columns.items()}
        found.append({"group": group, "seed": str(seed), "step": str(int(step)), **numbers})
    return found


def planned(data: str, seeds: tuple[int, ...], groups: list[str]) -> list[tuple[str, RunConfig, float]]:
    """Return name, settings and ``eps`` of every run, seed by seed, so that the list may end after any seed."""
    experiment = read_experiment(ROOT / "experiments" / "collapse.toml")
    found = []
    for planned_run in experiment.plan(Path("runs"), {"data": data}, seeds):
        name = planned_run.label.split("/")[0]
        found.append((name, planned_run.config, EPS))
        if name in SIZE_FREE:
            found.append((SIZE_FREE[name], planned_run.config, TINY_EPS))
    found = [one for one in found if not groups or one[0] in groups]
    return sorted(found, key=lambda one: seeds.index(one[1].seed))


def main() -> None:
    """Train what is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--groups", default="", help="some of the groups, separated by commas; default: all")
    parser.add_argument("--data", default="patterns")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "experiments" / "results" / "collapse.csv")
    given = parser.parse_args()
    there: set[tuple[str, str]] = set()
    if given.output.exists():
        with given.output.open(newline="") as file:
            there = {(row["group"], row["seed"]) for row in csv.DictReader(file)}
    else:
        given.output.write_text(",".join(COLUMNS) + "\n")
    for name, config, eps in planned(
        given.data, parse_seeds(given.seeds), [one for one in given.groups.split(",") if one]
    ):
        if (name, str(config.seed)) in there:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.h5"
            measure(config, path, eps=eps, steps=given.steps)
            rows = rows_of(path, name, config.seed)
        with given.output.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(rows)
        print(f"{name} seed {config.seed}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
