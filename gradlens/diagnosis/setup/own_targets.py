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
    return _both_sides(rec) or _wrong_side(rec)


def _wrong_side(rec: Recording) -> list[Finding]:
    """Find errors of which only the target has a graph, beside other outputs of the same module with one."""
    return [
        setup_finding(
            rec,
            item,
            f"of the two sides of the error ({item.text('op')}) only the target has a graph, a number plus a multiple "
            f"of the best output of {quoted(item.text('layer'))}, as in r + 0.9 * max Q; {quoted(item.text('layer'))} "
            f"ran {item.whole('calls')} times with a graph, and the loss reaches {item.whole('reached')} of its "
            "outputs: the prediction was detached in place of the target",
            "Detach the target (or compute it under torch.no_grad()), and leave the prediction in the graph: "
            "loss(Q(s, a), (r + 0.9 * max Q(s')).detach()).",
            "the prediction is detached in place of the target",
            named(item),
        )
        for item in rec.setup.graph.entries("only_targets")[:1]
        if item.whole("calls") >= 2 * item.whole("reached") > 0
    ]


def _both_sides(rec: Recording) -> list[Finding]:
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
