"""What the runs of one setting say of each claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from gradlens.analysis.claims.arms import Seeds, Setting
from gradlens.analysis.claims.measures import (
    chance,
    cut_decades,
    decades_back,
    epochs_to,
    fieller,
    final,
    gap,
    mean_accuracy,
    n_epochs,
    paired,
    shortcut_share,
    slope_over,
    still_falls,
)
from gradlens.analysis.claims.texts import (
    ACCURACY_MARGIN,
    DEPTH_MARGIN,
    FLOAT32_DECADES,
    HALF,
    KEEPS,
    LOSS_MARGIN,
    MAIN_ROAD,
    NO_ROAD,
    TARGETS,
    VANISHES,
    Outcome,
)
from gradlens.analysis.stats import Interval, mean_interval
from gradlens.run import Run

DECADES, SHARE, EPOCHS = "decades", "share", "epochs"
ACCURACY, LOSS = "accuracy difference", "loss difference"
LEVEL, PER_TEN = "accuracy", "accuracy per ten layers"


@dataclass(frozen=True)
class Evidence:
    """A number that speaks for or against a claim.

    Args:
        name: What was measured.
        value: Its mean over seeds, or over pairs of seeds.
        low: Lower end of its 95 % interval; NaN with fewer than two.
        high: Upper end.
        unit: "decades" (log10 of a ratio), "share", "accuracy", "accuracy difference", "accuracy per ten layers",
            "loss difference" (nats) or "epochs".
        n: Seeds, or pairs of them.
        note: What else is to be known of it.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    n: int
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the runs of one setting say of one claim.

    Args:
        condition: With or without batch norm.
        setting: What was trained and how.
        verdict: The outcome.
        why: In a sentence, with its numbers.
        evidence: The numbers; the first decides.
        tested: Whether what the test needs was trained and recorded.
        partly: The outcome that less than half of the settings show, where the verdict is undecided for that.
        counts: Whether it counts for the condition's verdict; not where validation pictures were trained on.
    """

    condition: str
    setting: str
    verdict: Outcome
    why: str
    evidence: tuple[Evidence, ...] = ()
    tested: bool = True
    partly: Outcome | None = None
    counts: bool = True


def signed(value: float, unit: str) -> str:
    """Write a number as its unit asks for: differences with their sign, decades and epochs with one digit."""
    if math.isinf(value):
        return "-inf" if value < 0 else "inf"
    digits = 2 if unit in (SHARE, LEVEL) else 1 if unit in (DECADES, EPOCHS) else 3
    value = round(value, digits) + 0.0  # no minus zero
    return f"{value:.2f}" if unit in (SHARE, LEVEL) else f"{value:+.{digits}f}"


def say(evidence: Evidence) -> str:
    """Write a number with its interval: ``+0.130 [+0.100, +0.160]``; of decades, the powers of ten."""
    if math.isnan(evidence.value):
        return "not known"
    value, low, high = (signed(number, evidence.unit) for number in (evidence.value, evidence.low, evidence.high))
    value = f"10^{value}" if evidence.unit == DECADES else value
    return value if math.isnan(evidence.low) else f"{value} [{low}, {high}]"


def _evidence(name: str, interval: Interval, unit: str, note: str = "") -> Evidence:
    if interval.left_out:
        note = "; ".join(filter(None, [note, f"{interval.left_out} not finite, left out"]))
    return Evidence(name, interval.mean, interval.low, interval.high, unit, interval.n, note)


def _over(seeds: Seeds, measure: Callable[[Run], float]) -> dict[int, float]:
    return {seed: measure(run) for seed, run in seeds.items()}


def _mean(values: Mapping[int, float]) -> Interval:
    return mean_interval(np.array([values[seed] for seed in sorted(values)], dtype=np.float64))


def _verdict(setting: Setting, verdict: Outcome, why: str, evidence: Iterable[Evidence] = ()) -> Verdict:
    return Verdict(setting.condition, setting.label, verdict, why, tuple(evidence))


def _untested(setting: Setting, why: str, evidence: Iterable[Evidence] = ()) -> Verdict:
    return replace(_verdict(setting, "undecided", why, evidence), tested=False)


def beyond(evidence: Evidence, *, above: float | None = None, below: float | None = None) -> bool:
    """Say whether the whole interval lies above, or below, a line; never where there is no interval."""
    if above is not None:
        return bool(evidence.low > above)
    return below is not None and bool(evidence.high < below)


# --- A and B: the gradient ------------------------------------------------------------------------------------


def judge_vanishing(setting: Setting) -> Verdict:
    """Judge claim A by the plain net; the residual net stands beside it."""
    plain, resnet = setting.plain.get(setting.depth, {}), setting.resnet.get(setting.depth, {})
    if not plain:
        return _untested(setting, "there is no run of a plain net")
    main, beside = (_decades(seeds, name) for seeds, name in ((plain, "plain net,"), (resnet, "residual net,")))
    evidence = [main, *([beside] if beside.n else [])]
    said = f"first / last hidden layer {say(main)} in the plain net"
    if beside.n:
        said += f", {say(beside)} in the residual one"
    if beyond(main, below=VANISHES):
        return _verdict(setting, "supported", f"it vanishes: {said}", evidence)
    if beyond(main, above=KEEPS):
        does = "grows towards the input" if beyond(main, above=-KEEPS) else "keeps its size"
        return _verdict(setting, "not supported", f"it {does}: {said}", evidence)
    if beyond(main, above=VANISHES) and beyond(main, below=KEEPS):
        return _verdict(setting, "mixed", f"it weakens and does not vanish: {said}", evidence)
    return _verdict(setting, "undecided", _few(main, said), evidence)


def _decades(seeds: Seeds, name: str) -> Evidence:
    values = _over(seeds, decades_back)
    cut = sum(abs(value) > FLOAT32_DECADES for value in values.values())
    note = f"{cut} cut at 10^±{FLOAT32_DECADES:.1f}, float32's resolution" if cut else ""
    found = _evidence(
        f"{name} first / last hidden layer",
        _mean({seed: cut_decades(value) for seed, value in values.items()}),
        DECADES,
        note,
    )
    return found if found.n > 1 or not found.n else replace(found, low=math.nan, high=math.nan)


def judge_path(setting: Setting) -> Verdict:
    """Judge claim B by what came through the shortcuts."""
    resnet = setting.resnet.get(setting.depth, {})
    if not resnet:
        return _untested(setting, "there is no run of a residual net")
    main = _evidence("share that came through the shortcut", _mean(_over(resnet, shortcut_share)), SHARE)
    if not main.n:
        return _untested(setting, "the path split (shortcut_grad_norm) was not recorded")
    said = f"the shortcut's share of the gradient at the median block is {say(main)}"
    if beyond(main, above=MAIN_ROAD):
        return _verdict(setting, "supported", f"it is the main road: {said}", [main])
    if beyond(main, below=NO_ROAD):
        return _verdict(setting, "not supported", f"hardly anything comes that way: {said}", [main])
    if beyond(main, above=NO_ROAD) and beyond(main, below=MAIN_ROAD):
        return _verdict(setting, "mixed", f"it is a side road: {said}", [main])
    return _verdict(setting, "undecided", _few(main, said), [main])


def _few(evidence: Evidence, said: str) -> str:
    return f"one seed has no interval: {said}" if evidence.n < 2 else f"the interval holds both sides of a line: {said}"


# --- C and D: training ----------------------------------------------------------------------------------------


def _pair(setting: Setting, depth: int) -> tuple[Seeds, Seeds, str]:
    """Return plain and residual runs of equal seeds, or why there are none."""
    plain, resnet = setting.plain.get(depth, {}), setting.resnet.get(depth, {})
    seeds = sorted(plain.keys() & resnet.keys())
    missing = ""
    if not plain or not resnet:
        missing = f"there is no run of a {'residual' if plain else 'plain'} net trained alike"
    elif len(seeds) < 2:
        missing = f"{len(seeds) or 'no'} seed{'s' * (len(seeds) != 1)} in common: an interval needs two"
    return {seed: plain[seed] for seed in seeds}, {seed: resnet[seed] for seed in seeds}, missing


def judge_speed(setting: Setting) -> Verdict:
    """Judge claim C by the area under the training accuracy and the epochs to reach given levels."""
    plain, resnet, missing = _pair(setting, setting.depth)
    if not plain or not resnet:
        return _untested(setting, missing)
    runs = [*plain.values(), *resnet.values()]
    common = min(n_epochs(run) for run in runs)
    if not common:
        return _untested(setting, "a run has no finished epoch")
    area = _evidence(
        f"training accuracy, mean of the first {common} epochs, residual - plain",
        paired(_over(plain, lambda run: mean_accuracy(run, common)), _over(resnet, lambda r: mean_accuracy(r, common))),
        ACCURACY,
    )
    guess = max(chance(run) for run in runs)
    levels = [_sooner(plain, resnet, guess + part * (1 - guess), common) for part in TARGETS]
    evidence = [area, *levels]
    said = f"mean training accuracy over {common} epochs {say(area)}"
    shown = [level for level in levels if beyond(level, above=0)]
    if shown:
        said += f", {shown[-1].name} {say(shown[-1])}"
    later = [level for level in levels if beyond(level, below=0)]
    if missing:
        return _untested(setting, f"{missing}: {said}", evidence)
    if beyond(area, above=0):
        if later:
            return _verdict(setting, "mixed", f"faster on the whole, but {later[0].name} {say(later[0])}", evidence)
        return _verdict(setting, "supported", f"it is faster: {said}", evidence)
    if beyond(area, below=ACCURACY_MARGIN):
        does = "slower" if beyond(area, below=0) else f"no faster by {ACCURACY_MARGIN}"
        if shown:
            return _verdict(setting, "mixed", f"it is {does} on the whole: {said}", evidence)
        return _verdict(setting, "not supported", f"it is {does}: {said}", evidence)
    return _verdict(setting, "undecided", f"the interval holds 0: {said}", evidence)


def _sooner(plain: Seeds, resnet: Seeds, level: float, common: int) -> Evidence:
    """Return by how many epochs the residual net reaches a level sooner, within the epochs that all runs have."""

    def restricted(run: Run) -> float:
        return min(epochs_to(run, level), common)

    counts = [sum(epochs_to(run, level) <= common for run in arm.values()) for arm in (plain, resnet)]
    note = (
        f"reached within {common} epochs by {counts[0]} of {len(plain)} plain and {counts[1]} of {len(resnet)} "
        f"residual runs; a run that does not counts as {common}"
    )
    difference = paired(_over(resnet, restricted), _over(plain, restricted))
    return _evidence(f"epochs sooner at {level:.2f}", difference, EPOCHS, note)


QUANTITIES = (
    ("val_accuracy", "validation accuracy", 1.0, ACCURACY_MARGIN, ACCURACY),
    ("val_loss", "validation loss", -1.0, LOSS_MARGIN, LOSS),
    ("train_accuracy", "training accuracy", 1.0, ACCURACY_MARGIN, ACCURACY),
    ("train_loss", "training loss", -1.0, LOSS_MARGIN, LOSS),
)


def judge_end(setting: Setting) -> Verdict:
    """Judge claim D by the last epoch of pairs of runs."""
    plain, resnet, missing = _pair(setting, setting.depth)
    if not plain or not resnet:
        return _untested(setting, missing)
    evidence, better, worse, none = [], set(), set(), set()
    for column, name, sign, margin, unit in QUANTITIES:
        difference = _evidence(
            f"{name}, last epoch, residual - plain",
            paired(_over(plain, lambda r, c=column: final(r, c)), _over(resnet, lambda r, c=column: final(r, c))),  # type: ignore[misc]
            unit,
        )
        evidence.append(difference)
        low, high = (difference.low, difference.high) if sign > 0 else (-difference.high, -difference.low)
        if low > 0:
            better.add(name)
        elif high < 0:
            worse.add(name)
        if high < margin:
            none.add(name)
    said = ", ".join(f"{name} {say(one)}" for (_, name, *_), one in zip(QUANTITIES, evidence, strict=True))
    if missing:
        return _untested(setting, f"{missing}: {said}", evidence)
    validation = {"validation accuracy", "validation loss"}
    if validation <= better and not worse:
        return _verdict(setting, "supported", f"it ends better: {said}", evidence)
    if not better and (worse & validation or none >= {name for _, name, *_ in QUANTITIES}):
        return _verdict(setting, "not supported", f"it ends no better: {said}", evidence)
    if better and (worse or none & validation):
        return _verdict(
            setting, "mixed", f"{_list(better)} better, {_list(worse | none & validation)} not: {said}", evidence
        )
    shown = f"{_list(better)} better, the rest not shown" if better else "nothing is shown to be better"
    return _verdict(setting, "undecided", f"{shown}: {said}", evidence)


def _list(names: set[str]) -> str:
    return " and ".join(sorted(names))


# --- E: depth -------------------------------------------------------------------------------------------------


def judge_depth(setting: Setting) -> Verdict:
    """Judge claim E by slopes over depth; at one depth, say how far the nets are from learning all, and the gap."""
    beside = [*_at_depth(setting)]
    plain, resnet = _slopes(setting.plain), _slopes(setting.resnet)
    if plain is None or resnet is None:
        said = "; ".join(f"{one.name} {say(one)}" for one in beside if one.unit == LEVEL)
        needs = "both nets at two depths or more, with two seeds in common, would decide it"
        return _untested(setting, f"{needs}. At {setting.depth} layers: {said}", beside)
    (plain_fit, plain_gap), (resnet_fit, resnet_gap) = plain, resnet
    evidence = [
        _evidence("plain net, final training accuracy over depth", plain_fit, PER_TEN),
        _evidence("plain net, generalisation gap over depth", plain_gap, PER_TEN),
        _evidence("residual net, final training accuracy over depth", resnet_fit, PER_TEN),
        _evidence("residual net, generalisation gap over depth", resnet_gap, PER_TEN),
    ]
    worsens = plain_fit.high < 0 or plain_gap.low > 0
    steady = plain_fit.low > -DEPTH_MARGIN and plain_gap.high < DEPTH_MARGIN
    healthy = resnet_fit.low > -DEPTH_MARGIN and resnet_gap.high < DEPTH_MARGIN
    ails = resnet_fit.high < -DEPTH_MARGIN or resnet_gap.low > DEPTH_MARGIN
    depths = sorted(setting.plain.keys() & setting.resnet.keys())
    said = (
        f"per ten layers (of {depths[0]} to {depths[-1]}) final training accuracy {say(evidence[0])} in the plain net "
        f"and {say(evidence[2])} in the residual one, generalisation gap {say(evidence[1])} and {say(evidence[3])}"
    )
    evidence += beside
    if worsens and not steady:
        if healthy:
            return _verdict(setting, "supported", f"only the plain net gets worse with depth: {said}", evidence)
        if ails:
            return _verdict(setting, "mixed", f"both get worse with depth: {said}", evidence)
    elif steady and (healthy or ails):
        return _verdict(setting, "not supported", f"the plain net does not get worse with depth: {said}", evidence)
    return _verdict(setting, "undecided", f"an interval holds both sides of a line: {said}", evidence)


def _slopes(arm: Mapping[int, Seeds]) -> tuple[Interval, Interval] | None:
    """Return the slopes over depth of final training accuracy and of the gap; None without two seeds at two depths."""
    depths = np.array(sorted(arm), dtype=np.float64)
    seeds = sorted(set.intersection(*(set(one) for one in arm.values()))) if arm else []
    if len(depths) < 2 or len(seeds) < 2:
        return None
    fits = [[slope_over(depths, np.array([m(arm[int(d)][s]) for d in depths])) for s in seeds] for m in (_fit, gap)]
    accuracy, gaps = (mean_interval(np.array(values)) for values in fits)
    return accuracy, gaps


def _fit(run: Run) -> float:
    return final(run, "train_accuracy")


def _at_depth(setting: Setting) -> Iterable[Evidence]:
    for name, arm in (("plain", setting.plain), ("residual", setting.resnet)):
        seeds = arm.get(setting.depth, {})
        if seeds:
            yield _evidence(f"{name} net, final training accuracy", _mean(_over(seeds, _fit)), LEVEL)
            yield _evidence(f"{name} net, generalisation gap", _mean(_over(seeds, gap)), LEVEL)
            falls = _mean(_over(seeds, still_falls))
            yield _evidence(f"{name} net, fall of the training loss per epoch at the end", falls, LOSS)


# --- F: the cause ---------------------------------------------------------------------------------------------


def _tested_depth(setting: Setting) -> int:
    """Return the deepest net of which both halves of the shortcut were trained; else that of the other claims."""
    arms = (setting.plain, setting.resnet, *setting.halves.values())
    return max(set.intersection(*(set(arm) for arm in arms)), default=setting.depth)


def judge_cause(setting: Setting) -> Verdict:
    """Judge the cause by what half a shortcut does."""
    depth = _tested_depth(setting)
    plain, resnet, missing = _pair(setting, depth)
    halves = {name: setting.halves[name].get(depth, {}) for name in ("gradient", "value")}
    if missing or not all(halves.values()):
        need = missing or f"resnet{depth}-gradonly and -valueonly, trained alike, would decide it"
        return _untested(setting, need)
    seeds = sorted(plain.keys() & halves["gradient"].keys() & halves["value"].keys())
    arms = {"plain": plain, "resnet": resnet, **halves}
    common = min(n_epochs(arms[name][seed]) for name in arms for seed in seeds) if seeds else 0
    if len(seeds) < 2 or not common:
        return _untested(setting, "fewer than two seeds in common, or a run without a finished epoch")

    def closed(half: str, measure: Callable[[Run], float], what: str) -> Evidence:
        values = {name: np.array([measure(arm[seed]) for seed in seeds]) for name, arm in arms.items()}
        ratio = fieller(values[half] - values["plain"], values["resnet"] - values["plain"])
        return _evidence(f"share of the gap in {what} that the shortcut's {half} alone closes", ratio, SHARE)

    evidence = [
        closed(half, measure, what)
        for what, measure in (
            (f"training accuracy over {common} epochs", lambda run: mean_accuracy(run, common)),
            ("final validation accuracy", lambda run: final(run, "val_accuracy")),
        )
        for half in ("gradient", "value")
    ]
    evidence += [_decades(halves[half], f"{half} alone:") for half in ("gradient", "value")]
    grad, value, _, _, alive, _ = evidence
    said = f"of the gap in training accuracy the gradient alone closes {say(grad)}, the value alone {say(value)}"
    if not beyond(alive, above=VANISHES):
        why = f"no test: with the gradient's way alone it is not shown to stay alive ({say(alive)}); {said}"
        return _verdict(setting, "undecided", why, evidence)
    if beyond(grad, above=HALF):
        if beyond(value, below=HALF):
            return _verdict(setting, "supported", f"the gradient's way back cures it: {said}", evidence)
        if beyond(value, above=HALF):
            return _verdict(setting, "mixed", f"either half cures it: {said}", evidence)
    elif beyond(grad, below=HALF):
        cures = "the value does" if beyond(value, above=HALF) else "it takes more"
        return _verdict(
            setting, "not supported", f"the gradient's way back does not cure it, {cures}: {said}", evidence
        )
    return _verdict(setting, "undecided", f"an interval holds one half: {said}", evidence)


JUDGES: dict[str, Callable[[Setting], Verdict]] = {
    "A": judge_vanishing,
    "B": judge_path,
    "C": judge_speed,
    "D": judge_end,
    "E": judge_depth,
    "F": judge_cause,
}
