"""Sentences of a report, made from numbers, in English or Indonesian."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gradlens.analysis.compare import FINAL_ROWS, say_interval
from gradlens.analysis.gradient_ratio import GradientRatio, fate_of, gradient_ratio, over_seeds, say_power, say_ratio
from gradlens.analysis.groups import Group, length_of
from gradlens.analysis.overfitting import accuracy_gap
from gradlens.analysis.profile import say_layer
from gradlens.analysis.stats import Interval, mean_interval
from gradlens.diagnosis.kinds import HEALTHY, UNDECIDED
from gradlens.diagnosis.learning import classes_of
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.report.content import Facts, Row, Seen, data_facts
from gradlens.report.translator import translate
from gradlens.run import Layer, Run
from gradlens.studies import pairs

Words = Mapping[str, str]
MOST_GROUPS = 4
"""Up to this many groups the sentences name each group; beyond, they count groups, and only the tables name them."""
MUCH = 0.5
"""A network has learnt little below this share of the way from guessing to a validation accuracy of 1."""
GUESSES = 1.1
"""Up to this many times the accuracy of guessing, a network is no better than guessing."""
EARLY_EPOCHS = 5
"""After this many epochs the training losses are compared: early enough to show which model learns faster."""


def local(text: str, words: Words) -> str:
    """Write the numbers of a text with the decimal mark of the language; the text must not contain names."""
    if words["decimal mark"] == ".":
        return text
    swapped = {".": ",", ",": "."}
    return re.sub(r"(?<=\d)[.,](?=\d)", lambda mark: swapped[mark[0]], text)


def say_mean(interval: Interval, words: Words) -> str:
    """Write a mean with its standard deviation between seeds, and how many values were left out."""
    if interval.n == 0:
        return words["not finite"] if interval.left_out else "-"
    text = local(say_interval(replace(interval, left_out=0)), words)
    if not interval.left_out:
        return text
    return words["part of values"].format(mean=text, n=interval.n, total=interval.n + interval.left_out)


def say_reference(value: float, words: Words) -> str:
    """Write a number from another source, "-" where there is none."""
    return "-" if math.isnan(value) else local(f"{value:.4g}", words)


def say(text: str, words: Words) -> str:
    """Return an English text of gradlens in the language of the words."""
    return translate(text, words["language"])


RANGE = re.compile(r"([\d,]+) to ([\d,]+)( epochs)?")
EPOCHS = re.compile(r"(\d+) epochs?")
PLAIN_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?")


def say_setting(value: str, words: Words, *, numbers: bool = True) -> str:
    """Write a value of the tables of settings and environment in the language; names stay as they are.

    Args:
        value: The value in English.
        words: The words of the language.
        numbers: Whether a number gets the decimal mark of the language; the number of a version does not.

    Returns:
        The value as text.
    """
    if found := RANGE.fullmatch(value):
        text = words["range"].format(low=local(found[1], words), high=local(found[2], words))
        return words["epochs"].format(n=text) if found[3] else text
    if found := EPOCHS.fullmatch(value):
        return words["one epoch"] if found[1] == "1" else words["epochs"].format(n=found[1])
    if numbers and PLAIN_NUMBER.fullmatch(value):
        return local(value, words)
    return words.get(f"value {value}", value)


def say_name(row: Row, words: Words) -> str:
    """Return the name of a row of the tables of settings and environment in the language."""
    return words.get(f"row {row.name}", row.name.replace("_", " "))


def say_extent(group: Group, words: Words) -> str:
    """Return the numbers of seeds and epochs of a group."""
    seeds = [_count(len(group.runs), "seed", words)] if group.seeds else []
    return ", ".join([*seeds, say(say_setting(group.say_length(), words), words)])


def answers(facts: Facts, words: Words) -> list[str]:
    """Return the answer of the report: a sentence per group on its gradients and on whether it learns."""
    if len(facts.groups) > MOST_GROUPS:
        return [*gradients(facts, words), diagnosis(facts, words)]
    return [answer(group, facts.seen, words) for group in facts.groups]


def answer(group: Group, seen: Sequence[Seen], words: Words) -> str:
    """Return a sentence on what was found in a group of seeds, and whether it learns."""
    own = [item for item in seen if item.group == group.label]
    faults = [item for item in own if item.kind not in (HEALTHY, UNDECIDED)]
    said = [f"{say_kind(item.kind, words)} ({say_seeds(item, words)})" for item in faults]
    good, result = outcome(group, own, words)
    if not faults:
        healthy = "gradients healthy" if good and own and own[0].learns else "no fault"
        said = [words[healthy if own and own[0].kind == HEALTHY else "nothing decided"]]
    known = _typical(_ratios(group))
    if known and faults:
        said.append(words[fate_of(over_seeds(known))])
    return f"{group.label}: {'; '.join([*said, *filter(None, [result])])}."


def outcome(group: Group, seen: Sequence[Seen], words: Words) -> tuple[bool, str]:
    """Return whether a group learns and generalises; healthy gradients alone do not make a good network.

    Returns:
        Whether it does, and the sentence; "" where nothing is known.
    """
    train, val = group.final("train_accuracy"), group.final("val_accuracy")
    if not val.n:
        item = next((item for item in seen if item.learning), None)
        if item is None or item.learns or item.kind != HEALTHY:
            return True, say(item.learning, words) if item else ""
        return False, words["learning unknown"].format(why=say(item.learning, words))
    numbers = {"train": local(f"{train.mean:.2f}", words), "val": local(f"{val.mean:.2f}", words)}
    if not math.isnan(_gap(group)):
        return False, words["does not generalise"].format(**numbers)
    classes = number_of_classes(group.runs[0])
    chance = 1 / classes if classes > 1 else 0.0
    if val.mean < chance + MUCH * (1 - chance):
        guess = words["guessing"].format(chance=local(f"{chance:.2f}", words)) if chance else ""
        guesses = val.mean <= GUESSES * chance
        return False, words["no better" if guesses else "learnt little"].format(**numbers) + guess
    return True, words["learns well"].format(**numbers)


def number_of_classes(run: Run) -> int:
    """Return the number of classes that the data have, or else the loss; 0 where neither tells."""
    classes = data_facts(run).get("classes", ())
    return len(classes) if isinstance(classes, list | tuple) and classes else classes_of(Recording(run))


def opening(facts: Facts, words: Words) -> list[str]:
    """Return the sentences at the beginning: what was trained, the final accuracy, the gradients, the findings."""
    if len(facts.groups) > MOST_GROUPS:
        return [*unequal(facts, words), *_opening_of_many(facts, words)]
    names = "; ".join(
        f"{group.label} ({_count(len(group.runs), 'seed', words)})" if group.seeds else group.label
        for group in facts.groups
    )
    sentences = [
        *unequal(facts, words),
        words["runs of settings"].format(
            runs=_capital(_count(len(facts.runs), "run", words)),
            groups=_count(len(facts.groups), "setting", words),
            names=names,
        ),
    ]
    ends = [(group.label, group.final("val_accuracy")) for group in facts.groups]
    values = [words["value of group"].format(value=say_mean(end, words), group=label) for label, end in ends if end.n]
    if values:
        sentences.append(words["final accuracy"].format(values="; ".join(values)))
    sentences += gradients(facts, words)
    sentences.append(diagnosis(facts, words))
    return [sentence for sentence in sentences if sentence]


def _opening_of_many(facts: Facts, words: Words) -> list[str]:
    runs, groups = _count(len(facts.runs), "run", words), _count(len(facts.groups), "setting", words)
    models = _count(len({group.model for group in facts.groups}), "model", words)
    sentences = [words["runs of many settings"].format(runs=_capital(runs), groups=groups, models=models)]
    ends = [(end.mean, group.label) for group in facts.groups if (end := group.final("val_accuracy")).n]
    if ends:
        (low, lowest), (high, highest) = min(ends), max(ends)
        sentences.append(
            words["accuracy range"].format(
                low=local(f"{low:.3f}", words), lowest=lowest, high=local(f"{high:.3f}", words), highest=highest
            )
        )
    return [*sentences, *gradients(facts, words), diagnosis(facts, words)]


def unequal(facts: Facts, words: Words) -> list[str]:
    """Say first that runs have different lengths, or are not complete; nothing where they are alike."""
    unit = "epoch" if facts.has_epochs else "step"
    lengths = sorted({length_of(run, unit) for run in facts.runs})
    said = []
    if len(lengths) > 1:
        low, high = f"{lengths[0]:,}", _count(lengths[-1], unit, words)
        said.append(words["unequal lengths"].format(low=local(low, words), high=high))
    for status in ("running", "interrupted", "failed"):
        count = sum(run.status == status for run in facts.runs)
        if count:
            said.append(words[f"{status} runs"].format(runs=_capital(_count(count, "run", words))))
    return said


def analysis(facts: Facts, words: Words) -> list[str]:
    """Return the brief analysis: paired differences, early training loss, overfitting, gradients, findings."""
    pairs_of_groups = compared_groups(facts)
    columns = list(FINAL_ROWS) if len(pairs_of_groups) <= 2 else ["train_accuracy", "val_accuracy"]
    sentences = [paired(first, second, column, words) for first, second in pairs_of_groups for column in columns]
    sentences.append(early_loss(facts, words))
    sentences += [overfits(group, words) for group in facts.groups]
    sentences += [copies(group, words) for group in facts.groups]
    sentences += gradients(facts, words)
    sentences.append(diagnosis(facts, words))
    return [sentence for sentence in sentences if sentence]


def compared_groups(facts: Facts) -> list[tuple[Group, Group]]:
    """Return the pairs of groups that the study compares; without such a pair, two groups are compared as they are."""
    group_of = {id(run): group for group in facts.groups for run in group.runs}
    found = [(group_of[id(first)], group_of[id(second)]) for first, second in pairs(facts.runs)]
    if not found and len(facts.groups) == 2:
        found.append((facts.groups[0], facts.groups[1]))
    return found


def _count(number: int, what: str, words: Words) -> str:
    return words[f"one {what}"] if number == 1 else words[f"{what}s"].format(n=number)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def paired(first: Group, second: Group, column: str, words: Words) -> str:
    """Compare the last epochs of two groups over their common seeds; "" for fewer than two common seeds."""
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
        mean=local(f"{gap.mean:+.3f}", words),
        low=local(f"{gap.low:+.3f}", words),
        high=local(f"{gap.high:+.3f}", words),
        inconclusive=words["inconclusive"] if gap.low <= 0 <= gap.high else "",
    )


def _ends(group: Group, column: str) -> dict[int, float]:
    """Return the last epoch's value by seed."""
    values = {run.seed: run.epochs.get(column, np.empty(0)) for run in group.runs if run.seed >= 0}
    return {seed: float(column_E[-1]) for seed, column_E in values.items() if len(column_E)}


