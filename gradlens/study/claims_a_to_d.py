"""Judge claims A to D: size and paths of the gradient, speed of training, and the last epoch."""

from __future__ import annotations

from gradlens.run import Run
from gradlens.study.criteria import (
    ACCURACY_MARGIN,
    KEEPS,
    LOSS_MARGIN,
    MAIN_PATH,
    NO_PATH,
    TARGETS,
    VANISHES,
)
from gradlens.study.evidence import (
    ACCURACY,
    EPOCHS,
    LOSS,
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
from gradlens.study.measures import chance, epochs_to, final, mean_accuracy, paired, shortcut_share
from gradlens.study.run_groups import Seeds, Setting

# --- A and B: the gradient ------------------------------------------------------------------------------------


def judge_vanishing(setting: Setting) -> Verdict:
    """Judge claim A by the plain network; the evidence also shows the residual network."""
    plain, resnet = setting.plain.get(setting.depth, {}), setting.resnet.get(setting.depth, {})
    if not plain:
        return untested(setting, "there is no run of a plain network")
    main, residual = decades_of(plain, "plain network,"), decades_of(resnet, "residual network,")
    if not main.n:
        return untested(
            setting, "the gradient of the plain network's first and last hidden layer is not known in most rows"
        )
    evidence = [main, *([residual] if residual.n else [])]
    numbers = f"first / last hidden layer {say(main)} in the plain network"
    if residual.n:
        numbers += f", {say(residual)} in the residual one"
    if beyond(main, below=VANISHES):
        return verdict_of(setting, "supported", f"it vanishes: {numbers}", evidence)
    if beyond(main, above=KEEPS):
        does = "grows toward the input" if beyond(main, above=-KEEPS) else "keeps its size"
        return verdict_of(setting, "not supported", f"it {does}: {numbers}", evidence)
    if beyond(main, above=VANISHES) and beyond(main, below=KEEPS):
        return verdict_of(setting, "mixed", f"it weakens and does not vanish: {numbers}", evidence)
    return verdict_of(setting, "undecided", _inconclusive(main, numbers), evidence)


def judge_path(setting: Setting) -> Verdict:
    """Judge claim B by the share of the gradient that came through the shortcuts."""
    resnet = setting.resnet.get(setting.depth, {})
    if not resnet:
        return untested(setting, "there is no run of a residual network")
    main = interval_evidence("share that came through the shortcut", mean_of(over_seeds(resnet, shortcut_share)), SHARE)
    if not main.n:
        return untested(setting, "the path split (shortcut_grad_norm) was not recorded")
    numbers = f"the shortcut's share of the gradient at the median block is {say(main)}"
    if beyond(main, above=MAIN_PATH):
        return verdict_of(setting, "supported", f"it is the main path: {numbers}", [main])
    if beyond(main, below=NO_PATH):
        return verdict_of(setting, "not supported", f"hardly any gradient comes through it: {numbers}", [main])
    if beyond(main, above=NO_PATH) and beyond(main, below=MAIN_PATH):
        return verdict_of(setting, "mixed", f"it is a secondary path: {numbers}", [main])
    return verdict_of(setting, "undecided", _inconclusive(main, numbers), [main])


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
        return verdict_of(setting, "not supported", f"it is {does}: {numbers}", evidence)
    return verdict_of(setting, "undecided", f"the interval contains 0: {numbers}", evidence)


def _sooner(plain: Seeds, resnet: Seeds, level: float, common: int) -> Evidence:
    """Return by how many epochs the residual network reaches a level sooner, within the epochs that all runs have."""

    def restricted(run: Run) -> float:
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
        return verdict_of(setting, "not supported", f"it ends no better: {numbers}", evidence)
    if better and (worse or none & validation):
        not_better = _list(worse | none & validation)
        return verdict_of(setting, "mixed", f"{_list(better)} better, {not_better} not: {numbers}", evidence)
    shown = f"{_list(better)} better, the rest not shown" if better else "nothing is shown to be better"
    if unknown:
        shown += f", {_list(unknown)} not known in every run"
    return verdict_of(setting, "undecided", f"{shown}: {numbers}", evidence)


def _list(names: set[str]) -> str:
    return " and ".join(sorted(names))
