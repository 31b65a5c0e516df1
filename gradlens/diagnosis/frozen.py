"""Layers whose weights do not change."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gradlens.analysis.gradient_ratio import LEAST_ROWS
from gradlens.analysis.parts import over_layers
from gradlens.diagnosis.findings import Finding, exact_finding, say_layers
from gradlens.diagnosis.intended import is_spent, near_zero, not_in_optimizer, replaced, say_schedule
from gradlens.diagnosis.learning import judge_learning
from gradlens.diagnosis.loss import loss_halved
from gradlens.diagnosis.network import Network
from gradlens.diagnosis.recorded_rows import LEAST_VALUES, PARAM_GRAD, UPDATE, Recording, Series
from gradlens.diagnosis.unused import wants_no_gradient, without_gradient
from gradlens.format import plural
from gradlens.metrics import PARAM_NORM
from gradlens.run import FloatArray

FROZEN_LINE = "no change of the weights over the last fifth of the rows"
FROZEN_SOURCE = "exact: any update makes update_ratio positive; smdebug, UnchangedTensor: unchanged over 3 steps"
RATE_ZERO = "the learning rate is 0"
BY_HAND = (
    "No optimizer was given. Where the loop updates weights itself, change them in place under torch.no_grad() "
    "(p -= lr * p.grad), because p = p - lr * p.grad only makes a new tensor. Otherwise call the optimizer's step()."
)
ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""A relative change below half the spacing of numbers leaves weights as they are (IEEE 754); dtype to that half."""
SETTINGS, TOLERANCE = "settings", "tolerance_change"
"""A setting of optimizers that end by themselves: torch.optim.LBFGS changes nothing below it."""


def frozen(rec: Recording, explained: Collection[str] = ()) -> list[Finding]:
    """Find layers whose weights do not change.

    Causes that the facts show come first: parameters in no optimizer, requires_grad off, a learning rate that a
    schedule brought to nearly 0. Confidence: 1 for those, else (n + 1) / (n + 2) for n values that are all exactly 0,
    by Laplace's rule of succession.

    Args:
        rec: The recording.
        explained: Names of layers that another finding or a note explains; they are left out.

    Returns:
        The findings; an empty list where there is no such fault.
    """
    if spent := [*_rate_is_zero(rec), *_rate_is_spent(rec)]:
        return spent[:1]
    exact = [*_foreign(rec), *_never_steps(rec), *_not_given(rec, explained), *_requires_no_gradient(rec, explained)]
    exact = exact or partly_given(rec, explained)
    explained = {*explained, *(name for finding in exact for name in finding.layers)}
    return [*exact, *_unchanged(rec, explained)]


