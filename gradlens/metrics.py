"""What can be recorded of a layer: each metric's meaning, unit, scale and rhythm.

The table is plain data, so that the view wing can label an axis without torch. How a metric is
measured stands in ``gradlens.recorder``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradlens.errors import ConfigError


@dataclass(frozen=True)
class Metric:
    """One number per row and layer.

    Args:
        name: Its name in the file and in ``record(metrics=...)``.
        title: What stands on an axis.
        scale: "log" for magnitudes, "linear" for shares and cosines, "signed" for magnitudes that may be negative: they
            are averaged as they are, and drawn on a scale that is linear around 0 and logarithmic beyond.
        every: Default rhythm in rows: 1 is every row, 25 is NaN in 24 of 25. Metrics that need
            another pass over weights or outputs have a coarser one.
        combine: How the parts of one optimizer step (micro-batches, repeated calls) add up.
        reading: How to read it, and how it scales with batch and loss.
        limits: The least and the largest value that a linear one can have; None where there is no such bound.
        quotient: Of two other recorded metrics: the recorder divides the first by the second; None for any other.
    """

    name: str
    title: str
    scale: Literal["log", "linear", "signed"]
    every: int
    combine: Literal["root_sum_square", "as_accumulated", "sum", "root_mean_square", "share", "of_the_sums"]
    reading: str
    limits: tuple[float, float] | None = None
    quotient: tuple[str, str] | None = None


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "activation_grad_norm",
            "L2 norm of the gradient w.r.t. the layer's output",
            "log",
            1,
            "root_sum_square",
            "Over the whole batch. It grows with the square root of the output's size, so compare layers by "
            "the RMS (norm / sqrt(out_numel)) where sizes differ; with a mean loss it falls like "
            "1/sqrt(batch size).",
        ),
        Metric(
            "param_grad_norm",
            "L2 norm of the gradient w.r.t. the layer's parameters",
            "log",
            1,
            "as_accumulated",
            "As the optimizer gets it: after accumulation and clipping. It scales with the loss.",
        ),
        Metric(
            "param_norm",
            "L2 norm of the layer's parameters before the step",
            "log",
            25,
            "as_accumulated",
            "Under batch norm the weight's size does not change the function, but scales its gradient by the inverse.",
        ),
        Metric(
            "update_ratio",
            "norm of the update that the optimizer made, over param_norm",
            "log",
            25,
            "as_accumulated",
            "The relative change of the weights in one step; about 1e-3 is common for healthy training.",
        ),
        Metric(
            "nonfinite_count",
            "NaN and Inf entries in the gradient w.r.t. the layer's parameters",
            "linear",
            1,
            "sum",
            "Zero in a healthy step; with a GradScaler, the step that holds any is skipped and the scale halved.",
        ),
        Metric(
            "activation_rms",
            "root mean square of the layer's output",
            "log",
            25,
            "root_mean_square",
            "Over the whole batch, of all calls whose output gets a gradient. With He initialisation it keeps its size "
            "over depth; where it falls or grows with depth, so does what the layers can tell apart.",
        ),
        Metric(
            "zero_fraction",
            "share of zeros in the output of the activation function behind the layer",
            "linear",
            25,
            "share",
            "About 0.5 behind a ReLU at initialisation. A unit that is zero for one batch may live for another, so "
            "judge over a window. NaN where it is not known what follows the layer: behind an addition, say.",
            (0.0, 1.0),
        ),
        Metric(
            "grad_coherence",
            "cosine between the gradients that two halves of the batch have for the layer's weight",
            "linear",
            50,
            "of_the_sums",
            "Of linear layers and 2-d convolutions. Near 1 the examples agree, near 0 noise prevails. The halves are "
            "independent only without batch norm, which shares its statistics between them.",
            (-1.0, 1.0),
        ),
        Metric(
            "shortcut_grad_norm",
            "L2 norm of what comes back through the block's shortcut",
            "log",
            25,
            "root_sum_square",
            "The gradient w.r.t. a residual block's input is the sum of what comes back through its shortcut and "
            "through its branch. It stands at the block's first convolution, and is NaN at layers that begin no "
            "block. 0 where the shortcut passes no gradient on. Scales as activation_grad_norm does.",
        ),
        Metric(
            "branch_grad_norm",
            "L2 norm of what comes back through the block's branch",
            "log",
            25,
            "root_sum_square",
            "Beside shortcut_grad_norm: the other addend of the gradient w.r.t. the block's input.",
        ),
        Metric(
            "path_cosine",
            "cosine between what comes back through the block's shortcut and through its branch",
            "linear",
            25,
            "of_the_sums",
            "Over the whole batch. Near 0 the squares of the two norms add up to that of their sum, so that each "
            "square is a share; below 0 they partly cancel out. NaN where one of the norms is 0.",
            (-1.0, 1.0),
        ),
    )
}

DEFAULT_METRICS: tuple[str, ...] = ("activation_grad_norm", "param_grad_norm", "param_norm", "update_ratio")
"""``nonfinite_count`` comes to these where a GradScaler is in use."""
METRICS_OF_PATHS: tuple[str, ...] = ("shortcut_grad_norm", "branch_grad_norm", "path_cosine")
"""Of residual blocks alone; ``gradlens run`` records them of every net that has any."""
METRICS_ON_REQUEST: tuple[str, ...] = tuple(
    name for name in METRICS if name not in (*DEFAULT_METRICS, *METRICS_OF_PATHS)
)

DERIVED_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "coherent_grad_norm",
            "L2 norm of the gradient w.r.t. the layer's parameters, times the cosine between those of two halves of "
            "the batch",
            "signed",
            50,
            "of_the_sums",
            "param_grad_norm x grad_coherence: how fast a step of unit length along one half's gradient lowers the "
            "other half's loss. What the halves agree on is left, noise averages out to 0 over rows and seeds, as it "
            "would not if negative values were cut off. Below 0 the halves work against each other: gradient confusion "
            "(Sankararaman et al. 2020, section 2); what is lost with depth though the norm stays is coherence "
            "(Balduzzi et al. 2017). Scales as param_grad_norm does; NaN in rows and layers without either.",
        ),
    )
}
"""What is not recorded but computed from what is, when a run is looked at (``gradlens.analysis.derived_metrics``)."""
SHOWN_METRICS: dict[str, Metric] = METRICS | DERIVED_METRICS
"""All that can be drawn."""


def get_metric(name: str) -> Metric:
    """Look a metric up by name.

    Raises:
        ConfigError: There is no such metric; the message lists those that are.
    """
    try:
        return METRICS[name]
    except KeyError:
        raise ConfigError(f"unknown metric {name!r}; expected one of {', '.join(METRICS)}") from None


def is_linear(name: str) -> bool:
    """Say whether a metric is averaged as it is, and not its logarithm."""
    return name in SHOWN_METRICS and SHOWN_METRICS[name].scale != "log"


def say_metric(name: str, *, per_element: bool = False) -> str:
    """Return what stands on an axis; per element the root mean square in place of the norm."""
    title = SHOWN_METRICS[name].title if name in SHOWN_METRICS else name
    return title.replace("L2 norm", "RMS per element") if per_element else title
