"""Levels: what stands for many rows is what the rows say, whatever is read and however it was written."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradlens import read_run
from gradlens.analysis.gradient_ratio import gradient_ratio
from gradlens.analysis.profile import depth_profile, heat_matrix
from gradlens.errors import ConfigError
from gradlens.row_chunks import LEVELS, RowChunks, combine, summarise
from gradlens.run import Header, Row, Run
from gradlens.storage import FileSink
from gradlens.storage.row_levels import Growth, RowChunk
from tests.conftest import make_layers

RHYTHM = {"activation_grad_norm": 1, "nonfinite_count": 1, "update_ratio": 25}


def values_of(rows: int, layers: int = 3, seed: int = 0) -> np.ndarray:
    """Norms over 40 decades with zeros, gaps, and one row that is not finite."""
    rng = np.random.default_rng(seed)
    values = 10.0 ** rng.uniform(-30, 10, (rows, layers))
    values[rng.random((rows, layers)) < 0.02] = 0
    values[rng.random((rows, layers)) < 0.02] = np.nan
    if rows > 100:
        values[rows // 2, 1] = np.inf
        values[: rows // 3, 2] = 0
    return values.astype(np.float32).astype(np.float64)


def write(path: Path, values: np.ndarray, *, flush_rows: int = 64, close: bool = True) -> FileSink:
    sink = FileSink(path, flush_rows=flush_rows, flush_seconds=1e9)
    sink.open(Header(make_layers(values.shape[1]), RHYTHM))
    for step, row in enumerate(values):
        metrics = {"activation_grad_norm": row, "nonfinite_count": np.round(np.nan_to_num(row, posinf=5)) % 7}
        if step % 25 == 0:
            metrics["update_ratio"] = row
        sink.write_row(Row(2 * step, 0, metrics, {"loss": float(step)}))
    if close:
        sink.close("complete")
    else:
        sink.flush()
    return sink


def test_a_very_wide_run_has_the_levels_of_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metrics are summarised one by one, so that they need not be in memory together."""
    names = ("param_grad_norm", "nonfinite_count", "update_ratio")
    rng = np.random.default_rng(0)
    metrics = {name: np.where(rng.random((700, 5)) < 0.1, np.nan, rng.random((700, 5))).astype("f4") for name in names}

    def grown() -> list[bytes]:
        growth, found = Growth(names), []
        for start in range(0, 700, 100):
            rows = slice(start, start + 100)
            part = {name: values[rows] for name, values in metrics.items()}
            levels, records = growth.add(RowChunk(np.arange(700)[rows], np.zeros(100, np.int32), {}, part))
            found += [records.tobytes(), *(level.values.tobytes() for level in levels)]
        return found

    together = grown()
    monkeypatch.setattr("gradlens.storage.row_levels.NUMBERS_AT_ONCE", 1)
    assert grown() == together


def slowly(values: np.ndarray, *, linear: bool) -> np.ndarray:
    """The five statistics of one block, one layer after the other, in plain Python."""
    found = []
    for column in values.T:
        known = [v for v in column if not np.isnan(v)]
        counted = [v for v in known if np.isfinite(v) and (linear or v > 0)]
        mean = np.nan
        if counted:
            mean = np.mean(counted) if linear else np.exp(np.mean(np.log(counted)))
        low, high = (min(known), max(known)) if known else (np.nan, np.nan)
        found.append([low, mean, high, len(counted), sum(v == 0 for v in known)])
    return np.array(found)


def assert_blocks(found: RowChunks, rows: np.ndarray, *, linear: bool = False) -> None:
    expected = [slowly(rows[a:b], linear=linear) for a, b in zip(found.edges[:-1], found.edges[1:], strict=True)]
    np.testing.assert_allclose(found.values, np.array(expected).reshape(found.values.shape), rtol=3e-6)


@given(
    hnp.arrays(np.float64, (23, 2), elements=st.sampled_from([0.0, 1e-30, 2.0, -3.0, np.nan, np.inf, 7.5])),
    st.lists(st.integers(1, 22), unique=True).map(sorted),
    st.booleans(),
)
def test_statistics_are_those_of_the_rows(values: np.ndarray, cuts: list[int], linear: bool) -> None:
    starts = np.array([0, *cuts])
    blocks = summarise(values, starts, linear=linear)
    assert_blocks(RowChunks(np.append(starts, 23), blocks), values, linear=linear)
    whole = combine(blocks, np.array([0]), linear=linear)
    np.testing.assert_allclose(whole[0], slowly(values, linear=linear), rtol=1e-12)


