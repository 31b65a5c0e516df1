"""Gradients that are exactly 0, told apart by cause: zero weights, a ReLU at the end, 16 bits, dead units, collapse.

An exact zero is no small number: it comes from a factor that is 0, so it is never called a vanishing gradient. Where
the next layer that has a gradient has one 1e20 times smaller than the last hidden layer, the zeros are underflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.diagnosis.findings import Finding, quoted, say_layers
from gradlens.diagnosis.learning import Learning
from gradlens.diagnosis.loss import FELL, loss_fell, loss_halved, loss_is_nothing
from gradlens.diagnosis.network import LARGE_STEP, Network
from gradlens.diagnosis.recorded_rows import LEAST_VALUES, PARAM_GRAD, Recording, Series, since
from gradlens.format import plural
from gradlens.metrics import ACTIVATION_GRAD_NORM, PARAM_NORM
from gradlens.run import FloatArray

UNDERFLOW_DECADES = -20.0
"""The nearest gradient that is not 0 must be smaller than this for zeros to be underflow of float32 (1e-45)."""
OUTPUT = {"Relu": "ReLU", "Hardtanh": "ReLU6 or hardtanh", "Threshold": "threshold", "Hardsigmoid": "hard sigmoid"}
"""Operations whose slope is exactly 0 on one side, and their names."""
DRAWS = {
    "Normal": "torch.normal", "Bernoulli": "torch.bernoulli", "Poisson": "torch.poisson", "Binomial": "torch.binomial",
}  # fmt: skip
"""Operations that draw a sample."""
HALF = ("float16", "float8")
CHANCE = 0.01
"""Share of the layers that may be off without a finding where gradients pass them by: one in 256 layers of 8 units is,
by chance (2^-8)."""
SMALLEST_HALF = 2.0**-24
"""The smallest positive number of float16 (IEEE 754)."""


def zero_gradient(rec: Recording, learning: Learning) -> list[Finding]:
    """Find layers whose parameters get gradients that are exactly 0 to the end.

    A loss that is learnt, such as a hinge that is 0 for all examples, has gradients of 0, too: where all of them are 0
    and the loss has halved or falls, there is no finding. Confidence: (n + 1) / (n + 2) for n rows that are all exactly
    0, by Laplace's rule of succession; 1 where the cause is read from facts.

    Args:
        rec: The recording.
        learning: Whether the model learns.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    layers = zero_layers(rec)
    if learning.verdict != "no":
        left_out = {*beyond_clamp(rec), *off_by_chance(rec)}
        layers = np.array([i for i in layers if rec.run.layers[i].name not in left_out], dtype=np.int64)
    if not len(layers) or is_underflow(rec, layers):
        return _rounded_off(rec)
    known = _known(rec)
    everywhere = len(layers) == len(known)
    if everywhere and not _is_stuck(rec):
        return []
    series = _gradients(rec)
    zero = series.by_rows(lambda values: (np.nan_to_num(values[:, layers]) == 0).all(axis=1))
    begins = since(zero)
    start, count = int(series.steps[begins]), int(zero[begins:].sum())
    names = rec.names(rec.in_order(layers))
    cause, why, remedy = next(filter(None, (rule(rec, layers, everywhere, begins) for rule in CAUSES)))
    where = "all layers" if everywhere else plural(len(layers), "layer")
    said = f"the gradient is exactly 0 at {where} ({say_layers(names)}) in {plural(count, 'row')}, and not by underflow"
    loss = f"; {learning.evidence}" if everywhere else ""
    return [
        Finding(
            "zero_gradient",
            names,
            (start, rec.last_step),
            f"{said}: {why}{loss}",
            "exactly 0 in every row of the last fifth",
            "exact: a product with a factor of 0; IEEE 754 for the range of floating-point numbers",
            remedy,
            1.0 if cause else (count + 1) / (count + 2),
            cause,
        )
    ]


def rounded_off(rec: Recording) -> NDArray[np.int64]:
    """Return the first layers whose gradient is 0 in the first rows next to one that float16 can just represent.

    In float32 nothing is rounded to 0 there: gradients that fade into exact zeros at 6e-8 were float16 in between.

    Args:
        rec: The recording.

    Returns:
        Indices of layers, input first; none where there is no such fault.
    """
    path = rec.path
    if not rec.has(PARAM_GRAD) or len(path) < 3 or rec.n_rows < LEAST_ROWS:
        return np.empty(0, dtype=np.int64)
    early = rec.series(PARAM_GRAD).median(slice(LEAST_ROWS))[path]
    count = int(np.argmax(early > 0)) if (early > 0).any() else 0
    size = float(early[count]) / math.sqrt(max(rec.run.layers[path[count]].param_numel, 1))
    is_half = SMALLEST_HALF / 16 < size < SMALLEST_HALF * 16
    return np.asarray(path[:count] if is_half else path[:0])


