"""Several labels per example for a softmax, which gives all classes together a probability of 1: exact, from facts."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.setup_findings import setup_finding

SHARED = "a softmax for several labels at once"


def shared_labels(rec: Recording) -> list[Finding]:
    """Find a binary cross entropy of a softmax whose targets are 1 for several classes of an example.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    return [
        setup_finding(
            rec,
            item,
            f"the targets of the binary cross entropy are 0 or 1 and add up to {item.number('least'):g} to "
            f"{item.number('largest'):g} per example, and what it compares with them is a softmax, whose classes add "
            "up to 1: several labels at once are out of its reach",
            "Put a sigmoid at the end instead of the softmax, so that each label has a probability of its own, or "
            "leave both out and use binary_cross_entropy_with_logits.",
            SHARED,
        )
        for item in rec.setup.graph.entries("shared_labels")[:1]
    ]
