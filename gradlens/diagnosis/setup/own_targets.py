"""The target of a value that has a graph, so that the gradient moves it, too.

Exact: the recorder reads it from the graph of the loss.
"""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.setup_findings import named, setup_finding


def own_targets(rec: Recording) -> list[Finding]:
    """Find targets through which a gradient goes.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    return [
        setup_finding(
            rec,
            item,
            f"both sides of the error ({item.text('op')}) depend on {quoted(item.text('layer'))}, the target by a "
            "number plus a multiple of its next output, as in r + 0.9 * max Q: the gradient moves the target toward "
            "the prediction, too",
            "Compute the target under torch.no_grad(), or detach() it; better, with a copy of the model that is "
            "updated seldom (a target network).",
            "the target has a gradient",
            named(item),
        )
        for item in rec.setup.graph.entries("own_targets")[:1]
    ]
