"""Claims E and F: what depth does, and which half of the shortcut cures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from gradlens.analysis.stats import Interval, mean_interval
from gradlens.run import Run
from gradlens.study.criteria import DEPTH_MARGIN, HALF, VANISHES, Outcome
from gradlens.study.evidence import (
    LEVEL,
    LOSS,
    PER_TEN,
    SHARE,
    Evidence,
    Verdict,
    beyond,
    common_epochs,
    decades_of,
    interval_evidence,
    mean_of,
    over_seeds,
    pair_at,
    say,
    untested,
    verdict_of,
)
from gradlens.study.measures import (
    end_loss,
    fieller,
    final,
    gap,
    mean_accuracy,
    paired,
    slope_over,
    still_falls,
)
from gradlens.study.run_groups import Seeds, Setting

# --- E: depth -------------------------------------------------------------------------------------------------


def judge_depth(setting: Setting) -> Verdict:
    """Judge claim E by slopes over depth; at one depth, say how far the networks are from learning all, and the gap."""
    beside = [*_at_depth(setting)]
    depths, plain_seeds, resnet_seeds = common_depths(setting)
    if len(depths) < 2:
        said = "; ".join(f"{one.name} {say(one)}" for one in beside if one.unit == LEVEL and one.n)
        needs = "both networks at two depths in common, with two seeds or more at each, would decide it"
        return untested(setting, f"{needs}. At {setting.depth} layers: {said}", beside)
    numbers = [
        (f"{name} network, {what} over depth", _slope(arm, depths, seeds, measure))
        for name, arm, seeds in (("plain", setting.plain, plain_seeds), ("residual", setting.resnet, resnet_seeds))
        for what, measure in (("final training accuracy", _fit), ("generalisation gap", gap))
    ]
    evidence = [interval_evidence(name, interval, PER_TEN) for name, interval in numbers]
    plain_fit, plain_gap, resnet_fit, resnet_gap = evidence
    said = (
        f"per ten layers final training accuracy {say(plain_fit)} in the plain network and {say(resnet_fit)} in the "
        f"residual one, generalisation gap {say(plain_gap)} and {say(resnet_gap)}"
    )
    worsens = beyond(plain_fit, below=0) or beyond(plain_gap, above=0)
    steady = beyond(plain_fit, above=-DEPTH_MARGIN) and beyond(plain_gap, below=DEPTH_MARGIN)
    healthy = beyond(resnet_fit, above=-DEPTH_MARGIN) and beyond(resnet_gap, below=DEPTH_MARGIN)
    ails = beyond(resnet_fit, below=-DEPTH_MARGIN) or beyond(resnet_gap, above=DEPTH_MARGIN)
    verdict: Outcome = "undecided"
    why = "an interval holds both sides of a line"
    if worsens and not steady and healthy:
        verdict, why = "supported", "only the plain network gets worse with depth"
    elif worsens and not steady and ails:
        verdict, why = "mixed", "both get worse with depth"
    elif steady and (healthy or ails):
        verdict, why = "not supported", "the plain network does not get worse with depth"
    elif worsens and not steady:
        why = "the plain network gets worse with depth; whether the residual network stays healthy is not known well enough"
    found = verdict_of(setting, verdict, f"{why}: {said}", [*evidence, *beside])
    return replace(found, setting=setting.name(f"{depths[0]} to {depths[-1]}"))


def common_depths(setting: Setting) -> tuple[list[int], list[int], list[int]]:
    """Return the depths at which both families have the same two seeds or more throughout, and those seeds.

    A depth with too few seeds is left out, the one with the fewest first, so that it does not take the others with it.
    """
    depths = sorted(setting.plain.keys() & setting.resnet.keys())

    def seeds(arm: Mapping[int, Seeds]) -> list[int]:
        return sorted(set.intersection(*(set(arm[depth]) for depth in depths))) if depths else []

    while depths and min(len(seeds(setting.plain)), len(seeds(setting.resnet))) < 2:
        depths.remove(min(depths, key=lambda d: (min(len(setting.plain[d]), len(setting.resnet[d])), -d)))
    return depths, seeds(setting.plain), seeds(setting.resnet)


def _slope(
    arm: Mapping[int, Seeds], depths: Sequence[int], seeds: Sequence[int], measure: Callable[[Run], float]
) -> Interval:
    values = [slope_over(np.array(depths), np.array([measure(arm[d][seed]) for d in depths])) for seed in seeds]
    return mean_interval(np.array(values))


def _fit(run: Run) -> float:
    return final(run, "train_accuracy")


def _at_depth(setting: Setting) -> Iterable[Evidence]:
    for name, arm in (("plain", setting.plain), ("residual", setting.resnet)):
        seeds = arm.get(setting.depth, {})
        if seeds:
            yield interval_evidence(f"{name} network, final training accuracy", mean_of(over_seeds(seeds, _fit)), LEVEL)
            yield interval_evidence(f"{name} network, generalisation gap", mean_of(over_seeds(seeds, gap)), LEVEL)
            yield interval_evidence(
                f"{name} network, training loss at the end", mean_of(over_seeds(seeds, end_loss)), LEVEL
            )
            falls = mean_of(over_seeds(seeds, still_falls))
            yield interval_evidence(f"{name} network, fall of the training loss per epoch at the end", falls, LOSS)


# --- F: the cause ---------------------------------------------------------------------------------------------


def _tested_depth(setting: Setting) -> int:
    """Return the deepest network of which both halves of the shortcut were trained; else that of the other claims."""
    arms = (setting.plain, setting.resnet, *setting.halves.values())
    return max(set.intersection(*(set(arm) for arm in arms)), default=setting.depth)


def judge_cause(setting: Setting) -> Verdict:
    """Judge the cause by what half a shortcut does."""
    depth = _tested_depth(setting)
    return replace(_judge_cause(setting, depth), setting=setting.name(depth))


def _judge_cause(setting: Setting, depth: int) -> Verdict:
    plain, resnet, missing = pair_at(setting, depth)
    halves = {name: setting.halves[name].get(depth, {}) for name in ("gradient", "value")}
    if missing or not all(halves.values()):
        return untested(setting, missing or f"resnet{depth}-gradonly and -valueonly, trained alike, would decide it")
    arms = {"plain": plain, "resnet": resnet, **halves}
    seeds = sorted(set.intersection(*(set(arm) for arm in arms.values())))
    common = common_epochs(arms[name][seed] for name in arms for seed in seeds)
    if len(seeds) < 2 or not common:
        return untested(setting, "fewer than two seeds in common, or a run without a finished epoch")

    def closed(half: str, measure: Callable[[Run], float], what: str) -> Evidence:
        values = {name: np.array([measure(arm[seed]) for seed in seeds]) for name, arm in arms.items()}
        ratio = fieller(values[half] - values["plain"], values["resnet"] - values["plain"])
        return interval_evidence(f"share of the gap in {what} that the shortcut's {half} alone closes", ratio, SHARE)

    measures = (
        (f"training accuracy over {common} epochs", lambda run: mean_accuracy(run, common)),
        ("final validation accuracy", lambda run: final(run, "val_accuracy")),
    )
    evidence = [closed(half, measure, what) for what, measure in measures for half in ("gradient", "value")]
    used = {name: {seed: arm[seed] for seed in seeds} for name, arm in arms.items()}
    evidence += [decades_of(used[half], f"{half} alone:") for half in ("gradient", "value")]
    evidence.append(decades_of(used["plain"], "plain network,"))
    apart = paired(over_seeds(used["plain"], measures[0][1]), over_seeds(used["resnet"], measures[0][1]))
    if not apart.low > 0:
        return untested(
            setting, "there is no gap to close: the residual network is not shown to learn faster", evidence
        )
    return verdict_of(setting, *_say_cause(evidence), evidence)


def _say_cause(evidence: Sequence[Evidence]) -> tuple[Outcome, str]:
    """Return what shares of the gap and ratios of gradients come to."""
    grad, value, _, _, alive, _, plain = evidence
    said = f"of the gap in training accuracy the gradient alone closes {say(grad)}, the value alone {say(value)}"
    if not beyond(alive, above=VANISHES):
        return (
            "undecided",
            f"no test: with the gradient's way alone it is not shown to stay alive ({say(alive)}); {said}",
        )
    if beyond(grad, below=HALF):
        cures = "the value does" if beyond(value, above=HALF) else "it takes more"
        return "not supported", f"the gradient's way back does not cure it, {cures}: {said}"
    if not beyond(grad, above=HALF):
        return "undecided", f"an interval holds one half: {said}"
    if beyond(plain, above=VANISHES):
        return "mixed", f"the gradient's way back cures it, but nothing had vanished ({say(plain)}): {said}"
    if beyond(value, above=HALF):
        return "mixed", f"either half cures it: {said}"
    if beyond(value, below=HALF) and beyond(plain, below=VANISHES):
        return "supported", f"the gradient's way back cures it: {said}"
    return "undecided", f"an interval holds both sides of a line: {said}"
