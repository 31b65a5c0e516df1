"""Sort runs for comparison: plain and residual networks that differ in nothing else, and controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from gradlens.analysis.groups import NOT_COMPARED, show_setting
from gradlens.errors import ConfigError
from gradlens.run import Run, jsonable
from gradlens.specs import ModelSpec, parse_model
from gradlens.study.criteria import SHALLOW
from gradlens.study.study_run import StudyRun, as_study_run

WITH, WITHOUT = "with batch norm", "without batch norm"
CONDITIONS = (WITH, WITHOUT)
Seeds = dict[int, StudyRun]
COPIES = ("val_share_exact_copy_in_train", "val_share_any_copy_in_train")


@dataclass
class Setting:
    """Runs of one condition with equal settings.

    Args:
        condition: With or without batch norm.
        settings: The settings of all these runs.
        plain: Plain networks: depth to seed to run.
        resnet: Residual networks: depth to seed to run.
        halves: Networks whose shortcut passes only the "value" or only the "gradient": that half to depth to seed to
            run.
        label: The name without the depth.
    """

    condition: str
    settings: Mapping[str, Any]
    plain: dict[int, Seeds] = field(default_factory=dict)
    resnet: dict[int, Seeds] = field(default_factory=dict)
    halves: dict[str, dict[int, Seeds]] = field(default_factory=lambda: {"value": {}, "gradient": {}})
    label: str = ""

    @property
    def depth(self) -> int:
        """The largest depth that both families have; else the largest depth."""
        both = self.plain.keys() & self.resnet.keys()
        return max(both or self.plain.keys() | self.resnet.keys())

    def name(self, depth: int | str | None = None) -> str:
        """Return the name: depth, image size, and settings that differ from the others."""
        return ", ".join(filter(None, [f"{self.depth if depth is None else depth} layers", self.label]))

    @property
    def copies(self) -> float:
        """The largest share of validation images that have a copy among the training images; 0 if unknown."""
        runs = [run for depths in (self.plain, self.resnet) for seeds in depths.values() for run in seeds.values()]
        facts = [run.config.get("data_facts", {}) for run in runs]
        shares = [fact.get(key) for fact in facts if isinstance(fact, dict) for key in COPIES]
        return max((float(share) for share in shares if isinstance(share, int | float)), default=0.0)


@dataclass
class SortedRuns:
    """All runs, sorted.

    Args:
        settings: The settings: those with batch norm first, small images before large ones.
        positive: Runs of the positive control: their gradient must vanish.
        negative: Runs of the negative control: their gradient cannot vanish.
        others: Runs of other models.
        changed: Runs of networks that were not trained as they are: with layers that keep their weights (``freeze``),
            or with gradients of another network's sizes (``rescale_to``).
        foreign: Runs of models that only bear the name of one of these, from loops other than that of ``gradlens run``.
        unfinished: Runs that have not ended.
        broken: Runs that were interrupted, or that failed without having diverged.
        repeats: Runs that repeat a seed of the same model and settings.
        unmatched: Runs with half a shortcut whose settings no plain and no residual network has.
    """

    settings: list[Setting] = field(default_factory=list)
    positive: list[StudyRun] = field(default_factory=list)
    negative: list[StudyRun] = field(default_factory=list)
    others: list[StudyRun] = field(default_factory=list)
    changed: list[StudyRun] = field(default_factory=list)
    foreign: list[StudyRun] = field(default_factory=list)
    unfinished: list[StudyRun] = field(default_factory=list)
    broken: list[StudyRun] = field(default_factory=list)
    repeats: list[StudyRun] = field(default_factory=list)
    unmatched: list[StudyRun] = field(default_factory=list)


def sort_runs(runs: Sequence[Run | StudyRun]) -> SortedRuns:
    """Sort runs by what they can be evidence for; their order does not matter.

    Complete runs count. Runs that ended because their loss was not finite count too, as this is a result. Runs that
    were interrupted, or whose recording failed, are left out, because their end is unknown. If several runs have the
    same seed, a complete run counts before one that diverged, then the first by path.

    Args:
        runs: Any runs.

    Returns:
        The runs by their settings, and the controls.
    """
    sorted_runs = SortedRuns()
    order = sorted(map(as_study_run, runs), key=lambda run: (run.model, run.seed, run.status != "complete", run.place))
    data = short_data(map(data_of, order))
    found: dict[tuple[str, str], Setting] = {}
    seen: set[tuple[str, int, str]] = set()
    for run in order:
        settings = {key: value for key, value in run.config.items() if key not in NOT_COMPARED}
        if "data" in settings:
            settings["data"] = data[data_of(run)]
        key = (run.model or run.name, run.seed, jsonable(settings))
        if run.status == "running":
            sorted_runs.unfinished.append(run)
        elif run.status != "complete" and not run.diverged:
            sorted_runs.broken.append(run)
        elif run.seed >= 0 and key in seen:  # a run without a seed repeats none
            sorted_runs.repeats.append(run)
        else:
            seen.add(key)
            _place(run, settings, sorted_runs, found)
    every = list(found.values())
    _share_plain(every)
    sorted_runs.settings = sorted(
        (setting for setting in every if setting.plain or setting.resnet),
        key=lambda one: (CONDITIONS.index(one.condition), one.settings.get("image_size") or 0, jsonable(one.settings)),
    )
    sorted_runs.unmatched = [
        run
        for setting in every
        if not (setting.plain or setting.resnet)
        for depths in setting.halves.values()
        for seeds in depths.values()
        for run in seeds.values()
    ]
    _set_labels(sorted_runs.settings)
    return sorted_runs


def _place(
    run: StudyRun, settings: dict[str, Any], sorted_runs: SortedRuns, found: dict[tuple[str, str], Setting]
) -> None:
    spec = spec_of(run.model)
    if spec is None or spec.branch != "whole" or run.seed < 0:
        sorted_runs.others.append(run)
    elif settings.get("freeze") or settings.get("rescale_to"):
        sorted_runs.changed.append(run)
    elif not is_trained_here(run):
        sorted_runs.foreign.append(run)
    elif spec.activation == "sigmoid":
        (sorted_runs.others if spec.norm or spec.family == "resnet" else sorted_runs.positive).append(run)
    elif spec.family == "plain" and spec.depth <= SHALLOW and settings.get("init", "he") == "he":
        sorted_runs.negative.append(run)
    else:
        if spec.family == "plain":
            settings.pop("shortcut", None)  # plain networks have no shortcut
        condition = WITH if spec.norm else WITHOUT
        setting = found.setdefault((condition, jsonable(settings)), Setting(condition, settings))
        if spec.carries != "both":
            by_depth = setting.halves[spec.carries]
        else:
            by_depth = setting.plain if spec.family == "plain" else setting.resnet
        by_depth.setdefault(spec.depth, {})[run.seed] = run


def _share_plain(settings: list[Setting]) -> None:
    """Add plain networks to the settings of residual networks with equal settings, whatever shortcut these have."""
    for setting in settings:
        if "shortcut" not in setting.settings:
            continue
        rest = {key: value for key, value in setting.settings.items() if key != "shortcut"}
        for other in settings:
            if (
                other is not setting
                and other.condition == setting.condition
                and jsonable(other.settings) == jsonable(rest)
            ):
                setting.plain = other.plain
    placed = [id(setting.plain) for setting in settings if "shortcut" in setting.settings and setting.plain]
    settings[:] = [one for one in settings if "shortcut" in one.settings or id(one.plain) not in placed or one.resnet]


def spec_of(model: str) -> ModelSpec | None:
    """Return the parts of the name of a plain or residual network; None for another model."""
    try:
        spec = parse_model(model)
    except ConfigError:
        return None
    return spec if spec.source == "registry" else None


def is_trained_here(run: StudyRun) -> bool:
    """Return whether ``gradlens run`` trained it, and so built the model that its name says.

    Only that command stores the model's name among the settings, with facts about the data. A model of one's own may
    have any name, and what its loop does is not known, so that it cannot be "trained alike".

    Args:
        run: The run.
    """
    facts = run.config.get("data_facts")
    return isinstance(facts, Mapping) and run.config.get("model") == run.model


def data_of(run: StudyRun) -> str:
    """Return the data that a run was trained on, as a SPEC; "" where unknown."""
    return str(run.config.get("data", ""))


def short_data(specs: Iterable[str]) -> dict[str, str]:
    """Return names of data for people, without the folders that all of them share: ``csv:train.csv``.

    Args:
        specs: Specs of data.
    """
    specs = sorted(set(specs))
    files = [spec for spec in specs if spec.startswith(("csv:", "folder:"))]
    parts = {spec: PurePath(spec.partition(":")[2].replace("\\", "/")).parts for spec in files}
    depth = 1
    while len({part[-depth:] for part in parts.values()}) < len(set(parts.values())):
        depth += 1
    short = {spec: f"{spec.partition(':')[0]}:{'/'.join(parts[spec][-depth:])}" for spec in files}
    return {spec: short.get(spec, spec) for spec in specs}


def _set_labels(settings: list[Setting]) -> None:
    """Label each setting by image size and by values that differ from most settings.

    If two labels are equal, all differing values are named.
    """
    keys = sorted({key for one in settings for key in one.settings} - {"image_size"})
    values = {key: [jsonable(one.settings.get(key)) for one in settings] for key in keys}
    varying = [key for key in keys if len(set(values[key])) > 1 and key != "shortcut"]
    shortcuts = {one.settings["shortcut"] for one in settings if "shortcut" in one.settings}
    varying += ["shortcut"] if len(shortcuts) > 1 else []
    usual = {key: max(sorted(set(values[key])), key=values[key].count) for key in varying}
    for setting in settings:
        setting.label = _parts(setting, [key for key in varying if jsonable(setting.settings.get(key)) != usual[key]])
    for setting in settings:
        if [(one.condition, one.name()) for one in settings].count((setting.condition, setting.name())) > 1:
            setting.label = _parts(setting, varying)


def _parts(setting: Setting, keys: list[str]) -> str:
    parts = [f"{setting.settings['image_size']} px"] if "image_size" in setting.settings else []
    return ", ".join([*parts, *(f"{key}={show_setting(setting.settings.get(key))}" for key in keys)])
