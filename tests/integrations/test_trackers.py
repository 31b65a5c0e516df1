"""What trackers get: few scalars, a heatmap per epoch, an alert for each finding; TensorBoard's is read back.

W&B, MLflow and trackio are too heavy to be installed for the tests: stand-ins with their functions take what they are
sent. Where W&B and MLflow are installed, they run offline.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gradlens
from gradlens.errors import ConfigError, MissingLibraryError
from gradlens.integrations import trackers
from gradlens.integrations.framework_recording import FrameworkRecording
from tests.conftest import SAMPLE


class Sent:
    """Keeps what a tracker sends."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, float], int]] = []
        self.images: list[tuple[Image.Image, int]] = []
        self.alerts: list[tuple[str, str, int]] = []

    def tracker(self) -> trackers.Tracker:
        return trackers.Tracker(
            lambda values, step: self.rows.append((dict(values), step)),
            lambda image, step: self.images.append((image, step)),
            lambda title, text, step: self.alerts.append((title, text, step)),
        )


def sick_run(make_run: Any) -> Path:
    """Write a run in which half of the rows are not finite."""
    return make_run(steps=20, change=lambda grid: np.where(np.arange(20)[:, None] < 10, grid, np.inf))


def test_few_scalars_of_every_row_an_image_and_an_alert(make_run: Any) -> None:
    path = sick_run(make_run)
    sent = Sent()
    tracker = sent.tracker()
    tracker.log(path)
    run = gradlens.read_run(path)
    assert [step for _, step in sent.rows] == run.steps.tolist()
    assert 5 <= len({name for values, _ in sent.rows for name in values}) <= 10
    norms = np.sqrt((run.metric("param_grad_norm").astype(float) ** 2).sum(axis=1))
    np.testing.assert_allclose([values["gradlens/grad_norm"] for values, _ in sent.rows], norms, rtol=1e-6)
    np.testing.assert_allclose([values["gradlens/loss"] for values, _ in sent.rows], run.scalars["loss"], rtol=1e-6)
    grads = run.metric("activation_grad_norm")[:10]
    decades = [values["gradlens/log10_first_over_last_layer"] for values, _ in sent.rows[:10]]
    np.testing.assert_allclose(decades, np.log10(grads[:, 0] / grads[:, -2]), rtol=1e-4)
    assert ["gradlens/median_update_ratio" in values for values, _ in sent.rows] == [t % 10 == 0 for t in range(20)]
    assert [step for _, step in sent.images] == [19]
    assert sent.images[0][0].width > 300
    found = gradlens.diagnose(run).findings
    assert [title for title, _, _ in sent.alerts] == [f"gradlens: {finding.kind}" for finding in found] != []
    assert found[0].remedy in sent.alerts[0][1]
    tracker.log(path)  # nothing is new
    assert (len(sent.rows), len(sent.images), len(sent.alerts)) == (20, 1, len(found))


def test_a_long_run_is_sent_as_points(make_run: Any) -> None:
    sent = Sent()
    sent.tracker().log(make_run(steps=1000))
    steps = [step for _, step in sent.rows]
    assert len(steps) == trackers.POINTS
    assert (steps[0], steps[-1]) == (0, 999)


def test_a_recording_sends_after_each_epoch_and_at_the_end() -> None:
    import torch

    from tests.recorder.small import backward, mlp

    model, sent = mlp(), Sent()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    recording = FrameworkRecording("a.h5", tracker=sent.tracker())
    recording.begin(model, optimizer)
    for step in range(5):
        optimizer.zero_grad()
        recording.log(loss=backward(model, step))
        optimizer.step()
        if step in (1, 3):
            recording.log_epoch(step, {})
    recording.end()
    assert [step for _, step in sent.rows] == [0, 1, 2, 3, 4]
    assert [step for _, step in sent.images] == [1, 3, 4]


def test_an_error_in_a_tracker_ends_only_the_sending() -> None:
    tracker = trackers.Tracker(lambda values, step: 1 / 0, lambda *image: None, lambda *alert: None)  # type: ignore[arg-type, return-value]
    with pytest.warns(gradlens.GradlensWarning, match="the tracker got no more of .*ZeroDivisionError") as caught:
        tracker.log(SAMPLE)
    tracker.log(SAMPLE)
    assert len(caught) == 1


def test_tensorboard_is_read_back(make_run: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = sick_run(make_run)
    trackers.tensorboard("log").log(path)
    events = EventAccumulator("log")
    events.Reload()
    loss = events.Scalars("gradlens/loss")
    assert [event.step for event in loss] == list(range(20))
    np.testing.assert_allclose([event.value for event in loss], gradlens.read_run(path).scalars["loss"], rtol=1e-6)
    assert [event.step for event in events.Images("gradlens/heatmap")] == [19]
    assert events.Tags()["tensors"] == [f"gradlens/{gradlens.diagnose(gradlens.read_run(path)).kind}/text_summary"]
    with pytest.raises(ConfigError, match="must be a SummaryWriter or a folder"):
        trackers.tensorboard(3)


# --- stand-ins ----------------------------------------------------------------------------------------------


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Put a module in place that notes each call of the functions that the package has."""
    calls: list[tuple[str, Any]] = []
    module: Any = ModuleType(name)

    def note(call: str) -> Any:
        return lambda *args, **given: calls.append((call, (*args, given)))

    run = SimpleNamespace(log=note("log"), alert=note("alert"), define_metric=note("define_metric"))
    module.run = run
    module.Image = lambda image: ("image", np.asarray(image).shape)
    for call in ("log", "alert", "log_metrics", "log_image", "set_tag"):
        setattr(module, call, note(call))
    monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize(
    ("name", "functions"),
    [
        ("wandb", ["define_metric", "log", "alert"]),
        ("trackio", ["log", "alert"]),
        ("mlflow", ["log_metrics", "log_image", "set_tag"]),
    ],
)
def test_each_package_is_called_with_its_own_functions(
    name: str, functions: list[str], monkeypatch: pytest.MonkeyPatch, make_run: Any
) -> None:
    calls = stand_in(name, monkeypatch)
    getattr(trackers, name)().log(sick_run(make_run))
    assert list(dict.fromkeys(call for call, _ in calls)) == functions
    if name == "wandb":  # steps of an axis of its own
        logged = [args[0] for call, args in calls if call == "log"]
        assert [values["gradlens/step"] for values in logged] == [*range(20), 19]
        assert "gradlens/heatmap" in logged[-1]


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_package_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingLibraryError, match=rf"{name} is not installed .*gradlens-toolkit\[{name}\]"):
        getattr(trackers, name)()


# --- the packages themselves, offline -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    path = sick_run(make_run)
    with wandb.init(mode="offline", dir=".", settings=wandb.Settings(silent=True)) as run:
        trackers.wandb(run).log(path)
        assert run.summary["gradlens/step"] == 19
    assert list(Path("wandb").glob("offline-run-*/run-*.wandb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_in_a_folder(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    path = sick_run(make_run)
    mlflow.set_tracking_uri(Path("mlruns").absolute().as_uri())
    with mlflow.start_run() as run:
        trackers.mlflow().log(path)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "gradlens/loss")
    assert [each.step for each in history] == list(range(20))
    assert "gradlens.nonfinite" in mlflow.get_run(run.info.run_id).data.tags