def _rate_is_zero(rec: Recording) -> list[Finding]:
    lr = rec.scalar("lr")
    late = lr[-max(len(lr) // 5, LEAST_ROWS) :]
    late = late[~np.isnan(late)]
    if len(late) < LEAST_ROWS or not (late == 0).all():
        return []
    before = np.flatnonzero(np.nan_to_num(lr) != 0)
    start = int(before[-1]) + 1 if len(before) else 0
    found = _finding(rec, np.arange(len(rec.run.layers)), start, RATE_ZERO, len(late))
    found = found if len(before) else replace(found, cause=RATE_ZERO, confidence=1.0)
    schedule = Network(rec).schedule
    if not schedule:
        fix = "Set a learning rate above 0. If a schedule sets it, look at its factor: whole-number division gives 0."
        return [replace(found, remedy=fix)]
    fix = f"Look at {schedule}: a whole-number division, a warm-up from 0 that never ends, or an end that sets it to 0."
    return [replace(found, evidence=f"{found.evidence}, as {schedule} sets it", remedy=fix)]


def _rate_is_spent(rec: Recording) -> list[Finding]:
    found = near_zero(rec)
    if found is None or not is_spent(rec, found[0]):
        return []
    step, rate = found
    return [
        exact_finding(
            "frozen",
            rec.names(rec.run.main_layers()),
            (step, rec.last_step),
            f"{say_schedule(rec, step, rate)}, for {(rec.last_step - step) / max(rec.last_step, 1):.0%} of the steps",
            f"Check {Network(rec).schedule or 'the schedule'}: call its step() once per epoch if its settings count "
            "epochs, or give it as many steps as the training has.",
            "the schedule brings the learning rate to nearly 0 too early",
        )
    ]


def _foreign(rec: Recording) -> list[Finding]:
    """The optimizer holds parameters, and none of them is the model's."""
    strangers = [item for item in rec.setup.entries("optimizers") if item.entry("foreign").whole("count")]
    if not strangers or rec.setup.states(in_optimizer=True):
        return []
    number = strangers[0].entry("foreign").whole("count")
    return [
        exact_finding(
            "frozen",
            rec.setup.layers_of(requires_grad=True),
            (rec.setup.whole("first_step"), rec.last_step),
            f"{strangers[0].text('class')} holds {plural(number, 'parameter')}, and none of them is the model's",
            "Make the optimizer from this model's parameters(), after moving, wrapping or replacing the model.",
            "the optimizer holds another model's parameters",
        )
    ]


def _never_steps(rec: Recording) -> list[Finding]:
    """An optimizer of several that the recorder was given never steps."""
    optimizers = rec.setup.entries("optimizers")
    if not any(item.whole("steps") for item in optimizers):
        return []
    found = []
    for item in optimizers:
        layers = tuple(dict.fromkeys(name for group in item.entries("groups") for name in group.texts("layers")))
        if item.whole("steps", 1) or not layers:
            continue
        found.append(
            exact_finding(
                "frozen",
                layers,
                (rec.setup.whole("first_step"), rec.last_step),
                f"of {len(optimizers)} optimizers, that of {say_layers(layers)} ({item.text('class')}) never steps: "
                "gradients may arrive, but these weights do not change",
                f"Call step() of the optimizer of {say_layers(layers)}, too, after the backward pass.",
                "an optimizer never steps",
            )
        )
    return found


def _not_given(rec: Recording, explained: Collection[str]) -> list[Finding]:
    """Layers that require a gradient and are in no optimizer while others are."""
    states = rec.setup.states(requires_grad=True, in_optimizer=False)
    number = replaced(rec)
    moving = set() if number else _moving(rec)  # where a weight was replaced, its bias may move
    layers = [name for item in states for name in item.texts("layers") if name not in explained and name not in moving]
    names = tuple(dict.fromkeys(layers))
    if not names or not rec.setup.states(in_optimizer=True):
        return []
    count, optimizer = sum(item.whole("numel") for item in states), Network(rec).optimizer
    if number:
        return [
            exact_finding(
                "frozen",
                names,
                (rec.setup.whole("first_step"), rec.last_step),
                f"{plural(number, 'parameter')} of {say_layers(names)} {'is' if number == 1 else 'are'} in no "
                f"optimizer, and {optimizer} holds as many that the model does not have: these layers were replaced "
                "after the optimizer was made",
                "Make the optimizer after the last layer was replaced, loaded as a new Parameter or moved, from "
                "model.parameters().",
                "layers were replaced after the optimizer was made",
            )
        ]
    return [
        exact_finding(
            "frozen",
            names,
            (rec.setup.whole("first_step"), rec.last_step),
            f"{plural(len(names), 'layer')} ({count:,} elements) with requires_grad on "
            f"{'is' if len(names) == 1 else 'are'} in no optimizer: {say_layers(names)}",
            f"Add the parameters of {say_layers(names)} to a group of {optimizer}; if they are not to learn, set "
            "requires_grad to False.",
            "parameters are not in the optimizer",
        )
    ]


def partly_given(rec: Recording, explained: Collection[str]) -> list[Finding]:
    """Layers of which some parameters are in the optimizer, and others, to which gradients arrive, in none.

    Parameters that another optimizer or the program's own code changes are left out, and so is all of this in a model
    that learns: they are noted there.

    Args:
        rec: The recording.
        explained: Names of layers that another finding or a note explains; they are left out.

    Returns:
        The findings.
    """
    items = not_in_optimizer(rec)
    names = tuple(dict.fromkeys(name for item in items for name in item.texts("layers") if name not in explained))
    if not names or judge_learning(rec).verdict == "yes":
        return []
    own = say_layers(tuple(dict.fromkeys(name for item in items for name in item.texts("names"))))
    return [
        exact_finding(
            "frozen",
            names,
            (rec.setup.whole("first_step"), rec.last_step),
            f"at {say_layers(names)}, gradients arrive at {own}, and these are in no optimizer, which has other "
            "parameters of the same layers",
            f"Add {own} to a group of {Network(rec).optimizer}: look at the condition that sorts the parameters into "
            "groups.",
            "parameters are not in the optimizer",
        )
    ]


def _moving(rec: Recording) -> set[str]:
    """Return the layers whose weights change."""
    if not rec.has(UPDATE):
        return set()
    return set(rec.names(np.flatnonzero(rec.series(UPDATE).positive)))


def _requires_no_gradient(rec: Recording, explained: Collection[str]) -> list[Finding]:
    """Layers that the optimizer has, with requires_grad off from the first row on."""
    states = [
        item for item in rec.setup.states(requires_grad=False, in_optimizer=True) if item.texts("seen") == ("none",)
    ]
    names = tuple(dict.fromkeys(name for item in states for name in item.texts("layers") if name not in explained))
    if not names:
        return []
    return [
        exact_finding(
            "frozen",
            names,
            (rec.setup.whole("first_step"), rec.last_step),
            f"{plural(len(names), 'layer')} in the optimizer {'has' if len(names) == 1 else 'have'} requires_grad off: "
            f"{say_layers(names)}",
            "If they are to learn, set requires_grad to True on every one of their parameters; if not, leave them out "
            "of the optimizer.",
            "requires_grad is off",
        )
    ]


def _unchanged(rec: Recording, explained: Collection[str]) -> list[Finding]:
    """Layers whose weights do not change in the last fifth of the rows, for a reason that is not in the facts."""
    unchanged, series, metric = _unchanged_layers(rec)
    no_grad = _without(rec, wants_no_gradient(rec), explained)
    layers = _without(rec, np.setdiff1d(unchanged, without_gradient(rec)), explained)
    if series is not None and len(layers) and not _has_stopped(rec, layers):
        last = np.zeros(len(layers)) if metric == UPDATE else series.at(-1)[layers]
        rows = np.flatnonzero(series.by_rows(lambda values: _moves(values[:, layers], last).all(axis=1)))
        start = int(series.rows[rows[-1] + 1]) if len(rows) and rows[-1] + 1 < len(series) else int(series.rows[0])
        what = "update_ratio is exactly 0" if metric == UPDATE else "param_norm stays bit-identical"
        same = over_layers(lambda part: series.of(layers[part]) == last[part], len(layers), len(series))
        count = int(same.sum(axis=0).min())
        evidence = f"{what} at {plural(len(layers), 'layer')}, {_say_gradients(rec, layers, start)}"
        if lost := _rounded(rec, layers):
            return [replace(_finding(rec, layers, start, f"{evidence}; {lost}", count), remedy=_enlarge(rec, layers))]
        found = _finding(rec, layers, start, evidence, count)
        by_hand = rec.setup.known and not rec.setup.entries("optimizers") and start == 0
        remedy = BY_HAND if by_hand else _writes_nothing(rec)
        return [replace(found, remedy=remedy) if remedy else found]
    if len(no_grad):
        evidence = "the parameters receive no gradient although the outputs do (requires_grad is off)"
        return [_finding(rec, no_grad, 0, evidence, rec.n_rows)]
    return []


def _writes_nothing(rec: Recording) -> str:
    """Return a remedy where the only optimizer is not torch's and its step writes into no parameter, or ""."""
    optimizers = rec.setup.entries("optimizers")
    if len(optimizers) != 1 or optimizers[0].flag("own") is not True or optimizers[0].flag("wrote") is not False:
        return ""
    return (
        f"Look at step() of {optimizers[0].text('class')}: in the steps that were looked at it wrote into no "
        "parameter. An assignment p = p - lr * p.grad makes a new tensor and leaves the parameter as it is: write "
        "p.add_(p.grad, alpha=-lr) under torch.no_grad(), and look for a factor that is 0."
    )


def _has_stopped(rec: Recording, layers: NDArray[np.int64]) -> bool:
    """Return whether an optimizer that ends by a tolerance of its own (LBFGS) has all these layers, and has ended.

    It changes nothing where the gradient or the slope along its step is below that tolerance. Beside a loss that is
    halved that is its aim; a line search that fails at once ends there, too, and leaves the loss as it is.
    """
    optimizers = rec.setup.entries("optimizers")
    ends = [group for item in optimizers for group in item.entries("groups") if TOLERANCE in group.entry(SETTINGS).keys]
    held = {name for group in ends for name in group.texts("layers")}
    return loss_halved(rec) and held.issuperset(rec.names(layers))


def _rounded(rec: Recording, layers: NDArray[np.int64]) -> str:
    """Say that the steps of layers are lost in rounding, where an optimizer has them and gradients arrive, or ""."""
    if not (rec.has(PARAM_GRAD) and rec.has(PARAM_NORM)):
        return ""
    names = rec.names(layers)
    given = rec.setup.states(requires_grad=True, in_optimizer=True)
    held = {name: item.text("dtype") for item in given for name in item.texts("layers")}
    dtype = held.get(names[0], "")
    if any(held.get(name) != dtype for name in names) or dtype not in ROUNDING:
        return ""
    grads = rec.series(PARAM_GRAD).typical[layers]
    sizes = rec.series(PARAM_NORM).typical[layers]
    counts = np.array([max(rec.run.layers[i].param_numel, 1) for i in layers])
    rate, network = Network(rec).rate, Network(rec)
    entries = grads / np.sqrt(counts)
    tiny = np.finfo(float).tiny
    shares = entries / np.maximum(entries + network.eps, tiny)  # Adam moves by about its rate, unless eps is larger
    moves = np.sqrt(counts) * shares if network.rescales else grads
    steps = moves / np.maximum(sizes, tiny)
    if not rate > 0 or not ((grads > 0) & (rate * steps < ROUNDING[dtype])).all():
        return ""
    size = float(sizes[grads.argmax()])
    if network.rescales and shares.max() < 1 / 2:
        return (
            f"the optimizer has them, but a gradient of norm {float(grads.max()):.1e} is far below eps of "
            f"{network.optimizer} ({network.eps:.1g}), so that its steps are less than half of the spacing of {dtype} "
            f"numbers at weights of norm {size:.2g}"
        )
    if network.rescales:
        return (
            f"the optimizer has them, but moves each weight by about {rate:.3g} per step, less than half of the "
            f"spacing of {dtype} numbers at weights of norm {size:.2g}"
        )
    return (
        f"the optimizer has them, but a gradient of norm {float(grads.max()):.1e} times the learning rate {rate:.3g} "
        f"is less than half of the spacing of {dtype} numbers at weights of norm {size:.2g}"
    )


def is_starved(rec: Recording, names: Collection[str]) -> bool:
    """Return whether the steps of layers are lost in rounding because next to no gradient comes.

    Args:
        rec: The recording.
        names: The layers.
    """
    layers = np.array([i for i, layer in enumerate(rec.run.layers) if layer.name in names], dtype=np.int64)
    return len(layers) == len(names) > 0 and bool(_rounded(rec, layers))


def _enlarge(rec: Recording, layers: NDArray[np.int64]) -> str:
    states = rec.setup.states(in_optimizer=True)
    dtypes = {item.text("dtype") for item in states if set(item.texts("layers")) & set(rec.names(layers))}
    if dtypes & {"bfloat16", "float16"}:
        return (
            f"Keep the weights in float32 and compute in {min(dtypes)} with torch.autocast, or keep float32 copies of "
            "the weights in the optimizer."
        )
    return (
        "The gradients are too small for the weights' precision: check the scale of the inputs and of the loss "
        "(normalise the data once, with mean 0 and standard deviation 1; average the loss over fewer elements), or "
        f"raise {Network(rec).say_rate()}."
    )


def _without(rec: Recording, layers: NDArray[np.int64], explained: Collection[str]) -> NDArray[np.int64]:
    return np.array([i for i in layers if rec.run.layers[i].name not in explained], dtype=np.int64)


def _say_gradients(rec: Recording, layers: NDArray[np.int64], row: int) -> str:
    """Say what gradients the parameters of layers get from a row on: arriving, exactly 0, none, or not recorded."""
    if not rec.has(PARAM_GRAD):
        return "and whether gradients arrive was not recorded"
    series = rec.series(PARAM_GRAD)
    later = slice(int(np.searchsorted(series.rows, row)), None)
    arrive = series.by_layers(lambda values: (values > 0).any(axis=0), later)[layers]
    known = series.by_layers(lambda values: (~np.isnan(values)).any(axis=0), later)[layers]
    if arrive.all():
        return "although gradients arrive"
    parts = [
        (int(arrive.sum()), "although gradients arrive"),
        (int((known & ~arrive).sum()), "and the gradient is exactly 0"),
        (int((~known).sum()), "and no gradient comes (requires_grad off, or unused)"),
    ]
    there = [(count, said) for count, said in parts if count]
    return there[0][1] if len(there) == 1 else "; ".join(f"{said} at {count}" for count, said in there)


def _finding(rec: Recording, layers: NDArray[np.int64], row: int, evidence: str, count: int) -> Finding:
    names = rec.names(rec.in_order(layers))
    return Finding(
        "frozen",
        names,
        (int(rec.run.steps[row]), rec.last_step),
        evidence,
        FROZEN_LINE,
        FROZEN_SOURCE,
        _release(rec, names),
        (count + 1) / (count + 2),
    )


def _release(rec: Recording, names: tuple[str, ...]) -> str:
    """Return the remedy for layers that do not change; what the facts show to be right is not advised."""
    given = set(rec.setup.layers_of(requires_grad=True, in_optimizer=True))
    if not given.issuperset(names) or not names:
        return (
            f"If this is not intended: set requires_grad on {say_layers(names)}, and give their parameters to the "
            "optimizer."
        )
    network, rates = Network(rec), _rates_of(rec, names)
    rate = f"the learning rate of their group ({rates[0]:.3g})" if len(rates) == 1 else network.say_rate()
    check = f", and {network.schedule}" if network.schedule else ""
    return (
        f"{network.optimizer[:1].upper()}{network.optimizer[1:]} has {say_layers(names)}: check {rate}{check}, and "
        "whether your own code resets these weights after a step."
    )


def _rates_of(rec: Recording, names: tuple[str, ...]) -> list[float]:
    """Return the last learning rates of the groups that hold layers, each once."""
    groups = [group for item in rec.setup.entries("optimizers") for group in item.entries("groups")]
    found = [group.entry("lr").number("last") for group in groups if set(names) & set(group.texts("layers"))]
    return list(dict.fromkeys(rate for rate in found if math.isfinite(rate)))


def _unchanged_layers(rec: Recording) -> tuple[NDArray[np.int64], Series | None, str]:
    """Return the layers whose weights do not change in the last fifth of the rows, the metric's series and its name."""
    if rec.has(UPDATE):
        series = _where_trained(rec)
        late = slice(-max(len(series) // 5, LEAST_VALUES), None)
        unchanged = series.by_layers(lambda values: (values == 0).any(axis=0) & ~(values > 0).any(axis=0), late)
        enough = series.by_layers(lambda values: (values == 0).sum(axis=0) >= LEAST_VALUES)
        return np.flatnonzero(unchanged & enough), series, UPDATE
    if rec.has(PARAM_NORM) and not rec.long:
        series = rec.series(PARAM_NORM)
        same = series.by_layers(_stays) & _has_gradients(rec)
        return np.flatnonzero(same), series, PARAM_NORM
    return np.empty(0, dtype=np.int64), None, ""


def _moves(values: FloatArray, last: FloatArray) -> NDArray[np.bool_]:
    """Return where values are known and differ from the last ones."""
    return np.asarray((values != last) & ~np.isnan(values))


def _stays(norms: FloatArray) -> NDArray[np.bool_]:
    """Return which layers have one norm in the last fifth of the rows, as a file has it, and in enough rows, (L,)."""
    last = norms[-1].astype(np.float32)
    same = norms.astype(np.float32) == last
    late = same[-max(len(norms) // 5, LEAST_VALUES) :]
    return np.asarray(late.all(axis=0) & (last > 0) & (same.sum(axis=0) >= LEAST_VALUES))


def _where_trained(rec: Recording) -> Series:
    """Return the updates, NaN where a layer had no gradient in that row: a block that was skipped is not frozen."""
    series = rec.series(UPDATE)
    if not rec.has(PARAM_GRAD) or rec.long:
        return series
    grads = rec.series(PARAM_GRAD)
    at = np.searchsorted(grads.rows, series.rows).clip(max=len(grads) - 1)
    same = grads.rows[at] == series.rows
    return series.without(grads.by_layers(lambda values: same[:, None] & np.isnan(values[at])) & grads.known)


def _has_gradients(rec: Recording) -> NDArray[np.bool_]:
    """Return which layers' parameters receive a nonzero gradient, (L,); all of them where it was not recorded."""
    if not rec.has(PARAM_GRAD):
        return np.ones(len(rec.run.layers), dtype=bool)
    has: NDArray[np.bool_] = np.greater(rec.series(PARAM_GRAD).typical, 0)
    return has
