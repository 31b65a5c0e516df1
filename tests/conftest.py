"""Fixtures that all tests share, and the hygiene that none may break."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from PIL import Image

from gradlens.run import Header, Layer, Row
from gradlens.storage import FileSink

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve what else runs on the machine
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
else:  # the index of fonts takes a second: it is made once for all processes that draw, not in each test's folder
    os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="matplotlib-")
    atexit.register(shutil.rmtree, os.environ["MPLCONFIGDIR"], ignore_errors=True)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell script; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis_settings.register_profile(  # a busy machine is no fault
    "gradlens", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("gradlens")
SAMPLE = Path(__file__).parent / "data" / "plain34-s0.h5"


LONGEST = (
    "storage/test_hostile_files", "test_notebook", "train/test_distributed", "recorder/test_compile",
    "recorder/test_distributed_recording", "test_experiments", "engines/test_local", "recorder/test_real_life",
    "engines/test_ray", "diagnosis/test_programs", "train/test_resume", "storage/test_kills", "engines/test_slurm",
    "storage/test_fuzz", "plots/test_figures", "terminal/live/test_live_training", "test_scorecard",
    "integrations/test_ranks", "recorder/test_start_and_resume", "recorder/test_whose_pass", "test_device_script",
    "train/test_record_error", "test_extending", "probe/test_verify", "recorder/test_residual_paths",
    "train/test_train", "test_public", "report/test_page", "report/test_report_command", "cli/test_cli",
    "diagnosis/test_unfit", "test_api", "test_architecture", "test_atomic",
)  # fmt: skip
"""Files that take longest, first: with a long one at the end, one of two workers would have nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; ``--no-loadscope-reorder`` keeps this order."""
    folder = Path(__file__).parent
    places = {folder / f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """Exempt what is imported by now from garbage collection, which else goes through torch's 500,000 objects."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the end of the interpreter collect all."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Run in an empty folder and environment, and leave no HDF5 file open."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "PL_GLOBAL_SEED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    for name in os.environ.keys() ^ before.keys() | {name for name in before if os.environ.get(name) != before[name]}:
        if name not in before:  # libraries leave their settings there
            del os.environ[name]
        elif name != "PYTEST_CURRENT_TEST":
            os.environ[name] = before[name]
    left = open_files()
    if left:  # perhaps only garbage in a cycle; collecting after every test would cost half the suite's time
        gc.collect()
        left = open_files()
    assert left == 0, f"{left} HDF5 file(s) left open"


def open_files() -> int:
    """Return how many HDF5 files this process holds open."""
    return h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)


def make_layers(count: int = 6) -> tuple[Layer, ...]:
    """Return main layers in stages of three."""
    return tuple(Layer(f"stage{i // 3}.{i % 3}", "Conv2d", "main", i + 1, 100 * (i + 1), 9) for i in range(count))


RunMaker = Callable[..., Path]
WRITTEN: dict[str, bytes] = {}
"""Run files that a test of this process has had already, by all that was asked of them: many tests ask the same."""
MOST_KEPT = 1_000_000


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """Return a function that writes a run file with known numbers."""

    def make(
        name: str = "net-s0",
        *,
        folder: str = "runs",
        model: str = "net",
        seed: int = 0,
        steps: int = 20,
        epochs: int = 2,
        layers: int = 6,
        decades: float = -3.0,
        accuracy: float = 0.5,
        config: dict | None = None,
        status: str = "complete",
        overhead: float = float("nan"),
        notes: tuple[str, ...] = (),
        change: Callable[[np.ndarray], np.ndarray] = as_it_is,
    ) -> Path:
        path = tmp_path / folder / f"{name}.h5"
        if model.startswith(("plain", "resnet")):  # what gradlens run stores of its models
            config = {"model": model, "data_facts": {}, **(config or {})}
        asked = (name, folder, model, seed, steps, epochs, layers, decades, accuracy, config, status, overhead, notes)
        if repr(asked) in WRITTEN and change is as_it_is and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(WRITTEN[repr(asked)])
            return path
        sink = FileSink(path)
        rhythm = {"activation_grad_norm": 1, "param_grad_norm": 1, "param_norm": 10, "update_ratio": 10}
        sink.open(Header(make_layers(layers), rhythm, model=model, seed=seed, config=config or {}))
        if steps == 0:
            sink.flush()
        depth = np.linspace(decades, 0, layers)
        grid = change(10.0 ** (depth[None] + 0.01 * np.arange(steps)[:, None]))
        per_epoch = max(steps // max(epochs, 1), 1)
        for step in range(steps):
            metrics = {"activation_grad_norm": grid[step], "param_grad_norm": grid[step] * 2}
            if step % 10 == 0:
                metrics |= {"param_norm": np.ones(layers), "update_ratio": np.full(layers, 1e-3)}
            sink.write_row(Row(step, step // per_epoch, metrics, {"loss": 1.0 / (step + 1), "lr": 0.1}))
            if (step + 1) % per_epoch == 0 and step // per_epoch < epochs:
                number = step // per_epoch + 1
                sink.write_epoch(
                    {
                        "epoch": number,
                        "train_loss": 1 / number,
                        "train_accuracy": accuracy * number / epochs,
                        "val_loss": 2 / number,
                        "val_accuracy": 0.8 * accuracy * number / epochs,
                        "lr": 0.1,
                        "seconds": 1.0,
                    }
                )
        if notes or overhead == overhead:
            sink.write_state(overhead, notes)
        sink.close(status)
        if change is as_it_is and path.stat().st_size < MOST_KEPT:
            WRITTEN[repr(asked)] = path.read_bytes()
        return path

    return make


def as_it_is(grid: np.ndarray) -> np.ndarray:
    return grid


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write a folder of two classes with six different noisy pictures each."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(6):
            save_picture(tmp_path / "photos" / label / f"{i}.png", rng)
    return tmp_path / "photos"


def save_picture(path: Path, rng: np.random.Generator, side: int = 40) -> None:
    """Write a picture of smooth noise, unlike any other."""
    coarse = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
    coarse.resize((side, side + 6), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with as many threads as each of several processes does."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
