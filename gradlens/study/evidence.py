"""Evidence for and against claims: numbers with their intervals, and the verdict of one setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradlens.analysis.stats import Interval, mean_interval
from gradlens.study.criteria import FLOAT32_DECADES, Claim, Outcome
from gradlens.study.measures import cut_decades, n_epochs, typical_ratio
from gradlens.study.run_groups import Seeds, Setting
from gradlens.study.study_run import StudyRun

DECADES, SHARE, EPOCHS = "decades", "share", "epochs"
ACCURACY, LOSS = "accuracy difference", "loss difference"
LEVEL, PER_TEN = "accuracy", "accuracy per ten layers"


@dataclass(frozen=True)
class Evidence:
    """A number that supports or refutes a claim.

    Args:
        name: What was measured.
        value: The mean over seeds, or over pairs of seeds.
        low: Lower end of the 95 % interval of the mean; NaN for fewer than two.
        high: Upper end of the interval.
        unit: "decades" (log10 of a ratio), "share", "accuracy", "accuracy difference", "accuracy per ten layers",
            "loss difference" (nats) or "epochs".
        n: Number of seeds, or of pairs of seeds.
        note: Remarks about the number, or "".
        cut: Number of values that were cut at float32's resolution (only for decades).
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    n: int
    note: str = ""
    cut: int = 0

    def __str__(self) -> str:
        """Return the number with its interval, as ``say`` does."""
        return say(self)


@dataclass(frozen=True)
class Verdict:
    """The verdict of the runs of one setting about one claim.

    Args:
        condition: With or without batch norm.
        setting: What was trained and how.
        verdict: The outcome.
        why: The reason in a sentence, with its numbers.
        evidence: The numbers; the first one decides.
        tested: Whether everything that the test needs was trained and recorded.
        partly: The outcome of the decided settings, if others are undecided; the verdict is then "mixed" where these
            are shown to differ from the decided ones, else "undecided".
        spread: Whether the verdict is mixed because settings differ.
        counts: Whether it counts for the condition's verdict. It does not if the training images contain copies of
            validation images.
    """

    condition: str
    setting: str
    verdict: Outcome
    why: str
    evidence: tuple[Evidence, ...] = ()
    tested: bool = True
    partly: Outcome | None = None
    spread: bool = False
    counts: bool = True


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its verdicts.

    Args:
        claim: The claim and its test.
        overall: Condition to the verdict over all settings, for the conditions that were trained.
        verdicts: One verdict for each setting.
    """

    claim: Claim
    overall: dict[str, Verdict]
    verdicts: tuple[Verdict, ...]


def signed(value: float, unit: str) -> str:
    """Write a number in the format of its unit: differences with a sign, decades and epochs with one digit."""
    if math.isinf(value):
        return "-inf" if value < 0 else "inf"
    digits = 2 if unit in (SHARE, LEVEL) else 1 if unit in (DECADES, EPOCHS) else 3
    value = round(value, digits) + 0.0  # no minus zero
    return f"{value:.{digits}f}" if unit in (SHARE, LEVEL, DECADES) else f"{value:+.{digits}f}"


def say(evidence: Evidence) -> str:
    """Write a number with its interval: ``+0.130 [+0.100, +0.160]``; decades as powers of ten."""
    if math.isnan(evidence.value):
        return "not known"
    if evidence.cut and evidence.cut == evidence.n:  # every value was cut: the mean is only a bound
        return f"{'below' if evidence.value < 0 else 'above'} 10^{signed(evidence.value, DECADES)}"
    value, low, high = (signed(number, evidence.unit) for number in (evidence.value, evidence.low, evidence.high))
    value = f"10^{value}" if evidence.unit == DECADES else value
    return value if math.isnan(evidence.low) else f"{value} [{low}, {high}]"


def interval_evidence(name: str, interval: Interval, unit: str, note: str = "") -> Evidence:
    """Return a number with its interval as evidence."""
    if interval.left_out:
        note = "; ".join(filter(None, [note, f"{interval.left_out} not finite, left out"]))
    return Evidence(name, interval.mean, interval.low, interval.high, unit, interval.n, note)


def over_seeds(seeds: Seeds, measure: Callable[[StudyRun], float]) -> dict[int, float]:
    """Measure each seed's run."""
    return {seed: measure(run) for seed, run in seeds.items()}


def mean_of(values: Mapping[int, float]) -> Interval:
    """Return the mean over seeds with its interval."""
    return mean_interval(np.array([values[seed] for seed in sorted(values)], dtype=np.float64))


def verdict_of(setting: Setting, verdict: Outcome, why: str, evidence: Iterable[Evidence] = ()) -> Verdict:
    """Return the verdict of a setting."""
    return Verdict(setting.condition, setting.name(), verdict, why, tuple(evidence))


def untested(setting: Setting, why: str, evidence: Iterable[Evidence] = ()) -> Verdict:
    """Return the verdict of a setting that lacks what the test needs: undecided and not tested."""
    return replace(verdict_of(setting, "undecided", why, evidence), tested=False)


