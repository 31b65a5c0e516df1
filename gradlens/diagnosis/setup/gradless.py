"""Terms of a loss that no weight can change: numbers that differ from step to step are added to it."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, exact_finding
from gradlens.diagnosis.recorded_rows import Recording

CAUSE = "a term of the loss has no graph"
LEAST_PASSES = 3
ROUNDING = 1e-3
"""A part of the loss that is larger than what float32 rounds in sums of a million terms (IEEE 754)."""
LEAST_SHARE = 0.01
"""A term of a smaller part of the loss matters little; no outside source."""


def gradless(rec: Recording) -> list[Finding]:
    """Find a number that is added to the loss in each pass, and differs from pass to pass: a term that was cut off.

    A constant may be meant, and so is a term of layers that are frozen.

    Args:
        rec: The recording.

    Returns:
        One finding, or none.
    """
    passes = [item for item in rec.setup.graph.lists("bare_numbers") if len(item) == 3]
    numbers, others = [item[1] for item in passes], [item[2] for item in passes]
    if rec.setup.entry("scaling").flag("scaler_seen"):
        return []  # a constant differs, too, when the scale changes
    if len(passes) < LEAST_PASSES or rec.setup.states(requires_grad=False) or rec.setup.graph.entries("penalties"):
        return []
    least, most = min(numbers), max(numbers)
    size = max(map(abs, numbers))
    shares = [abs(number) / (abs(number) + abs(rest)) for number, rest in zip(numbers, others, strict=True) if number]
    if len(shares) < len(numbers) or min(shares) < LEAST_SHARE or not most - least > ROUNDING * size:
        return []
    said = ", ".join(f"{number:.3g}" for number in numbers[:3])
    return [
        exact_finding(
            "setup",
            (),
            (int(passes[0][0]), rec.last_step),
            f"a number is added to the loss that has no graph and differs from step to step ({said} in the first "
            f"ones, beside {abs(others[0]):.3g} of the terms that have one): it is a part of the loss that no weight "
            "can change",
            "Find the term that was cut off: print requires_grad of each term before they are added up. Its input was "
            "detached, made under no_grad, or is another model's output (a teacher compared with itself): compute it "
            "from the output of the model that is trained.",
            CAUSE,
        )
    ]
