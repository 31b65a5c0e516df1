"""Split pictures into training and validation, class by class, by seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def split_random(labels: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Hold out a share of each class, copies or not.

    Args:
        labels: (N,) class of each picture.
        fraction: Share to hold out.
        seed: Of the draw.

    Returns:
        Indices for training and for validation, sorted.
    """
    return split_groups(labels, np.arange(len(labels)), fraction, seed)


def split_groups(labels: Indices, groups: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Hold out a share of each class, keeping each group of copies on one side.

    Groups are drawn in random order, and each goes to validation while its class has room there; so the share is met
    to within one group. Each class keeps at least one picture on either side where it has two groups.

    Args:
        labels: (N,) class of each picture.
        groups: (N,) group of each picture; a group with several labels counts for its first picture's.
        fraction: Share to hold out.
        seed: Of the draw.

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
        for group in order[:-1]:  # the last one stays in training
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
