"""An experiment: a question, the runs that answer it, and their figures; read from a TOML file.

::

    question = "Does the plain network's gradient vanish?"
    measured = "The profile of activation_grad_norm over depth, in the first and the last epoch."
    seeds = [0, 1, 2]
    figures = ["gradlens compare {runs}/grouped -o figures/compare.png"]

    [run]                       # for all groups: fields of gradlens.config.RunConfig except model and seed
    recipe = "report"
    image_size = 64

    [group.grouped]             # its runs are written to OUT/NAME/grouped
    models = ["plain34", "resnet34"]
    split = "group"             # settings of this group; it may have its own seeds

    [engine]                    # where and how the runs are carried out; see gradlens.engine_settings
    at_once = 2

Options of the command line override the settings of a group, and those override ``[run]``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gradlens.config import RunConfig, make_config
from gradlens.engine_settings import EngineSettings, read_engine_settings
from gradlens.errors import ConfigError

SETTINGS = tuple(f.name for f in fields(RunConfig) if f.name not in ("model", "seed"))
DEFAULTS = RunConfig("plain34")
TOP = ("question", "measured", "seeds", "figures", "run", "group", "engine")
FLAGS = ("skip_broken", "allow_outside", "amp", "norms")


@dataclass(frozen=True)
class Planned:
    """One run of an experiment.

    Args:
        label: The group and the run, as in ``grouped/plain34-s0``.
        config: The settings of the training.
        path: The run file.
        options: The settings that the command line needs besides model, seed and folder.
    """

    label: str
    config: RunConfig
    path: Path
    options: Mapping[str, Any]

    def arguments(self) -> list[str]:
        """Return the arguments of ``gradlens`` that train it."""
        found = ["run", self.config.model, "--seed", str(self.config.seed), "--out", str(self.path.parent)]
        for key, value in self.options.items():
            option = f"--{key.replace('_', '-')}"
            if key in FLAGS:
                found += [option] if value else []
            elif isinstance(value, tuple):
                found += [option, ",".join(value) or "none"]
            else:
                found += [option, str(value)]
        return found


@dataclass(frozen=True)
class Group:
    """Runs that differ only in model and seed.

    Args:
        name: The name of the group and of its folder.
        models: The names of the models.
        seeds: One run each.
        settings: Fields of ``RunConfig``.
    """

    name: str
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A question and the runs that answer it.

    Args:
        path: The file.
        question: The question, in a sentence.
        measured: What is measured to answer it, in a sentence.
        figures: Commands that draw the figures; ``{runs}`` stands for the folder of the experiment.
        groups: The groups of runs.
        engine: Where and how they are carried out.
    """

    path: Path
    question: str
    measured: str
    figures: tuple[str, ...]
    groups: tuple[Group, ...]
    engine: EngineSettings = field(default_factory=EngineSettings)

    @property
    def name(self) -> str:
        """The name of the file, and of the folder of its runs."""
        return self.path.stem

    def folder(self, out: Path) -> Path:
        """Return the folder of its runs."""
        return out / self.name

    def commands(self, out: Path) -> list[str]:
        """Return the commands that draw its figures."""
        return [figure.replace("{runs}", str(self.folder(out))) for figure in self.figures]

    def plan(self, out: Path, overrides: Mapping[str, Any], seeds: tuple[int, ...] | None = None) -> list[Planned]:
        """Return the runs; all models of a seed come together, so that the first results can be compared.

        Args:
            out: Folder for the runs of all experiments.
            overrides: Settings that replace those of the file.
            seeds: Seeds that replace those of the file; None keeps them.

        Returns:
            The planned runs.

        Raises:
            ConfigError: A value is not allowed; the message names file and group.
        """
        found = []
        for group in self.groups:
            settings = {**group.settings, **overrides}
            for seed in seeds if seeds is not None else group.seeds:
                for model in group.models:
                    config = self._configure(group, model, seed, settings)
                    path = self.folder(out) / group.name / f"{config.run_name}.h5"
                    found.append(Planned(f"{group.name}/{config.run_name}", config, path, settings))
        paths = [planned.path for planned in found]
        for planned in found:
            if paths.count(planned.path) > 1:
                raise ConfigError(f"{self.path}: two runs are to be written to {planned.path}")
        return found

    def _configure(self, group: Group, model: str, seed: int, settings: Mapping[str, Any]) -> RunConfig:
        given = {key: value for key, value in settings.items() if key != "recipe"}
        try:
            return make_config(model, settings.get("recipe", DEFAULTS.recipe), seed=seed, **given)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: group.{group.name}: {error.message}", tip=error.tip) from None


