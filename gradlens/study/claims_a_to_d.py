"""Judge claims A to D: size and paths of the gradient, speed of training, and the last epoch."""

from __future__ import annotations

from collections.abc import Sequence

from gradlens.study.criteria import (
    ACCURACY_MARGIN,
    KEEPS,
    LOSS_MARGIN,
    NO_PATH,
    TARGETS,
    VANISHES,
    Outcome,
)
from gradlens.study.evidence import (
    ACCURACY,
    DECADES,
    EPOCHS,
    LOSS,
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
    chance,
    epochs_to,
    final,
    first_ratio,
    last_live_ratio,
    least_share,
    mean_accuracy,
    paired,
    product_ratio,
    ratio_at_norms,
    ratio_per_element,
    shortcut_share,
    shortcuts_alone,
)
from gradlens.study.run_groups import Seeds, Setting
from gradlens.study.study_run import StudyRun

# --- A and B: the gradient ------------------------------------------------------------------------------------


MEDIAN, FIRST, LIVE = "the median over rows", "the first step", "the last row before the loss stays at guessing"
WHERE = {MEDIAN: f"in {MEDIAN}", FIRST: f"at {FIRST}", LIVE: f"in {LIVE}"}
ROWS_DIFFER = "it depends on the rows"
INVARIANT = (
    (ratio_per_element, "first / last hidden layer per element"),
    (product_ratio, "first / last hidden layer by |W| |dL/dW|"),
    (ratio_at_norms, "first / last norm's output per element"),
)
"""Measures that are reported next to the plain ratio; the last two do not change where scaling changes nothing."""


def judge_vanishing(setting: Setting) -> Verdict:
    """Judge claim A by the plain network; the evidence also shows the residual network.

    The ratio is taken at the first step, in the last row before the loss stays at the level of guessing, and as the
    median over rows.

    Returns:
        The verdict; it names the measures on which it rests, and the invariant measures that disagree.
    """
    plain, resnet = setting.plain.get(setting.depth, {}), setting.resnet.get(setting.depth, {})
    if not plain:
        return untested(setting, "there is no run of a plain network")
    main, residual = decades_of(plain, "plain network,"), decades_of(resnet, "residual network,")
    if not main.n:
        return untested(
            setting, "the gradient of the plain network's first and last hidden layer is not known in most rows"
        )
    others = [
        (name, decades_of(plain, "plain network,", measure, f"first / last hidden layer, {name}"))
        for name, measure in ((FIRST, first_ratio), (LIVE, last_live_ratio))
    ]
    known = [(MEDIAN, main), *((name, one) for name, one in others if one.n)]
    invariant = [(what, decades_of(plain, "plain network,", measure, what)) for measure, what in INVARIANT]
    starts = decades_of(resnet, "residual network,", first_ratio, f"first / last hidden layer, {FIRST}")
    beside = (residual, *(one for _, one in others), starts, *(one for _, one in invariant))
    evidence = [main, *(one for one in beside if one.n)]
    numbers = f"first / last hidden layer {say(main)} in the plain network"
    if residual.n:
        numbers += f", {say(residual)} in the residual one"
    if main.n < 2:
        return untested(setting, _inconclusive(main, numbers), evidence)
    parts = [Part(name, _fate(one)[0], one) for name, one in known if one.n > 1]
    verdict, _ = combine_parts(parts, larger_supports=False)
    why = _say_parts(parts, numbers) + _say_invariant(invariant, main)
    return verdict_of(setting, verdict, why, evidence)


def _fate(evidence: Evidence) -> tuple[Outcome, str]:
    """Return the verdict about claim A of one measure, and what the gradient does."""
    if beyond(evidence, below=VANISHES):
        return "supported", "vanishes"
    if beyond(evidence, above=KEEPS):
        return "refuted", "grows toward the input" if beyond(evidence, above=-KEEPS) else "keeps its size"
    if beyond(evidence, above=VANISHES) and beyond(evidence, below=KEEPS):
        return "mixed", "weakens and does not vanish"
    return "undecided", "is inconclusive: the interval contains a threshold"