@pytest.mark.parametrize("closed", [True, False], ids=["packed", "live"])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1000, 4400])
def test_what_is_kept_is_what_the_rows_say(rows: int, closed: bool, tmp_path: Path) -> None:
    values = values_of(rows)
    sink = write(tmp_path / "a.h5", values, flush_rows=50, close=closed)
    run = read_run(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r", swmr=not closed, locking=False) as file:
        for level in LEVELS:
            held = file[f"level/{level}"].shape[0] if f"level/{level}" in file else 0
            assert held == rows // level
            if held:
                assert file[f"level/first_{level}"][:].tolist() == [2 * level * i for i in range(held)]
    for least in (1, 3, 16, 10**6):
        for start, stop in ((0, rows), (rows // 3, rows - rows // 7), (0, 0)):
            for metric in RHYTHM if rows < 2000 else ("activation_grad_norm",):
                blocks = run.row_chunks(metric, least=least, start=start, stop=stop)
                assert blocks.edges[0] == start
                assert blocks.edges[-1] == stop
                assert (np.diff(blocks.edges) > 0).all()
                assert len(blocks.values) >= min(least, stop - start)
                assert_blocks(blocks, run.metric(metric).astype(float), linear=metric == "nonfinite_count")
    sink.close("complete")


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(st.integers(1, 700), st.integers(1, 150), st.integers(0, 3))
def test_how_it_was_flushed_makes_no_difference(tmp_path_factory, rows: int, flush_rows: int, seed: int) -> None:
    folder = tmp_path_factory.mktemp("flush")
    values = values_of(rows, seed=seed)
    write(folder / "a.h5", values, flush_rows=flush_rows)
    write(folder / "b.h5", values, flush_rows=rows)
    with h5py.File(folder / "a.h5") as a, h5py.File(folder / "b.h5") as b:
        names: list[str] = []
        a.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in names:
            if name not in ("state/heartbeat", "state/check_a", "state/check_b"):
                np.testing.assert_array_equal(a[name][()], b[name][()], err_msg=name)


def test_a_resumed_run_has_the_levels_of_an_unbroken_one(tmp_path: Path) -> None:
    values = values_of(900)
    write(tmp_path / "whole.h5", values)
    path = tmp_path / "a.h5"
    write(path, values_of(700, seed=5))
    header = Header(make_layers(3), RHYTHM)
    first = values_of(700, seed=5)[:300]
    sink = FileSink(path, resume_at=(300, 0))
    sink.open(header)
    for step in range(300, 900):
        sink.write_row(Row(2 * step, 0, {"activation_grad_norm": values[step]}, {}))
    sink.close("complete")
    run = read_run(path)
    assert_blocks(run.row_chunks("activation_grad_norm", least=1), np.concatenate([first, values[300:]]))


@pytest.mark.parametrize("wide", [False, True])
def test_a_long_run_is_judged_by_its_blocks(wide: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    rows, depth = 5000, np.array([-4.0, -3, -2, -1, 0, 0])
    values = 10.0 ** (depth + rng.normal(0, 0.1, (rows, 6)))
    path = tmp_path / "a.h5"
    sink = FileSink(path)
    sink.open(Header(make_layers(6), {"activation_grad_norm": 1}))
    for step, row in enumerate(values):
        sink.write_row(Row(step, 0, {"activation_grad_norm": row}, {"loss": 1.0}))
    sink.close("complete")
    exact = read_run(path)
    profile, way, matrix = (
        depth_profile(exact, "activation_grad_norm"),
        gradient_ratio(exact),
        heat_matrix(exact, "activation_grad_norm", columns=40),
    )
    assert way is not None
    monkeypatch.setattr("gradlens.analysis.profile.EXACT_NUMBERS", 1000)
    if wide:  # 5,000 rows have fewer chunks than a long run, but very many numbers
        monkeypatch.setattr("gradlens.analysis.profile.WIDE_NUMBERS", 10_000)
    else:
        monkeypatch.setattr("gradlens.analysis.profile.LONG_CHUNKS", 50)
    monkeypatch.setattr("gradlens.storage.reader.AT_ONCE", 1000)
    monkeypatch.setattr(Run, "metric", lambda *_: pytest.fail("all rows were read"))
    long = read_run(path)
    np.testing.assert_allclose(np.log10(depth_profile(long, "activation_grad_norm")), np.log10(profile), atol=0.03)
    long_way = gradient_ratio(long)
    assert long_way is not None
    assert long_way.rows_known == rows
    assert abs(long_way.typical() - way.typical()) < 0.03
    found = heat_matrix(long, "activation_grad_norm", columns=40)
    assert 10 <= found.values.shape[1] <= 40
    assert (found.steps[0], found.steps[-1]) == (matrix.steps[0], matrix.steps[-1])
    np.testing.assert_allclose(np.log10(found.values), np.repeat(depth[:, None], found.values.shape[1], 1), atol=0.1)
    assert list(long.scalars) == ["loss", "lr"]
    assert "x" not in long.scalars
    np.testing.assert_array_equal(long.scalars["loss"], exact.scalars["loss"])
    with pytest.raises(ConfigError, match="holds no metric"):
        long.row_chunks("x", least=1)


def test_a_file_without_levels_is_read_by_its_rows(tmp_path: Path) -> None:
    values = values_of(300)
    write(tmp_path / "a.h5", values)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["level"]
    run = read_run(tmp_path / "a.h5")
    assert_blocks(run.row_chunks("activation_grad_norm", least=2), values)


@pytest.mark.parametrize("at_once", [1, 500, 10**6])
@pytest.mark.parametrize(("start", "stop"), [(0, 1500), (70, 1403), (64, 128), (10, 11), (5, 60)])
def test_chunks_of_a_file_without_levels_are_made_of_its_rows(
    at_once: int, start: int, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as of a file with levels, between the same rows, and never one per row of a long run."""
    values = values_of(1500)
    write(tmp_path / "with.h5", values)
    write(tmp_path / "without.h5", values)
    with h5py.File(tmp_path / "without.h5", "r+") as file:
        del file["level"]
    monkeypatch.setattr("gradlens.storage.reader.NUMBERS_AT_ONCE", at_once)
    for name in RHYTHM:
        for least in (1, 5, 20):
            wanted, found = (
                read_run(tmp_path / kind).row_chunks(name, least=least, start=start, stop=stop)
                for kind in ("with.h5", "without.h5")
            )
            assert found.edges.tolist() == wanted.edges.tolist()
            np.testing.assert_allclose(found.values, wanted.values, rtol=1e-6)
