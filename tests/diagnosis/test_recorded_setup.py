"""The facts of a stranger's file are data: whatever they hold, the diagnosis ends with a verdict and prints it."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gradlens import diagnose_arrays
from gradlens.diagnosis.recorded_setup import Entry, Setup
from tests.diagnosis.recordings import LAYERS, ROWS, arrays, facts, state

JUNK = (
    None,
    True,
    -1,
    0,
    1e308,
    math.inf,
    math.nan,
    "",
    "\x1b[31m",
    "x" * 10_000,
    [],
    [[]],
    [None, 1, "a"],
    {},
    {"a": []},
)


def full() -> dict[str, Any]:
    """Return facts with an entry in every list."""
    layers = [f"layer{i + 1}" for i in range(LAYERS)]
    where = {"op": "Softmax", "loss": "LogSoftmax", "layer": "layer8", "since": 1}
    return facts(
        parameters=[
            state(layers[:4]),
            state(layers[4:5], gradient="cleared"),
            state(layers[5:6], requires_grad=False, gradient="none", seen=["none"]),
            state(layers[6:], optimizer=None, gradient="kept", seen=["kept"]),
        ],
        modes=[{"mode": "eval", "layers": ["norm"], "kinds": ["BatchNorm1d"], "since": 3, "seen": ["eval", "train"]}],
        batch_norm=[{"layer": "norm", "momentum": 0, "tracks": True, "mean_distance": 2.0, "variance_ratio": 0.1}],
        clipping=[
            {"when": when, "max_norm": 0.1, "total_norm": [1, 2, 3], "coefficient": [0.01, 0.02, 0.03], "first_step": 0}
            for when in ("before_step", "after_step", "scaled")
        ],
        scaling={"scaler_seen": True, "scaler_given": False, "scale": 65536.0, "since": 0},
        changed_outside=[{"layers": layers[7:], "count": 1}],
        copies=[{"layer": "layer6", "of": "layer1", "moves": True}],
        graph={
            "losses": [{"op": "MseLoss", "reduction": "sum", "classes": 3, "shape": [4, 3]}],
            "outputs": [{"op": "Relu", "layer": "layer8", "behind": "layer7", "loss": "MseLoss"}],
            "softmax_twice": [where],
            "probabilities_as_logs": [where],
            "softmax_dims": [{**where, "dim": 0, "shape": [4, 3, 2], "elements": 4}],
            "broadcast": [{"op": "MseLoss", "output": [4, 1], "result": [4, 4], "since": 0}],
            "unregistered": [{"count": 2, "numel": 9, "parameter": True, "held_in": "cells", "in_optimizer": False}],
            "cut": [{"layers": ["layer5"], "last": "layer5", "next": None, "how": "detached", "since": 0}],
            "no_graph": {"since": 0, "passes": 3},
        },
    )


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the path to every value inside facts."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


def spoil(known: dict[str, Any], path: tuple[Any, ...], junk: Any) -> dict[str, Any]:
    spoilt = copy.deepcopy(known)
    inside: Any = spoilt
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = junk
    return spoilt


@pytest.mark.parametrize("seed", range(6))
def test_any_value_may_be_junk(seed: int) -> None:
    data, known, chance = arrays(noise=0.05), full(), random.Random(seed)
    data["param_grad_norm"][:, 0] = data["param_grad_norm"][-1] = 0
    loss = np.full(ROWS, 2.0)
    for path in chance.sample(list(places(known)), 40):
        junk = chance.choice(JUNK)
        found = diagnose_arrays(data, scalars={"loss": loss}, facts=spoil(known, path, junk))
        assert "\x1b" not in str(found), (path, junk)
        assert len(str(found)) < 20_000


@pytest.mark.parametrize("junk", JUNK)
def test_values_of_another_type_count_as_missing(junk: Any) -> None:
    entry = Entry({"a": junk})
    assert isinstance(entry.text("a"), str)
    assert len(entry.text("a")) < 200
    assert all(isinstance(item, str) for item in entry.texts("a"))
    assert isinstance(entry.number("a"), float)
    assert isinstance(entry.whole("a"), int)
    assert entry.flag("a") in (None, True)
    assert all(isinstance(item, Entry) for item in (*entry.entries("a"), entry.entry("a")))
    assert not Setup(junk if isinstance(junk, dict) else {}).known


def test_everything_at_once_is_reported_with_exact_causes_first() -> None:
    found = diagnose_arrays(arrays(noise=0.05), scalars={"loss": np.full(ROWS, 2.0)}, facts=full())
    causes = [bool(finding.cause) for finding in found.findings]
    assert causes == sorted(causes, reverse=True)
    assert {"cut", "setup", "clipping"} <= set(found.kinds)