def _say_parts(parts: Sequence[Part], numbers: str) -> str:
    """State what the gradient does by each measure, and on which of them the verdict rests."""
    fates = [_fate(part.evidence)[1] for part in parts]
    median, rest = parts[0], parts[1:]
    if len(set(fates)) == 1:
        values = [f"{part.name} ({say(part.evidence)})" for part in rest]
        return f"it {fates[0]}: {numbers}; it rests on {_enumerate([median.name, *values])}"
    by_measure = "; ".join(f"{WHERE[part.name]} it {fate} ({say(part.evidence)})"
                           for part, fate in zip(parts, fates, strict=True))  # fmt: skip
    agree = len({part.verdict for part in parts}) == 1
    head = f"{'the measures agree' if agree else ROWS_DIFFER}: {by_measure}"
    return f"{head}; {numbers} {WHERE[median.name]}"


def _say_invariant(invariant: Sequence[tuple[str, Evidence]], main: Evidence) -> str:
    """Name the measures by which the median over rows would be judged otherwise; "" where there is none."""
    apart = [f"{what} it is {_fate(one)[0]} ({say(one)})"
             for what, one in invariant if one.n > 1 and _fate(one)[0] != _fate(main)[0]]  # fmt: skip
    return f"; the verdict of the median depends on the measure: by {' and by '.join(apart)}" if apart else ""


