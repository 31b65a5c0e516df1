"""Send the essence of a run to an experiment tracker: few scalars, one heatmap per epoch, an alert for each finding.

``GradlensCallback(tracker=trackers.wandb())`` does it after each epoch and at the end; in a loop of one's own, call
``tracker.log("run.h5")`` after ``recorder.log_epoch``. The file remains the full record: per-layer norms of deep models
would be hundreds of charts in a tracker.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gradlens.analysis.gradient_ratio import gradient_ratio
from gradlens.analysis.stats import median
from gradlens.diagnosis.diagnose import diagnose
from gradlens.errors import ConfigError, GradlensWarning, MissingLibraryError
from gradlens.metrics import ACTIVATION_GRAD_NORM, NONFINITE_COUNT, PARAM_GRAD_NORM, UPDATE_RATIO, ZERO_FRACTION
from gradlens.plots import draw_heatmap
from gradlens.plots.figure import png
from gradlens.run import FloatArray, Run
from gradlens.storage import read_run

POINTS = 200
"""Most rows that are sent at once; where there are more, evenly spaced ones are sent."""
SCALARS = ("loss", "lr", "clip_coefficient", "discarded_passes")
"""Scalars of the file that are sent if they are there; with those of ``_from_metrics`` there are at most ten."""

Scalars = Callable[[Mapping[str, float], int], None]
DrawnImage = Callable[[Image.Image, int], None]
Alert = Callable[[str, str, int], None]


class Tracker:
    """Sends what is new in a run file; an error ends the sending with one warning, and nothing else.

    Args:
        scalars: Takes name to value, and the optimizer step.
        image: Takes the heatmap, and the step.
        alert: Takes a title, a text, and the step.
    """

    def __init__(self, scalars: Scalars, image: DrawnImage, alert: Alert) -> None:
        self._scalars, self._image, self._alert = scalars, image, alert
        self._last: dict[str, int] = {}
        """File to the last step that was sent."""
        self._found: set[tuple[str, str]] = set()
        self._failed = False

    def log(self, path: str | os.PathLike[str]) -> None:
        """Send the rows that were added since the last call, the heatmap, and findings that are new.

        Args:
            path: The run file; it may still be written.
        """
        if self._failed:
            return
        try:
            self._send(str(path))
        except Exception as error:
            self._failed = True
            text = f"gradlens: the tracker got no more of {path}: {type(error).__name__}: {error}"
            warnings.warn(text, GradlensWarning, stacklevel=2)

    def _send(self, path: str) -> None:
        run = read_run(path)
        new = np.flatnonzero(run.steps > self._last.get(path, -1))
        if not len(new):
            return
        self._last[path] = step = int(run.steps[-1])
        columns = {**{name: run.scalars[name] for name in SCALARS if name in run.scalars}, **_from_metrics(run, new)}
        for row in new[np.unique(np.linspace(0, len(new) - 1, POINTS).astype(int))]:
            values = {f"gradlens/{name}": float(column[row]) for name, column in columns.items()}
            known = {name: value for name, value in values.items() if not np.isnan(value)}
            if known:
                self._scalars(known, int(run.steps[row]))
        metric = next((name for name in (ACTIVATION_GRAD_NORM, PARAM_GRAD_NORM) if name in run.metrics), None)
        if metric is not None:
            self._image(Image.open(io.BytesIO(png(draw_heatmap([run], metric)))).convert("RGB"), step)
        for finding in diagnose(run).findings:
            if (path, finding.kind) not in self._found:
                self._found.add((path, finding.kind))
                self._alert(
                    f"gradlens: {finding.kind}",
                    " ".join(filter(None, (f"{finding}.", finding.cause, finding.remedy))),
                    step,
                )


def _from_metrics(run: Run, new: NDArray[np.int64]) -> dict[str, FloatArray]:
    """Return at most six columns (T,), which are known in the new rows."""
    found: dict[str, FloatArray] = {}
    rows = slice(int(new[0]), len(run.steps))

    def put(name: str, values: FloatArray, at: NDArray[np.int64] | slice = rows) -> None:
        found[name] = np.full(len(run.steps), np.nan)
        found[name][at] = values

    if PARAM_GRAD_NORM in run.metrics:
        norms = run.metric(PARAM_GRAD_NORM)[rows].astype(np.float64)
        known = ~np.isnan(norms).all(axis=1)
        put("grad_norm", np.where(known, np.sqrt(np.nansum(norms**2, axis=1)), np.nan))
    metric = ACTIVATION_GRAD_NORM if ACTIVATION_GRAD_NORM in run.metrics else PARAM_GRAD_NORM
    ratio = gradient_ratio(run, metric, rows) if metric in run.metrics else None
    if ratio is not None and len(ratio.rows):
        put("log10_first_over_last_layer", ratio.first_decades, ratio.rows)
    for name, metric in (("median_update_ratio", UPDATE_RATIO), ("median_zero_fraction", ZERO_FRACTION)):
        if metric in run.metrics:
            put(name, _median(run.metric(metric)[rows]))
    if NONFINITE_COUNT in run.metrics:
        put(NONFINITE_COUNT, np.nansum(run.metric(NONFINITE_COUNT)[rows], axis=1))
    return found


def _median(values: FloatArray) -> FloatArray:
    """Return the median over layers (T,); NaN where none has a value."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        return np.asarray(median(values, axis=1))


