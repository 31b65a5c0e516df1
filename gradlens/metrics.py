"""The metrics that can be recorded for a layer: meaning, unit, scale and recording interval.

The table is plain data, so that figures and pages can label an axis without loading torch. The code that measures a
metric is in ``gradlens.recorder.measurers``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gradlens.errors import ConfigError


@dataclass(frozen=True)
class Metric:
    """One number per row and layer.

    Args:
        name: Its name in the file and in ``record(metrics=...)``.
        title: Axis label.
        scale: "log" for magnitudes, "linear" for shares and cosines, "signed" for magnitudes that may be negative.
            Signed metrics are averaged without taking logarithms, and drawn on a scale that is linear around 0 and
            logarithmic beyond.
        every: Default interval in rows: 1 records every row; 25 records one row in 25 and leaves NaN in the others.
            Metrics that need another pass over weights or outputs have a longer interval.
        combine: How the parts of one optimizer step (micro-batches, repeated calls) are combined.
        reading: How to read it, and how it scales with batch size and loss.
        limits: The smallest and the largest possible value of a linear metric; None where there is no bound.
        quotient: Two other recorded metrics, the first of which is divided by the second; None for a metric that is
            measured by itself.
        measured_by: The module of ``gradlens.recorder.measurers`` that measures it; "" for gradient norms, which every
            row has.
    """

    name: str
    title: str
    scale: Literal["log", "linear", "signed"]
    every: int
    combine: Literal["root_sum_square", "as_accumulated", "sum", "root_mean_square", "share", "of_the_sums"]
    reading: str
    limits: tuple[float, float] | None = None
    quotient: tuple[str, str] | None = None
    measured_by: str = ""


ACTIVATION_GRAD_NORM = "activation_grad_norm"
PARAM_GRAD_NORM = "param_grad_norm"
PARAM_NORM = "param_norm"
UPDATE_RATIO = "update_ratio"
NONFINITE_COUNT = "nonfinite_count"
ACTIVATION_RMS = "activation_rms"
ZERO_FRACTION = "zero_fraction"
DEAD_FRACTION = "dead_fraction"
GRAD_COHERENCE = "grad_coherence"
BATCH_COHERENCE = "batch_coherence"
SHORTCUT_GRAD_NORM = "shortcut_grad_norm"
BRANCH_GRAD_NORM = "branch_grad_norm"
PATH_COSINE = "path_cosine"
GRADIENT_THROUGH_TIME = "gradient_through_time"
COHERENT_GRAD_NORM = "coherent_grad_norm"
"""Names of metrics; the rest of the package writes them by these constants."""

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            ACTIVATION_GRAD_NORM,
            "L2 norm of the gradient w.r.t. the layer's output",
            "log",
            1,
            "root_sum_square",
            "Over the whole batch. It grows with the square root of the output's size: where sizes differ, compare "
            "layers by the RMS (norm / sqrt(out_numel)). With a mean loss it falls like 1/sqrt(batch size).",
        ),
        Metric(
            PARAM_GRAD_NORM,
            "L2 norm of the gradient w.r.t. the layer's parameters",
            "log",
            1,
            "as_accumulated",
            "As the optimizer receives it: after accumulation and clipping. It scales with the loss.",
        ),
        Metric(
            PARAM_NORM,
            "L2 norm of the layer's parameters before the step",
            "log",
            25,
            "as_accumulated",
            "Before batch norm, the weight's size does not change the function; its gradient scales with the inverse.",
            measured_by="weights",
        ),
        Metric(
            UPDATE_RATIO,
            "norm of the optimizer's update, divided by param_norm",
            "log",
            25,
            "as_accumulated",
            "The relative change of the weights in one step; about 1e-3 is common in healthy training.",
            measured_by="weights",
        ),
        Metric(
            NONFINITE_COUNT,
            "NaN and Inf entries in the gradient w.r.t. the layer's parameters",
            "linear",
            1,
            "sum",
            "0 in a healthy step. A GradScaler skips a step that has any, and halves its scale.",
        ),
        Metric(
            ACTIVATION_RMS,
            "root mean square of the layer's output",
            "log",
            25,
            "root_mean_square",
            "Over the whole batch and all calls whose output gets a gradient. With He initialisation it stays about "
            "constant over depth. Where it shrinks or grows with depth, the signal of the forward pass does too.",
            measured_by="activations",
        ),
        Metric(
            ZERO_FRACTION,
            "share of zeros in the output of the activation function after the layer",
            "linear",
            25,
            "share",
            "About 0.5 after a ReLU at initialisation. A unit that is 0 for one batch may be active for another, so "
            "judge it over several rows. NaN where the next operation is unknown, for example after an addition.",
            (0.0, 1.0),
            measured_by="activations",
        ),
        Metric(
            DEAD_FRACTION,
            "share of units whose gradient is exactly 0 in three recordings in succession",
            "linear",
            10,
            "share",
            "A unit is a row of a linear layer's weight or a filter of a convolution. Behind a ReLU, a unit that no "
            "example of a batch switches on gets a gradient of exactly 0; sparse units are on for some other batch. "
            "Some dead units are common; a layer whose units are nearly all dead passes nothing on.",
            (0.0, 1.0),
            measured_by="dead_units",
        ),
        Metric(
            GRAD_COHERENCE,
            "cosine between the weight gradients of two halves of the batch",
            "linear",
            50,
            "of_the_sums",
            "For linear layers and 2-d convolutions. Near 1 the examples agree; near 0 noise dominates. The halves are "
            "independent only without batch norm, which shares its statistics between them; with it, use "
            "batch_coherence.",
            (-1.0, 1.0),
            measured_by="activations",
        ),
        Metric(
            BATCH_COHERENCE,
            "cosine between the parameter gradients of two batches in succession",
            "linear",
            50,
            "of_the_sums",
            "The cosine stiffness between batches (Fort et al. 2019); below 0 the batches work against each other: "
            "gradient confusion (Sankararaman et al. 2020). Each batch has a backward pass of its own, so that it is "
            "sound under batch norm. Near 0 noise dominates; single values scatter, so judge their mean over rows. It "
            "grows with the batch size. The step between the two batches lowers it a little: less with a smaller "
            "learning rate.",
            (-1.0, 1.0),
            measured_by="batch_coherence",
        ),
        Metric(
            SHORTCUT_GRAD_NORM,
            "L2 norm of the gradient through the block's shortcut",
            "log",
            25,
            "root_sum_square",
            "The gradient w.r.t. a residual block's input is the sum of two parts: one through its shortcut, one "
            "through its branch. It is recorded at the block's first convolution and is NaN at all other layers. It is "
            "0 where the shortcut passes no gradient. It scales like activation_grad_norm.",
            measured_by="activations",
        ),
        Metric(
            BRANCH_GRAD_NORM,
            "L2 norm of the gradient through the block's branch",
            "log",
            25,
            "root_sum_square",
            "The other part of the gradient w.r.t. the block's input; see shortcut_grad_norm.",
            measured_by="activations",
        ),
        Metric(
            PATH_COSINE,
            "cosine between the gradients through the block's shortcut and its branch",
            "linear",
            25,
            "of_the_sums",
            "Over the whole batch. Near 0 the squared norms of the two parts add up to the squared norm of their sum. "
            "Below 0 the parts partly cancel. NaN where one of the norms is 0.",
            (-1.0, 1.0),
            measured_by="activations",
        ),
        Metric(
            GRADIENT_THROUGH_TIME,
            "gradient w.r.t. the first hidden state / the last one",
            "log",
            25,
            "of_the_sums",
            "It is measured at recurrent layers alone: the part of the gradient of the last time step's output that "
            "arrives at the first time step. A linear recurrence that scales by rho has rho^(T-1) over T time steps. "
            "Far below 1 the layer cannot learn from inputs that far back; far above 1 its gradient explodes. For an "
            "LSTM it is taken over hidden and cell states. Longer sequences have smaller values.",
            measured_by="gradient_through_time",
        ),
    )
}

DEFAULT_METRICS: tuple[str, ...] = (
    ACTIVATION_GRAD_NORM,
    PARAM_GRAD_NORM,
    PARAM_NORM,
    UPDATE_RATIO,
    DEAD_FRACTION,
)
"""``nonfinite_count`` is added to these where a GradScaler is in use."""
GRADIENT_NORMS = (ACTIVATION_GRAD_NORM, PARAM_GRAD_NORM)
"""They are in every row, so their interval is that of the rows; views that show one show the first that a run has."""
METRICS_OF_PATHS: tuple[str, ...] = (SHORTCUT_GRAD_NORM, BRANCH_GRAD_NORM, PATH_COSINE)
"""Metrics of residual blocks; ``gradlens run`` records them for every model that has such blocks."""
METRICS_OF_SOME_LAYERS: tuple[str, ...] = (*METRICS_OF_PATHS, GRADIENT_THROUGH_TIME, DEAD_FRACTION)
"""Metrics that only some layers have by their nature: figures leave the others out."""
METRICS_ON_REQUEST: tuple[str, ...] = tuple(
    name for name in METRICS if name not in (*DEFAULT_METRICS, *METRICS_OF_PATHS, GRADIENT_THROUGH_TIME)
)

DERIVED_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            COHERENT_GRAD_NORM,
            "L2 norm of the gradient w.r.t. the layer's parameters, times the cosine between the gradients of two "
            "halves of the batch",
            "signed",
            50,
            "of_the_sums",
            "param_grad_norm x grad_coherence: how fast a step of unit length along one half's gradient lowers the "
            "other half's loss. Noise averages to 0 over rows and seeds, because negative values are kept, and the "
            "part on which the halves agree is left. Below 0 the halves work against each other: gradient confusion "
            "(Sankararaman et al. 2020, section 2). With depth, coherence can be lost while the norm stays the same "
            "(Balduzzi et al. 2017). It scales like param_grad_norm; NaN where either factor is missing.",
        ),
    )
}
"""Metrics that are computed from recorded ones when a run is read (``gradlens.analysis.derived_metrics``)."""
SHOWN_METRICS: dict[str, Metric] = METRICS | DERIVED_METRICS
"""All metrics that can be drawn."""


def get_metric(name: str) -> Metric:
    """Return a metric by its name.

    Args:
        name: One of ``METRICS``.

    Raises:
        ConfigError: There is no such metric; the message lists those that exist.
    """
    try:
        return METRICS[name]
    except KeyError:
        raise ConfigError(f"unknown metric {name!r}; expected one of {', '.join(METRICS)}") from None


def choose_metrics(names: str | Iterable[str], base: Iterable[str] = DEFAULT_METRICS) -> tuple[str, ...]:
    """Return the metrics to record.

    Args:
        names: Metrics that are added to the default ones; "all" adds all, "-NAME" leaves one out. In a string, they
            are separated by commas.
        base: The default ones.

    Returns:
        The metrics, each once, in the order of ``METRICS``.

    Raises:
        ConfigError: There is no such metric, or none is left.
    """
    parts = names.split(",") if isinstance(names, str) else names
    chosen = set(base)
    for name in filter(None, map(str.strip, parts)):
        if name.startswith("-"):
            chosen.discard(get_metric(name[1:]).name)
        else:
            chosen.update(METRICS if name == "all" else [get_metric(name).name])
    if not chosen:
        raise ConfigError("metrics: every metric is left out", tip="keep param_grad_norm")
    return tuple(name for name in METRICS if name in chosen)


def is_linear(name: str) -> bool:
    """Return whether averages of a metric are arithmetic; magnitudes are averaged as logarithms."""
    return name in SHOWN_METRICS and SHOWN_METRICS[name].scale != "log"


def say_metric(name: str, *, per_element: bool = False) -> str:
    """Return the axis label of a metric.

    Args:
        name: A metric's name; an unknown name is returned unchanged.
        per_element: Name the root mean square per element instead of the L2 norm.
    """
    title = SHOWN_METRICS[name].title if name in SHOWN_METRICS else name
    return title.replace("L2 norm", "RMS per element") if per_element else title
