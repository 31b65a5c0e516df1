"""What was seen, in sentences made of numbers, in either language."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from gradlens.analysis.compare import FINAL_ROWS, Group, say_interval
from gradlens.analysis.gradient_ratio import GradientRatio, fate_of, gradient_ratio, over_seeds, say_power, say_ratio
from gradlens.analysis.highlights import ACCURACY_GAP
from gradlens.analysis.profile import say_layer
from gradlens.analysis.stats import mean_interval
from gradlens.report.content import Facts, Seen, data_facts
from gradlens.studies import pairs

Words = Mapping[str, str]
MOST_GROUPS = 4
"""Of more than these the sentences count, and the tables name."""


def opening(facts: Facts, words: Words) -> list[str]:
    """Return the paragraph at the beginning: what was trained, how it ended, what became of the gradient."""
    if len(facts.groups) > MOST_GROUPS:
        return _opening_of_many(facts, words)
    said = "; ".join(f"{group.label} ({_count(len(group.runs), 'seed', words)})" for group in facts.groups)
    sentences = [
        words["runs of"].format(
            runs=_capital(_count(len(facts.runs), "run", words)),
            groups=_count(len(facts.groups), "net", words),
            said=said,
        )
    ]
    ends = [(group.label, group.final("val_accuracy")) for group in facts.groups]
    told = [words["accuracy of"].format(value=say_interval(end), group=label) for label, end in ends if end.n]
    if told:
        sentences.append(words["accuracy"].format(said="; ".join(told)))
    sentences += ratios(facts, words)
    sentences.append(found(facts, words))
    return [sentence for sentence in sentences if sentence]


def _opening_of_many(facts: Facts, words: Words) -> list[str]:
    runs, groups = _count(len(facts.runs), "run", words), _count(len(facts.groups), "net", words)
    nets = len({group.model for group in facts.groups})
    sentences = [words["runs of many"].format(runs=_capital(runs), groups=groups, nets=nets)]
    ends = [(end.mean, group.label) for group in facts.groups if (end := group.final("val_accuracy")).n]
    if ends:
        (low, lowest), (high, highest) = min(ends), max(ends)
        told = {"low": f"{low:.3f}", "lowest": lowest, "high": f"{high:.3f}", "highest": highest}
        sentences.append(words["accuracy from"].format(**told))
    return [*sentences, *ratios(facts, words), found(facts, words)]


def analysis(facts: Facts, words: Words) -> list[str]:
    """Return the brief analysis: differences between twins, pace, gaps, gradients, findings."""
    twin_groups = twins(facts)
    columns = list(FINAL_ROWS) if len(twin_groups) <= 2 else ["train_accuracy", "val_accuracy"]
    sentences = [paired(first, second, column, words) for first, second in twin_groups for column in columns]
    sentences.append(pace(facts, words))
    sentences += [overfits(group, words) for group in facts.groups]
    sentences += [copies(group, words) for group in facts.groups]
    sentences += ratios(facts, words)
    sentences.append(found(facts, words))
    return [sentence for sentence in sentences if sentence]


def twins(facts: Facts) -> list[tuple[Group, Group]]:
    """Return the groups that the study compares with each other; of two groups that are none of these, those."""
    home = {id(run): group for group in facts.groups for run in group.runs}
    found = [(home[id(first)], home[id(second)]) for first, second in pairs(facts.runs)]
    if not found and len(facts.groups) == 2:
        found.append((facts.groups[0], facts.groups[1]))
    return found


def _count(number: int, what: str, words: Words) -> str:
    return words[what] if number == 1 else words[f"{what}s"].format(n=number)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def paired(first: Group, second: Group, column: str, words: Words) -> str:
    """Compare the last epochs of two groups over the seeds that both have; "" where there are fewer than two."""
    before, after = _ends(first, column), _ends(second, column)
    gap = mean_interval(np.array([after[seed] - before[seed] for seed in before if seed in after]))
    if gap.n < 2:
        return ""
    return words["difference"].format(
        n=gap.n,
        first=first.label,
        second=second.label,
        column=words[FINAL_ROWS[column]],
        more=words["higher" if gap.mean > 0 else "lower"],
        mean=f"{gap.mean:+.3f}",
        low=f"{gap.low:+.3f}",
        high=f"{gap.high:+.3f}",
        open=words["open"] if gap.low <= 0 <= gap.high else "",
    )


def _ends(group: Group, column: str) -> dict[int, float]:
    """Return the last epoch's value by seed."""
    values = {run.seed: run.epochs.get(column, np.empty(0)) for run in group.runs if run.seed >= 0}
    return {seed: float(column_E[-1]) for seed, column_E in values.items() if len(column_E)}


