"""Which runs are compared with which: plain and residual networks that differ in nothing else, and the controls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradlens.analysis.compare import compared_settings, repeated_runs
from gradlens.errors import ConfigError
from gradlens.run import Run
from gradlens.specs import ModelSpec, parse_model
from gradlens.study.criteria import SHALLOW
from gradlens.study.measures import diverged

WITH, WITHOUT = "with batch norm", "without batch norm"
CONDITIONS = (WITH, WITHOUT)
Seeds = dict[int, Run]
COPIES = ("val_share_exact_copy_in_train", "val_share_any_copy_in_train")


@dataclass
class Setting:
    """Runs of one condition that were trained alike.

    Args:
        condition: With or without batch norm.
        settings: What they were trained with.
        plain: Depth to seed to run.
        resnet: Likewise.
        halves: "value" and "gradient": what the shortcut passes on, to the same.
        said: What it is called, without its depth.
    """

    condition: str
    settings: Mapping[str, Any]
    plain: dict[int, Seeds] = field(default_factory=dict)
    resnet: dict[int, Seeds] = field(default_factory=dict)
    halves: dict[str, dict[int, Seeds]] = field(default_factory=lambda: {"value": {}, "gradient": {}})
    said: str = ""

    @property
    def depth(self) -> int:
        """The deepest that both families have; else the deepest there is."""
        both = self.plain.keys() & self.resnet.keys()
        return max(both or self.plain.keys() | self.resnet.keys())

    def name(self, depth: int | str | None = None) -> str:
        """Return what it is called: depth, image size, and what is unlike the others."""
        return ", ".join(filter(None, [f"{self.depth if depth is None else depth} layers", self.said]))

    @property
    def copies(self) -> float:
        """The largest share of validation pictures that have a copy among the training pictures; 0 where not known."""
        runs = [run for arm in (self.plain, self.resnet) for seeds in arm.values() for run in seeds.values()]
        facts = [run.config.get("data_facts", {}) for run in runs]
        shares = [fact.get(key) for fact in facts if isinstance(fact, dict) for key in COPIES]
        return max((float(share) for share in shares if isinstance(share, int | float)), default=0.0)


@dataclass
class Arms:
    """All runs, sorted.

    Args:
        settings: One for each condition and way to train; those with batch norm first, small images before large ones.
        positive: Runs whose gradient must vanish.
        negative: Runs whose gradient cannot.
        others: Runs that are none of these.
        unfinished: Runs that have not ended.
        broken: Runs that were interrupted, or failed for another reason than that they diverged.
        repeats: Runs that repeat a seed of the same model and settings.
        lone: Runs of halves of a shortcut, trained like neither plain nor residual network.
    """

    settings: list[Setting] = field(default_factory=list)
    positive: list[Run] = field(default_factory=list)
    negative: list[Run] = field(default_factory=list)
    others: list[Run] = field(default_factory=list)
    unfinished: list[Run] = field(default_factory=list)
    broken: list[Run] = field(default_factory=list)
    repeats: list[Run] = field(default_factory=list)
    lone: list[Run] = field(default_factory=list)


def sort_runs(runs: Sequence[Run]) -> Arms:
    """Sort runs by what they can be evidence of; their order is irrelevant.

    A run that is complete counts, and one that ended as its loss was not finite: that is a result. One that was
    interrupted, or whose recording failed, says nothing of where it would have ended, and is left out. Of several runs
    of a seed a complete one counts before one that diverged, then the first by path.

    Args:
        runs: Any runs.
    """
    arms = Arms()
    counted = []
    order = sorted(runs, key=lambda run: (run.model, run.seed, run.status != "complete", str(run.path)))
    for run in order:
        if run.status == "running":
            arms.unfinished.append(run)
        elif run.status == "complete" or diverged(run):
            counted.append(run)
        else:
            arms.broken.append(run)
    arms.repeats = repeated_runs(counted)
    left_out = {id(run) for run in arms.repeats}
    found: dict[tuple[str, str], Setting] = {}
    for run in counted:
        if id(run) not in left_out:
            _place(run, _spec(run), arms, found)
    every = list(found.values())
    _share_plain(every)
    arms.settings = sorted(
        (setting for setting in every if setting.plain or setting.resnet),
        key=lambda one: (CONDITIONS.index(one.condition), one.settings.get("image_size") or 0, _text(one.settings)),
    )
    arms.lone = [
        run
        for setting in every
        if not (setting.plain or setting.resnet)
        for arm in setting.halves.values()
        for seeds in arm.values()
        for run in seeds.values()
    ]
    _say(arms.settings)
    return arms


def _place(run: Run, spec: ModelSpec | None, arms: Arms, found: dict[tuple[str, str], Setting]) -> None:
    settings = compared_settings(run)
    if spec is None or run.seed < 0:
        arms.others.append(run)
    elif spec.activation == "sigmoid":
        (arms.others if spec.norm or spec.family == "resnet" else arms.positive).append(run)
    elif spec.family == "plain" and spec.depth <= SHALLOW and settings.get("init", "he") == "he":
        arms.negative.append(run)
    else:
        if spec.family == "plain":
            settings.pop("shortcut", None)  # it has none
        condition = WITH if spec.norm else WITHOUT
        setting = found.setdefault((condition, _text(settings)), Setting(condition, settings))
        if spec.carries != "both":
            arm = setting.halves[spec.carries]
        else:
            arm = setting.plain if spec.family == "plain" else setting.resnet
        arm.setdefault(spec.depth, {})[run.seed] = run


def _share_plain(settings: list[Setting]) -> None:
    """Put plain networks beside the residual networks that were trained alike, whichever shortcut these have."""
    for setting in settings:
        if "shortcut" not in setting.settings:
            continue
        rest = {key: value for key, value in setting.settings.items() if key != "shortcut"}
        for other in settings:
            if other is not setting and other.condition == setting.condition and _text(other.settings) == _text(rest):
                setting.plain = other.plain
    placed = [id(setting.plain) for setting in settings if "shortcut" in setting.settings and setting.plain]
    settings[:] = [one for one in settings if "shortcut" in one.settings or id(one.plain) not in placed or one.resnet]


def _spec(run: Run) -> ModelSpec | None:
    try:
        spec = parse_model(run.model)
    except ConfigError:
        return None
    return spec if spec.source == "registry" else None


def _say(settings: list[Setting]) -> None:
    """Name each by image size and what is unlike most others; by all that differs where that is not enough."""
    keys = sorted({key for one in settings for key in one.settings} - {"image_size"})
    values = {key: [_text(one.settings.get(key)) for one in settings] for key in keys}
    varying = [key for key in keys if len(set(values[key])) > 1 and key != "shortcut"]
    shortcuts = {one.settings["shortcut"] for one in settings if "shortcut" in one.settings}
    varying += ["shortcut"] if len(shortcuts) > 1 else []
    usual = {key: max(sorted(set(values[key])), key=values[key].count) for key in varying}
    for setting in settings:
        setting.said = _parts(setting, [key for key in varying if _text(setting.settings.get(key)) != usual[key]])
    for setting in settings:
        if [(one.condition, one.name()) for one in settings].count((setting.condition, setting.name())) > 1:
            setting.said = _parts(setting, varying)


def _parts(setting: Setting, keys: list[str]) -> str:
    parts = [f"{setting.settings['image_size']} px"] if "image_size" in setting.settings else []
    return ", ".join([*parts, *(f"{key}={_show(setting.settings.get(key))}" for key in keys)])


def _show(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
