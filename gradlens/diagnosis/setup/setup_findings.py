"""What rules of the kind ``setup`` have in common: how a fact of the set-up becomes a finding."""

from __future__ import annotations

from dataclasses import replace

from gradlens.diagnosis.findings import Finding, exact_finding
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry

LEAST_CALLS = 3
"""Steps whose data are compared."""


def setup_finding(
    rec: Recording, item: Entry, evidence: str, remedy: str, cause: str, layers: tuple[str, ...] = ()
) -> Finding:
    """Return a finding of the kind ``setup``, from the step since which the fact is so."""
    return exact_finding("setup", layers, (item.whole("since"), rec.last_step), evidence, remedy, cause)


def judged_by(finding: Finding, threshold: str, source: str) -> Finding:
    """Return a finding of facts that are judged by a threshold, with that threshold and its source."""
    return replace(finding, threshold=threshold, source=source)


def named(item: Entry, key: str = "layer") -> tuple[str, ...]:
    """Return the name of an entry's module, if there is one."""
    return (item.text(key),) if item.text(key) else ()


def batch_sizes(rec: Recording) -> set[int]:
    """Return the number of examples, from outputs of two dimensions; the first dimension of others may be time.

    Over the first of two dimensions a softmax may be meant: attention over a set.
    """
    shapes = [item.numbers("shape") for item in rec.setup.graph.entries("outputs")]
    return {int(shape[0]) for shape in shapes if len(shape) == 2 and shape[0] > 1}


def layers_of(items: list[Entry]) -> tuple[str, ...]:
    """Return the layers of parameters, each once."""
    return tuple(dict.fromkeys(name for item in items for name in item.texts("layers")))
