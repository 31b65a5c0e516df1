"""Modules that are copies of others: target networks, averages of weights, teachers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.recorder.facts.parameter_states import Facts, ParameterStates, difference_of, sample, to_host
from gradlens.recorder.layers import clean_name

NEAR_COPY = 0.5
"""A module is a copy of another if their weights ever differed by less than this part of their norm."""
MOST_MODULES = 2000
"""Modules of a model that are compared."""
APART = 0.01
"""A copy that is so far from its original, relative to its norm, is another one. No outside source."""


class Copies:
    """Modules without a gradient that are built like others of the model, and whose weights are or become theirs.

    Args:
        model: The model.
        parameters: The states of its parameters.
    """

    def __init__(self, model: nn.Module, parameters: ParameterStates) -> None:
        self._parameters = parameters
        self._found: dict[tuple[str, str], Facts] = {}
        self._alike: dict[tuple[Any, ...], list[tuple[str, list[int]]]] = {}
        for i, (raw_name, module) in enumerate(model.named_modules()):
            if i >= MOST_MODULES:
                break
            own = list(module.named_parameters())
            if any(parameter.dim() > 1 for _, parameter in own):
                shape = (type(module).__name__, *((name, tuple(parameter.shape)) for name, parameter in own))
                self._alike.setdefault(shape, []).append((clean_name(raw_name), [id(p) for _, p in own]))
        self._alike = {shape: modules for shape, modules in self._alike.items() if len(modules) > 1}
        self._first: dict[tuple[int, ...], list[Tensor]] = {}
        """Samples of the weights of copies at the first look."""
        self._moved: set[str] = set()
        """Copies whose weights were others at a later look."""
        self._versions: dict[tuple[str, str], int] = {}
        """How often the weights of a copy were written, at the last look."""

    def look(self, step: int, groups: Mapping[int, tuple[int, int]]) -> None:
        """Compare modules without a gradient with those that have one."""
        states = self._parameters.states
        pairs: list[tuple[str, list[int], str]] = []
        sizes: list[Tensor] = []
        for modules in self._alike.values():
            silent = [m for m in modules if all(states[key].seen <= {"none", "stale"} for key in m[1])]
            trained = [m for m in modules if any(states[key].seen - {"none", "stale"} for key in m[1])]
            for name, keys in silent[:8]:
                for other, others in trained[:8]:
                    found = self._measure(keys, others)
                    if found is not None:
                        pairs.append((name, keys, other))
                        sizes.append(found)
        for (name, keys, other), (square, difference, moved) in zip(pairs, to_host(sizes), strict=True):
            if square:
                self._note(name, keys, other, math.sqrt(difference) / math.sqrt(square), step, groups)
                self._moved |= {name} if moved else set()

    def _measure(self, keys: list[int], others: list[int]) -> Tensor | None:
        """Return (3,), from samples: the squared norm of the other module's weights, that of the difference, and that
        of what the module's own weights have moved since the first look.
        """
        states = self._parameters.states
        mine = [sample(states[key].parameter).float() for key in keys]
        theirs = [sample(states[key].parameter).float() for key in others]
        first = self._first.setdefault(tuple(keys), mine)
        pairs = list(zip(mine, theirs, strict=True))
        if any(difference_of(a, b) is None for a, b in pairs) or len({b.device for b in theirs}) > 1:
            return None
        if any(difference_of(a, b) is None for a, b in zip(mine, first, strict=True)):
            return None
        sums = [
            torch.stack([each.double().square().sum() for each in (b, a - b, a - before)])
            for (a, b), before in zip(pairs, first, strict=True)
        ]
        return torch.stack(sums).sum(0)

    def _note(
        self, name: str, keys: list[int], other: str, distance: float, step: int, groups: Mapping[int, Any]
    ) -> None:
        states = self._parameters.states
        fact = self._found.setdefault(
            (name, other),
            {"layer": name, "of": other, "count": len(keys), "numel": sum(states[k].parameter.numel() for k in keys)}
            | {"first_distance": distance, "least": distance},
        )
        before = fact.get("distance", 0.0)
        fact |= {"distance": distance, "least": min(distance, fact["least"]), "step": step}
        fact["in_optimizer"] = any(key in groups for key in keys)
        written = sum(_version_of(states[key].parameter) for key in keys)
        again = written != self._versions.get((name, other), written) and before > APART
        fact["written"] = fact.get("written", False) or again
        self._versions[name, other] = written

    def facts(self) -> list[Facts]:
        """Return the copies, each with the module that it is nearest to, but none inside a larger copy."""
        near = sorted((f for f in self._found.values() if f["least"] < NEAR_COPY), key=lambda f: float(f["least"]))
        found: dict[str, Facts] = {}
        for fact in near:
            found.setdefault(fact["layer"], fact)
        states = self._parameters.states.values()
        moved = {state.layer for state in states if state.changed}
        return [
            {key: value for key, value in fact.items() if key != "least"}
            | {"moves": name in self._moved or any(layer == name or layer.startswith(f"{name}.") for layer in moved)}
            for name, fact in found.items()
            if not any(name.startswith(f"{larger}.") for larger in found)
        ]


def _version_of(parameter: Tensor) -> int:
    """Return how often an operation in place wrote a parameter; what is assigned to ``.data`` is not counted."""
    return 0 if parameter.is_inference() else parameter._version
