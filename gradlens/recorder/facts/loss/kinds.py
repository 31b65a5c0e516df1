"""The kinds of facts that the graph of a loss shows, and what reads each: a new one is a function and a line here.

A fact is read in one of four ways. What holds numbers on the device is completed later, when the step is over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradlens.recorder.facts.loss.class_dims import mixed_classes, wrong_softmax
from gradlens.recorder.facts.loss.compared_outputs import compared_outputs
from gradlens.recorder.facts.loss.divergence_sign import maximized_divergence
from gradlens.recorder.facts.loss.graph_reading import MOST_FACTS, MOST_NODES, RESHAPES, WEIGHTED, Facts
from gradlens.recorder.facts.loss.label_signs import label_signs, read_label_signs
from gradlens.recorder.facts.loss.likelihood_sign import likelihood_sign, signed_error
from gradlens.recorder.facts.loss.logit_range import logit_range
from gradlens.recorder.facts.loss.loss_operations import COMPARISONS, LOSSES
from gradlens.recorder.facts.loss.loss_weights import (
    ClassCounts,
    label_smoothing,
    look_for_equal_examples,
    look_for_late_weights,
    read_soft_targets,
    take_class_weights,
    take_shared_labels,
    take_soft_targets,
)
from gradlens.recorder.facts.loss.mixed_views import reordered, rows_of_the_second
from gradlens.recorder.facts.loss.odd_operations import (
    BOUNDED,
    CLAMPS,
    COMPARED,
    KINKED,
    LOGARITHMS,
    SOFTMAX,
    Place,
    bounded_output,
    clamped_parameter,
    curvature,
    divided_by_itself,
    doubled,
    log_of_log,
    own_functions,
    softmax_dim,
    stacked_layers,
    with_itself,
    written_by_hand,
)
from gradlens.recorder.facts.loss.overlap_sign import overlap_sign
from gradlens.recorder.facts.loss.own_targets import log_as_deviation, own_target
from gradlens.recorder.facts.loss.picked_dims import look_for_picked
from gradlens.recorder.facts.loss.policy_gradients import entropy_signs, policy_gradients, trained_advantages
from gradlens.recorder.facts.loss.probabilities import (
    look_for_minimax,
    look_for_ratio,
    probabilities_as_logs,
    softmax_twice,
)
from gradlens.recorder.facts.loss.score_scale import averaged_batch, read_scores, unscaled_scores
from gradlens.recorder.facts.loss.targets_and_masks import broadcast, read_targets
from gradlens.recorder.facts.loss.undefined_values import (
    CountedElements,
    LeastNumbers,
    look_for_clamp,
    look_for_count,
    look_for_logarithm,
)

NLL = {"NllLoss", "NllLoss2D"}
EVERYWHERE = ""
"""Key of the kinds that are read at operations which no kind names."""
OWN_FUNCTION = "(a function written in Python)"
"""Stands for every ``torch.autograd.Function``, whatever its name."""


class Collector(Protocol):
    """Collects what was taken of one kind, over all passes."""

    def read(self, taken: Facts, step: int) -> None:
        """Read what was taken in a step; this waits for an accelerator."""

    def facts(self) -> list[Facts]:
        """Return the facts."""


@dataclass(frozen=True)
class Kind:
    """A kind of fact.

    Args:
        name: Its key in ``graph`` of docs/facts.md.
        of_loss: Reads it from the node of a loss.
        of_operation: Reads it from an operation between the model's outputs and the loss, and that operation's name.
        of_place: Reads it from an operation anywhere in the graph.
        of_graph: Reads it from all nodes, inputs first.
        at: Operations at which it is read; () for all between the outputs and the loss.
        later: Completes, when the step is over, what holds numbers on the device; returns facts with their kinds.
        collector: Collects, when the step is over, what holds numbers on the device.
        counts_passes: Whether the passes in which it was found are counted.
        most: Facts of one place that are read in one graph, the same ones included.
    """

    name: str
    of_loss: Callable[[Any], list[Facts]] | None = None
    of_operation: Callable[[Any, str], list[Facts]] | None = None
    of_place: Callable[[Place], list[Facts]] | None = None
    of_graph: Callable[[Sequence[Any]], list[Facts]] | None = None
    at: Collection[str] = ()
    later: Callable[[Facts], list[tuple[str, Facts]]] | None = None
    collector: Callable[[], Collector] | None = None
    counts_passes: bool = False
    most: int = MOST_FACTS


def where(name: str, key: str) -> Callable[[Facts], list[tuple[str, Facts]]]:
    """Return what keeps a fact where a number on the device is true; it waits for an accelerator.

    Args:
        name: The kind.
        key: The number's key in the fact.
    """
    return lambda taken: [(name, taken | {key: True})] if taken[key].tolist() else []


def of_node(read: Callable[[Any], list[Facts]]) -> Callable[[Any, str], list[Facts]]:
    """Return a reader that gets an operation's name, too."""
    return lambda node, op: read(node)


