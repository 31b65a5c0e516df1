"""Coherence between whole batches beside that between halves of one batch, while plain-34 and ResNet-34 train.

``grad_coherence`` compares the halves of the batch that the optimizer sees. With batch norm both halves pass through
the same means and variances, which ties them together: their gradients add up to something that the normalisation has
centred. Here the gradients of disjoint batches are compared, each with its own pass, as Balduzzi et al. 2017 and
Sankararaman et al. 2020 do; nothing of the recorder is used.

    python experiments/coherence/measure.py --data csv:photos/train.csv --json experiments/coherence/results.json
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gradlens.config import RunConfig, make_config
from gradlens.data import load_data, make_batches
from gradlens.models import build_model

MODELS = ("plain34", "resnet34", "plain34-nobn", "resnet34-nobn")
EPOCHS = (0, 1, 2, 5, 10)
BATCHES = 8
"""Disjoint batches that are compared, 28 pairs."""


def layers_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the weight of each convolution and linear layer on the main path, input first."""
    found = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return [weight for weight in found if weight.requires_grad]


def mean_cosine(gradients: list[list[Tensor]]) -> np.ndarray:
    """Return the mean cosine over pairs, for each layer, (L,)."""
    found = []
    for layer in zip(*gradients, strict=True):
        flat = [g.double().flatten() for g in layer]
        norms = [float(f.norm()) for f in flat]
        pairs = [float(flat[i] @ flat[j]) / (norms[i] * norms[j]) for i, j in combinations(range(len(flat)), 2)
                 if norms[i] > 0 and norms[j] > 0]  # fmt: skip
        found.append(np.mean(pairs) if pairs else np.nan)
    return np.array(found)


def compare(model: nn.Module, batches: list[tuple[Tensor, Tensor]], smoothing: float) -> dict[str, float]:
    """Measure a copy of the model, in training mode: what the running statistics learn is thrown away."""
    model = copy.deepcopy(model).train()
    weights = layers_of(model)
    whole, halves = [], []
    for images, labels in batches:
        losses = cross_entropy(model(images), labels, label_smoothing=smoothing, reduction="none")
        half = len(losses) // 2
        parts = [torch.autograd.grad(part.sum(), weights, retain_graph=True) for part in (losses[:half], losses[half:])]
        halves.append(mean_cosine([list(part) for part in parts]))
        whole.append([a + b for a, b in zip(*parts, strict=True)])
    between, norms = mean_cosine(whole), np.array([[float(g.double().norm()) for g in one] for one in whole])
    signal = np.array([float(torch.stack(layer).double().mean(0).norm()) for layer in zip(*whole, strict=True)])
    third = max(len(between) // 3, 1)
    return {
        "between_batches": float(np.nanmean(between)),
        "between_batches_first_third": float(np.nanmean(between[:third])),
        "between_halves": float(np.nanmean(halves)),
        "signal_share": float(np.nanmean(signal / np.maximum(norms.mean(axis=0), 1e-300))),
    }


def epochs_of(config: RunConfig) -> Iterator[tuple[int, nn.Module, list[tuple[Tensor, Tensor]]]]:
    """Train, and stop before the epochs that are asked for."""
    splits = load_data(config)
    batches, _ = make_batches(splits.train, splits.val, batch_size=config.batch_size, seed=config.seed, augment=(),
                              side=config.image_size, workers=0)  # fmt: skip
    torch.manual_seed(config.seed)
    model = build_model(config.model, num_classes=len(splits.classes), seed=config.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.1)
    for epoch in range(max(EPOCHS) + 1):
        if epoch in EPOCHS:
            some = [batch for _, batch in zip(range(BATCHES), batches.epoch(1000), strict=False)]
            yield epoch, model, some
        model.train()
        for images, labels in batches.epoch(epoch + 1):
            optimizer.zero_grad()
            cross_entropy(model(images), labels, label_smoothing=config.label_smoothing).backward()
            optimizer.step()
        scheduler.step()


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="patterns")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("| model | seed | epochs done | between batches | first third of the layers | between halves | signal |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for seed in map(int, given.seeds.split(",")):
        for name in given.models.split(","):
            config = make_config(name, "report", data=given.data, image_size=given.image_size, seed=seed)
            for epoch, model, batches in epochs_of(config):
                found = compare(model, batches, config.label_smoothing)
                rows.append({"model": name, "seed": seed, "epoch": epoch, **found})
                print(
                    f"| {name} | {seed} | {epoch} | " + " | ".join(f"{v:.4f}" for v in found.values()) + " |",
                    flush=True,
                )
    if given.json:
        about = {"torch": torch.__version__, "image_size": given.image_size, "batches": BATCHES, "rows": rows}
        given.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