def _rounded_off(rec: Recording) -> list[Finding]:
    layers = rounded_off(rec)
    if not len(layers):
        return []
    series = rec.series(PARAM_GRAD)
    zero = series.of(layers[0]) == 0
    names, after = rec.names(layers), rec.path[len(layers)]
    return [
        Finding(
            "zero_gradient",
            names,
            (int(series.steps[0]), int(series.steps[np.flatnonzero(zero)[-1]])),
            f"the gradient is exactly 0 at {plural(len(names), 'layer')} ({say_layers(names)}) in "
            f"{plural(int(zero.sum()), 'row')}, and next to them, at {quoted(rec.run.layers[after].name)}, its "
            "entries are as small as float16 can hold: smaller ones are rounded to 0",
            f"exact zeros in the first {LEAST_ROWS} rows next to entries within a factor of 16 of {SMALLEST_HALF:.0e}",
            "IEEE 754: the smallest positive number of float16 is 6e-8; float32 goes on to 1e-45",
            "Use a GradScaler, or bfloat16, which has the range of float32. This is underflow and no explosion, even "
            "where the gradient grows later.",
            float((zero[:LEAST_ROWS].sum() + 1) / (LEAST_ROWS + 2)),
        )
    ]


def zero_layers(rec: Recording) -> NDArray[np.int64]:
    """Return the layers whose gradient is exactly 0 in every row of the last fifth in which it is known.

    Args:
        rec: The recording.

    Returns:
        Indices of layers.
    """
    if not _metric(rec) or rec.n_rows < LEAST_ROWS:
        return np.empty(0, dtype=np.int64)
    series = _gradients(rec)
    late = slice(-max(len(series) // 5, LEAST_VALUES), None)
    return np.flatnonzero(series.by_layers(_is_zero, late))


def _is_zero(late: FloatArray) -> NDArray[np.bool_]:
    """Return which layers have a gradient of exactly 0 in all late rows in which it is known, and in enough, (L,)."""
    return np.asarray(((late == 0).sum(axis=0) >= LEAST_VALUES) & ~(late > 0).any(axis=0))


def beyond_clamp(rec: Recording) -> tuple[str, ...]:
    """Return the layers with a gradient of 0 whose parameters go through a clamp: they lie outside its range.

    Args:
        rec: The recording.
    """
    names = {item.text("layer") for item in rec.setup.graph.entries("clamped")}
    return tuple(name for name in rec.names(zero_layers(rec)) if name in names)


def is_underflow(rec: Recording, layers: NDArray[np.int64]) -> bool:
    """Return whether the layer after the zeros has a gradient that is small enough for underflow.

    Args:
        rec: The recording.
        layers: The layers with a gradient of 0.
    """
    if rec.ratio is None:
        return False
    series = rec.series(rec.gradient)
    decades = rec.ratio.profile(series.late)[:-1]
    after = [float(low) for low in decades[int(np.isin(rec.ratio.indices[:-1], layers).sum()) :] if math.isfinite(low)]
    return bool(after) and after[0] < UNDERFLOW_DECADES


def is_satisfied(rec: Recording) -> bool:
    """Return whether all gradients are exactly 0 because the loss, a hinge for example, is learnt.

    Args:
        rec: The recording.
    """
    layers = zero_layers(rec)
    whole = 0 < len(layers) == len(_known(rec)) and not loss_is_nothing(rec)
    return whole and (loss_halved(rec) or loss_fell(rec) >= FELL)


def _is_stuck(rec: Recording) -> bool:
    """Return whether the loss is known, and has neither halved nor fallen since the first fifth of the rows."""
    return loss_is_nothing(rec) or (loss_fell(rec) < FELL and not loss_halved(rec))


def _metric(rec: Recording) -> str:
    return PARAM_GRAD if rec.has(PARAM_GRAD) else rec.gradient


def _known(rec: Recording) -> NDArray[np.int64]:
    """Return the layers whose gradient is known at all."""
    return np.flatnonzero(_gradients(rec).known)


def _gradients(rec: Recording) -> Series:
    """Return the gradients, NaN where zeros were left in a layer that no loss used in that row.

    ``zero_grad(set_to_none=False)`` leaves zeros in an expert without tokens, or in the head of another task: its
    output has no gradient in that row, while it has one in others.
    """
    series = rec.series(_metric(rec))
    if not (rec.has(PARAM_GRAD) and rec.has(ACTIVATION_GRAD_NORM)):
        return series
    outputs = rec.series(ACTIVATION_GRAD_NORM)
    at = np.searchsorted(outputs.rows, series.rows).clip(max=len(outputs) - 1)
    both = (outputs.rows[at] == series.rows)[:, None]
    unused = outputs.by_layers(lambda values: both & np.isnan(values[at])) & outputs.known
    return series.without(unused & (series.values == 0))


Cause = tuple[str, str, str]


def _no_loss(rec: Recording, layers: NDArray[np.int64], everywhere: bool, row: int) -> Cause | None:
    """A loss that is exactly 0 from the first row on, such as a hinge of which no term counts."""
    if not everywhere or row > 0 or not loss_is_nothing(rec):
        return None
    return (
        "the loss is exactly 0 in every row",
        "no term of the loss counts: no pair or triplet is selected, every margin is met, or every target is left out",
        "Print how many pairs, triplets or targets the loss selects. Look at the labels (is each example a class of "
        "its own?), the margin and the masks.",
    )


def _zero_weights(rec: Recording, layers: NDArray[np.int64], everywhere: bool, row: int) -> Cause | None:
    """Weights that are exactly 0 and never get a gradient: a zero initialisation in front of a zero slope."""
    names = {name for item in rec.setup.states(weights_zero=True) for name in item.texts("layers")}
    norms = rec.series(PARAM_NORM) if rec.has(PARAM_NORM) else None
    none = np.zeros(len(rec.run.layers), dtype=bool)
    are_zero = none if norms is None else norms.by_layers(lambda values: (values == 0).any(axis=0))
    bare = [i for i in layers if rec.run.layers[i].name in names or are_zero[i]]
    if not bare or row > 0:
        return None
    zero = rec.names(bare)
    are = "are" if len(zero) > 1 else "is"
    return (
        "zero initialisation",
        f"{say_layers(zero)} {are} initialised with weights of exactly 0, and what follows passes no gradient to an "
        "output of 0 (a ReLU, or a second factor that is 0)",
        f"Initialise {say_layers(zero)} with small random weights: what is exactly 0 before a ReLU, or is multiplied "
        "by another 0 (both matrices of a LoRA adapter), never changes.",
    )


def _relu_at_the_end(rec: Recording, layers: NDArray[np.int64], everywhere: bool, row: int) -> Cause | None:
    outputs = [item for item in rec.setup.graph.entries("outputs") if item.text("op") in OUTPUT and item.text("loss")]
    if not everywhere or not outputs:
        return None
    op, layer = OUTPUT[outputs[0].text("op")], outputs[0].text("layer")
    behind = outputs[0].text("behind")
    where = f" ({quoted(layer)})" if layer else ""
    before = f" behind {quoted(behind)}" if behind else ""
    return (
        f"{op} is the last operation",
        f"the last operation before the loss is a {op}{where}{before}, and its input is on the flat side for every "
        "example",
        f"Remove the {op}{where} at the end of the model: an output layer has no activation function in regression. "
        "Where the output must not be negative, use softplus.",
    )


def _off_the_clamp(rec: Recording, layers: NDArray[np.int64], everywhere: bool, row: int) -> Cause | None:
    """A clamp in the loss that gets numbers outside its range for every example."""
    passes = rec.setup.graph.whole("passes")
    off = [item for item in rec.setup.graph.entries("clamps") if item.whole("passes") >= passes]
    if not everywhere or not off:
        return None
    return (
        "a clamp in the loss lets nothing through",
        "a clamp between the model and the loss gets numbers outside its range for every example, in each pass that "
        "was read, and passes no gradient there: boxes or sets that do not overlap have an intersection of 0 wherever "
        "they lie",
        "Use a loss that has a slope there, too (GIoU or L1 beside IoU for boxes, softplus for max(0, x)), or begin "
        "with outputs inside the range.",
    )


def _half(rec: Recording, layers: NDArray[np.int64], everywhere: bool, row: int) -> Cause | None:
    names = set(rec.names(layers))
    half = [item for item in rec.setup.entries("parameters") if item.text("dtype") in HALF]
    if not any(names.intersection(item.texts("layers")) for item in half):
        return None
    return (
        f"underflow in {half[0].text('dtype')}",
        f"these parameters are {half[0].text('dtype')}, whose smallest number is 6e-8: smaller gradients become 0",
        "Use a GradScaler, or bfloat16, which has the range of float32; this is no explosion.",
    )


def _flat(rec: Recording, layers: NDArray[np.int64], everywhere: bool, row: int) -> Cause | None:
    """An operation whose derivative is 0 everywhere comes after the zeros."""
    names = set(rec.names(layers))
    found = [item for item in rec.setup.graph.entries("flat") if item.text("layer") in names]
    if row > 0:
        return None
    if not found:
        return _flat_weights(rec, names)
    op, layer = found[-1].text("op"), found[-1].text("layer")
    return f"{op.lower()} passes no gradient", f"after {quoted(layer)} comes {say_flat(op)}", pass_gradient(op)


def _ratio(rec: Recording, layers: NDArray[np.int64], everywhere: bool, row: int) -> Cause | None:
    """A ratio of two probabilities that both have a graph: where both are of the same weights, it is always 1."""
    if not everywhere or row > 0 or not rec.setup.graph.entries("ratios"):
        return None
    return (
        "",
        "the loss holds exp(a - b), the ratio of two probabilities, and both have a graph: where both come from the "
        "same weights, the ratio is 1 and the two gradients cancel",
        "Compute the old log-probabilities once, before the update, and detach them: old = log_prob.detach(). Look "
        "also at what the ratio is multiplied by: an advantage of 0 gives no gradient.",
    )


def flat_weights(rec: Recording, names: set[str]) -> tuple[str, tuple[str, ...]]:
    """Return an operation without a derivative that weights go through, and those of the layers whose weights do.

    Args:
        rec: The recording.
        names: Layers.
    """
    found = {item.text("weights"): item.text("op") for item in rec.setup.graph.entries("flat") if item.text("weights")}
    layers = tuple(layer.name for layer in rec.run.layers if layer.name in names & found.keys())
    return (found[layers[0]] if layers else ""), layers


def _flat_weights(rec: Recording, names: set[str]) -> Cause | None:
    """The weights of all these layers go through an operation whose derivative is 0 everywhere."""
    op, layers = flat_weights(rec, names)
    if names - set(layers):
        return None
    what = f"the weights of {say_layers(layers)} go through {say_flat(op)}"
    return f"{op.lower()} of the weights", what, pass_gradient(op)


def say_flat(op: str) -> str:
    """Return what an operation without a derivative does.

    Args:
        op: One of ``flat`` in docs/facts.md.
    """
    if op in DRAWS:
        return f"a sample ({DRAWS[op]}), which passes no gradient to what it is drawn from"
    return f"{op.lower()}, whose derivative is 0 everywhere"


def pass_gradient(op: str) -> str:
    """Return the remedy for an operation without a derivative.

    Args:
        op: One of ``flat`` in docs/facts.md.
    """
    if op == "Normal":
        return "Draw with mean + std * torch.randn_like(std), or rsample() of torch.distributions (reparameterisation)."
    if op in DRAWS:
        return (
            "Use a relaxed sample (gumbel_softmax, RelaxedBernoulli), a straight-through estimator, "
            "(sample - p).detach() + p, or a score-function estimator."
        )
    name = f"torch.{op.lower()}(x)"
    return f"Use a straight-through estimator, x + ({name} - x).detach(), or a smooth function."


def _off(rec: Recording, layers: NDArray[np.int64], everywhere: bool, row: int) -> Cause | None:
    """The layer after the zeros gets a gradient at its output: what lies between passes none."""
    last = dead_end(rec, layers)
    if last is None:
        return None
    if _is_passed_by(rec, last):
        name = quoted(rec.run.layers[last].name)
        return (
            "",
            f"no gradient reaches the output of {name}, and layers before it get theirs past it (a shortcut): its "
            "units are all off (dead) where a ReLU follows, or something multiplies its output by 0",
            f"The model is trained without {name}. In a layer of few units, chance alone may turn all of them off: "
            f"more units, or LeakyReLU, prevent it. {_revive(rec, row, rec.run.layers[last].name)}",
        )
    return (
        "",
        f"after {quoted(rec.run.layers[last].name)} no gradient passes: its units are all off (dead) where a ReLU "
        "follows, or something multiplies its output by 0",
        _revive(rec, row, rec.run.layers[last].name),
    )


def dead_end(rec: Recording, layers: NDArray[np.int64]) -> int | None:
    """Return the last layer on the path with a gradient of 0 at its output, if a later one has a gradient there."""
    if not rec.has(ACTIVATION_GRAD_NORM):
        return None
    series = rec.series(ACTIVATION_GRAD_NORM)
    typical = series.median(series.late)
    path = [int(i) for i in rec.path]
    zero = [place for place, i in enumerate(path) if typical[i] == 0]
    if not zero or zero[-1] + 1 >= len(path) or not typical[path[zero[-1] + 1]] > 0:
        return None
    return path[zero[-1]]


def _is_passed_by(rec: Recording, layer: int) -> bool:
    """Return whether a layer before one without a gradient at its output has one: there is another way to it."""
    series = rec.series(ACTIVATION_GRAD_NORM)
    typical = series.median(series.late)
    path = [int(i) for i in rec.path]
    return any(typical[i] > 0 for i in path[: path.index(layer)])


def off_by_chance(rec: Recording) -> tuple[str, ...]:
    """Return the layers with a gradient of 0 where they are few of many, off from the first row on, and passed by.

    All n units of a layer are off at initialisation with a probability of 2^-n where the examples look alike, so that
    a deep network of narrow layers has such layers: no fault of the model.

    Args:
        rec: The recording.
    """
    layers = zero_layers(rec)
    if not rec.has(ACTIVATION_GRAD_NORM) or not 0 < len(layers) <= CHANCE * len(_known(rec)):
        return ()
    arrive, path = rec.series(ACTIVATION_GRAD_NORM).positive[layers], {int(i) for i in rec.path}
    off = not arrive.any() and all(int(i) in path and _is_passed_by(rec, int(i)) for i in layers)
    return rec.names(rec.in_order(layers)) if off else ()


def _collapsed(rec: Recording, layers: NDArray[np.int64], everywhere: bool, row: int) -> Cause | None:
    if not everywhere or row == 0:
        return None
    return (
        "",
        f"gradients arrived in the first {plural(row, 'row')}, then the output no longer depended on the weights: all "
        "units are off (dead), or every output is the same",
        _revive(rec, row, rec.run.layers[[*rec.in_order(layers), *rec.run.main_layers()][-1]].name),
    )


def _unknown(rec: Recording, layers: NDArray[np.int64], everywhere: bool, row: int) -> Cause:
    look = "Find out whether the outputs of these layers are all 0 (metric zero_fraction) or the same for every input."
    late = f"{_revive(rec, row, rec.run.layers[rec.in_order(layers)[-1]].name)} " if row > 0 else ""
    return "", "dead units, a constant output or a factor of 0 is between these layers and the loss", f"{late}{look}"


def _revive(rec: Recording, row: int, layer: str) -> str:
    network = Network(rec)
    if row > 0 and network.first_update() > LARGE_STEP:
        return (
            f"{network.slow_down()} The first update was {network.first_update():.0%} of the weights' norm: too large."
        )
    if row == 0:
        return (
            f"It is so from the first row on: check the bias and the initialisation of {quoted(layer)}, and what its "
            "output is multiplied by."
        )
    return f"Lower {network.say_rate()} by a factor of 10, and check the bias of {quoted(layer)}."


def _clamped(rec: Recording, layers: NDArray[np.int64], everywhere: bool, row: int) -> Cause | None:
    names = tuple(name for name in beyond_clamp(rec) if name in rec.names(layers))
    if not names:
        return None
    return (
        "parameters are outside the range of a clamp",
        f"parameters of {say_layers(names)} go through a clamp, whose derivative is 0 outside its range",
        f"Initialise the parameters of {say_layers(names)} inside the range, or use a sigmoid or softplus instead of a "
        "clamp.",
    )


CAUSES: tuple[Callable[[Recording, NDArray[np.int64], bool, int], Cause | None], ...] = (
    _no_loss, _zero_weights, _clamped, _relu_at_the_end, _off_the_clamp, _half, _flat, _ratio, _off, _collapsed,
    _unknown,
)  # fmt: skip
"""Causes in order of certainty; each returns the exact cause or "", the evidence and the remedy."""
