"""What was seen, in sentences made of numbers, in either language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from gradlens.analysis.compare import FINAL_ROWS, Group, say_interval
from gradlens.analysis.highlights import ACCURACY_GAP
from gradlens.analysis.profile import SIMILAR_DECADES, VANISH_DECADES, end_to_end, say_layer, say_power
from gradlens.analysis.stats import mean_interval
from gradlens.report.content import Facts, Seen, data_facts
from gradlens.run import FloatArray
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
    sentences += ways_back(facts, words)
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
    return [*sentences, *ways_back(facts, words), found(facts, words)]


def analysis(facts: Facts, words: Words) -> list[str]:
    """Return the brief analysis: differences between twins, pace, gaps, gradients, findings."""
    twin_groups = twins(facts)
    columns = list(FINAL_ROWS) if len(twin_groups) <= 2 else ["train_accuracy", "val_accuracy"]
    sentences = [paired(first, second, column, words) for first, second in twin_groups for column in columns]
    sentences.append(pace(facts, words))
    sentences += [overfits(group, words) for group in facts.groups]
    sentences += [copies(group, words) for group in facts.groups]
    sentences += ways_back(facts, words)
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


def ways_back(facts: Facts, words: Words) -> list[str]:
    """Say for each group what becomes of the gradient on its way back; of many, in how many of them."""
    if len(facts.groups) <= MOST_GROUPS:
        return [said for group in facts.groups if (said := way_back(group, words))]
    fates = Counter(_fate(_middle(medians)) for group in facts.groups if len(medians := _medians(group)))
    counted = [
        words["in settings"].format(settings=_count(number, "net", words), what=words[fate])
        for fate, number in fates.most_common()
    ]
    return [f"{_capital('; '.join(counted))}."] if counted else []


def way_back(group: Group, words: Words) -> str:
    """Say what becomes of a group's gradient between the last hidden layer and the first; "" where not recorded."""
    ways = [way for run in group.runs if (way := end_to_end(run)) is not None]
    medians = _medians(group)
    if not len(medians):
        return ""
    middle = _middle(medians)
    over = words["median"]
    if len(medians) > 1:
        ends = [say_power(float(end)) for end in (medians.min(), medians.max())]
        over = words["median of"].format(n=len(medians), low=ends[0], high=ends[1])
    layers = group.runs[0].layers
    return words["way"].format(
        group=group.label,
        what=words[_fate(middle)],
        first=say_layer(layers[ways[0].first]),
        last=say_layer(layers[ways[0].last]),
        power=say_power(middle),
        over=over,
    )


def _medians(group: Group) -> FloatArray:
    """Return each seed's ratio of first to last hidden layer, in decades."""
    ways = [way.median() for run in group.runs if (way := end_to_end(run)) is not None]
    return np.array([median for median in ways if not np.isnan(median)])


def _middle(medians: FloatArray) -> float:
    """Return their mean; where most are exactly 0, that."""
    zeros = np.isneginf(medians)
    return -np.inf if zeros.sum() * 2 > len(medians) else float(medians[~zeros].mean())


def _fate(decades: float) -> str:
    """Name what becomes of a gradient, by the lines of ``gradlens.analysis.profile.say_end_to_end``."""
    if decades == -np.inf:
        return "gone"
    if decades < VANISH_DECADES:
        return "vanishes"
    if decades < -SIMILAR_DECADES:
        return "shrinks"
    return "similar" if decades <= SIMILAR_DECADES else "grows"


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
