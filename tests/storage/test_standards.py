"""Other programs read a run: xarray, plain h5py; and each version of the format has a sample that is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from gradlens import read_run
from gradlens.storage import read_card
from gradlens.storage.schema import FORMAT_VERSION
from tests.conftest import SAMPLE
from tests.storage.test_levels import values_of, write

DATA = Path(__file__).parent.parent / "data"
SAMPLES = {SAMPLE: (1, False), DATA / "packed-s0.h5": (1, True)}
"""File to (format version, whether it has levels and checksums)."""


@pytest.fixture
def xarray():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas and others while they are imported
        import xarray
    return xarray


def test_xarray_opens_a_run_with_named_dimensions_and_coordinates(xarray, tmp_path: Path) -> None:
    write(tmp_path / "a.h5", values_of(300))
    run = read_run(tmp_path / "a.h5")
    with xarray.open_datatree(tmp_path / "a.h5", engine="h5netcdf") as tree:
        metric = tree["metric/activation_grad_norm"]
        assert metric.dims == ("step", "layer")
        np.testing.assert_array_equal(metric, run.metric("activation_grad_norm"))
        chosen = metric.sel(step=20, layer="stage0.1").item()
        assert chosen == run.metric("activation_grad_norm")[10, 1]
        assert tree["scalar/loss"].dims == ("step",)
        assert tree["epoch"].sizes["epoch"] == 0
        assert tree["layer/depth"].sel(name="stage0.2").item() == 3
        level = tree["level/64"]
        assert level.dims == ("first_64", "metric", "layer", "statistic")
        largest = level.sel(metric="activation_grad_norm", statistic="max", layer="stage0.0", first_64=128)
        assert largest.item() == np.nanmax(run.metric("activation_grad_norm")[64:128, 0])
        assert tree.attrs["format"] == "gradlens"
    with xarray.open_dataset(tmp_path / "a.h5", engine="h5netcdf", group="metric") as metrics:
        assert metrics["update_ratio"].sel(layer="stage0.0").shape == (300,)


def test_every_version_of_the_format_has_a_sample_that_is_kept() -> None:
    assert {version for version, _ in SAMPLES.values()} == set(range(1, FORMAT_VERSION + 1))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_read(path: Path, tmp_path: Path) -> None:
    version, has_levels = SAMPLES[path]
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    with h5py.File(copy) as file:
        assert file.attrs["format_version"] == version
        assert ("level" in file) == has_levels
        n = int(file["state/n_steps"][()])
        norms = file["metric/activation_grad_norm"][:n]
    run = read_run(copy)
    np.testing.assert_array_equal(run.metric("activation_grad_norm"), norms)
    assert norms.shape == (len(run.steps), len(run.layers))
    assert np.isfinite(norms).all()
    blocks = run.row_chunks("activation_grad_norm", least=1)
    np.testing.assert_allclose(blocks.high.max(axis=0), norms.max(axis=0))
    assert read_card(copy)["rows"] == n
    assert copy.read_bytes() == path.read_bytes()


def test_a_finished_file_is_small_and_whole_for_everybody(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write(tmp_path / "a.h5", np.exp(rng.normal(-5, 0.3, (2000, 40))))
    size = (tmp_path / "a.h5").stat().st_size
    assert size / (2000 * 40 * 3) < 2.5
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        for name in ("activation_grad_norm", "update_ratio"):
            assert file[f"metric/{name}"].compression == "gzip"
            assert file[f"metric/{name}"].shuffle
        file["metric/update_ratio"].resize(2001, axis=0)
        file["metric/update_ratio"][2000] = 1
