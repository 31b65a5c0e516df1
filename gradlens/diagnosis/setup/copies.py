"""Copies of modules (teachers, targets) that get the weights of their original, and not the rest. Exact."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, exact_finding, quoted, say_layers
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.norm_statistics import FIT_MEAN, FIT_VARIANCE, is_far


def copies(rec: Recording) -> list[Finding]:
    """Find a teacher or target that gets the weights of its original, but not its statistics, or only its own weights.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    return [*_stale(rec), *_written_as_they_are(rec)]


def _stale(rec: Recording) -> list[Finding]:
    """Find batch norms of a copy in eval mode whose running statistics stay."""
    found = []
    for item in rec.setup.entries("copies"):
        stale = item.entry("stale")
        if not stale or not item.flag("moves") or not is_far(stale, FIT_MEAN, FIT_VARIANCE):
            continue
        copy, of = quoted(item.text("layer")), quoted(item.text("of"))
        found.append(
            exact_finding(
                "setup",
                stale.texts("layers"),
                (rec.setup.whole("first_step"), rec.last_step),
                f"the weights of {copy} follow those of {of}, and it runs in eval mode, but the running statistics of "
                f"its batch norms stay as they were ({say_layers(stale.texts('layers'))}): at "
                f"{quoted(stale.text('layer'))} the mean is {stale.number('mean_distance'):.2g} standard deviations "
                f"off, and the variance is {stale.number('variance_ratio'):.2g} times that of {of}",
                "Copy the buffers, too, whenever the weights are averaged or copied (go through buffers() of both "
                "models and call copy_), or let the copy run in train mode.",
                "a copy's batch norm statistics are not updated",
            )
        )
    return found[:1]


def _written_as_they_are(rec: Recording) -> list[Finding]:
    """Find a copy whose weights are written with the values that they already have."""
    return [
        exact_finding(
            "setup",
            (),
            (rec.setup.whole("first_step"), rec.last_step),
            f"the weights of {quoted(item.text('layer'))}, a copy of {quoted(item.text('of'))}, are written and do not "
            f"change, at a distance of {item.number('distance'):.2g} of their norm from the original at step "
            f"{item.whole('step')}: the copy gets its own weights, or old ones",
            f"Give it the weights of {quoted(item.text('of'))}: target.load_state_dict(model.state_dict()), after the "
            "optimizer's step and with two different models.",
            "a copy is written with its own weights",
        )
        for item in rec.setup.entries("copies")
        if item.flag("written") and item.flag("moves") is False and not item.flag("in_optimizer")
    ][:1]
