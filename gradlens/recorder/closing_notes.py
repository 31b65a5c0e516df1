"""What is said when a recording ends: what is missing in the run, and why."""

from __future__ import annotations

from collections.abc import Mapping

from gradlens.format import plural
from gradlens.metrics import ACTIVATION_GRAD_NORM, GRAD_COHERENCE, PARAM_GRAD_NORM
from gradlens.recorder.measurers.activations import METRICS_OF_CALLS
from gradlens.recorder.missing_values import MissingValues
from gradlens.recorder.notes import Notes, listed
from gradlens.recorder.pending_rows import Table
from gradlens.recorder.ranks.distributed import Ranks
from gradlens.recorder.steps import Steps

MANY_FACTORS = 5
"""Rows from which on gradients that were multiplied by the same factor in each of them were not clipped."""
SAME_FACTOR = 1e-5
"""Relative difference of factors up to which they are the same; norms in float32 are exact to about 1e-7."""


def warn_of_no_row(steps: Steps, notes: Notes, model: str) -> None:
    """Say why nothing was recorded, and what to change.

    Args:
        steps: What was seen of the training.
        notes: Collects the notes of the run.
        model: The model's class.
    """
    seen, passes = steps.steps_seen, plural(steps.passes.seen, "backward pass", "backward passes")
    if steps.cleared_steps == seen > 0:
        return  # a warning has said so
    if seen:
        cause = f"every= chose none of {plural(seen, 'step')}"
        cure = "every=1 records each step; a callable gets the step's index, from 0 on"
    elif steps.passes.seen and not steps.optimizers:
        cause = f"{passes} came, optimizer= was not given, and recorder.step() was not called"
        cure = "pass optimizer=, or call recorder.step() after loss.backward()"
    elif steps.passes.seen:
        kinds = listed([type(each).__name__ for each in steps.optimizers])
        cause = f"{passes} came, and the optimizer given ({kinds}) never stepped"
        cure = "give the optimizer whose step() is called in the loop, after the framework has made it"
    elif not steps.measuring.learned.called:
        cause = f"no layer of the {model} was called while the recorder was on"
        cure = "give the module that is trained (frameworks may copy or wrap it), and train inside the with block"
    else:
        cause = "the model was called, and no backward pass reached its parameters"
        cure = "call loss.backward() on a loss of this model's output, inside the with block, without torch.no_grad()"
    notes.warn_of_no_row(cause, cure)


def note_missing(table: Table, steps: Steps, notes: Notes, intervals: Mapping[str, int], ranks: Ranks | None) -> None:
    """Note which values are missing in the rows, and why.

    Args:
        table: The rows.
        steps: What was seen of the training.
        notes: Collects the notes of the run.
        intervals: The metrics of the run.
        ranks: The processes that record together.
    """
    learned, totals, missing = steps.measuring.learned, table.totals, MissingValues(notes)
    if totals.changed_otherwise:
        notes.note_other_changes(totals.changed_otherwise)
    if totals.scaled_rows == table.n_rows_here >= MANY_FACTORS:
        least, largest = totals.factors
        if largest / least - 1 < SAME_FACTOR:
            notes.note_constant_factor(least)
    if not table.n_rows:
        return
    if ranks is not None:
        sharded = steps.measuring.sharded
        missing.note_partial_sums(ranks.partial_outputs, sharded.left_out if sharded else ())
        if GRAD_COHERENCE in intervals and ranks.batch_parts < ranks.world:
            notes.add("grad_coherence is missing in layers whose weight is sharded by tensor parallelism")
    if ACTIVATION_GRAD_NORM in intervals:
        last = totals.last_row_with[ACTIVATION_GRAD_NORM]
        got = totals.last_row_with[PARAM_GRAD_NORM] >= 0 if PARAM_GRAD_NORM in intervals else None
        missing.note_outputs(last, table.n_rows, learned.called, got)
        missing.note_gaps(totals.gaps, last, table.n_rows)
    unwatched = [name for name in METRICS_OF_CALLS if name in intervals and learned.compiled]
    if unwatched:
        notes.note_unwatched_calls(unwatched)
    if PARAM_GRAD_NORM in intervals:
        missing.note_parameters(totals.last_row_with[PARAM_GRAD_NORM])
