"""The numbers of a page are those of the file, to what the page promises; and they fit into it."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gradlens import read_run
from gradlens.report.embedded_metrics import (
    BUDGET,
    BYTES_PER_NUMBER,
    INFINITE,
    LAST,
    LEAST_COLUMNS,
    MISSING,
    MOST_COLUMNS,
    ZERO,
    choose_columns,
    encode,
    pack_run,
)
from tests.conftest import SAMPLE


def decode(packed: dict[str, Any]) -> np.ndarray:
    """Decode a matrix as page.js does, to (L, C)."""
    codes = np.frombuffer(base64.b64decode(packed["codes"]), dtype="<u2")
    codes = codes.reshape(-1, packed["columns"])
    span = packed["high"] - packed["low"] if packed["high"] > packed["low"] else 1.0
    scaled = packed["low"] + (codes.astype(np.float64) - 1) / (LAST - 1) * span
    values = scaled if packed["linear"] else 10.0**scaled
    values = np.where(codes == MISSING, np.nan, np.where(codes == ZERO, 0.0, values))
    return np.where(codes == INFINITE, np.inf, values)


def test_magnitudes_over_all_decades_of_float32_come_back_to_a_fifth_of_a_percent() -> None:
    values = 10.0 ** np.random.default_rng(0).uniform(-38, 38, (7, 500))
    values[0, 0], values[0, 1] = 1e-38, 1e38
    assert np.abs(decode(encode(values, linear=False)) / values - 1).max() < 2e-3


def test_what_is_no_magnitude_comes_back_as_it_is() -> None:
    values = np.array([[0.0, np.nan, np.inf, 1e-25], [3.0, 3.0, 0.0, np.nan]])
    back = decode(encode(values, linear=False))
    np.testing.assert_array_equal(np.isnan(back), np.isnan(values))
    np.testing.assert_array_equal(back == 0, values == 0)
    np.testing.assert_array_equal(np.isinf(back), np.isinf(values))
    np.testing.assert_allclose(back[0, 3], 1e-25, rtol=2e-3)


@pytest.mark.parametrize("values", [np.full((2, 3), np.nan), np.zeros((2, 3)), np.full((2, 3), 0.7)])
@pytest.mark.parametrize("linear", [False, True])
def test_matrices_without_a_range_come_back(values: np.ndarray, linear: bool) -> None:
    np.testing.assert_allclose(decode(encode(values, linear=linear)), values, rtol=1e-6)


def test_cosines_come_back_with_their_sign() -> None:
    values = np.array([[-0.9, -1e-3, 0.0], [0.5, 1.0, np.nan]])
    np.testing.assert_allclose(decode(encode(values, linear=True)), values, atol=2e-5)


def test_neighbours_of_a_linear_metric_are_averaged_as_they_are(make_run) -> None:
    rows = np.where(np.arange(40)[:, None] % 2 == 0, -1.0, 0.5) * np.ones((40, 6))
    rows[0, 0], rows[0, 1] = np.nan, np.inf
    run = replace(read_run(make_run(steps=40)), metrics={"path_cosine": rows.astype(np.float32)})
    expected = np.full((6, 10), -0.25)
    expected[0, 0], expected[1, 0] = 0.0, np.inf
    np.testing.assert_allclose(decode(pack_run(run, 10)["metrics"]["path_cosine"]), expected, atol=2e-5)


def test_every_number_of_a_real_run_is_in_its_page() -> None:
    run = read_run(SAMPLE)
    packed = pack_run(run, MOST_COLUMNS)
    assert set(packed["metrics"]) == set(run.metrics)
    for name, matrix in packed["metrics"].items():
        edges = packed["edges"][matrix["edges"]]
        rows = np.searchsorted(run.steps, edges[:-1])
        np.testing.assert_allclose(decode(matrix), run.metric(name)[rows].T, rtol=2e-3)


def test_many_runs_lose_columns_before_any_is_left_out() -> None:
    run = read_run(SAMPLE)
    assert choose_columns([run]) == (MOST_COLUMNS, 1)
    columns, room = choose_columns([run] * 20)
    assert room == 20
    assert columns < MOST_COLUMNS or len(run.steps) < columns
    columns, room = choose_columns([run] * 2000)
    assert columns == LEAST_COLUMNS
    assert 1 <= room < 2000
    dense = sum(1 for every in run.info["every"].values() if every == 1)
    assert room * dense * columns * len(run.layers) * BYTES_PER_NUMBER <= BUDGET
