"""What users ask for, checked at the door."""

from __future__ import annotations

import json

import pytest

from gradlens.config import RECIPES, RunConfig, make_config
from gradlens.errors import ConfigError
from gradlens.specs import parse_every


def test_the_report_recipe_is_the_reports() -> None:
    config = make_config("plain34", "report")
    assert (config.epochs, config.batch_size, config.image_size) == (30, 32, 224)
    assert (config.optimizer, config.lr, config.weight_decay) == ("adam", 6e-4, 1e-4)
    assert (config.label_smoothing, config.schedule, config.patience) == (0.05, "step:5,0.1", 10)
    assert (config.val_fraction, config.augment) == (0.2, ())


def test_defaults_of_a_run_are_those_of_the_quick_recipe() -> None:
    assert RunConfig("plain34") == make_config("plain34", "quick")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_config_survives_json(recipe: str) -> None:
    config = make_config("resnet34", recipe, seed=3, augment=("flip", "crop"))
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_differences_name_the_field() -> None:
    assert make_config("plain34", lr=0.1).differences(make_config("plain34", lr=0.2)) == ["lr: 0.2 there, 0.1 here"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "adan"), ("split", "stratified"), ("augment", ("flop",)), ("epochs", 0), ("batch_size", 1),
        ("image_size", 4), ("lr", -1.0), ("lr", float("nan")), ("label_smoothing", 1.0), ("val_fraction", 0.0),
        ("every", 0), ("every", "often"), ("workers", -1), ("recipe", "slow"), ("on_nonfinite", "hide"),
        ("on_record_error", "hide"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_its_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        RunConfig("plain34", **{field: value})


def test_rhythms() -> None:
    assert [parse_every(text) for text in ("3", "auto", "-1", "x")] == [3, "auto", -1, "x"]
    assert RunConfig("plain34", every="auto").to_dict()["every"] == "auto"
