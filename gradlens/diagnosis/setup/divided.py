"""Weights that are divided by their own sum over one element: they are always 1, and what makes them learns nothing."""

from __future__ import annotations

import numpy as np

from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.recorded_rows import PARAM_GRAD, Recording
from gradlens.diagnosis.setup.setup_findings import named, setup_finding

ROUNDING = 1e-4
"""A gradient of such a share of the other layers' is what float32 leaves of a difference of two equal numbers, in a
sum of a thousand terms (IEEE 754: 1e-7 each)."""
ONE = "divided by its own sum over one element"


def divided(rec: Recording) -> list[Finding]:
    """Find a quotient that is always 1, in front of a layer that gets the roundings of a gradient only.

    Args:
        rec: The recording.

    Returns:
        One finding, or none.
    """
    norms = rec.series(PARAM_GRAD).typical if rec.has(PARAM_GRAD) else np.empty(0)
    names = [layer.name for layer in rec.run.layers]
    for item in rec.setup.graph.entries("divided"):
        layer = item.text("layer")
        if layer not in names or not len(norms):
            continue
        place = names.index(layer)
        others = np.delete(norms, place)
        others = others[np.isfinite(others)]
        if not len(others) or not norms[place] < ROUNDING * median_of_all(others):
            continue
        shape = " x ".join(f"{size:.0f}" for size in item.numbers("shape"))
        return [
            setup_finding(
                rec,
                item,
                f"what {quoted(layer)} makes ({shape}) is divided by its own sum over one element: it is always "
                f"exactly 1, and the gradient of {quoted(layer)} is what rounding leaves ({norms[place]:.1g}, beside "
                f"{median_of_all(others):.1g} of other layers)",
                "Leave out the division where one weight is kept (a router that chooses one expert), so that the "
                "output is multiplied by the probability itself, or divide by the sum over all of them before the "
                "choice.",
                ONE,
                named(item),
            )
        ]
    return []