def early_loss(facts: Facts, words: Words) -> str:
    """Compare the training loss after the first epochs; "" where a group has no finished epoch."""
    curves = [(group.label, group.mean_curve("train_loss")) for group in facts.groups[:MOST_GROUPS]]
    epoch = min([EARLY_EPOCHS, *(len(curve) for _, curve in curves)])
    if epoch < 1 or not all(curve[epoch - 1].n for _, curve in curves):
        return ""
    values = [
        words["value of group"].format(value=say_mean(curve[epoch - 1], words), group=name) for name, curve in curves
    ]
    return words["early loss"].format(epochs=_count(epoch, "epoch", words), values="; ".join(values))


def overfits(group: Group, words: Words) -> str:
    """Say how far validation accuracy is below training accuracy; "" unless that is so in most seeds."""
    gap = _gap(group)
    return "" if math.isnan(gap) else words["overfits"].format(group=group.label, gap=local(f"{gap:.2f}", words))


def _gap(group: Group) -> float:
    """Return by how much training accuracy ends above validation accuracy; NaN unless most seeds overfit."""
    gaps = [gap for run in group.runs if not math.isnan(gap := accuracy_gap(run))]
    if 2 * len(gaps) <= len(group.runs):
        return math.nan
    return group.final("train_accuracy").mean - group.final("val_accuracy").mean


