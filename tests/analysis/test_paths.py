"""Paths in random layer graphs, against all chains of layers, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradlens.analysis.gradient_ratio import compare_layers
from gradlens.analysis.paths import find_paths, hidden_layers, main_path
from gradlens.run import Layer, Run
from tests.conftest import make_layers


def run_of(layers: tuple[Layer, ...]) -> Run:
    none = np.arange(0)
    return Run("r", Path("r"), layers, none, none.astype(np.int32), {}, {}, {}, "complete", {})


@st.composite
def graphs(draw: st.DrawFn) -> Run:
    """Return a run of up to seven layers, in any order, some of which are shortcuts or experts."""
    count = draw(st.integers(2, 7))
    order = draw(st.permutations(range(count)))
    layers = list(make_layers(count))
    for place, i in enumerate(order):
        parents = draw(st.sets(st.sampled_from(order[:place]))) if place else set()
        role = draw(st.sampled_from(["main", "main", "shortcut"]))
        tags = draw(st.sampled_from([(), (), ("expert",)]))
        layers[i] = replace(layers[i], role=role, tags=tags, parents=tuple(sorted(parents)))
    return run_of(tuple(layers))


def chains(run: Run) -> Iterator[list[int]]:
    """Yield every chain of layers, each fed by the one before."""

    def back(chain: list[int]) -> Iterator[list[int]]:
        yield chain
        for parent in run.layers[chain[0]].parents:
            yield from back([parent, *chain])

    for i in range(len(run.layers)):
        yield from back([i])


@given(graphs(), st.lists(st.booleans(), min_size=7, max_size=7))
def test_the_main_path_is_a_longest_chain(run: Run, known: list[bool]) -> None:
    known_L = np.array(known[: len(run.layers)])
    main = [i for i in run.main_layers() if known_L[i]]
    if not len(run.edges):
        assert main_path(run, known_L).tolist() == main
        return
    preferred = {i for i in main if not run.layers[i].tags}
    kept = [[i for i in chain if i in preferred] for chain in chains(run)]
    if max(map(len, kept)) < 3:
        kept = [[i for i in chain if i in main] for chain in chains(run)]
    paths = [path.tolist() for path in find_paths(run, known_L)]
    assert len(paths[0]) == max(map(len, kept))
    assert all(path in kept for path in paths)
    seen = set(paths[0])
    for path in paths[1:]:
        assert len(set(path) - seen) >= 2
        seen |= set(path)


def fed(*parents: tuple[int, ...]) -> Run:
    layers = make_layers(len(parents))
    return run_of(tuple(replace(layer, parents=above) for layer, above in zip(layers, parents, strict=True)))


def test_two_heads_of_one_layer_are_one_path() -> None:
    run = fed((), (0,), (1,), (2,), (2,))  # a body of three, a policy, and a value
    assert [path.tolist() for path in find_paths(run)] == [[0, 1, 2, 3]]
    assert hidden_layers(run).tolist() == [0, 1, 2]


def test_a_layer_without_values_may_lie_between() -> None:
    ratio = compare_layers(fed((), (0,), (1,), (2,)), np.array([[1e-3, np.nan, 1.0, 5.0]]))
    assert ratio is not None
    assert ratio.indices.tolist() == [0, 2, 3]
    assert ratio.typical() == -3


def test_without_a_graph_all_main_layers_are_one_path() -> None:
    run = run_of(make_layers(4))
    assert [path.tolist() for path in find_paths(run)] == [[0, 1, 2, 3]]