def wandb(run: Any = None) -> Tracker:
    """Return a tracker for Weights & Biases.

    Args:
        run: What ``wandb.init`` returned; None is the run that is active when something is sent, or a new one.

    Raises:
        MissingLibraryError: wandb is not installed.
    """
    library = _load("wandb")
    defined: list[Any] = []

    def active() -> Any:
        found = run or library.run or library.init()
        if found not in defined:  # an axis of its own: the user's calls of log count differently
            found.define_metric("gradlens/step")
            found.define_metric("gradlens/*", step_metric="gradlens/step")
            defined.append(found)
        return found

    return Tracker(
        lambda values, step: active().log({**values, "gradlens/step": step}),
        lambda image, step: active().log({"gradlens/heatmap": library.Image(image), "gradlens/step": step}),
        lambda title, text, step: active().alert(title=title, text=text),
    )


def trackio() -> Tracker:
    """Return a tracker for trackio; call ``trackio.init(project=...)`` before training.

    Raises:
        MissingLibraryError: trackio is not installed.
    """
    library = _load("trackio")

    return Tracker(
        lambda values, step: library.log(dict(values), step=step),
        lambda image, step: library.log({"gradlens/heatmap": library.Image(np.asarray(image))}, step=step),
        lambda title, text, step: library.alert(title=title, text=text),
    )


def mlflow() -> Tracker:
    """Return a tracker for the active MLflow run, or a new one; a finding is a tag, ``gradlens.KIND``.

    Raises:
        MissingLibraryError: mlflow is not installed.
    """
    library = _load("mlflow")
    return Tracker(
        lambda values, step: library.log_metrics(dict(values), step=step),
        lambda image, step: library.log_image(image, key="gradlens/heatmap", step=step),
        lambda title, text, step: library.set_tag(title.replace(": ", "."), text),
    )


def tensorboard(writer: Any = "runs/tensorboard") -> Tracker:
    """Return a tracker for TensorBoard; a finding is a text.

    Args:
        writer: A ``SummaryWriter``, or a folder for a new one.

    Raises:
        MissingLibraryError: tensorboard is not installed.
        ConfigError: The writer is neither.
    """
    if isinstance(writer, str | os.PathLike):
        writer = _load("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(writer))
    if not hasattr(writer, "add_scalar"):
        raise ConfigError(f"writer must be a SummaryWriter or a folder, got {type(writer).__name__}")

    def scalars(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def image(heatmap: Image.Image, step: int) -> None:
        writer.add_image("gradlens/heatmap", np.asarray(heatmap), step, dataformats="HWC")
        writer.flush()

    def alert(title: str, text: str, step: int) -> None:
        writer.add_text(title.replace(": ", "/"), text, step)
        writer.flush()

    return Tracker(scalars, image, alert)


def _load(module: str, extra: str | None = None) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        name = extra or module
        raise MissingLibraryError(
            f"{name} is not installed ({error})", tip=f'python -m pip install "gradlens-toolkit[{name}]"'
        ) from error
