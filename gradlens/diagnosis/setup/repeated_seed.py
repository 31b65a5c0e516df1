"""Random numbers that are the same in every step, because a seed is set in the loop: exact, from the generator."""

from __future__ import annotations

from collections.abc import Sequence

from gradlens.diagnosis.findings import Finding, exact_finding
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.format import plural

REPEATED = "the same random numbers in every step"
LEAST_STEPS = 4
"""Steps in which the generator must have been in one state."""
FIX = (
    "Call torch.manual_seed once, before the loop. To make a part repeatable, give it a torch.Generator of its own, or "
    "put it under torch.random.fork_rng()."
)


def repeated_seed(rec: Recording, learning: Learning) -> list[Finding]:
    """Find a seed that is set in every step of a model that does not learn.

    Args:
        rec: The recording.
        learning: Whether the model learns.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    said = _say(rec) if learning.verdict == "no" else ""
    since = rec.setup.entry("random").whole("since")
    return [exact_finding("setup", (), (since, rec.last_step), said, FIX, REPEATED)] if said else []


def note_on_repeated_seed(rec: Recording, findings: Sequence[Finding]) -> list[str]:
    """Return a note on a seed that is set in every step, where no finding says so: fixed noise may be meant.

    Args:
        rec: The recording.
        findings: What was found.
    """
    said = "" if any(finding.cause == REPEATED for finding in findings) else _say(rec)
    return [f"{said}. {FIX.removesuffix('.')}"] if said else []


def _say(rec: Recording) -> str:
    item = rec.setup.entry("random")
    if not item.flag("same") or item.whole("drawn") < LEAST_STEPS:
        return ""
    return (
        "the forward pass draws random numbers, and before the backward pass torch's generator is in the very same "
        f"state in all {plural(item.whole('drawn'), 'step')} that were looked at: a seed is set in each step, so that "
        "dropout, noise and samples are the same every time"
    )
