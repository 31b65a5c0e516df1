"""A model that does not learn although nothing else is found: what is ruled out, and what to look at next."""

from __future__ import annotations

import math

import numpy as np

from gradlens.analysis.gradient_ratio import FIRST_ROWS, LEAST_ROWS
from gradlens.analysis.stats import median, median_of_all
from gradlens.diagnosis.findings import Finding, quoted, say_layers
from gradlens.diagnosis.learning import (
    LEAST_STEPS,
    TRAINED_SHARE,
    UNTRAINED,
    Learning,
    classes_of,
    guessing_of,
    spread_of_targets,
    stands_early,
    trained_before,
)
from gradlens.diagnosis.loss import loss_halved
from gradlens.diagnosis.network import LARGE_STEP, Network, usual_update
from gradlens.diagnosis.recorded_rows import BATCHES, PARAM_GRAD, Recording
from gradlens.diagnosis.setup.collapsed import say_collapse
from gradlens.format import plural

SMALL_STEP = 1e-5
"""A step below this share of the weights' norm changes next to nothing in the thousands of steps of a training. A tenth
of the lowest healthy value of Ben Braiek & Khomh 2023, TheDeepChecker."""
LITTLE = 0.02
"""Where all steps together change a layer by less than this share of its norm, nothing can have been learnt."""
COLLAPSED = 0.2
"""Share to which gradients fall when too large a step switches units off or saturates attention."""
SQUARED = ("MseLoss", "SmoothL1Loss", "HuberLoss")
FAR = 1000
"""An error so many times what a weight can move in all steps is out of reach; a wide layer adds up many weights, so the
factor is large. No outside source."""
FAR_REMEDY = (
    "Scale the targets to mean 0 and standard deviation 1 (and scale predictions back), or begin with the mean target "
    "as the bias of the last layer. "
)
APART, SCALED = "shuffled apart or mislabelled", "shuffled apart, mislabelled, or not normalised"
NOTHING = 1e-3
"""Where all steps together change a layer by less than this share of its norm, fine-tuning has no effect either."""
MOST_DROPPED = 0.8
"""Share of dropout of which little passes; Srivastava et al. 2014 keep 0.5 to 0.8."""
SURE = 1.5
"""A classifier whose loss begins above so many times that of guessing has large logits, and they are wrong: one that is
untrained begins near it. No outside source."""
RISEN = 2.0
"""A loss so many times its first value is not noise; no outside source."""
USUAL_MOMENTUM = 0.95
AGREE, DISAGREE = 0.1, 0.02
"""Cosines between gradients of parts of a batch: measured at initialisation, 0.03 to 0.4 where a common direction
exists (resnet34 0.028), below 0.005 where there is none (plain34 0.001)."""


