"""Facts that may be intended: they are noted, and findings of unchanged weights leave out the layers they explain."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradlens.diagnosis.findings import quoted, say_layers
from gradlens.diagnosis.learning import judge_learning
from gradlens.diagnosis.network import Network
from gradlens.diagnosis.recorded_rows import PARAM_GRAD, Recording
from gradlens.diagnosis.recorded_setup import Entry
from gradlens.diagnosis.setup.norm_statistics import is_far, say_statistics
from gradlens.diagnosis.setup.setup_findings import LEAST_CALLS
from gradlens.format import plural
from gradlens.metrics import ACTIVATION_GRAD_NORM

ENDS_LATE = 0.5
"""A schedule may end near 0; it is a fault only if that takes up more than half of the steps."""

ENDS_SOON = 0.05
"""A schedule that is near 0 for less of the steps than this needs no word. A cosine to 0 is at most a thousandth of its
largest rate for the last 2.0 % of its steps (Loshchilov and Hutter 2017, SGDR, eq. 5: 1 - acos(0.002 - 1) / pi)."""
MOST_PARTLY = 4
"""Notes on layers of which a part is frozen."""
MOSTLY = 0.5
"""The first layers are left out on purpose (a pretrained body) where they are most of what requires a gradient."""
ADAPTED = 0.1
"""Where less than a tenth of what requires a gradient is in an optimizer, the rest was left out on purpose (adapters,
prompts, a new head)."""

OF_LAYERS = {"weight", "bias"}
"""Names of the parameters of layers; a table that a module holds besides its layers has another name."""

BRANCH = 0.1
"""A part whose output nothing uses, such as a pooler or an auxiliary head, has less than a tenth of what is trained."""


@dataclass(frozen=True)
class Intended:
    """A fact that may be intended.

    Args:
        said: The fact, in a sentence.
        layers: The layers that it explains.
    """

    said: str
    layers: tuple[str, ...] = ()


def find_intended(rec: Recording) -> list[Intended]:
    """Return the facts of a run that may be intended.

    Args:
        rec: The recording.
    """
    copies = _copies(rec)
    copied = {name for item in copies for name in item.layers}
    rules = (_frozen_by_user, _frozen_later, _without_optimizer, _partly_given, _not_chosen, _side_branches)
    found = [item for rule in rules for item in rule(rec, copied)]
    return [
        *copies,
        *found,
        *_schedule(rec),
        *_norms(rec),
        *_listed(rec),
        *_untrained_parts(rec),
        *_doubled(rec),
        *_many_labels(rec),
    ]


def _inside(rec: Recording, module: str) -> tuple[str, ...]:
    """Return the layers that lie in a module, those that are not recorded (norms that never ran) last."""
    owners = (name for item in rec.setup.entries("parameters") for name in item.texts("layers"))
    names = dict.fromkeys([*(layer.name for layer in rec.run.layers), *owners])
    return tuple(name for name in names if name == module or name.startswith(f"{module}."))


def _copies(rec: Recording) -> list[Intended]:
    found = []
    for item in rec.setup.entries("copies"):
        moves = "follow them" if item.flag("moves") else "do not change"
        said = (
            f"{item.text('layer')} is built like {item.text('of')} and gets no gradient; its weights {moves} (a "
            "target, teacher or average of weights)"
        )
        found.append(Intended(said, _inside(rec, item.text("layer"))))
    return found


def _frozen_by_user(rec: Recording, copied: set[str]) -> list[Intended]:
    first = rec.setup.whole("first_step")
    adapts = _adapts(rec)
    states = [item for item in rec.setup.states(requires_grad=False) if adapts or math.isnan(item.number("optimizer"))]
    copied = copied | _thawed(rec)
    states = [item for item in states if item.whole("since") <= first]
    names = _names(states, copied)
    why = "small layers beside them are trained" if adapts else "not in the optimizer"
    trained = rec.setup.layers_of(requires_grad=True)
    whole = tuple(name for name in names if name not in trained)
    found = [Intended(f"frozen from the first row on, and {why}: {say_layers(whole)}", whole)] if whole else []
    found += [_partly_frozen(states, name) for name in names if name in trained][:MOST_PARTLY]
    held = [item for item in rec.setup.states(requires_grad=False, in_optimizer=True) if item.whole("since") <= first]
    idle = tuple(name for name in _names(held, {*copied, *names}) if name in _unread(rec))
    said = f"frozen from the first row on, and nothing uses their output: {say_layers(idle)}"
    found += [Intended(said, idle)] if idle else []
    return [*found, *_fixed_tables(rec, held, {*copied, *names, *idle})]


def _fixed_tables(rec: Recording, held: list[Entry], known: set[str]) -> list[Intended]:
    """Return a note on frozen parameters that an optimizer has: tables of containers, and embeddings of a learner.

    A module that contains layers makes a table besides them, such as fixed sine position codes (Vaswani et al. 2017,
    sec. 3.5), with requires_grad off, and ``Embedding.from_pretrained`` freezes its vectors unless told otherwise;
    ``parameters()`` hands both to the optimizer.
    """
    layers = {layer.name: layer.kind for layer in rec.run.layers}
    tables = [item for item in held if item.texts("names") and OF_LAYERS.isdisjoint(item.texts("names"))]
    names = {name for name in _names(tables, known) if _contains(name, layers)}
    if judge_learning(rec).verdict == "yes":
        names |= {name for name in _names(held, known) if layers.get(name) == "Embedding"}
    inside = tuple(name for name in _names(held, known) if name in names)
    own = tuple(dict.fromkeys(one for item in held if names & {*item.texts("layers")} for one in item.texts("names")))
    said = (
        "frozen from the first row on (requires_grad is off), though the optimizer has them: "
        f"{say_layers(own)} of {say_layers(inside)}"
    )
    return [Intended(said, inside)] if inside else []


def _contains(module: str, layers: Iterable[str]) -> bool:
    """Return whether a module contains one of the layers."""
    return any(name != module and (module == "(model)" or name.startswith(f"{module}.")) for name in layers)


def _partly_frozen(states: list[Entry], layer: str) -> Intended:
    """Return a note on a layer of which some parameters are frozen and others are trained."""
    own = [item.texts("names") for item in states if item.texts("layers") == (layer,)]
    said = f"a part of the parameters of {quoted(layer)} is frozen from the first row on"
    return Intended(
        f"{said}: {', '.join(dict.fromkeys(name for names in own for name in names))}" if own else said, (layer,)
    )


def _unread(rec: Recording) -> set[str]:
    """Return the layers that ran and whose output never had a gradient, although one that ran earlier had one."""
    if not rec.has(ACTIVATION_GRAD_NORM):
        return set()
    known = rec.series(ACTIVATION_GRAD_NORM).known
    first = int(np.argmax(known)) if known.any() else len(known)
    return {x.name for i, x in enumerate(rec.run.layers) if i > first and not known[i] and x.out_numel > 0}


def _frozen_later(rec: Recording, copied: set[str]) -> list[Intended]:
    first = rec.setup.whole("first_step")
    found = []
    for item in rec.setup.states(requires_grad=False):
        names = _names([item], copied)
        if item.whole("since") > first and "arriving" in item.texts("seen") and names:
            found.append(
                Intended(f"frozen since step {item.whole('since')}, after learning: {say_layers(names)}", names)
            )
    return found


def replaced(rec: Recording) -> int:
    """Return the number of parameters that optimizers hold and the model no longer has, if it has as many without one.

    Layers that were replaced after the optimizer was made leave the old ones in it.
    """
    strangers = sum(item.entry("foreign").whole("count") for item in rec.setup.entries("optimizers"))
    lost = sum(item.whole("count") for item in rec.setup.states(requires_grad=True, in_optimizer=False))
    return strangers if strangers == lost else 0


def _without_optimizer(rec: Recording, copied: set[str]) -> list[Intended]:
    """Layers in no optimizer: all before the trained ones, or far more of them, or such that something else changes."""
    if not rec.setup.entries("optimizers"):
        return []  # rows are closed by hand
    names = _names(rec.setup.states(requires_grad=True, in_optimizer=False), copied)
    trained = set(rec.setup.layers_of(requires_grad=True, in_optimizer=True))
    order = [layer.name for layer in rec.run.layers]
    places = [order.index(name) for name in names if name in order]
    ends = [order.index(name) for name in trained if name in order]
    changed = {name for item in rec.setup.entries("changed_outside") for name in item.texts("layers")}
    first = bool(places and ends) and max(places) < min(ends) and _share_trained(rec) < MOSTLY
    if (
        not names
        or replaced(rec)
        or not (first or changed.intersection(names) or _share_trained(rec) < ADAPTED or _adapts(rec))
    ):
        return []
    what = "another optimizer, or your own code, changes them" if changed.intersection(names) else "they do not change"
    return [Intended(f"in no optimizer that the recorder was given: {say_layers(names)}; {what}", names)]


def not_in_optimizer(rec: Recording) -> list[Entry]:
    """Return the states of parameters that get gradients and are in no optimizer, though their layer's others are.

    Args:
        rec: The recording.
    """
    given = set(rec.setup.layers_of(requires_grad=True, in_optimizer=True))
    changed = {name for item in rec.setup.entries("changed_outside") for name in item.texts("layers")}
    states = rec.setup.states(requires_grad=True, in_optimizer=False)
    states = [item for item in states if "arriving" in item.texts("seen")]
    inside = [item for item in states if item.texts("names") and given.issuperset(item.texts("layers"))]
    return [item for item in inside if changed.isdisjoint(item.texts("layers"))]


def _partly_given(rec: Recording, copied: set[str]) -> list[Intended]:
    """Return a note on parameters in no optimizer whose layer has others in one, in a model that learns."""
    items = (
        not_in_optimizer(rec) if judge_learning(rec).verdict == "yes" and not replaced(rec) and not _adapts(rec) else []
    )
    names = _names(items, copied)
    own = tuple(dict.fromkeys(name for item in items for name in item.texts("names")))
    if not names:
        return []
    return [
        Intended(f"gradients arrive at {say_layers(own)} of {say_layers(names)}, and no optimizer has these", names)
    ]


def _share_trained(rec: Recording) -> float:
    """Return the share of the elements that require a gradient which an optimizer has; 0 if unknown."""
    states = rec.setup.states(requires_grad=True)
    trained = sum(item.whole("numel") for item in states if item.number("optimizer") >= 0)
    return trained / max(sum(item.whole("numel") for item in states), 1)


def _adapts(rec: Recording) -> bool:
    """Return whether small layers beside larger ones are trained: the larger ones are frozen on purpose."""
    trained = rec.setup.layers_of(requires_grad=True, in_optimizer=True)
    return any("adapter" in layer.tags for layer in rec.run.layers if layer.name in trained)


def _not_chosen(rec: Recording, copied: set[str]) -> list[Intended]:
    """Layers without a gradient in the late rows that got one before, or that have siblings which get one (experts)."""
    if not rec.has(PARAM_GRAD) or not rec.setup.known:
        return []
    late = _known_late(rec, PARAM_GRAD)
    if rec.has(ACTIVATION_GRAD_NORM):  # gradients of parameters are missing also where these were replaced
        late |= _known_late(rec, ACTIVATION_GRAD_NORM)
    ever = rec.series(PARAM_GRAD).known
    wanted = set(rec.setup.layers_of(requires_grad=True, in_optimizer=True)) - copied
    layers = rec.run.layers
    alive = {_family(layer.name) for i, layer in enumerate(layers) if late[i]} - {""}
    idle = [
        i
        for i, layer in enumerate(layers)
        if layer.name in wanted and not late[i] and (ever[i] or (layer.out_numel == 0 and _family(layer.name) in alive))
    ]
    names = rec.names(idle)
    resting = tuple(name for name in names if _rests(rec, name))
    others = tuple(name for name in names if name not in resting)
    found = []
    if resting:
        said = f"the optimizer of these makes no step in the last fifth of the rows: {say_layers(resting)}"
        found.append(Intended(said, resting))
    if others:
        said = f"not used in the last fifth of the rows (experts that are not chosen?): {say_layers(others)}"
        found.append(Intended(said, others))
    return found


def _rests(rec: Recording, layer: str) -> bool:
    """Return whether the optimizer of a layer, one of several, stepped in early rows and not in the last fifth."""
    indices = {item.whole("optimizer", -1) for item in rec.setup.entries("parameters") if layer in item.texts("layers")}
    if len(rec.setup.entries("optimizers")) < 2 or len(indices) != 1 or min(indices) < 0:
        return False
    index = indices.pop()
    stepped = np.isfinite(rec.scalar(f"lr_{index + 1}" if index else "lr"))
    return bool(stepped.any()) and not stepped[-max(len(stepped) // 5, 1) :].any()


def _known_late(rec: Recording, name: str) -> NDArray[np.bool_]:
    """Return (L,) which layers have a value of a metric in the last fifth of the rows."""
    series = rec.series(name)
    late = slice(-max(len(series) // 5, 1), None)
    return series.by_layers(lambda values: (~np.isnan(values)).any(axis=0), late)


def _thawed(rec: Recording) -> set[str]:
    """Return the layers whose parameters have no gradient in the first row and one in the last: unfrozen since."""
    if not rec.has(PARAM_GRAD):
        return set()
    known = ~np.isnan(rec.series(PARAM_GRAD).at([0, -1]))
    return set(rec.names(np.flatnonzero(~known[0] & known[1])))


def side_branch(rec: Recording, item: Entry) -> bool:
    """Return whether modules that the loss does not reach may be a branch that nothing uses, rather than cut off.

    A module that contains them returned their output, and the loss uses other parts of that module; or they are a small
    part, ran with a graph after others that the loss reaches and before none, and the network learns; or before one
    whose input has a graph that passes them by, and it is not known not to learn.

    Args:
        rec: The recording.
        item: What the graph says of them; see "cut" in ``docs/facts.md``.
    """
    if item.text("how") == "detached" and item.text("returned_by"):
        return judge_learning(rec).verdict != "no"
    passed_by, verdict = bool(item.text("next")) and item.flag("passed_by"), judge_learning(rec).verdict
    if item.text("how") != "detached" or (item.text("next") and not passed_by):
        return False
    if verdict == "no" or (verdict == "unknown" and not passed_by):
        return False
    states = rec.setup.states(requires_grad=True, in_optimizer=True)
    inside = set(item.texts("layers"))
    own = sum(state.whole("numel") for state in states if inside.intersection(state.texts("layers")))
    return own < BRANCH * sum(state.whole("numel") for state in states)


def _side_branches(rec: Recording, copied: set[str]) -> list[Intended]:
    cut = [item for item in rec.setup.graph.entries("cut") if side_branch(rec, item)]
    names = tuple(name for item in cut for name in item.texts("layers") if name not in copied)
    if not names:
        return []
    return [
        Intended(f"the loss does not reach the output of these (not used, or cut off?): {say_layers(names)}", names)
    ]


def _family(name: str) -> str:
    """Return a name with its first number left out, as siblings share it; "" where it has none inside."""
    found = re.subn(r"(?<=\.)\d+(?=\.)", "*", name, count=1)
    return found[0] if found[1] else ""


def _names(items: list[Entry], copied: set[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for item in items for name in item.texts("layers") if name not in copied))


def near_zero(rec: Recording) -> tuple[int, Entry] | None:
    """Return the step since which every learning rate is at most a thousandth of its largest, and one of the rates."""
    groups = [group for item in rec.setup.entries("optimizers") for group in item.entries("groups")]
    rates = [group.entry("lr") for group in groups if group.whole("count")]
    since = [rate.whole("near_zero_since", -1) for rate in rates]
    return (max(since), rates[0]) if rates and min(since) >= 0 else None


def is_spent(rec: Recording, step: int) -> bool:
    """Return whether the learning rate is near zero for more than half of the steps."""
    return _share_after(rec, step) > ENDS_LATE


def _share_after(rec: Recording, step: int) -> float:
    """Return the share of the steps that come after one."""
    first, last = rec.setup.whole("first_step"), rec.last_step
    return (last - step) / (last - first) if last > first else 0.0


def say_schedule(rec: Recording, step: int, rate: Entry) -> str:
    """Return what the schedule did to the learning rate.

    Args:
        rec: The recording.
        step: The step since which it is near zero.
        rate: One of ``lr`` in docs/facts.md.
    """
    network, every = Network(rec), rate.number("every")
    schedule = network.schedule or "a schedule"
    often = ""
    if every >= 1:
        often = " (it changes at every step)" if every < 2 else f" (it changes every {plural(int(every), 'step')})"
    return (
        f"{schedule}{often} brings the learning rate from {rate.number('largest'):.3g} to {rate.number('last'):.3g}; "
        f"since step {step} it is at most a thousandth"
    )


def _schedule(rec: Recording) -> list[Intended]:
    found = near_zero(rec)
    worth_saying = found is not None and ENDS_SOON <= _share_after(rec, found[0]) <= ENDS_LATE
    return [Intended(say_schedule(rec, *found))] if found is not None and worth_saying else []


def _norms(rec: Recording) -> list[Intended]:
    """Batch norms in evaluation mode while other modules train, or with statistics far from the batch's."""
    modes = rec.setup.entries("modes")
    names = tuple(name for item in modes if item.text("mode") == "eval" for name in item.texts("layers"))
    found = []
    if names and any(item.text("mode") == "train" for item in modes):
        found.append(Intended(f"in eval mode while others train: {say_layers(names)}"))
    far = [item for item in rec.setup.entries("batch_norm") if 0 < item.number("momentum") < 0.01 and is_far(item)]
    if far:
        found.append(Intended(f"batch norm with momentum {far[0].number('momentum'):g}: {say_statistics(far[0])}"))
    return found


