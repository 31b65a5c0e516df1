"""Split images into training and validation by class, with a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def split_random(labels: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Hold out a share of each class, without regard to copies.

    Args:
        labels: (N,) class of each image.
        fraction: Share to hold out.
        seed: Seed of the random order.

    Returns:
        Indices for training and for validation, sorted.
    """
    return split_groups(labels, np.arange(len(labels)), fraction, seed)


def split_groups(labels: Indices, groups: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Hold out a share of each class, and keep each group of copies on one side.

    Groups are taken in random order; a group goes to validation if it fits into the share of its class. The share is
    therefore met to within one group. A class with at least two groups has at least one image on either side.

    Args:
        labels: (N,) class of each image.
        groups: (N,) group of each image; a group with several labels counts for the class of its first image.
        fraction: Share to hold out.
        seed: Seed of the random order.

    Returns:
        Indices for training and for validation, sorted.
    """
    rng = np.random.default_rng([seed, 20])
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    sizes = np.bincount(group_of)
    held = np.zeros(len(first), dtype=bool)
    wanted = _quotas(labels, fraction)
    for label in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels[first] == label))
        room = wanted[int(label)]
        for group in order[:-1]:  # the last group remains in training
            if sizes[group] <= room:
                held[group] = True
                room -= int(sizes[group])
        if not held[order].any() and len(order) > 1:
            held[order[np.argmin(sizes[order])]] = True
    in_val = held[group_of]
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


def _quotas(labels: Indices, fraction: float) -> dict[int, int]:
    """Return how many of each class to hold out: whole numbers that add up to the rounded total."""
    values, counts = np.unique(labels, return_counts=True)
    exact = counts * fraction
    quotas = np.maximum(np.floor(exact), 1).astype(int)
    short = round(len(labels) * fraction) - int(quotas.sum())
    for i in np.argsort(-(exact - np.floor(exact)))[: max(short, 0)]:
        quotas[i] += 1
    return {int(value): int(quota) for value, quota in zip(values, quotas, strict=True)}