def copies(group: Group, words: Words) -> str:
    """Say which share of the validation images has a copy in the training set; "" if none has."""
    share = data_facts(group.runs[0]).get("val_share_any_copy_in_train", 0)
    return words["copies"].format(share=f"{share:.0%}", group=group.label) if share else ""


def gradients(facts: Facts, words: Words) -> list[str]:
    """Describe the gradient of each group in the backward pass; for many groups, count them by outcome."""
    if len(facts.groups) <= MOST_GROUPS:
        return [sentence for group in facts.groups if (sentence := gradient(group, words))]
    fates = Counter(fate_of(over_seeds(known)) for group in facts.groups if (known := _typical(_ratios(group))))
    counted = [
        words["gradient in settings"].format(settings=_count(number, "setting", words), what=words[fate])
        for fate, number in fates.most_common()
    ]
    return [f"{_capital('; '.join(counted))}."] if counted else []


def gradient(group: Group, words: Words) -> str:
    """Compare a group's gradient at the first layer with that at the last hidden layer; "" where not recorded."""
    found = _ratios(group)
    known = _typical(found)
    if not known:
        return ""
    typical = over_seeds(known)
    over = words["median over rows"]
    if len(known) > 1:
        low, high = (local(say_power(value), words) for value in (min(known), max(known)))
        over = words["median over rows, mean over seeds"].format(n=len(known), low=low, high=high)
    # The names are inserted last: ``local`` must not change the dots in them.
    template = local(say_ratio("{first}", "{last}", typical, words), words)
    ratio = template.format(first=_layer(found[0].first, words), last=_layer(found[0].last, words))
    return words["gradient of group"].format(group=group.label, what=words[fate_of(typical)], ratio=ratio, over=over)


