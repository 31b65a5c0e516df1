"""Losses that take another dimension for the classes than the model: exact, read from the graph of the loss."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.setup.setup_findings import named, setup_finding


def class_dims(rec: Recording) -> list[Finding]:
    """Find a log-softmax over a dimension that does not hold the classes, and classes that a view has mixed.

    Args:
        rec: The recording.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    return [*_off_classes(rec), *_over_examples(rec), *_mixed(rec)]


def _off_classes(rec: Recording) -> list[Finding]:
    wrong = [item for item in rec.setup.graph.entries("softmax_off_classes") if item.whole("dim") > 0]
    return [
        setup_finding(
            rec,
            item,
            f"the log-softmax{_where(item)} runs over dimension {item.whole('dim')} of {_sizes(item, 'shape')}, and "
            f"the loss ({item.text('loss')}) takes dimension {item.whole('classes_dim')} for the classes",
            f"Let the log-softmax run over the classes (dim={item.whole('classes_dim')}), or use F.cross_entropy "
            "on the logits.",
            "softmax over the wrong dimension",
            named(item),
        )
        for item in wrong[:1]  # dimension 0: see softmax_dim
    ]


def _over_examples(rec: Recording) -> list[Finding]:
    return [
        setup_finding(
            rec,
            item,
            f"the softmax{_where(item)} runs over the first dimension of {_sizes(item, 'shape')}, over the examples, "
            "and the loss picks one number of each example: its numbers are no probabilities of classes or actions",
            "Let the softmax run over the classes or actions (dim=-1); give a single example a dimension for the "
            "batch.",
            "softmax over the batch",
            named(item),
        )
        for item in rec.setup.graph.entries("picked")[:1]
    ]


def _mixed(rec: Recording) -> list[Finding]:
    found = []
    for item in rec.setup.graph.entries("mixed_classes")[:1]:
        classes = int(item.numbers("result")[-1])
        found.append(
            setup_finding(
                rec,
                item,
                f"the classes of the loss are mixed: {quoted(item.text('layer'))} makes {_sizes(item, 'shape')}, and "
                f"view or reshape cuts {_sizes(item, 'before')} into rows of {classes}, which hold parts of several "
                "examples or places instead of the scores of one",
                f"Make the {classes} classes the last dimension in front of the reshape: leave out the transposition, "
                f"or use permute (images: .permute(0, 2, 3, 1).reshape(-1, {classes})).",
                "classes are mixed by a reshape",
                named(item),
            )
        )
    return found


def _where(item: Entry) -> str:
    return f" in {quoted(item.text('layer'))}" if item.text("layer") else ""


def _sizes(item: Entry, key: str) -> str:
    return " x ".join(f"{size:.0f}" for size in item.numbers(key))