def plateau(rec: Recording, learning: Learning) -> list[Finding]:
    """Find a model that does not learn, or whose loss has not fallen since updates that were far too large.

    Only asked for where no other rule has a finding. Confidence: that of the verdict on the loss, three standard
    errors.

    Args:
        rec: The recording.
        learning: Whether the model learns.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    too_large, too_small = _leapt(rec), "" if learning.verdict == "yes" else _stays(rec)
    far = "" if learning.verdict == "yes" or too_small else _out_of_reach(rec)
    if learning.verdict != "no" and not too_large and not far and not too_small:
        return []
    why, first = _likely(rec) if learning.verdict == "no" else ("", "")
    far = far or too_small or why
    written, check = _written_by_hand(rec) if learning.verdict == "no" else ("", "")
    parts = (_say_gradients(rec), written, _say_directions(rec), _say_steps(rec), _say_batch(rec), say_collapse(rec))
    out = "; ".join(part for part in parts if part)
    evidence = f"{learning.evidence}; {too_large or far or 'the model does not learn'}" + (f"; {out}" if out else "")
    threshold = (
        f"the first update above {LARGE_STEP} of the weights' norm, and a loss that has not fallen since the first "
        "fifth of the rows"
        if too_large
        else f"no fall of the loss beyond 3 standard errors in at least {LEAST_STEPS} rows, or no better than guessing"
    )
    return [
        Finding(
            "plateau",
            (),
            (int(rec.run.steps[0]), rec.last_step),
            evidence,
            threshold,
            "Ben Braiek & Khomh 2023, TheDeepChecker: log10 of update / weight in [-4, -1]; ln C is the cross entropy "
            "of equal probabilities for C classes",
            check + (first or (FAR_REMEDY if far and not too_small else "")) + _next(rec, learning, bool(too_large)),
            0.997,
        )
    ]


def _leapt(rec: Recording) -> str:
    """Say that the first updates were too large and the loss has not fallen since then, or ""."""
    first = Network(rec).first_update()
    if not first > LARGE_STEP or not stands_early(rec) or not _gradient_collapses(rec):
        return ""
    return (
        "since the first fifth of the rows the loss has not fallen; the first step changed a layer by "
        f"{first:.0%} of its norm, and the gradients fell to less than a fifth soon after"
    )


def _likely(rec: Recording) -> tuple[str, str]:
    """Return what most likely keeps a model from learning, in a sentence, and what to do; or twice ""."""
    modes = [item for item in rec.setup.entries("modes") if item.text("mode") == "train"]
    drops = [item for item in modes if item.number("dropped") >= MOST_DROPPED]
    if drops:
        return (
            f"dropout ({say_layers(drops[0].texts('layers'))}) sets {drops[0].number('dropped'):.0%} of what it gets "
            "to 0",
            "Lower p of the dropout to 0.1 to 0.5: it is the share that is dropped, not the one that is kept. ",
        )
    stacked = rec.setup.graph.entries("stacked")
    layers = rec.names(rec.run.main_layers())
    if len(layers) > 1 and {item.text("layer") for item in stacked}.issuperset(layers[:-1]):
        return (
            f"no activation function lies between {say_layers(layers)}: together they are a single linear layer",
            "Put an activation function (ReLU, tanh) between the layers: without one, no depth makes the model more "
            "than linear. ",
        )
    network = Network(rec)
    if said := network.large_eps():
        return said, ""
    if any(network.rounding()):
        return network.rounding()
    loss = rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    first, last = (median_of_all(part) if len(part) else math.nan for part in (loss[:5], loss[-(len(loss) // 5) :]))
    if classes_of(rec) > 1 and last > RISEN * first > 0:
        optimizer = Network(rec)
        groups = [group.entry("settings") for item in optimizer.optimizers for group in item.entries("groups")]
        heavy = max((group.number("momentum") for group in groups if group.number("momentum") > 0), default=0.0)
        larger = f"; momentum {heavy:g} makes steps up to {1 / max(1 - heavy, 1e-3):.0f} times larger"
        pushed = larger if heavy else ""
        return (
            f"the loss rises to {last / first:.0f} times its first value: the steps overshoot{pushed}",
            f"Lower {optimizer.say_rate()} by a factor of 10 to 100. "
            + (f"Lower momentum ({heavy:g}) to 0.9 at most. " if heavy > USUAL_MOMENTUM else ""),
        )
    return "", ""


def _written_by_hand(rec: Recording) -> tuple[str, str]:
    """Name the functions whose backward pass the user wrote, and say how to check it; or twice ""."""
    names = tuple(dict.fromkeys(item.text("name") for item in rec.setup.graph.entries("written")))
    if not names:
        return "", ""
    return (
        f"the gradient passes through {say_layers(names)}, with a backward pass that was written by hand",
        f"Check the backward pass of {say_layers(names)} first: torch.autograd.gradcheck, in float64, compares it with "
        "differences of the forward pass. It must return the gradient that it gets, times the derivative. ",
    )


def _stays(rec: Recording) -> str:
    """Say that all steps together change an untrained model by next to nothing, or ""."""
    step, steps = usual_update(rec), _steps(rec)
    if not step * steps < NOTHING or steps < LEAST_STEPS or not step > 0 or trained_before(rec):
        return ""
    spread, loss = spread_of_targets(rec), rec.scalar("loss")[:1]
    untrained = bool(len(loss)) and float(loss[0]) > UNTRAINED * spread  # False where the spread is unknown
    if Network(rec).rescales and not untrained and not guessing_of(rec) > 0:
        return ""  # a regression that was trained before may be tuned with steps as small
    return (
        f"{plural(steps, 'step')} of {step:.1e} change a layer by {step * steps:.1g} of its norm in all: the model "
        "stays as it was"
    )


def _steps(rec: Recording) -> int:
    """Return the number of optimizer steps from the first recorded one to the last."""
    return int(np.ptp(rec.run.steps)) + 1 if len(rec.run.steps) else 0


def _out_of_reach(rec: Recording) -> str:
    """Say that targets are too far away for an optimizer that moves each weight by about its rate per step, or ""."""
    losses = [item for item in rec.setup.graph.entries("losses") if item.text("op") in SQUARED]
    loss, network = rec.scalar("loss"), Network(rec)
    loss = loss[np.isfinite(loss)]
    if len(losses) != 1 or not losses[0].flag("alone") or losses[0].flag("scaled") or not network.rescales:
        return ""
    steps = _steps(rec)
    if usual_update(rec) * steps < NOTHING:
        return ""  # nothing is in reach of such steps, and a model that was trained before may be tuned with them
    reach, stays = network.rate * steps, len(loss) >= LEAST_STEPS and not loss_halved(rec)
    error = math.sqrt(max(median_of_all(loss), 0)) if stays else 0.0
    if not error > FAR * reach or error**2 < spread_of_targets(rec):  # better than a constant: it learnt before
        return ""
    return (
        f"the error is about {error:.3g} (the root of the loss), while {network.optimizer} moves each weight by about "
        f"{network.rate:.3g} per step, {reach:.2g} in {steps} steps: the targets are out of reach"
    )


def _gradient_collapses(rec: Recording) -> bool:
    """Return whether the outputs' gradients fall to less than a fifth of those in the first rows within two fifths.

    A model on noisy labels, whose loss is as low as it can be, keeps gradients of the same size.
    """
    if not rec.gradient or not len(rec.path):
        return False
    series, path = rec.series(rec.gradient), rec.path[:-1]
    windows = [slice(i, i + LEAST_ROWS) for i in range(3, 2 * len(series) // 5, LEAST_ROWS)]
    first = series.median(slice(3))[path]
    return bool((first > 0).all()) and any(
        float(median(series.median(window)[path] / first)) < COLLAPSED for window in windows
    )


def _say_batch(rec: Recording) -> str:
    """Say which dimension a recurrent or attention layer takes for the batch where it is not the first."""
    for item in rec.setup.entries("inputs"):
        shape = item.numbers("shape")
        if item.flag("batch_first") is False and len(shape) == 3:
            said = " x ".join(f"{size:.0f}" for size in shape)
            return (
                f"{quoted(item.text('layer'))} has batch_first=False and reads {said} as {shape[1]:.0f} examples of "
                f"{shape[0]:.0f} steps each: is that so?"
            )
    return ""


def _say_gradients(rec: Recording) -> str:
    if not rec.has(PARAM_GRAD):
        return ""
    arrive = rec.series(PARAM_GRAD).positive
    return f"gradients arrive at {arrive.sum()} of {plural(len(arrive), 'layer')}"


def _say_directions(rec: Recording) -> str:
    if not rec.coherence:
        return ""
    values = rec.series(rec.coherence).values[:, rec.run.main_layers()]
    cosine = median_of_all(values) if values.size else math.nan
    said = "agree" if cosine > AGREE else "do not agree" if cosine < DISAGREE else "hardly agree"
    if not math.isfinite(cosine):
        return ""
    if rec.coherence == BATCHES:
        return f"gradients of batches in succession {said} (cosine {cosine:.2f})"
    return f"gradients of parts of a batch {said} (cosine {cosine:.2f})"


def _say_steps(rec: Recording) -> str:
    step = usual_update(rec)
    if not math.isfinite(step):
        return ""
    size = "too small" if _hardly_moves(rec, step) else "too large" if step > LARGE_STEP else "of a usual size"
    return f"steps are {size} ({step:.1e} of a layer's norm)"


def _hardly_moves(rec: Recording, step: float) -> bool:
    """Return whether steps are tiny, or all of them together change a layer by next to nothing."""
    steps = rec.last_step - int(rec.run.steps[0]) + 1
    return step < SMALL_STEP or step * steps < LITTLE


def _say_frozen(rec: Recording) -> str:
    """Name the layers that are frozen from the first row on, if the output layer is among them, or ""."""
    first, order = rec.setup.whole("first_step"), [layer.name for layer in rec.run.layers]
    states = [item for item in rec.setup.states(requires_grad=False) if item.whole("since") <= first]
    frozen = {name for item in states for name in item.texts("layers")}
    ends = [rec.run.layers[i].name for i in rec.run.main_layers()[-1:]]
    return say_layers(tuple(name for name in order if name in frozen)) if frozen.issuperset(ends) and ends else ""


def _knows_other_inputs(rec: Recording) -> str:
    """Say what to compare where a mostly frozen classifier begins far above guessing: it is sure, and wrong."""
    loss, guess, totals = rec.scalar("loss"), guessing_of(rec), rec.setup.entry("totals")
    loss = loss[np.isfinite(loss)][:FIRST_ROWS]
    share = totals.number("trainable") / totals.number("numel") if totals.number("numel") > 0 else math.nan
    if not len(loss) or not share < TRAINED_SHARE or not float(loss.mean()) > SURE * guess:
        return ""
    return (
        f"The loss begins at {float(loss.mean()):.3g}, and guessing has {guess:.3g}: {1 - share:.0%} of the parameters "
        "are frozen, and what they were trained for is not what they get here. Compare first, on the same batch and "
        "without the new parts, with the loss that the model had when it was trained: the scaling of inputs and "
        "embeddings, the normalisation, the tokenizer and the order of the classes must be the same. If it is the "
        "same, train more of the parameters."
    )


def _next(rec: Recording, learning: Learning, too_large: bool) -> str:
    """Return what to look at next, in the order in which public reports of this kind were solved."""
    network, step = Network(rec), usual_update(rec)
    if learning.worse:
        return (
            f"Look at the sign of the loss: an optimizer makes it smaller, so what is to grow ({learning.worse}) needs "
            "a minus in it. Then look at labels that are swapped (1 for what the loss takes as 0), the order of "
            "arguments, and whether each optimizer has the parameters that "
            "its loss is to train."
        )
    if learning.constant:
        return (
            "Look for a model that is compared with itself: a reference, teacher or target that is the same object "
            "(copy.deepcopy makes another one), a difference of a term with itself, or outputs that are normalised "
            "over a single element. Then look for a loss that is logged but not the one that is trained."
        )
    if learning.random:
        return (
            "Give the entropy bonus a smaller weight (0.01 is usual): it may outweigh the rewards. Then look at the "
            "advantages (all 0, or detached from the log-probabilities of the actions that were taken), and whether "
            "any reward was found at all."
        )
    if said := _knows_other_inputs(rec):
        return said
    if layers := _say_frozen(rec):
        return (
            f"Set requires_grad to True on the parameters of {layers}, as far as they were not trained before (a new "
            "output layer must learn), and give them to the optimizer."
        )
    if too_large or step > LARGE_STEP:
        return network.slow_down()
    if _hardly_moves(rec, step):
        return network.speed_up(step)
    shapes = [item for item in rec.setup.graph.entries("losses") if item.text("op")]
    compared = (
        f" ({shapes[0].text('op')} over {' x '.join(f'{n:.0f}' for n in shapes[0].numbers('shape'))})" if shapes else ""
    )
    return (
        "Train on one batch of ten examples until the loss is near 0. If that works, look at the data: inputs and "
        f"targets may be {APART if network.has_normal_inputs else SCALED}. If it does not, look at the loss: its "
        f"inputs' shapes{compared}, an activation function before it, and the order of its arguments; then try "
        f"{network.say_rate()} ten times larger and smaller."
    )
