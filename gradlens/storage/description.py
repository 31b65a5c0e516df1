"""The description of a run in its file: the root attributes, and the table of layers with its graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from gradlens.run import Layer, Role
from gradlens.storage.contents import Contents
from gradlens.storage.limits import MOST_EDGES, MOST_LAYERS, MOST_NAME, MOST_TEXT_BYTES
from gradlens.storage.schema import LAYER_LISTS, LAYER_NUMBERS, LAYER_TEXTS

INT64 = np.iinfo(np.int64)
ROOT_ATTRIBUTES = (
    "format", "format_version", "gradlens_version", "created", "model", "seed", "config_json", "environment_json",
)  # fmt: skip


def read_description(inside: Contents) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the root attributes and the table of layers by column.

    Args:
        inside: What the file holds.

    Raises:
        ValueError: An attribute is not of its type, or too long.
    """
    attributes, columns = _read_copy(inside) or _read_parts(inside)
    _check_attributes(attributes)
    return attributes, columns


def described_layers(columns: Mapping[str, list[Any]], count: int) -> tuple[Layer, ...]:
    """Return the layers of a table.

    Args:
        columns: The table by column; its JSON may hold anything.
        count: How many layers there are.

    Raises:
        ValueError: It is not a table of so many layers, or the graph is not that of a model.
    """
    _check_layers(columns, count)
    tags, parents = ([text.split() for text in columns.get(key, [""] * count)] for key in LAYER_LISTS)
    graph = checked_graph([[int(word) for word in words] for words in parents])
    rows = zip(*(columns[key] for key in (*LAYER_TEXTS, *LAYER_NUMBERS)), tags, graph, strict=True)
    return tuple(
        Layer(name, kind, role, depth, size, own, calls, tuple(words), feeding)
        for name, kind, role, depth, size, own, calls, words, feeding in rows
    )


def _read_copy(inside: Contents) -> tuple[dict[str, Any], dict[str, list[Any]]] | None:
    """Read the description from ``header_json``; None where there is none."""
    text = inside.attribute("header_json")
    if text is None:
        return None
    found = json.loads(bytes(text))
    return dict(found["attributes"]), dict(found["layers"])


def _read_parts(inside: Contents) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    held = inside.names("layer")
    texts = (*LAYER_TEXTS, *(key for key in LAYER_LISTS if key in held))
    columns: dict[str, list[Any]] = {key: inside.texts(f"layer/{key}") for key in texts}
    columns |= {key: inside.read(f"layer/{key}", 0, MOST_LAYERS).tolist() for key in LAYER_NUMBERS if key in held}
    found = {name: inside.attribute(name) for name in ROOT_ATTRIBUTES}
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in found.items()}
    return {name: value for name, value in plain.items() if value is not None}, columns


def _check_attributes(attributes: Mapping[str, Any]) -> None:
    """Check the attributes of a run, which may hold anything.

    Raises:
        ValueError: One is not of its type, or too long.
    """
    for name, value in attributes.items():
        if name in ("seed", "format_version"):
            if type(value) is not int or not INT64.min <= value <= INT64.max:
                raise ValueError(f"its {name} is no whole number of 64 bits")
        elif not isinstance(value, str):
            raise ValueError(f"its {name} is no text")
        elif len(value) > (MOST_TEXT_BYTES if name.endswith("_json") else MOST_NAME):
            raise ValueError(f"its {name} has {len(value):,} characters")


def _check_layers(columns: Mapping[str, list[Any]], count: int) -> None:
    """Check the table of layers, whose JSON may hold anything.

    Raises:
        ValueError: It is not a table of so many layers.
    """
    for key in (*LAYER_TEXTS, *LAYER_LISTS, *LAYER_NUMBERS):
        if key in columns and (not isinstance(columns[key], list) or len(columns[key]) != count):
            raise ValueError(f"the column {key} of its table of layers is not one of {count} layers")
    for key in (*LAYER_TEXTS, *(key for key in LAYER_LISTS if key in columns)):
        if not set(map(type, columns[key])) <= {str}:
            raise ValueError(f"the {key} of a layer is no text")
        most = MOST_TEXT_BYTES if key in LAYER_LISTS else MOST_NAME
        if max(map(len, columns[key]), default=0) > most:
            raise ValueError(f"the {key} of a layer has more than {most:,} characters")
    for key in LAYER_NUMBERS:
        values = columns[key]
        if not set(map(type, values)) <= {int} or (values and not INT64.min <= min(values) <= max(values) <= INT64.max):
            raise ValueError(f"the {key} of a layer is no whole number of 64 bits")
    if not set(columns["role"]) <= set(get_args(Role)):
        raise ValueError(f"a layer has an unknown role; expected {', '.join(get_args(Role))}")
    if " ".join(columns.get("parents", ())).count(" ") > MOST_EDGES + count:
        raise ValueError(f"its layers are fed by others more than {MOST_EDGES:,} times")


def checked_graph(parents: list[list[int]]) -> list[tuple[int, ...]]:
    """Return the layers that feed each layer, if each is a layer, and none feeds itself, directly or through others.

    Args:
        parents: (L,) indices of layers.

    Raises:
        ValueError: The graph is not that of a model.
    """
    waits_for = [set(feeding) for feeding in parents]
    if any(not 0 <= parent < len(parents) for feeding in parents for parent in feeding):
        raise ValueError("its layers are fed by layers that it does not have")
    feeds: list[list[int]] = [[] for _ in parents]
    for i, feeding in enumerate(waits_for):
        for parent in feeding:
            feeds[parent].append(i)
    ready = [i for i, feeding in enumerate(waits_for) if not feeding]
    for layer in ready:
        for after in feeds[layer]:
            waits_for[after].remove(layer)
            if not waits_for[after]:
                ready.append(after)
    if len(ready) < len(parents):
        raise ValueError("its layers feed each other in a circle")
    return [tuple(feeding) for feeding in parents]