KINDS = (
    Kind("losses", counts_passes=True),  # these without a reader are found on the walk itself
    Kind("outputs"),
    Kind("softmax_twice", of_operation=softmax_twice, at=("BinaryCrossEntropyWithLogits", "LogSoftmax", "Softmax")),
    Kind("probabilities_as_logs", of_operation=probabilities_as_logs),
    Kind("softmax_dims", of_place=softmax_dim, at=SOFTMAX, most=MOST_NODES),
    Kind("broadcast", of_operation=broadcast, at=COMPARISONS),
    Kind("flat"),
    Kind("bounded", of_place=bounded_output, at=BOUNDED),
    Kind("targets", later=read_targets, counts_passes=True),
    Kind("masks", counts_passes=True),
    Kind("clamped", of_place=clamped_parameter, at=CLAMPS, most=MOST_NODES),
    Kind("minimax", of_loss=look_for_minimax),
    Kind("curvature", of_place=curvature, at=KINKED),
    Kind("mixed_views", of_operation=reordered, of_place=rows_of_the_second, at=RESHAPES),
    Kind("stacked", of_place=stacked_layers, at=WEIGHTED),
    Kind("softmax_off_classes", of_operation=of_node(wrong_softmax), at=NLL),
    Kind("mixed_classes", of_operation=of_node(mixed_classes), at=NLL),
    Kind("ratios", of_operation=look_for_ratio),
    Kind("logit_range", of_operation=of_node(logit_range), at=NLL),
    Kind("likelihoods", of_loss=likelihood_sign),
    Kind("signed_errors", of_loss=signed_error),
    Kind("terms_apart"),
    Kind("compared", of_loss=compared_outputs),
    Kind("late_weights", of_operation=look_for_late_weights, later=where("late_weights", "varies"), counts_passes=True),
    Kind("equal_examples", of_operation=look_for_equal_examples, at=LOSSES, later=where("equal_examples", "alike"),
         counts_passes=True),
    Kind("penalties", counts_passes=True),
    Kind("picked", of_operation=look_for_picked),
    Kind("entropies", of_loss=entropy_signs, counts_passes=True),
    Kind("doubled", of_place=doubled, at=("Add",)),
    Kind("with_itself", of_place=with_itself, at=COMPARED),
    Kind("logs_of_logs", of_place=log_of_log, at=LOGARITHMS),
    Kind("many_labels", of_operation=take_soft_targets, later=read_soft_targets),
    Kind("shared_labels", of_operation=take_shared_labels, at=("BinaryCrossEntropy",), later=read_soft_targets),
    Kind("unscaled_scores", of_graph=unscaled_scores, later=read_scores),
    Kind("averaged_batch", of_graph=averaged_batch),
    Kind("own_targets", of_operation=own_target),
    Kind("smoothing", of_operation=label_smoothing),
    Kind("log_as_deviation", of_graph=log_as_deviation),
    Kind("clamps", of_operation=look_for_clamp, later=where("clamps", "all_off"), counts_passes=True),
    Kind("label_signs", of_loss=label_signs, later=read_label_signs, counts_passes=True),
    Kind("pairs"),
    Kind("overlaps", of_loss=overlap_sign),
    Kind("divided", of_place=divided_by_itself, at=("Div",)),
    Kind("written", of_place=written_by_hand, at=(OWN_FUNCTION,)),
    Kind("policy_gradients", of_loss=policy_gradients),
    Kind("own_functions", of_graph=own_functions),
    Kind("trained_advantages", of_loss=trained_advantages),
    Kind("maximized_divergences", of_loss=maximized_divergence),
    Kind("class_weights", of_operation=take_class_weights, at=LOSSES, collector=ClassCounts),
    Kind("logarithms", of_operation=look_for_logarithm, collector=LeastNumbers),
    Kind("counted", of_operation=look_for_count, collector=CountedElements),
)  # fmt: skip
"""In the order of the file."""
BY_NAME = {kind.name: kind for kind in KINDS}
OF_LOSS = [(kind.name, kind.of_loss) for kind in KINDS if kind.of_loss]
OF_GRAPH = [(kind.name, kind.of_graph) for kind in KINDS if kind.of_graph]
OF_OPERATION = {
    op: [(kind.name, kind.of_operation) for kind in KINDS if kind.of_operation and (not kind.at or op in kind.at)]
    for op in sorted({EVERYWHERE} | {op for kind in KINDS if kind.of_operation for op in kind.at})
}
"""Operation, or ``EVERYWHERE``, to the kinds that are read there."""
OF_PLACE = {
    op: [(kind.name, kind.of_place, kind.most) for kind in KINDS if kind.of_place and op in kind.at]
    for op in sorted({op for kind in KINDS if kind.of_place for op in kind.at})
}
"""Operation, or ``OWN_FUNCTION``, to the kinds that are read there."""
