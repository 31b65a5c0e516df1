"""Judge claims E and F: the effect of depth, and which half of the shortcut is the cure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradlens.analysis.stats import Interval, mean_interval
from gradlens.study.criteria import DEPTH_MARGIN, HALF, VANISHES, Outcome
from gradlens.study.evidence import (
    LEVEL,
    LOSS,
    PER_TEN,
    SHARE,
    Evidence,
    Part,
    Verdict,
    beyond,
    combine_parts,
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
from gradlens.study.study_run import StudyRun

# --- E: depth -------------------------------------------------------------------------------------------------


def judge_depth(setting: Setting) -> Verdict:
    """Judge claim E by slopes over depth; at a single depth, only report accuracy, loss and generalisation gap."""
    at_depth = [*_at_depth(setting)]
    depths, plain_seeds, resnet_seeds = common_depths(setting)
    if len(depths) < 2:
        numbers = "; ".join(f"{one.name} {say(one)}" for one in at_depth if one.unit == LEVEL and one.n)
        needs = "both networks at two depths in common, with two seeds or more at each, would decide it"
        return untested(setting, f"{needs}. At {setting.depth} layers: {numbers}", at_depth)
    slopes = [
        (f"{name} network, {what} over depth", _slope(by_depth, depths, seeds, measure))
        for name, by_depth, seeds in (("plain", setting.plain, plain_seeds), ("residual", setting.resnet, resnet_seeds))
        for what, measure in (("final training accuracy", _fit), ("generalisation gap", gap))
    ]
    evidence = [interval_evidence(name, interval, PER_TEN) for name, interval in slopes]
    plain_fit, plain_gap, resnet_fit, resnet_gap = evidence
    numbers = (
        f"per ten layers final training accuracy {say(plain_fit)} in the plain network and {say(resnet_fit)} in the "
        f"residual one, generalisation gap {say(plain_gap)} and {say(resnet_gap)}"
    )
    worsens = beyond(plain_fit, below=0) or beyond(plain_gap, above=0)
    steady = beyond(plain_fit, above=-DEPTH_MARGIN) and beyond(plain_gap, below=DEPTH_MARGIN)
    healthy = beyond(resnet_fit, above=-DEPTH_MARGIN) and beyond(resnet_gap, below=DEPTH_MARGIN)
    worsens_too = beyond(resnet_fit, below=-DEPTH_MARGIN) or beyond(resnet_gap, above=DEPTH_MARGIN)
    verdict: Outcome = "undecided"
    why = "an interval contains a threshold"
    if worsens and not steady and healthy:
        verdict, why = "supported", "only the plain network gets worse with depth"
    elif worsens and not steady and worsens_too:
        verdict, why = "mixed", "both get worse with depth"
    elif steady and (healthy or worsens_too):
        verdict, why = "refuted", "the plain network does not get worse with depth"
    elif worsens and not steady:
        why = "the plain network gets worse with depth; it is inconclusive whether the residual network stays healthy"
    found = verdict_of(setting, verdict, f"{why}: {numbers}", [*evidence, *at_depth])
    return replace(found, setting=setting.name(f"{depths[0]} to {depths[-1]}"))


def common_depths(setting: Setting) -> tuple[list[int], list[int], list[int]]:
    """Return the depths with at least two common seeds, and these seeds.

    Depths with too few seeds are left out, the one with the fewest seeds first, because a depth with few seeds reduces
    the common seeds of all depths.

    Returns:
        Depths, seeds of the plain networks, seeds of the residual networks.
    """
    depths = sorted(setting.plain.keys() & setting.resnet.keys())

    def seeds(by_depth: Mapping[int, Seeds]) -> list[int]:
        return sorted(set.intersection(*(set(by_depth[depth]) for depth in depths))) if depths else []

    while depths and min(len(seeds(setting.plain)), len(seeds(setting.resnet))) < 2:
        depths.remove(min(depths, key=lambda d: (min(len(setting.plain[d]), len(setting.resnet[d])), -d)))
    return depths, seeds(setting.plain), seeds(setting.resnet)


def _slope(
    by_depth: Mapping[int, Seeds], depths: Sequence[int], seeds: Sequence[int], measure: Callable[[StudyRun], float]
) -> Interval:
    values = [slope_over(np.array(depths), np.array([measure(by_depth[d][seed]) for d in depths])) for seed in seeds]
    return mean_interval(np.array(values))


def _fit(run: StudyRun) -> float:
    return final(run, "train_accuracy")


def _at_depth(setting: Setting) -> Iterable[Evidence]:
    for name, by_depth in (("plain", setting.plain), ("residual", setting.resnet)):
        seeds = by_depth.get(setting.depth, {})
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
    """Return the largest depth with both halves of the shortcut; else the depth of the other claims."""
    by_depth = (setting.plain, setting.resnet, *setting.halves.values())
    return max(set.intersection(*map(set, by_depth)), default=setting.depth)


def judge_cause(setting: Setting) -> Verdict:
    """Judge claim F, the cause, by networks with half a shortcut."""
    depth = _tested_depth(setting)
    return replace(_judge_cause(setting, depth), setting=setting.name(depth))


def _judge_cause(setting: Setting, depth: int) -> Verdict:
    plain, resnet, missing = pair_at(setting, depth)
    halves = {name: setting.halves[name].get(depth, {}) for name in ("gradient", "value")}
    if missing or not all(halves.values()):
        return untested(setting, missing or f"resnet{depth}-gradonly and -valueonly, trained alike, would decide it")
    variants = {"plain": plain, "resnet": resnet, **halves}
    seeds = sorted(set.intersection(*map(set, variants.values())))
    common = common_epochs(runs[seed] for runs in variants.values() for seed in seeds)
    if len(seeds) < 2 or not common:
        return untested(setting, "fewer than two seeds in common, or a run without a finished epoch")

    def closed(half: str, measure: Callable[[StudyRun], float], what: str) -> Evidence:
        values = {name: np.array([measure(runs[seed]) for seed in seeds]) for name, runs in variants.items()}
        ratio = fieller(values[half] - values["plain"], values["resnet"] - values["plain"])
        return interval_evidence(f"share of the gap in {what} that the shortcut's {half} alone closes", ratio, SHARE)

    measures = (
        (SPEED, f"training accuracy over {common} epochs", lambda run: mean_accuracy(run, common)),
        (UNSEEN, "final validation accuracy", lambda run: final(run, "val_accuracy")),
    )
    evidence = [closed(half, measure, what) for _, what, measure in measures for half in ("gradient", "value")]
    used = {name: {seed: runs[seed] for seed in seeds} for name, runs in variants.items()}
    evidence += [decades_of(used[half], f"{half} alone:") for half in ("gradient", "value")]
    evidence.append(decades_of(used["plain"], "plain network,"))
    gaps = [
        Gap(name, evidence[2 * i], evidence[2 * i + 1])
        for i, (name, _, measure) in enumerate(measures)
        if paired(over_seeds(used["plain"], measure), over_seeds(used["resnet"], measure)).low > 0
    ]
    if not gaps:
        why = "there is no gap to close: the residual network is not shown to learn faster or to end better"
        return untested(setting, why, evidence)
    return verdict_of(setting, *_say_cause(gaps, evidence), evidence)


SPEED, UNSEEN = "in the speed of training", "on unseen images"


@dataclass(frozen=True)
class Gap:
    """The gap between plain and residual network in one outcome, and what closes it.

    Args:
        outcome: "in the speed of training" or "on unseen images".
        gradient: The share that the shortcut's gradient alone closes.
        value: The share that its value alone closes.
    """

    outcome: str
    gradient: Evidence
    value: Evidence

    @property
    def numbers(self) -> str:
        """Both shares in words."""
        return f"the gradient alone closes {say(self.gradient)} of the gap, the value alone {say(self.value)}"


def _say_cause(gaps: Sequence[Gap], evidence: Sequence[Evidence]) -> tuple[Outcome, str]:
    """Return the verdict over both outcomes and its reason; an outcome without a gap is left out and named."""
    alive, plain = evidence[4], evidence[6]
    if not beyond(alive, above=VANISHES):
        numbers = "; ".join(f"{gap.outcome} {gap.numbers}" for gap in gaps)
        return (
            "undecided",
            f"no test: with the gradient's path alone, it is not shown to stay alive ({say(alive)}); {numbers}",
        )
    judged = [_judge_gap(gap, plain) for gap in gaps]
    parts = [Part(gap.outcome, verdict, gap.gradient) for gap, (verdict, _) in zip(gaps, judged, strict=True)]
    verdict, _ = combine_parts(parts, larger_supports=True)
    reasons = [f"{gap.outcome} {why}: {gap.numbers}" for gap, (_, why) in zip(gaps, judged, strict=True)]
    missing = [name for name in (SPEED, UNSEEN) if name not in [gap.outcome for gap in gaps]]
    reasons += [f"{name} no gap is shown that could be closed" for name in missing]
    differ = verdict == "mixed" and len({part.verdict for part in parts}) > 1
    return verdict, ("it depends on the outcome: " if differ else "") + "; ".join(reasons)


def _judge_gap(gap: Gap, plain: Evidence) -> tuple[Outcome, str]:
    """Return the verdict about one outcome, and the reason."""
    grad, value = gap.gradient, gap.value
    if beyond(grad, below=HALF):
        cures = "the path of the value does" if beyond(value, above=HALF) else "it takes more"
        return "refuted", f"the alternative path of the gradient does not cure it, {cures}"
    if not beyond(grad, above=HALF):
        part = "; a part of it is closed" if beyond(grad, above=0) else ""
        return "undecided", f"an interval contains one half{part}"
    if beyond(plain, above=VANISHES):
        return "mixed", f"the alternative path of the gradient cures it, but nothing had vanished ({say(plain)})"
    if beyond(value, above=HALF):
        return "mixed", "either half cures it"
    if beyond(value, below=HALF) and beyond(plain, below=VANISHES):
        return "supported", "the alternative path of the gradient cures it"
    return "undecided", "an interval contains a threshold"