def _enumerate(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def judge_path(setting: Setting) -> Verdict:
    """Judge claim B: is there a path through every shortcut, and how much of the gradient came through it?"""
    resnet = setting.resnet.get(setting.depth, {})
    if not resnet:
        return untested(setting, "there is no run of a residual network")
    main = interval_evidence("share that came through the shortcut", mean_of(over_seeds(resnet, shortcut_share)), SHARE)
    if not main.n:
        return untested(setting, "the path split (shortcut_grad_norm) was not recorded")
    least = interval_evidence("share at the block where it is least", mean_of(over_seeds(resnet, least_share)), SHARE)
    alone = interval_evidence(
        "share of the first layer's gradient that came through shortcuts alone",
        mean_of(over_seeds(resnet, shortcuts_alone)),
        DECADES,
        "estimate: the product of the shares over all blocks",
    )
    evidence = [main, least, *([alone] if alone.n else [])]
    numbers = f"the shortcut's share of the gradient at the median block is {say(main)}"
    if alone.n:
        numbers += f"; through shortcuts alone came {say(alone)} of the first layer's gradient"
    if main.n < 2:
        return untested(setting, _inconclusive(main, numbers), evidence)
    blocked = sum(least_share(run) == 0 for run in resnet.values())
    if blocked == len(resnet):
        return verdict_of(setting, "refuted", f"in some block no gradient comes through it: {numbers}", evidence)
    if beyond(main, below=NO_PATH):
        return verdict_of(setting, "refuted", f"hardly any gradient comes through it: {numbers}", evidence)
    if beyond(main, above=NO_PATH) and not blocked:
        return verdict_of(setting, "supported", f"there is a path through every block: {numbers}", evidence)
    why = f"in {blocked} of {len(resnet)} runs a block passes none: {numbers}" if blocked else None
    return verdict_of(setting, "undecided", why or _inconclusive(main, numbers), evidence)


def _inconclusive(evidence: Evidence, numbers: str) -> str:
    return f"one seed has no interval: {numbers}" if evidence.n < 2 else f"the interval contains a threshold: {numbers}"


# --- C and D: training ----------------------------------------------------------------------------------------


def judge_speed(setting: Setting) -> Verdict:
    """Judge claim C by the area under the training accuracy and the epochs to reach given levels."""
    plain, resnet, missing = pair_at(setting, setting.depth)
    if not plain or not resnet:
        return untested(setting, missing)
    runs = [*plain.values(), *resnet.values()]
    common = common_epochs(runs)
    if not common:
        return untested(setting, "a run has no finished epoch")
    area = interval_evidence(
        f"training accuracy, mean of the first {common} epochs, residual - plain",
        paired(
            over_seeds(plain, lambda run: mean_accuracy(run, common)),
            over_seeds(resnet, lambda r: mean_accuracy(r, common)),
        ),
        ACCURACY,
    )
    guess = max(chance(run) for run in runs)
    levels = [_sooner(plain, resnet, guess + part * (1 - guess), common) for part in TARGETS]
    evidence = [area, *levels]
    numbers = f"mean training accuracy over {common} epochs {say(area)}"
    shown = [level for level in levels if beyond(level, above=0)]
    if shown:
        numbers += f", {shown[-1].name} {say(shown[-1])}"
    later = [level for level in levels if beyond(level, below=0)]
    if missing or area.n < 2:
        return untested(setting, f"{missing or 'training accuracy is not known'}: {numbers}", evidence)
    if beyond(area, above=0):
        if later:
            return verdict_of(setting, "mixed", f"faster overall, but {later[0].name} {say(later[0])}", evidence)
        return verdict_of(setting, "supported", f"it is faster: {numbers}", evidence)
    if beyond(area, below=ACCURACY_MARGIN):
        does = "slower" if beyond(area, below=0) else f"no faster by {ACCURACY_MARGIN}"
        if shown:
            return verdict_of(setting, "mixed", f"it is {does} overall: {numbers}", evidence)
        return verdict_of(setting, "refuted", f"it is {does}: {numbers}", evidence)
    return verdict_of(setting, "undecided", f"the interval contains 0: {numbers}", evidence)


def _sooner(plain: Seeds, resnet: Seeds, level: float, common: int) -> Evidence:
    """Return by how many epochs the residual network reaches a level sooner, within the epochs that all runs have."""

    def restricted(run: StudyRun) -> float:
        return min(epochs_to(run, level), common)

    counts = [sum(epochs_to(run, level) <= common for run in seeds.values()) for seeds in (plain, resnet)]
    note = (
        f"reached within {common} epochs by {counts[0]} of {len(plain)} plain and {counts[1]} of {len(resnet)} "
        f"residual runs; a run that does not counts as {common}"
    )
    difference = paired(over_seeds(resnet, restricted), over_seeds(plain, restricted))
    return interval_evidence(f"epochs sooner at {level:.2f}", difference, EPOCHS, note)


QUANTITIES = (
    ("val_accuracy", "validation accuracy", 1.0, ACCURACY_MARGIN, ACCURACY),
    ("val_loss", "validation loss", -1.0, LOSS_MARGIN, LOSS),
    ("train_accuracy", "training accuracy", 1.0, ACCURACY_MARGIN, ACCURACY),
    ("train_loss", "training loss", -1.0, LOSS_MARGIN, LOSS),
)


def judge_end(setting: Setting) -> Verdict:
    """Judge claim D by the last epoch of pairs of runs."""
    plain, resnet, missing = pair_at(setting, setting.depth)
    if not plain or not resnet:
        return untested(setting, missing)
    evidence: list[Evidence] = []
    better, worse, none, unknown = set[str](), set[str](), set[str](), set[str]()
    for column, name, sign, margin, unit in QUANTITIES:
        difference = interval_evidence(
            f"{name}, last epoch, residual - plain",
            paired(*({seed: final(run, column) for seed, run in seeds.items()} for seeds in (plain, resnet))),
            unit,
        )
        evidence.append(difference)
        low, high = (difference.low, difference.high) if sign > 0 else (-difference.high, -difference.low)
        if difference.n < len(plain):
            unknown.add(name)  # a run diverged, and its value cannot be averaged
        elif low > 0:
            better.add(name)
        elif high < 0:
            worse.add(name)
        elif high < margin:
            none.add(name)
    numbers = ", ".join(f"{name} {say(one)}" for (_, name, *_), one in zip(QUANTITIES, evidence, strict=True))
    validation = {"validation accuracy", "validation loss"}
    if missing or not any(one.n for one in evidence[:2]):
        return untested(setting, f"{missing or 'validation is not known'}: {numbers}", evidence)
    if validation <= better and not worse:
        return verdict_of(setting, "supported", f"it ends better: {numbers}", evidence)
    if not better and (worse & validation or worse | none >= {name for _, name, *_ in QUANTITIES}):
        return verdict_of(setting, "refuted", f"it ends no better: {numbers}", evidence)
    if better and (worse or none & validation):
        not_better = _list(worse | none & validation)
        return verdict_of(setting, "mixed", f"{_list(better)} better, {not_better} not: {numbers}", evidence)
    shown = f"{_list(better)} better, the rest not shown" if better else "nothing is shown to be better"
    if unknown:
        shown += f", {_list(unknown)} not known in every run"
    return verdict_of(setting, "undecided", f"{shown}: {numbers}", evidence)


def _list(names: set[str]) -> str:
    return " and ".join(sorted(names))
