"""A generator's loss without a slope: the one of the minimax game."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.gradient_ratio import FIRST_ROWS
from gradlens.analysis.stats import median, median_of_all
from gradlens.diagnosis.findings import Finding, say_layers
from gradlens.diagnosis.recorded_rows import PARAM_GRAD, Recording
from gradlens.diagnosis.setup.setup_findings import setup_finding

SATURATED = 0.02
"""Share of the first gradients below which a generator hardly learns any more; no outside source."""


def minimax(rec: Recording) -> list[Finding]:
    """Find a generator whose loss log(1 - D(G(z))) has hardly a slope left, because the discriminator rejects all."""
    games = rec.setup.graph.entries("minimax")
    if not games or not rec.has(PARAM_GRAD):
        return []
    values = rec.series(PARAM_GRAD).values
    order = {layer.name: i for i, layer in enumerate(rec.run.layers)}
    for item in rec.setup.entries("optimizers"):
        names = [name for group in item.entries("groups") for name in group.texts("layers") if name in order]
        if any(game.text("behind") in names for game in games):
            continue  # the discriminator's
        columns = values[:, [order[name] for name in dict.fromkeys(names)]]
        if not columns.size or len(columns) < 3 * FIRST_ROWS:
            continue
        first, last = median(columns[:FIRST_ROWS], axis=0), median(columns[-(len(columns) // 5) :], axis=0)
        left = median_of_all(np.where(first > 0, last / np.maximum(first, np.finfo(float).tiny), 1.0))
        if left < SATURATED:
            layers = tuple(dict.fromkeys(names))
            return [
                setup_finding(
                    rec,
                    games[0],
                    f"the gradients of {say_layers(layers)} fall to {left:.1g} of those in the first rows, and a loss "
                    "is the mean of log(1 - sigmoid(...)): where the discriminator is sure that its input is made "
                    "(D near 0), this loss of a generator has no slope",
                    "Use the non-saturating loss for the generator: minimise -log(D(G(z))), that is binary cross "
                    "entropy of D(G(z)) with targets of 1; or train the discriminator more slowly.",
                    "the generator's loss is saturated",
                    layers,
                )
            ]
    return []
