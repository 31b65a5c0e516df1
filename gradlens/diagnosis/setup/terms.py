"""Terms of a loss that leave others without effect, from the terms that were logged."""

from __future__ import annotations

import math

import numpy as np

from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.findings import Finding, exact_finding
from gradlens.diagnosis.learning import LEAST_STEPS, STANDS, Losses
from gradlens.diagnosis.recorded_rows import UNSEEN_DATA, Recording, words_of

POSTERIOR = "the KL term dominates (posterior collapse)"
NO_NATS = 0.05
"""A divergence of so many nats tells nothing about an example."""
SUMMED = 500
"""A divergence may be summed over a batch: it is gone where so small a part is left of it. No outside source."""
FALLEN, OF_MEAN = 100, 0.9
"""A divergence of which a hundredth is left is gone where the reconstruction is about as wrong as the mean of all data:
its error is nine tenths of their variance. No outside source."""
OUTWEIGHED = 1e-3
"""Share of a loss below which one of its terms has next to no say; no outside source."""
SMALL_TERMS = {
    "kl", "kld", "reg", "regularisation", "regularization", "l1", "l2", "wd", "decay", "penalty", "aux", "balance",
    "entropy", "commit", "commitment", "sparsity", "tv", "smoothness", "gp",
}  # fmt: skip
"""Words in names of terms that are to stay small."""
RECONSTRUCTIONS = {"recon", "rec", "recons", "reconstruction", "bce", "mse", "nll"}
OTHER_KL = {"policy", "reward", "return", "value", "student", "teacher", "distill", "kd"}
"""Words of trainings whose divergence is to become small."""


def collapsed_posterior(rec: Recording) -> list[Finding]:
    """Find a variational model that ignores its latent variables: a logged KL near 0, and an error that stays."""
    logged = dict.fromkeys([*rec.run.scalars, *rec.run.epochs])
    words = {name: words_of(name) for name in logged if UNSEEN_DATA.isdisjoint(words_of(name))}
    divergences = [name for name in words if words[name] & {"kl", "kld"}]
    errors = [name for name in words if words[name] & RECONSTRUCTIONS and name not in divergences]
    if len(divergences) != 1 or not errors or any(words[name] & OTHER_KL for name in words):
        return []
    name = divergences[0]
    kl, error = rec.logged(name), rec.logged(errors[0])
    part = len(kl) // 5
    if part < 2 or len(error) != len(kl):
        return []
    late, largest = median_of_all(kl[-part:]), float(kl.max())
    before, after = median_of_all(error[part : 2 * part]), median_of_all(error[-part:])
    stands = abs(before - after) < STANDS * abs(median_of_all(error))
    gone = late < NO_NATS and late < largest / 10
    gone |= late < largest / FALLEN and median_of_all(error[-part:]) > OF_MEAN * _variance(rec)
    if not (stands and late >= 0 and (gone or late < largest / SUMMED)):
        return []
    return [
        exact_finding(
            "setup",
            (),
            (int(rec.run.steps[0]), rec.last_step),
            f"{name} falls from {largest:.3g} to {late:.2g}, and the reconstruction stays at {float(error[-1]):.3g}: "
            "the latent variables carry nothing (posterior collapse), so that every output is about the same",
            "Sum the reconstruction over the elements of an example as the KL is summed over its latent variables (or "
            "give the KL a weight well below 1), and let that weight grow from 0 over the first epochs.",
            POSTERIOR,
        )
    ]


def _variance(rec: Recording) -> float:
    """Return the variance of the targets of a mean squared error; NaN where there is none, or more than one."""
    graph = rec.setup.graph
    losses = [item for item in graph.entries("losses") if item.text("op") == "MseLoss"]
    targets = [item for item in graph.entries("targets") if item.text("op") == "MseLoss"]
    if len(losses) != 1 or losses[0].text("reduction") != "mean" or not targets:
        return math.nan
    return float(np.mean([item.number("rms") ** 2 - item.number("mean") ** 2 for item in targets]))


def outweighed(rec: Recording) -> list[Finding]:
    """Find a logged term of the loss that does not fall beside another one that is a thousand times larger."""
    names = [name for name in rec.run.scalars if name != "loss" and "loss" in words_of(name)]
    names = [name for name in names if UNSEEN_DATA.isdisjoint(words_of(name))]
    table = np.array([rec.scalar(name) for name in ("loss", *names) if len(rec.scalar(name))])
    if len(names) < 2 or len(table) != len(names) + 1:
        return []
    table = table[:, np.isfinite(table).all(axis=0)]
    if table.shape[1] < LEAST_STEPS or not np.allclose(table[1:].sum(axis=0), table[0], rtol=1e-3, atol=0):
        return []
    total = np.abs(table[0])
    shares = {
        name: float((np.abs(row) / np.maximum(total, 1e-30)).max()) for name, row in zip(names, table[1:], strict=True)
    }
    largest = max(shares, key=lambda name: shares[name])
    for name, values in zip(names, table[1:], strict=True):
        losses = Losses(values)
        if shares[name] > OUTWEIGHED or losses.falls or words_of(name) & SMALL_TERMS or not values.min() > 0:
            continue
        return [
            exact_finding(
                "setup",
                (),
                (int(rec.run.steps[0]), rec.last_step),
                f"{name} goes from {losses.first:.3g} to {losses.last:.3g} and is never more than "
                f"{shares[name]:.1g} of the loss: {largest} dominates it, and decides on what the layers learn that "
                "both share",
                f"Bring the terms to about the same size: scale the targets of {largest} to mean 0 and standard "
                f"deviation 1, or multiply it by a weight (about {median_of_all(values / total):.1g}), and set the "
                "learning rate anew.",
                "one term of the loss dominates the others",
            )
        ]
    return []