EARLY_EPOCHS = 5


def pace(facts: Facts, words: Words) -> str:
    """Say how far the training loss has come early on; "" where a group has no such epoch."""
    curves = [(group.label, group.mean_curve("train_loss")) for group in facts.groups[:MOST_GROUPS]]
    epoch = min([EARLY_EPOCHS, *(len(curve) for _, curve in curves)])
    if epoch < 1 or not all(curve[epoch - 1].n for _, curve in curves):
        return ""
    told = [words["accuracy of"].format(value=say_interval(curve[epoch - 1]), group=name) for name, curve in curves]
    return words["faster"].format(epoch=epoch, said="; ".join(told))


def overfits(group: Group, words: Words) -> str:
    """Say how far validation falls behind training; "" where that is not worth a line."""
    train, val = group.final("train_accuracy"), group.final("val_accuracy")
    gap = train.mean - val.mean
    return words["overfits"].format(group=group.label, gap=f"{gap:.2f}") if gap > ACCURACY_GAP else ""


def copies(group: Group, words: Words) -> str:
    """Say which share of the validation images stands in the training set too."""
    share = data_facts(group.runs[0]).get("val_share_any_copy_in_train", 0)
    return words["copies"].format(share=f"{share:.0%}", group=group.label) if share else ""


def ratios(facts: Facts, words: Words) -> list[str]:
    """Say for each group what becomes of the gradient on its way back; of many, in how many of them."""
    if len(facts.groups) <= MOST_GROUPS:
        return [said for group in facts.groups if (said := ratio(group, words))]
    fates = Counter(fate_of(over_seeds(known)) for group in facts.groups if (known := _typical(_ratios(group))))
    counted = [
        words["in settings"].format(settings=_count(number, "net", words), what=words[fate])
        for fate, number in fates.most_common()
    ]
    return [f"{_capital('; '.join(counted))}."] if counted else []


def ratio(group: Group, words: Words) -> str:
    """Say what becomes of a group's gradient between the last hidden layer and the first; "" where not recorded."""
    found = _ratios(group)
    known = _typical(found)
    if not known:
        return ""
    middle = over_seeds(known)
    over = words["median"]
    if len(known) > 1:
        over = words["median of"].format(n=len(known), low=say_power(min(known)), high=say_power(max(known)))
    said = say_ratio(say_layer(found[0].first), say_layer(found[0].last), middle, words)
    return words["way"].format(group=group.label, what=words[fate_of(middle)], said=said, over=over)


def _ratios(group: Group) -> list[GradientRatio]:
    return [found for run in group.runs if (found := gradient_ratio(run)) is not None]


def _typical(ratios: Sequence[GradientRatio]) -> list[float]:
    """Return each seed's ratio of first to last hidden layer, in decades, where it is known."""
    return [value for found in ratios if not math.isnan(value := found.typical())]


def found(facts: Facts, words: Words) -> str:
    """Say which kinds of findings there are, in how many seeds; of many groups, in how many of them."""
    if len(facts.groups) > MOST_GROUPS:
        kinds = Counter(item.kind for item in facts.seen)
        counted = [
            words["kind in"].format(kind=say_kind(kind, words), settings=_count(number, "net", words))
            for kind, number in kinds.most_common()
        ]
        return words["found"].format(said="; ".join(counted))
    told = [
        words["found of"].format(group=item.group, kind=say_kind(item.kind, words), seeds=say_seeds(item, words))
        for item in facts.seen
    ]
    return words["found"].format(said="; ".join(told))


def say_kind(kind: str, words: Words) -> str:
    """Return a finding's kind in the language."""
    return words.get(f"kind {kind}", kind)


def say_seeds(item: Seen, words: Words) -> str:
    """Say which of a group's seeds show a finding."""
    if len(item.runs) == item.of:
        return words["the run"] if item.of == 1 else words["all seeds"].format(n=item.of)
    return words["some seeds"].format(seeds=", ".join(map(str, item.seeds)), n=item.of)
