"""Whether a model learns, from its loss and from what else was logged; "unknown" where that cannot be seen.

The first rows are compared with the last fifth. "No" needs a reason to expect more: a loss no better than guessing, one
that does not fall although the model begins untrained, or one that rises in classification. Losses of models that work
against each other, and those that change their sign, are never a "no".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from gradlens.analysis.gradient_ratio import FIRST_ROWS
from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.constant_output import entropy_of_targets, many_targets, stays_at
from gradlens.diagnosis.findings import Verdict
from gradlens.diagnosis.network import Network
from gradlens.diagnosis.recorded_rows import PARAM_GRAD, UNSEEN_DATA, UPDATE, Recording, words_of
from gradlens.format import plural
from gradlens.run import FloatArray

FEW_ROWS = 20
"""With fewer rows nothing is said: a fifth of them are not the 4 values that a standard error needs."""
LEAST_STEPS = 100
"""Rows before a loss that does not fall counts against a model. Measured on 45 trainings rebuilt from public reports:
the slowest working one, with gradients accumulated over ever more batches, begins to fall after 60 rows."""
MANY_STEPS, FEW_CLASSES, HARDLY_BETTER = 200, 100, 0.97
"""After so many rows, a loss above this share of ln C counts as guessing where there are not many classes. In the half
of experiments/scorecard/programs that rules may be written against, trainings that work end below 0.9, those that do
not above 0.98."""
RANDOM = 0.995
"""Share of the largest entropy above which a policy knows nothing; no outside source."""
SAME = 1e-5
"""Relative difference of numbers that rounding explains: some hundred units in the last place of float32."""
ERRORS = 3.0
"""Standard errors that a change must exceed: one in 700 falls is beyond by chance."""
ORDERED = 3.3
"""Standard deviations of Kendall's sum of signs without a trend that few values must exceed: one series of
independent noise in 2,000 does. Mann 1945, Econometrica 13; Kendall 1975, Rank Correlation Methods."""
OBVIOUS = 0.5
"""With few values, only a fall by half or more counts as seen by their order; no outside source."""
SOME = 0.01
"""A fall by less than 1 % counts as none: a classifier that only adjusts to the frequencies of its classes falls so."""
STANDS = 0.05
"""A loss does not fall where a fall by more than 5 % is excluded."""
UNTRAINED = 0.8
"""A classifier whose loss lies below this share of ln C in its first rows had learnt before: small falls are enough."""
UNSCALED = 0.25
"""An untrained classifier's loss is this near to ln C; one that is divided by 2 or more for accumulation is not."""
DIVERGED = 2.0
"""A classifier that begins at the level of guessing, and of which every late loss is above so many times that level,
diverges. No outside source."""
AT_THE_LEVEL = 2.0
"""A loss that begins above so many times the variance of the first targets has other targets later, or is far off."""
FAR_OFF = 100.0
"""A loss that stays at so many times the variance of the targets is far off; no outside source."""
TRAINED_SHARE = 0.5
"""Where less than half of the parameters are trained, the frozen ones may limit what can be learnt."""
LEFT = 2 / 3
"""Share of the first loss that must be left of a loss that does not fall. Measured on two trainings whose first updates
were too large: 0.71 and 0.74; small models on noisy labels keep less."""
ACCURACIES = ("acc", "accuracy", "top1", "f1", "auc", "dice", "iou", "map", "reward", "return", "score")
"""Words in names of scalars that rise where a model learns."""
LEAST_EARLY = 5
"""Values of a score from the first rows that are averaged at least."""
LOSS = ("loss",)
BETTER = 0.05
"""An accuracy counts as better if it rises by five percentage points or more, and as worse if it falls so much."""


