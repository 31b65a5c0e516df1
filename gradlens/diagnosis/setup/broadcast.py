"""Shapes that are broadcast in the loss: outputs with targets, and log-probabilities with their weights."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.setup.setup_findings import setup_finding

BROADCAST = "shapes are broadcast in the loss"


def broadcast(rec: Recording) -> list[Finding]:
    """Find outputs that grow because what they are compared with or multiplied by has another shape.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    return [
        setup_finding(rec, item, *(_weighted(item) if item.numbers("weights") else _compared(item)), BROADCAST)
        for item in rec.setup.graph.entries("broadcast")
    ]


def _say(item: Entry, key: str) -> str:
    return " x ".join(f"{size:.0f}" for size in item.numbers(key))


def _compared(item: Entry) -> tuple[str, str]:
    op, output, result = item.text("op"), _say(item, "output"), _say(item, "result")
    if sum(size > 1 for size in item.numbers("output")) > 1 or len(set(item.numbers("result")) - {1}) == 1:
        return (
            f"the loss ({op}) compares shapes that differ: the model's output of shape {output} is broadcast to "
            f"{result}, so that every output is compared with every target",
            "Give output and target the same shape, with output.squeeze(-1) or target.unsqueeze(-1).",
        )
    return (
        f"the loss ({op}) compares shapes that differ: the model's output of shape {output} is broadcast to {result}, "
        "so that each output is compared with several targets, and learns their mean",
        "Give output and target the same shape: look for a sum over the last dimension that is missing "
        "(log_prob(action).sum(-1, keepdim=True)), or for an output layer of the wrong width.",
    )


def _weighted(item: Entry) -> tuple[str, str]:
    output, weights, result = _say(item, "output"), _say(item, "weights"), _say(item, "result")
    return (
        f"log-probabilities of shape {output} are multiplied by weights of shape {weights}, which makes {result} of "
        "them: every action is weighted with the return or the advantage of every other one, and none "
        "counts for itself",
        "Give returns, values and advantages the shape of the log-probabilities, with values.squeeze(-1) before the "
        "difference or advantages.reshape(-1).",
    )
