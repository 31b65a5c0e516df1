"""Logarithms of scales (log-determinants, log variances) that a loss has with the wrong sign, or leaves out."""

from __future__ import annotations

import re

from gradlens.diagnosis.findings import Finding, say_layers
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.setup.setup_findings import setup_finding


def exponents(rec: Recording) -> list[Finding]:
    """Find outputs that a loss has with the sign of their exponential, and some that it leaves out beside others.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    graph = rec.setup.graph
    always = [item for item in graph.entries("exponents") if item.whole("passes") >= graph.whole("passes") > 0]
    if len(always) < len(graph.entries("exponents")) or graph.entries("maximized_divergences"):
        return []
    return _same_sign(rec, always) or _left_out(rec, always)


def _layers(items: list[Entry]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item.text("layer") for item in items))


def _same_sign(rec: Recording, items: list[Entry]) -> list[Finding]:
    wrong = [item for item in items if item.number("sign") == 1]
    if not wrong:
        return []
    layers = _layers(wrong)
    return [
        setup_finding(
            rec,
            wrong[0],
            f"the loss adds up outputs of {say_layers(layers)} with the sign that they have in an exponential: where "
            "these outputs fall, the exponential and the sum both become smaller, so that the loss falls without bound "
            "while everything is scaled down to nothing",
            "Turn the sign of that sum round. With z = x * exp(a) + t the log-determinant is sum(a), and the loss is "
            "z**2 / 2 - sum(a); with x * exp(-a) it is z**2 / 2 + sum(a); an error over a variance is "
            "error**2 * exp(-a) + a.",
            "a logarithm of a scale has the wrong sign",
            layers,
        )
    ]


def _left_out(rec: Recording, items: list[Entry]) -> list[Finding]:
    counted = {_pattern(item) for item in items if item.number("sign") == -1}
    missing = [item for item in items if item.number("sign") == 0 and _pattern(item) in counted]
    if not missing:
        return []
    layers, others = _layers(missing), _layers([item for item in items if item.number("sign") == -1])
    return [
        setup_finding(
            rec,
            missing[0],
            f"outputs of {say_layers(layers)} scale what passes (they are in an exponential), and the loss does not "
            f"have them, while it has those of {say_layers(others)}: what these layers scale down costs nothing",
            "Add up the log-determinants of all layers: log_det = log_det + new inside the loop, not log_det = new.",
            "log-determinants of some layers are left out",
            layers,
        )
    ]


def _pattern(item: Entry) -> str:
    """Return a layer's name with its numbers taken out: layers of a list differ in them alone."""
    return re.sub(r"\d+", "#", item.text("layer"))
