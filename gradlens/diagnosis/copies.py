"""Copies of modules (teachers, targets) that get the weights of their original, and not the rest. Exact."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, exact_finding, quoted, say_layers
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.unfit import FIT_MEAN, FIT_VARIANCE, is_far


def copies(rec: Recording) -> list[Finding]:
    """Find a teacher or target in eval mode that gets the weights of its original, but not its statistics.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
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