@dataclass(frozen=True)
class Learning:
    """Whether a model learns.

    Args:
        verdict: "yes", "no" or "unknown".
        evidence: The reason, in a sentence.
        guesses: Whether the loss at the end is no better than guessing.
        worse: The name of a score that falls, or "".
        constant: Whether the loss is the same number in every row.
        random: Whether a policy's entropy stays that of equal chances.
    """

    verdict: Verdict
    evidence: str
    guesses: bool = False
    worse: str = ""
    constant: bool = False
    random: bool = False


class Losses:
    """The logged loss, first rows against the last fifth.

    Args:
        values: (N,) finite values in order of rows, at least ``FEW_ROWS``.
    """

    def __init__(self, values: FloatArray) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # a loss of 1e308, and one of -1e308
            self._measure(values)

    def _measure(self, values: FloatArray) -> None:
        n = len(values)
        self.values = values
        first, last = values[: max(min(n // 20, FIRST_ROWS), 2)], values[-(n // 5) :]
        self.first, self.last = float(first.mean()), float(last.mean())
        noise = median_of_all(np.abs(np.diff(values[: max(n // 5, 4)]))) / 0.954
        self.error_first = noise / math.sqrt(len(first))
        means = [float(part.mean()) for part in np.array_split(last, min(5, len(last)))]
        self.error_last = float(np.std(means, ddof=1)) / math.sqrt(len(means))
        scale = abs(self.first) or 1.0
        self.fell = (self.first - self.last) / scale
        self.margin = ERRORS * math.hypot(self.error_first, self.error_last) / scale

    @property
    def falls(self) -> bool:
        """Whether it fell, beyond noise."""
        return (self.fell - self.margin > 0 and self.fell >= SOME) or self.falls_in_order()

    def falls_in_order(self) -> bool:
        """Return whether few values fall by Mann-Kendall's test: a steep fall looks like their noise.

        The medians of the first and the last fifth must be as far apart, so that one value alone decides nothing.
        """
        n, values = len(self.values), self.values
        if n >= LEAST_STEPS or not self.first > 0:
            return False
        signs = float(np.triu(np.sign(values[None, :] - values[:, None]), 1).sum())
        part = n // 5
        early, late = median_of_all(values[:part]), median_of_all(values[-part:])
        enough = min(self.fell, 1 - late / early if early > 0 else 0.0) >= OBVIOUS
        return enough and -signs > ORDERED * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)

    @property
    def still_falls(self) -> bool:
        """Whether a fall from the second fifth to the last is likely, by more than a twentieth and two errors."""
        part = len(self.values) // 5
        before = float(self.values[part : 2 * part].mean())
        noise = self.error_first * math.sqrt(max(min(len(self.values) // 20, FIRST_ROWS), 2) / part)
        return before - self.last > max(STANDS * abs(before), 2 * math.hypot(noise, self.error_last))

    @property
    def stands(self) -> bool:
        """Whether a fall that matters is excluded, and a rise is not seen."""
        return self.fell + self.margin < STANDS and self.fell + self.margin >= 0

    @property
    def rises(self) -> bool:
        """Whether it rose, beyond noise, and does not fall again from its peak."""
        parts = np.array([part.mean() for part in np.array_split(self.values, 10)])
        return self.fell + self.margin < 0 and self.last > parts.max() - STANDS * abs(float(parts.max()))

    def say(self) -> str:
        """Return the loss in words."""
        return f"the loss goes from {self.first:.4g} to {self.last:.4g} (first rows, last fifth)"


def judge_learning(rec: Recording) -> Learning:
    """Return whether a model learns, with the evidence.

    Args:
        rec: The recording.

    Returns:
        The verdict; "unknown" where fewer than ``FEW_ROWS`` rows have a loss, and where nothing speaks for or against.
    """
    values = rec.scalar("loss")
    finite = values[np.isfinite(values)]
    late = values[~rec.skipped[: len(values)]][-(len(values) // 5) :]
    logged = len(finite) or np.isinf(values).any()  # NaN alone may mean that nothing was logged
    if len(values) >= FEW_ROWS and logged and not np.isfinite(late).any():
        return Learning("no", "the loss is not finite in the last fifth of the rows")
    if better := _changed_score(rec, 1):
        return Learning("yes", f"{better[0]} rises from {better[1]:.3g} to {better[2]:.3g}")
    if worse := _gets_worse(rec):
        said = f"{worse[0]} falls from {worse[1]:.3g} to {worse[2]:.3g}: the model gets worse at it"
        return Learning("no", said, worse=worse[0])
    if len(finite) < FEW_ROWS and (falls := _changed_score(rec, -1, LOSS)):
        name, first, last = falls
        return Learning("yes", f"{name} falls from {first:.4g} to {last:.4g} (first and last fifth of the epochs)")
    if len(finite) < FEW_ROWS:
        said = f"the loss is known in {plural(len(finite), 'row')} only" if len(finite) else _say_none(rec)
        return Learning("unknown", f"{said}: at least {FEW_ROWS} are needed")
    losses = Losses(finite)
    rules = (_constant, _stays_random, _against_guessing, _against_the_mean)
    return next((found for rule in rules if (found := rule(rec, losses))), None) or _by_trend(rec, losses)


def _say_none(rec: Recording) -> str:
    """Say why no loss is known: the file holds NaN for one that was not logged, and for one that is NaN."""
    if rec.setup.graph.number("nonfinite_since") >= 0:
        since = rec.setup.graph.whole("nonfinite_since")
        return f"no finite loss was logged, and the loss of step {since} that was read is NaN or infinite"
    return "no loss was logged"


def span_of(rec: Recording) -> int:
    """Return the number of rows from the first with a loss to the last: a loss may be logged every tenth step."""
    known = np.flatnonzero(np.isfinite(rec.scalar("loss")))
    return int(known[-1] - known[0]) + 1 if len(known) else 0


def _stays_random(rec: Recording, _losses: Losses) -> Learning | None:
    """Return "no" where a logged entropy is ln k to the end, beside a reward that was logged and does not rise."""
    rewards = [name for name in rec.run.scalars if words_of(name) & {"reward", "return", "rewards", "returns"}]
    for name in rec.run.scalars if rewards and span_of(rec) >= MANY_STEPS else ():
        values = rec.scalar(name)
        late = values[np.isfinite(values)][-(len(values) // 5) :]
        if "entropy" not in words_of(name) or not len(late) or not 0 < late.min() <= late.max() < math.log(FEW_CLASSES):
            continue
        choices = round(math.exp(float(late.max())))
        if choices > 1 and late.min() > RANDOM * math.log(choices) and late.max() <= math.log(choices) * (1 + SAME):
            return Learning(
                "no",
                f"{name} is {float(late.mean()):.4g} to the end, and ln {choices} is that of equal chances: the policy "
                f"chooses at random, and {rewards[0]} does not rise",
                random=True,
            )
    return None


def _constant(rec: Recording, losses: Losses) -> Learning | None:
    """Return "no" where a loss whose graph was read is one number in all rows although weights change."""
    value = median_of_all(losses.values)
    moves = [rec.series(name).positive.any() for name in (UPDATE, PARAM_GRAD) if rec.has(name)]
    if (
        not rec.setup.graph.entries("losses")
        or not value
        or np.ptp(losses.values) > SAME * abs(value)
        or not moves
        or not all(moves)
    ):
        return None
    said = (
        f"the loss is constant, {value:.6g} in all of {plural(len(losses.values), 'row')}, although the weights change"
    )
    return Learning("no", said, constant=True)


def classes_of(rec: Recording) -> int:
    """Return the number of classes if the loss is one cross entropy, averaged over its elements; else 0."""
    losses = rec.setup.graph.entries("losses")
    if len(losses) != 1 or losses[0].text("reduction") != "mean":
        return 0
    return max(losses[0].whole("classes"), 0)


def guessing_of(rec: Recording) -> float:
    """Return ln C, the cross entropy of equal probabilities for C classes.

    NaN where the loss is no cross entropy. Where it is multiplied or divided, as for accumulation, the logged number
    may have another level: NaN unless the first one is about ln C, as that of an untrained classifier is.
    """
    classes, losses = classes_of(rec), rec.setup.graph.entries("losses")
    if classes < 2:
        return math.nan
    level = math.log(classes)
    values = rec.scalar("loss")[:1]
    as_logged = bool(len(values)) and abs(float(values[0]) / level - 1) < UNSCALED
    return level if as_logged or not any(item.flag("scaled") for item in losses) else math.nan


def spread_of_targets(rec: Recording) -> float:
    """Return the variance of the targets, the squared error of their mean; NaN where the loss is not that alone."""
    losses = rec.setup.graph.entries("losses")
    targets = [item for item in rec.setup.graph.entries("targets") if item.text("op") == "MseLoss"]
    if len(losses) != 1 or losses[0].text("op") != "MseLoss" or losses[0].text("reduction") != "mean" or not targets:
        return math.nan
    if losses[0].flag("scaled") or not losses[0].flag("alone"):
        return math.nan
    return float(np.mean([item.number("rms") ** 2 - item.number("mean") ** 2 for item in targets]))


def stands_early(rec: Recording) -> bool:
    """Return whether the loss has hardly fallen since the first fifth of the rows, and by less than a third in all."""
    values = rec.scalar("loss")
    values = values[np.isfinite(values)]
    part = len(values) // 5
    if part < FEW_ROWS or values.min() <= 0:
        return False
    early, late = float(values[part : 2 * part].mean()), float(values[-part:].mean())
    return late > (1 - STANDS) * early and late > LEFT * float(values[:3].mean())


def _changed_score(rec: Recording, sign: int, names: Collection[str] = ACCURACIES) -> tuple[str, float, float] | None:
    """Return the name, first and last value of a score that rises (sign 1) or falls (sign -1), if there is one.

    Args:
        rec: The recording.
        sign: 1 or -1.
        names: Words in the names of the scores.
    """
    scalars = () if names is LOSS else tuple(rec.run.scalars)
    for name in dict.fromkeys([*scalars, *rec.run.epochs]):
        words = words_of(name)
        if words.isdisjoint(names) or (names is LOSS and words & UNSEEN_DATA) or len(values := rec.logged(name)) < 3:
            continue
        part = max(len(values) // 5, 1)
        early = part if sign > 0 else max(part // 4, min(part, LEAST_EARLY))  # what gets worse may do so soon
        first, last = float(values[:early].mean()), float(values[-part:].mean())
        scale = 1.0 if np.abs(values).max() <= 1 else float(np.abs(values).max())
        change = sign * (last - first)
        errors = 2 if sign > 0 or early < FIRST_ROWS else 1
        if change >= BETTER * scale and change > errors * float(np.abs(np.diff(values)).mean()):
            return name, first, last
    return None


def _gets_worse(rec: Recording) -> tuple[str, float, float] | None:
    """Return a score that falls over at least ``LEAST_STEPS`` rows, if there is one.

    On unseen data it may fall beside a loss that falls: the model overfits.
    """
    loss = rec.scalar("loss")
    loss = loss[np.isfinite(loss)]
    worse = _changed_score(rec, -1) if len(rec.run.steps) >= LEAST_STEPS else None
    falls = Losses(loss).falls if len(loss) >= FEW_ROWS else bool(_changed_score(rec, -1, LOSS))
    return None if worse and falls and words_of(worse[0]) & UNSEEN_DATA else worse


def _against_guessing(rec: Recording, losses: Losses) -> Learning | None:
    """Return "no" for a classifier whose loss is no better than guessing."""
    classes, guess = classes_of(rec), guessing_of(rec)
    said = f"{losses.say()}; guessing between {classes} classes gives ln {classes} = {guess:.4g}"
    if losses.first < (1 + UNSCALED) * guess and losses.values[-(len(losses.values) // 5) :].min() > DIVERGED * guess:
        return Learning("no", f"{said}: it began there, and is far above since: the training diverges", True)
    if span_of(rec) < LEAST_STEPS or _waits(rec) or _other_terms_fall(rec, losses):
        return None
    if losses.still_falls and losses.last - ERRORS * losses.error_last > guess:
        return Learning("unknown", f"{said}: it is above that, and still falls")
    if losses.last + max(ERRORS * losses.error_last, SOME / 3 * guess) >= guess:
        return Learning("no", f"{said}: the model is no better than guessing", True)
    may_expect_more = span_of(rec) >= MANY_STEPS and classes <= FEW_CLASSES and not _mostly_frozen(rec, losses)
    if may_expect_more and losses.last > HARDLY_BETTER * guess:
        return Learning("no", f"{said}: after {span_of(rec)} rows the model is hardly better than guessing", True)
    return None


def _against_the_mean(rec: Recording, losses: Losses) -> Learning | None:
    """Return "no" for a loss that stays at that of a constant: the targets' variance, or the entropy of two classes."""
    spread, entropy = spread_of_targets(rec), entropy_of_targets(rec)
    if len(losses.values) < MANY_STEPS or losses.rises:
        return None
    sure = many_targets(rec)
    if sure and stays_at(losses.values, entropy, HARDLY_BETTER) and not any(excuse(rec, losses) for excuse in EXCUSES):
        said = f"the share of ones as the answer to every example has about {entropy:.3g}"
        return Learning("no", f"{losses.say()}; {said}: the model is no better", True)
    at_its_level = sure and stays_at(losses.values, spread, HARDLY_BETTER)
    if losses.fell > STANDS and not at_its_level:
        return None
    at_its_level |= HARDLY_BETTER * spread < losses.last <= losses.first < AT_THE_LEVEL * spread
    far_off = (
        losses.fell <= STANDS and 0 < FAR_OFF * spread < losses.last <= losses.first
    )  # targets that are learnt themselves change
    if not (at_its_level or far_off) or any(excuse(rec, losses) for excuse in EXCUSES):
        return None
    if far_off:
        return Learning(
            "no",
            f"{losses.say()}; a constant, the mean of the targets, would have about {spread:.3g} (their variance): the "
            "model is far from that",
        )
    return Learning(
        "no",
        f"{losses.say()}; a constant, the mean of the targets, has about {spread:.3g} (their variance): the model is "
        "no better",
        True,
    )


def _other_terms_fall(rec: Recording, losses: Losses) -> bool:
    """Return whether a loss with other terms falls: ln C is not its level then, unless the weights are gone."""
    others = any(item.flag("alone") is False for item in rec.setup.graph.entries("losses"))
    return others and losses.falls and not Network(rec).shrunk()[0]


def _by_trend(rec: Recording, losses: Losses) -> Learning:
    """Return what the change of the loss tells."""
    said = losses.say()
    if losses.falls and (reason := _policy(rec, losses)):
        return Learning("unknown", f"{said}; {reason}")
    if losses.falls:
        by = f"{losses.fell:.0%}" if losses.last >= 0 else f"{losses.first - losses.last:.3g}"  # no share below 0
        return Learning("yes", f"{said}: it falls by {by}")
    if not losses.stands and not losses.rises and not _keeps_level(rec, losses):
        return Learning("unknown", f"{said}: a fall is neither seen nor excluded")
    for excuse in EXCUSES:
        if reason := excuse(rec, losses):
            return Learning("unknown", f"{said}; {reason}")
    return Learning("no", f"{said}: it {'rises' if losses.rises else 'does not fall'}")


def _keeps_level(rec: Recording, losses: Losses) -> bool:
    """Return whether a loss that is one error over examples stays the same over many rows, in longer windows."""
    kinds = rec.setup.graph.entries("losses")
    is_error = len(kinds) == 1 and kinds[0].flag("alone") and kinds[0].text("op") not in ("Mean", "Sum")
    if not is_error or span_of(rec) < MANY_STEPS or losses.values.min() <= 0:
        return False
    n = len(losses.values)
    levels = [float(losses.values[part].mean()) for part in (slice(0, n // 10), slice(n // 5, 2 * n // 5))]
    errors = [losses.error_first * math.sqrt(FIRST_ROWS / (n // 10)), losses.error_last]
    bound = max(abs(losses.last / level - 1) for level in levels) + 2 * math.hypot(*errors) / losses.last
    return bound < STANDS and abs(losses.fell) < STANDS


def _waits(rec: Recording) -> bool:
    """Return whether the learning rate rises until the end: nothing can be expected yet."""
    rates = rec.scalar("lr")
    rates = rates[np.isfinite(rates)]
    return bool(len(rates) and rates[-1] > 1.01 * rates[len(rates) // 2])


def _too_short(rec: Recording, losses: Losses) -> str:
    rows = span_of(rec)
    return f"{rows} rows are too few to expect a fall" if rows < LEAST_STEPS else ""


def _warming(rec: Recording, losses: Losses) -> str:
    return "the learning rate rises until the end (warm-up)" if _waits(rec) else ""


def _sign(rec: Recording, losses: Losses) -> str:
    return "a loss that is negative need not fall to 0" if losses.values.min() < 0 else ""


def _policy(rec: Recording, losses: Losses) -> str:
    if not rec.setup.graph.entries("policy_gradients"):
        return ""
    return (
        "in it, log-probabilities of actions are multiplied by advantages, numbers without a graph, so that it tells "
        "nothing of the policy: log the reward"
    )


def _rivals(rec: Recording, losses: Losses) -> str:
    """Say that several models are trained against or for each other."""
    optimizers = rec.setup.entries("optimizers")
    others = [item for item in optimizers if item.entry("foreign").whole("count")]
    strange = rec.setup.graph.entries("unregistered")
    others += [item for item in strange if item.flag("parameter") and not item.text("held_in")]
    if len(optimizers) > 1 or others:
        return "other parameters take part in it (a second optimizer or model), so it need not fall"
    return ""


def _targets(rec: Recording, losses: Losses) -> str:
    copies = rec.setup.entries("copies")
    return f"its targets move: {copies[0].text('layer')} is a copy of {copies[0].text('of')}" if copies else ""


def _mostly_frozen(rec: Recording, losses: Losses) -> str:
    totals = rec.setup.entry("totals")
    share = totals.number("trainable") / totals.number("numel") if totals.number("numel") else math.nan
    return f"only {share:.0%} of the parameters are trained" if share < TRAINED_SHARE else ""


def trained_before(rec: Recording) -> str:
    """Return a sentence that shows that the model was trained before the first row, or "".

    Args:
        rec: The recording.
    """
    if len(rec.run.steps) and int(rec.run.steps[0]) > 0:
        return f"the first row is step {int(rec.run.steps[0])}: the model was trained before"
    loss = rec.scalar("loss")
    loss = loss[np.isfinite(loss)][:FIRST_ROWS]
    if len(loss) and float(loss.mean()) < UNTRAINED * guessing_of(rec):
        return "the loss is below the level of guessing from the first row on: the model was trained before"
    return ""


def _trained_before(rec: Recording, losses: Losses) -> str:
    return trained_before(rec)


def _rising_regression(rec: Recording, losses: Losses) -> str:
    return "only in classification is a rise a fault" if losses.rises and classes_of(rec) < 2 else ""


EXCUSES: tuple[Callable[[Recording, Losses], str], ...] = (
    _too_short, _warming, _sign, _policy, _rivals, _targets, _mostly_frozen, _trained_before, _rising_regression,
)  # fmt: skip
"""Reasons for which a loss that does not fall is not held against a model; each returns a sentence, or ""."""
