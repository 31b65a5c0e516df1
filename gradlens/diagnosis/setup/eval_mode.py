"""Modules that are in eval mode in steps that train."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, say_layers
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.setup.norm_statistics import is_far, norm_names, say_statistics
from gradlens.diagnosis.setup.setup_findings import setup_finding


def evaluates(rec: Recording) -> list[Finding]:
    """Find that all modules that behave otherwise in evaluation are in eval mode in steps that train."""
    modes = rec.setup.entries("modes")
    if not modes or any(item.text("mode") != "eval" for item in modes):
        return []
    switched = [item for item in modes if "train" in item.texts("seen")]
    far = [item for item in rec.setup.entries("batch_norm") if item.flag("tracks") and is_far(item)]
    only_norms = all("Norm" in kind for item in modes for kind in item.texts("kinds"))
    if (not far and (only_norms or not switched)) or (not switched and not _learns(rec, far)):
        return []  # batch norms whose statistics fit are often frozen on purpose
    item = (switched or list(modes))[0]
    names = item.texts("layers")
    since = f"since step {item.whole('since')}" if switched else "from the first step on"
    statistics = f"; {say_statistics(far[0])}" if far else ""
    return [
        setup_finding(
            rec,
            item,
            f"{say_layers(names)} ({', '.join(dict.fromkeys(item.texts('kinds')))}) "
            f"{'is' if len(names) == 1 else 'are'} in eval mode in steps that train, {since}{statistics}",
            "Call model.train() at the beginning of each epoch, and after every validation that calls model.eval().",
            "the model trains in eval mode",
            names,
        )
    ]


def _learns(rec: Recording, norms: list[Entry]) -> bool:
    """Return whether norms have parameters that require a gradient."""
    return bool(set(norm_names(norms)).intersection(rec.setup.layers_of(requires_grad=True)))
