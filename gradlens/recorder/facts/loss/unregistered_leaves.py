"""Leaves that losses reach and that are no parameters of the model."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor, nn

from gradlens.recorder.facts.loss.graph_reading import Facts
from gradlens.recorder.facts.loss.graph_walk import Reading
from gradlens.recorder.facts.parameter_states import sample

ONE_GROUP = ("parameter", "held_in", "in_optimizer", "between", "inside", "since")
"""What leaves of one group have in common."""
MOST_SHAPES = 8


def find_holders(model: nn.Module) -> dict[int, str]:
    """Find parameters that modules hold in plain attributes, such as a list of modules.

    Args:
        model: The model.

    Returns:
        ``id`` of each parameter to the attribute that holds it.
    """
    registered = {id(parameter) for parameter in model.parameters()}
    found: dict[int, str] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not key.startswith(("_parameters", "_modules", "_buffers", "_forward", "_backward")):
                for tensor in _tensors_in(value, 3):
                    if id(tensor) not in registered:
                        found.setdefault(id(tensor), f"{name}.{key}".lstrip("."))
    return found


def _tensors_in(value: Any, depth: int) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    if isinstance(value, nn.Module):
        return list(value.parameters())
    if depth and isinstance(value, Mapping):
        value = list(value.values())
    if depth and isinstance(value, list | tuple | set):
        return [tensor for part in value for tensor in _tensors_in(part, depth - 1)]
    return []


class UnregisteredLeaves:
    """Collects the leaves of losses that are no parameters of the model.

    Args:
        model: The model.
        names: ``id`` of its parameters to their names.
    """

    def __init__(self, model: nn.Module, names: Mapping[int, str]) -> None:
        self._model, self._names = model, names
        self._leaves: dict[Any, Facts] = {}
        self._first: dict[int, Tensor] = {}
        """Some elements of parameters, as they were first."""
        self._moved: list[tuple[int, Tensor]] = []
        """Whether they were others later, unread."""

    def note(self, graph: Reading, step: int, in_optimizer: set[int]) -> None:
        """Note the leaves of a graph.

        Args:
            graph: What was read of it.
            step: The step in progress.
            in_optimizer: ``id`` of all parameters in optimizers.
        """
        others = {key: leaf for key, leaf in graph.leaves.items() if key not in self._names}
        holders = find_holders(self._model) if others else {}
        for key, leaf in others.items():
            is_parameter = isinstance(leaf, nn.Parameter)
            if is_parameter:
                self._compare(key, sample(leaf))
            self._leaves.setdefault(
                key if is_parameter else tuple(leaf.shape),  # an input is another one in each step
                {
                    "shape": list(leaf.shape),
                    "parameter": is_parameter,
                    "held_in": holders.get(key),
                    "in_optimizer": key in in_optimizer,
                    "between": key in graph.between,
                    "inside": key in graph.inside if graph.has_model else None,
                    "since": step,
                },
            )

    def _compare(self, key: int, now: Tensor) -> None:
        then = self._first.setdefault(key, now)
        if then is not now and then.shape == now.shape and then.device == now.device:
            self._moved.append((key, (now != then).any()))

    def facts(self) -> list[Facts]:
        """Return a fact for each group of leaves; this waits for an accelerator."""
        taken, self._moved = self._moved, []
        for moved, differs in taken:
            leaf = self._leaves[moved]
            leaf["moves"] = leaf.get("moves", False) or bool(differs.tolist())
        groups: dict[str, Facts] = {}
        for leaf in self._leaves.values():
            key = {name: leaf[name] for name in ONE_GROUP}
            group = groups.setdefault(repr(key), key | {"count": 0, "numel": 0, "shapes": [], "moves": False})
            group["count"] += 1
            group["moves"] |= leaf.get("moves", True)  # unknown after one pass
            group["numel"] += prod(leaf["shape"])
            if leaf["shape"] not in group["shapes"][:MOST_SHAPES]:
                group["shapes"].append(leaf["shape"])
        return list(groups.values())
