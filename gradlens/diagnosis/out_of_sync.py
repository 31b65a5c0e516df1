"""Ranks of one training whose weights differ, or of which one did not take a step with the others."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, exact_finding
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry


def out_of_sync(rec: Recording) -> list[Finding]:
    """Find ranks that should have the same weights, and do not.

    Confidence: 1, because the weights of the ranks were compared (``gradlens.recorder.ranks.rank_agreement``).

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where the ranks agree, and in a training with one process.
    """
    ranks = rec.setup.entry("ranks")
    apart, silent = ranks.entry("out_of_sync"), ranks.entry("silent")
    return [*([_apart(ranks, apart)] if apart else []), *([_silent(silent)] if silent else [])]


def _apart(ranks: Entry, apart: Entry) -> Finding:
    who = [int(rank) for rank in apart.numbers("ranks")]
    differ = f"the weights of rank {who[0]} differ" if who else "the weights of the ranks differ"
    step, world = apart.whole("step"), ranks.whole("world")
    return exact_finding(
        "out_of_sync",
        apart.texts("layers"),
        (step, apart.whole("last_step")),
        f"from step {step} on {differ} by {apart.number('distance'):.1g} of their norm, in {apart.whole('count')} of "
        f"{apart.whole('compared')} layers, and by {apart.number('last_distance'):.1g} at the end: {world} ranks train "
        "models of their own",
        "Call the wrapped model, not its .module; let every rank take every step with the same optimizer, and begin "
        "with the same weights.",
        "ranks with different weights",
    )


def _silent(silent: Entry) -> Finding:
    step, who = silent.whole("step"), ", ".join(f"{rank:.0f}" for rank in silent.numbers("ranks"))
    return exact_finding(
        "out_of_sync",
        (),
        (step, step),
        f"rank {who} did not take step {step} with the others",
        "Let every rank take every step, also where its own loss is not finite; where it was killed or is slow, its "
        "own log says why.",
        "a rank that misses a step",
    )
