"""Dimensions in the wrong order: a view in place of a transposition, the batch in place of time."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding, quoted
from gradlens.diagnosis.loss import loss_halved
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.setup_findings import batch_sizes, named, setup_finding


def mixed_views(rec: Recording) -> list[Finding]:
    """Find a view that should be a transposition: it keeps the order in memory, and so mixes examples or classes."""
    found = []
    for item in rec.setup.graph.entries("mixed_views")[:1]:
        shape, result = (" x ".join(f"{n:.0f}" for n in item.numbers(key)) for key in ("shape", "result"))
        name = quoted(item.text("layer")) if item.text("layer") else "the model"
        found.append(
            setup_finding(
                rec,
                item,
                f"view or reshape makes {result} of the output of {name} ({shape}): it does not swap dimensions, but "
                "cuts the same row of numbers elsewhere, so that different examples, places or classes are mixed",
                "Swap the dimensions with transpose or permute (for a state of directions x batch x features: "
                "h_n.transpose(0, 1).reshape(batch, -1), or torch.cat([h_n[0], h_n[1]], 1)).",
                "view in place of a transposition",
                named(item),
            )
        )
    return found


def batch_second(rec: Recording) -> list[Finding]:
    """Find a recurrent or attention layer that takes the batch for time: the loss has a row per step of its time."""
    if loss_halved(rec):
        return []
    rows = batch_sizes(rec)
    shapes = {item.numbers("shape") for item in rec.setup.graph.entries("outputs")}
    for item in rec.setup.entries("inputs"):
        first, shape = item.flag("batch_first"), item.numbers("shape")
        if first is None or len(shape) != 3:
            continue
        batch, time = (int(shape[0]), int(shape[1])) if first else (int(shape[1]), int(shape[0]))
        if rows != {time} or time == batch or batch < 2 or (float(time), float(batch)) in shapes:
            continue
        layer, said = item.text("layer"), " x ".join(f"{size:.0f}" for size in shape)
        other = "False" if first else "True"
        return [
            setup_finding(
                rec,
                item,
                f"{quoted(layer)} ({item.text('kind')}, batch_first={first}) gets inputs of shape {said} and reads "
                f"them as {batch} examples of {time} steps each, while the loss is over {time} examples: it takes the "
                "batch for time, and mixes examples",
                f"Give {quoted(layer)} batch_first={other}, or swap the first two dimensions of its input "
                "(transpose(0, 1)).",
                "batch and time are mixed up",
                (layer,),
            )
        ]
    return []