def _layer(layer: Layer, words: Words) -> str:
    """Return a layer's name, with the word "layer" before a name that looks like a number."""
    return layer.name if say_layer(layer) == layer.name else words["numbered layer"].format(name=repr(layer.name))


def _ratios(group: Group) -> list[GradientRatio]:
    return [found for run in group.runs if (found := gradient_ratio(run)) is not None]


def _typical(ratios: Sequence[GradientRatio]) -> list[float]:
    """Return the known ratios of first to last hidden layer, in decades, one per seed."""
    return [value for found in ratios if not math.isnan(value := found.typical())]


def diagnosis(facts: Facts, words: Words) -> str:
    """List the kinds of findings with their seeds; for many groups, with the number of groups."""
    if len(facts.groups) > MOST_GROUPS:
        kinds = Counter(say_found(facts, item, words)[1] for item in facts.seen)
        counted = [
            words["kind in settings"].format(kind=kind, settings=_count(number, "setting", words))
            for kind, number in kinds.most_common()
        ]
        return words["diagnosis"].format(findings="; ".join(counted))
    findings = [
        words["finding of group"].format(
            group=item.group, kind=say_found(facts, item, words)[1], seeds=say_seeds(item, words)
        )
        for item in facts.seen
    ]
    return words["diagnosis"].format(findings="; ".join(findings))


def say_kind(kind: str, words: Words) -> str:
    """Return the name of a kind of finding in the language."""
    return words.get(f"kind {kind}", kind)


def say_found(facts: Facts, item: Seen, words: Words) -> tuple[bool, str]:
    """Return whether a group is well, and the name of what was found in it.

    A network is called healthy only where it is known to learn, and to be good on unseen data as far as that is known.
    """
    group = next(group for group in facts.groups if group.label == item.group)
    well = item.kind != HEALTHY or (item.learns and outcome(group, [item], words)[0])
    return well, say_kind(item.kind, words) if well else words["nothing found"]


def say_seeds(item: Seen, words: Words) -> str:
    """Name the seeds of a group that show a finding."""
    if len(item.runs) == item.of:
        return words["one run"] if item.of == 1 else words["all seeds"].format(n=item.of)

    return words["some seeds"].format(seeds=", ".join(map(str, item.seeds)), n=item.of)
