"""The rules of the kind ``setup``: faults of the set-up that facts show; a new rule is a file and a name here."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.alike_places import alike_places
from gradlens.diagnosis.setup.batches import constant_data, few_values, one_class, only_class, only_value, same_batch
from gradlens.diagnosis.setup.broadcast import broadcast
from gradlens.diagnosis.setup.class_dims import class_dims
from gradlens.diagnosis.setup.clearing import CLEARED, accumulates_nothing, cleared, kept
from gradlens.diagnosis.setup.collapsed import collapsed
from gradlens.diagnosis.setup.copies import copies
from gradlens.diagnosis.setup.dimensions import batch_second, mixed_views
from gradlens.diagnosis.setup.divided import divided
from gradlens.diagnosis.setup.eval_mode import evaluates
from gradlens.diagnosis.setup.exponents import exponents
from gradlens.diagnosis.setup.gradient_scaler import scaled
from gradlens.diagnosis.setup.gradless import gradless
from gradlens.diagnosis.setup.labels import labels
from gradlens.diagnosis.setup.likelihood import likelihood, negated
from gradlens.diagnosis.setup.logit_range import logit_range
from gradlens.diagnosis.setup.loop import THROWN_AWAY, loop
from gradlens.diagnosis.setup.minimax import minimax
from gradlens.diagnosis.setup.no_gradients import no_backward
from gradlens.diagnosis.setup.norm_statistics import momentum
from gradlens.diagnosis.setup.other_weights import other_weights
from gradlens.diagnosis.setup.output_functions import dropped, flat_derivative, no_logs, softmax_dim, twice
from gradlens.diagnosis.setup.own_targets import own_targets
from gradlens.diagnosis.setup.repeated_seed import repeated_seed
from gradlens.diagnosis.setup.same_outputs import bent_logits, same_for_all
from gradlens.diagnosis.setup.sequences import sequences
from gradlens.diagnosis.setup.shared_labels import shared_labels
from gradlens.diagnosis.setup.sharp_attention import sharp_attention
from gradlens.diagnosis.setup.targets import normalised_output, out_of_range, outside
from gradlens.diagnosis.setup.terms import collapsed_posterior, outweighed
from gradlens.diagnosis.setup.weighting import weighting
from gradlens.diagnosis.setup.weights import alike, overwritten, rounded_weights, weights_in_buffers
from gradlens.diagnosis.setup.wrong_arguments import wrong_arguments
from gradlens.diagnosis.written_weights import undone_steps

RULES = (
    no_backward, negated, twice, no_logs, flat_derivative, outside, out_of_range, softmax_dim, dropped,
    broadcast, mixed_views, batch_second, cleared, kept, alike, momentum, evaluates, scaled, same_batch,
    minimax, collapsed_posterior, outweighed, accumulates_nothing, weights_in_buffers, rounded_weights,
    class_dims, logit_range, likelihood, weighting, sequences, wrong_arguments, own_targets, bent_logits, copies,
    gradless, labels, divided, only_value, alike_places, other_weights, exponents, shared_labels,
)  # fmt: skip
"""In the order in which their findings are listed."""
AFTER_LEARNING = (
    collapsed, few_values, one_class, only_class, overwritten, constant_data, normalised_output, loop, same_for_all,
    undone_steps, repeated_seed, sharp_attention,
)  # fmt: skip
"""Rules that also ask whether the model learns."""


def setup(rec: Recording, learning: Learning) -> list[Finding]:
    """Find faults of the set-up that need no threshold.

    Args:
        rec: The recording.
        learning: Whether the model learns.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    found = [finding for rule in RULES for finding in rule(rec)]
    found += [finding for rule in AFTER_LEARNING for finding in rule(rec, learning)]
    causes = {finding.cause for finding in found}
    return [finding for finding in found if not (CLEARED in causes and finding.cause == THROWN_AWAY)]
