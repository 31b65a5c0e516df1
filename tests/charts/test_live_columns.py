"""Growing columns: the same whether rows come one by one or at once, and never more than the maximum."""

from __future__ import annotations

import numpy as np
import pytest

from gradlens import read_run
from gradlens.charts.live_columns import Columns, Recent, known_rows, shown
from gradlens.row_chunks import summarise


def rows_of(count: int, width: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return np.arange(count) * 5, 10 ** rng.normal(size=(count, width))


@pytest.mark.parametrize("linear", [True, False])
def test_the_columns_do_not_depend_on_how_rows_arrive(linear: bool) -> None:
    steps, rows = rows_of(1000)
    at_once, one_by_one, parts = (Columns(3, linear=linear, most=64) for _ in range(3))
    at_once.add(steps, rows)
    for i in range(len(rows)):
        one_by_one.add(steps[i : i + 1], rows[i : i + 1])
    for first, last in ((0, 37), (37, 37), (37, 640), (640, 1000)):
        parts.add(steps[first:last], rows[first:last])
    for columns in (at_once, one_by_one, parts):
        assert columns.size == 16
        assert len(columns) == 63
        assert columns.counts.tolist() == [16] * 62 + [8]
        assert columns.starts.tolist() == steps[::16].tolist()
        np.testing.assert_allclose(columns.values, summarise(rows, np.arange(0, 1000, 16), linear=linear), rtol=1e-12)


def test_finished_columns_do_not_change_until_pairs_are_merged() -> None:
    steps, rows = rows_of(300)
    columns = Columns(3)
    columns.add(steps[:200], rows[:200])
    starts, before = columns.fitted(64)
    assert len(starts) == 50
    columns.add(steps[200:250], rows[200:250])
    starts, after = columns.fitted(64)
    assert len(starts) == 63
    np.testing.assert_array_equal(before[:50], after[:50])
    columns.add(steps[250:], rows[250:])
    assert len(columns.fitted(64)[0]) == 38


def test_a_long_run_begins_with_the_chunks_of_its_file(make_run) -> None:
    run = read_run(make_run(steps=1000, layers=3))
    chunks = run.row_chunks("activation_grad_norm", least=4)
    columns = Columns(3)
    columns.add_chunks(run.steps[chunks.edges[:-1]], chunks)
    assert columns.size == 64
    columns.add(np.arange(1000, 1064), np.ones((64, 3)))
    assert columns.counts.tolist() == [64] * 16 + [40]


def test_special_values_and_missing_rows() -> None:
    rows = np.array([[0.0, np.nan, np.inf], [0.0, np.nan, 1.0], [np.nan] * 3])
    steps, known = known_rows(np.arange(3), rows)
    assert steps.tolist() == [0, 1]
    columns = Columns(3, most=2)
    columns.add(steps, known)
    columns.add(np.array([4]), np.array([[0.0, np.nan, 1.0]]))
    np.testing.assert_array_equal(shown(columns.values)[0], [0, np.nan, np.inf])
    columns.add(np.empty(0, dtype=np.int64), np.empty((0, 3)))
    assert len(columns) == 2


def test_the_newest_rows_are_kept() -> None:
    steps, rows = rows_of(100)
    recent = Recent(3, 30)
    for i in range(0, 100, 7):
        recent.add(steps[i : i + 7], rows[i : i + 7])
    np.testing.assert_array_equal(recent.steps, steps[-30:])
    columns = recent.columns(450, linear=False)
    assert columns.starts.tolist() == steps[-10:].tolist()
    np.testing.assert_allclose(shown(columns.values), rows[-10:], rtol=1e-6)