def beyond(evidence: Evidence, *, above: float | None = None, below: float | None = None) -> bool:
    """Return whether the whole interval lies above, or below, a threshold; False without an interval."""
    if above is not None:
        return bool(evidence.low > above)
    return below is not None and bool(evidence.high < below)


def decades_of(
    seeds: Seeds,
    name: str,
    measure: Callable[[StudyRun], float] = typical_ratio,
    what: str = "first / last hidden layer",
) -> Evidence:
    """Return the gradient ratio of the first to the last hidden layer, averaged over seeds.

    Ratios and their interval are cut at float32's resolution; the ratios before they are averaged.

    Args:
        seeds: Seed to run.
        name: The network, with a comma.
        measure: The ratio of a run, in decades.
        what: The name of the ratio.
    """
    values = over_seeds(seeds, measure)
    known = {seed: value for seed, value in values.items() if not math.isnan(value)}
    cut = sum(abs(value) >= FLOAT32_DECADES for value in known.values())
    notes = (
        [f"{cut} of {len(known)} beyond 10^±{FLOAT32_DECADES:.1f}, float32's resolution, and cut there"] if cut else []
    )
    if len(known) < len(values):
        notes.append(f"{len(values) - len(known)} not known, left out")
    mean = mean_of({seed: cut_decades(value) for seed, value in known.items()})
    low, high = cut_decades(mean.low), cut_decades(mean.high)
    return Evidence(f"{name} {what}", mean.mean, low, high, DECADES, mean.n, "; ".join(notes), cut)


@dataclass(frozen=True)
class Part:
    """One of several answers to a claim: of a setting, of an outcome, or of a measure.

    Args:
        name: What it is about.
        verdict: Its outcome.
        evidence: The number that decided.
    """

    name: str
    verdict: Outcome
    evidence: Evidence


def combine_parts(parts: Sequence[Part], *, larger_supports: bool) -> tuple[Outcome, Outcome | None]:
    """Return the common verdict of several parts; no vote is taken.

    * All parts have one outcome: that one.
    * Decided parts contradict each other: "mixed".
    * Decided parts agree and others are undecided: "mixed" where an undecided part's number is shown to differ from a
      decided part's, against their outcome; else "undecided".

    Args:
        parts: The parts, at least one.
        larger_supports: Whether a larger number speaks for the claim; else a smaller one does.

    Returns:
        The verdict, and the outcome of the decided parts where others are undecided; else None.
    """
    decided = [part for part in parts if part.verdict != "undecided"]
    outcomes = {part.verdict for part in decided}
    if len(outcomes) != 1:
        return ("mixed" if outcomes else "undecided"), None
    (outcome,) = outcomes
    open_parts = [part for part in parts if part.verdict == "undecided"]
    if not open_parts:
        return outcome, None
    less = (outcome == "supported") == larger_supports  # what speaks against the outcome

    def against(one: Evidence, other: Evidence) -> bool:
        return outcome == "mixed" or (other.value < one.value) == less

    apart = any(
        differ(one.evidence, other.evidence) and against(one.evidence, other.evidence)
        for one in decided
        for other in open_parts
    )
    return ("mixed" if apart else "undecided"), outcome


def differ(one: Evidence, other: Evidence) -> bool:
    """Return whether two independent means are shown to differ: the 95 % interval of their difference excludes 0.

    The interval is made from the intervals of both, so that it also holds for intervals that are not symmetric. Where
    the two are of the same runs it is too wide rather than too narrow, as long as they do not vary in opposite ways.

    Source: Zou & Donner 2008, Construction of confidence limits about effect measures (MOVER), Stat. Med. 27, eq. 4.
    """
    ends = (one.value, one.low, one.high, other.value, other.low, other.high)
    if not all(map(math.isfinite, ends)):
        return False
    difference = one.value - other.value
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return difference - below > 0 or difference + above < 0


def common_epochs(runs: Iterable[StudyRun]) -> int:
    """Return the number of epochs that all runs have; runs that diverged are ignored, they stay at chance."""
    counts = [n_epochs(run) for run in runs if not run.diverged]
    return min(counts, default=0)


def pair_at(setting: Setting, depth: int) -> tuple[Seeds, Seeds, str]:
    """Return plain and residual runs of equal seeds, and the reason if there are fewer than two; else ""."""
    plain, resnet = setting.plain.get(depth, {}), setting.resnet.get(depth, {})
    seeds = sorted(plain.keys() & resnet.keys())
    missing = ""
    if not plain or not resnet:
        missing = f"there is no run of a {'residual' if plain else 'plain'} network trained alike"
    elif len(seeds) < 2:
        missing = f"{len(seeds) or 'no'} seed{'s' * (len(seeds) != 1)} in common; an interval needs two"
    return {seed: plain[seed] for seed in seeds}, {seed: resnet[seed] for seed in seeds}, missing
