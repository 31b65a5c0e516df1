"""A penalty on weights that the model does not use, in place of those that it uses."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, quoted, say_layers
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.setup_findings import setup_finding


def other_weights(rec: Recording) -> list[Finding]:
    """Find weights that only a term beside the model's output reaches, while it leaves out those that are used.

    Args:
        rec: The recording.

    Returns:
        The finding; an empty list where there is no such fault.
    """
    passes = rec.setup.graph.whole("passes")
    found = [item for item in rec.setup.graph.entries("penalised") if item.whole("passes") >= passes > 0]
    if not found:
        return []
    layers = tuple(dict.fromkeys(item.text("layer") for item in found))
    name, instead = quoted(found[0].text("name")), quoted(found[0].text("instead"))
    return [
        setup_finding(
            rec,
            found[0],
            f"the model's output does not depend on {name} of {say_layers(layers)}, which a term of the loss beside "
            f"it makes small or large, in each of {passes} passes; the output depends on {instead}, of the same shape, "
            "which that term leaves out: the penalty (or the divergence) is on other weights than those that see the "
            "data",
            f"Compute that term from {instead}, or use {name} in forward: each layer needs one set of weights for "
            "both.",
            "a penalty on weights that are not used",
            layers,
        )
    ]