def _listed(rec: Recording) -> list[Intended]:
    found = []
    for item in rec.setup.graph.entries("unregistered"):
        if item.text("held_in") and item.flag("in_optimizer"):
            where = f"the attribute {item.text('held_in')!r}"
            found.append(Intended(f"parameters in {where} are trained but not registered: state_dict() lacks them"))
    return found


def _untrained_parts(rec: Recording) -> list[Intended]:
    """Parameters of a part of the loss, such as class centres, that are in no optimizer and do not change."""
    graph = rec.setup.graph
    parts = [
        item
        for item in graph.entries("unregistered")
        if item.flag("parameter") and item.flag("moves") is False and not item.text("held_in")
        if not item.flag("in_optimizer") and not item.flag("between")
    ]
    if not parts or graph.whole("passes") < LEAST_CALLS:
        return []
    count, numel = sum(item.whole("count") for item in parts), sum(item.whole("numel") for item in parts)
    said = (
        f"the loss depends on {plural(count, 'parameter')} with {numel:,} elements that are not the model's, are not "
        f"in its optimizer and do not change in the first {graph.whole('passes')} passes: a loss with weights of its "
        "own (class centres, a head) must be given to an optimizer, too"
    )
    return [Intended(said)]


def _doubled(rec: Recording) -> list[Intended]:
    """Outputs that are added to themselves, where a shortcut may have been meant."""
    layers = tuple(dict.fromkeys(item.text("layer") for item in rec.setup.graph.entries("doubled")))
    if not layers:
        return []
    said = (
        f"behind {say_layers(layers)} a tensor is added to itself (x + x): this doubles it and is no shortcut; look "
        "whether the input of the block was meant"
    )
    return [Intended(said)]


def _many_labels(rec: Recording) -> list[Intended]:
    """A cross entropy whose targets are several labels per example, of which softmax can give each only a share."""
    return [
        Intended(
            f"the targets of the cross entropy are 0 or 1 and add up to {item.number('least'):g} to "
            f"{item.number('largest'):g} per example: for several labels at once use "
            "binary_cross_entropy_with_logits, since softmax makes them share a probability of 1"
        )
        for item in rec.setup.graph.entries("many_labels")[:1]
    ]