def read_experiment(path: Path) -> Experiment:
    """Read the file of an experiment.

    Args:
        path: The TOML file.

    Returns:
        The experiment.

    Raises:
        ConfigError: The file cannot be read or is no TOML, or a key is unknown, missing or of the wrong type.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text in UTF-8"
        raise ConfigError(f"{path} cannot be read: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is no TOML: {error}") from None
    reader = _Reader(path)
    reader.check_keys("", table, TOP)
    seeds = reader.seeds("seeds", table["seeds"]) if "seeds" in table else (DEFAULTS.seed,)
    common = reader.settings("run", reader.table("run", table.get("run", {})), SETTINGS)
    groups = reader.table("group", table.get("group", {}))
    if not groups:
        raise ConfigError(f"{path}: group is missing: [group.NAME] with models = [...] names the runs")
    return Experiment(
        path,
        reader.text("question", table.get("question")),
        reader.text("measured", table.get("measured", "")),
        reader.texts("figures", table.get("figures", [])),
        tuple(reader.group(name, value, common, seeds) for name, value in groups.items()),
        read_engine_settings(path, table.get("engine", {})),
    )


class _Reader:
    """Checks the values of a file; an error names the file and the key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def refuse(self, key: str, expected: str, value: object) -> ConfigError:
        if value is None:
            return ConfigError(f"{self.path}: {key} is missing: expected {expected}")
        return ConfigError(f"{self.path}: {key} must be {expected}, got {value!r}")

    def check_keys(self, prefix: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in table:
            if key not in known:
                raise ConfigError(f"{self.path}: {prefix}{key} is not known; expected one of {', '.join(known)}")

    def table(self, key: str, value: object) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self.refuse(key, f"a table [{key}]", value)
        return value

    def text(self, key: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.refuse(key, "a text", value)
        return value.strip()

    def texts(self, key: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.refuse(key, 'a list of texts such as ["a", "b"]', value)
        return tuple(value)

    def seeds(self, key: str, value: object) -> tuple[int, ...]:
        right = isinstance(value, list) and value and all(type(one) is int and one >= 0 for one in value)
        if not right or len(set(value)) != len(value):  # type: ignore[call-overload, arg-type]
            raise self.refuse(key, "a list of whole numbers such as [0, 1, 2], each once", value)
        return tuple(value)  # type: ignore[arg-type]

    def settings(self, prefix: str, table: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
        self.check_keys(f"{prefix}.", table, known)
        return {key: self.setting(f"{prefix}.{key}", key, value) for key, value in table.items() if key in SETTINGS}

    def setting(self, where: str, key: str, value: Any) -> Any:
        usual = getattr(DEFAULTS, key)
        if isinstance(usual, tuple):
            return self.texts(where, value)
        kinds: dict[type, tuple[tuple[type, ...], str]] = {
            bool: ((bool,), "true or false"),
            int: ((int,), "a whole number"),
            float: ((int, float), "a number"),
            str: ((str,), "a text"),
        }
        allowed, expected = ((int, str), "a whole number or a text") if key == "every" else kinds[type(usual)]
        if type(value) not in allowed:
            raise self.refuse(where, expected, value)
        return float(value) if type(usual) is float else value

    def group(self, name: str, value: object, common: Mapping[str, Any], seeds: tuple[int, ...]) -> Group:
        key = f"group.{name}"
        if not re.fullmatch(r"[\w+-][\w.+-]*", name):
            raise ConfigError(
                f"{self.path}: {key}: the name of a group is that of a folder, with letters, digits and ._+- only"
            )
        table = self.table(key, value)
        own = self.settings(key, table, ("models", "seeds", *SETTINGS))
        models = self.texts(f"{key}.models", table.get("models"))
        if not models:
            raise self.refuse(f"{key}.models", "at least one model", [])
        mine = self.seeds(f"{key}.seeds", table["seeds"]) if "seeds" in table else seeds
        return Group(name, models, mine, {**common, **own})
