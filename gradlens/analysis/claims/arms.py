"""Which runs are compared with which: plain and residual nets that differ in nothing else, and the controls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradlens.analysis.claims.texts import SHALLOW
from gradlens.analysis.compare import compared_settings, repeated_runs
from gradlens.errors import ConfigError
from gradlens.modelspec import ModelSpec, parse_model
from gradlens.run import Run

WITH, WITHOUT = "with batch norm", "without batch norm"
CONDITIONS = (WITH, WITHOUT)
Seeds = dict[int, Run]


@dataclass
class Setting:
    """Runs of one condition that were trained alike.

    Args:
        condition: With or without batch norm.
        settings: What they were trained with.
        plain: Depth to seed to run.
        resnet: Likewise.
        halves: "value" and "gradient": what the shortcut passes on, to the same.
    """

    condition: str
    settings: Mapping[str, Any]
    plain: dict[int, Seeds] = field(default_factory=dict)
    resnet: dict[int, Seeds] = field(default_factory=dict)
    halves: dict[str, dict[int, Seeds]] = field(default_factory=lambda: {"value": {}, "gradient": {}})
    label: str = ""

    @property
    def depth(self) -> int:
        """The deepest that both families have; else the deepest there is."""
        both = self.plain.keys() & self.resnet.keys()
        return max(both or self.plain.keys() | self.resnet.keys())

    @property
    def copies(self) -> float:
        """The largest share of validation pictures that have a copy among the training pictures."""
        runs = [run for arm in (self.plain, self.resnet) for seeds in arm.values() for run in seeds.values()]
        facts = [run.config.get("data_facts", {}) for run in runs]
        shares = [fact.get("val_share_exact_copy_in_train", 0.0) for fact in facts if isinstance(fact, dict)]
        return max(map(float, shares), default=0.0)


@dataclass
class Arms:
    """All runs, sorted.

    Args:
        settings: One for each condition and way to train; those with batch norm first.
        positive: Runs whose gradient must vanish.
        negative: Runs whose gradient cannot.
        others: Runs that are none of these.
        unfinished: Runs that have not ended.
        repeats: Runs that repeat a seed of the same model and settings.
    """

    settings: list[Setting]
    positive: list[Run]
    negative: list[Run]
    others: list[Run]
    unfinished: list[Run]
    repeats: list[Run]


def sort_runs(runs: Sequence[Run]) -> Arms:
    """Sort runs by what they can be evidence of; their order is irrelevant.

    Args:
        runs: Any runs; those that have not ended, or repeat a seed of the same model and settings, are left out.
    """
    runs = sorted(runs, key=lambda run: (run.model, run.seed, str(run.path)))
    arms = Arms([], [], [], [], [run for run in runs if run.status == "running"], [])
    ended = [run for run in runs if run.status != "running"]
    arms.repeats = repeated_runs(ended)
    left_out = {id(run) for run in arms.repeats}
    found: dict[tuple[str, str], Setting] = {}
    for run in ended:
        if id(run) not in left_out:
            _place(run, _spec(run), arms, found)
    arms.settings = sorted(
        (setting for setting in found.values() if setting.plain or setting.resnet),
        key=lambda one: (CONDITIONS.index(one.condition), _text(one.settings)),
    )
    _label(arms.settings)
    return arms


def _place(run: Run, spec: ModelSpec | None, arms: Arms, found: dict[tuple[str, str], Setting]) -> None:
    if spec is None or run.seed < 0:
        arms.others.append(run)
    elif spec.activation == "sigmoid":
        (arms.others if spec.norm or spec.family == "resnet" else arms.positive).append(run)
    elif spec.family == "plain" and spec.depth <= SHALLOW:
        arms.negative.append(run)
    else:
        condition, settings = (WITH if spec.norm else WITHOUT), compared_settings(run)
        setting = found.setdefault((condition, _text(settings)), Setting(condition, settings))
        if spec.carries != "both":
            arm = setting.halves[spec.carries]
        else:
            arm = setting.plain if spec.family == "plain" else setting.resnet
        arm.setdefault(spec.depth, {})[run.seed] = run


def _spec(run: Run) -> ModelSpec | None:
    try:
        spec = parse_model(run.model)
    except ConfigError:
        return None
    return spec if spec.source == "registry" else None


def _label(settings: list[Setting]) -> None:
    """Name each by depth, image size and what is unlike most others; by all that differs where that is not enough."""
    keys = sorted({key for one in settings for key in one.settings} - {"image_size"})
    values = {key: [_text(one.settings.get(key)) for one in settings] for key in keys}
    varying = [key for key in keys if len(set(values[key])) > 1]
    usual = {key: max(sorted(set(values[key])), key=values[key].count) for key in varying}
    for setting in settings:
        odd = [key for key in varying if _text(setting.settings.get(key)) != usual[key]]
        setting.label = _name(setting, odd)
    for setting in settings:
        if [(one.condition, one.label) for one in settings].count((setting.condition, setting.label)) > 1:
            setting.label = _name(setting, varying)


def _name(setting: Setting, keys: list[str]) -> str:
    parts = [f"{setting.depth} layers"]
    if "image_size" in setting.settings:
        parts.append(f"{setting.settings['image_size']} px")
    return ", ".join([*parts, *(f"{key}={_show(setting.settings.get(key))}" for key in keys)])


def _show(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
