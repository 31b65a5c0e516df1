"""What users ask for, checked at the door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradlens.config import (
    RECIPES,
    RunConfig,
    check_figure_path,
    make_config,
    model_names,
    parse_data,
    parse_every,
    parse_model,
    parse_schedule,
    parse_seeds,
)
from gradlens.errors import ConfigError


@pytest.mark.parametrize("name", model_names())
def test_every_registered_name_is_parsed(name: str) -> None:
    spec = parse_model(name)
    assert spec.source == "registry"
    half = {"both": "", "value": "-valueonly", "gradient": "-gradonly"}[spec.carries]
    sigmoid = "-sigmoid" if spec.activation == "sigmoid" else ""
    assert name == f"{spec.family}{spec.depth}{half}{'' if spec.norm else '-nobn'}{sigmoid}"
    assert spec.slug == name


@pytest.mark.parametrize(
    ("name", "source", "location", "factory", "slug"),
    [
        ("torchvision:resnet18", "torchvision", "resnet18", "", "torchvision-resnet18"),
        ("nets/my.py:build", "file", "nets/my.py", "build", "build"),
        ("package.module:Net", "module", "package.module", "Net", "Net"),
    ],
)
def test_names_of_other_peoples_models(name: str, source: str, location: str, factory: str, slug: str) -> None:
    spec = parse_model(name)
    assert (spec.source, spec.location, spec.factory, spec.slug) == (source, location, factory, slug)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plane34", "unknown model 'plane34'; expected one of plain18, plain34"),
        ("plain35", "no net of depth 35; expected 18 or 34"),
        ("resnet50", "bottleneck"),
        ("plain34-bn", "nothing is called -bn; expected -valueonly, -gradonly, -nobn, -sigmoid"),
        ("resnet34-nobn-gradonly", "it is written resnet34-gradonly-nobn"),
        ("resnet34-nobn-nobn", "it is written resnet34-nobn"),
        ("resnet34-valueonly-gradonly", "the value alone, or the gradient alone"),
        ("plain34-gradonly", "a plain net has none"),
        ("file.py:", "unknown model"),
        ("", "unknown model"),
    ],
)
def test_a_wrong_model_name_says_what_is_allowed(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_model(name)


def test_data_specs() -> None:
    assert parse_data("patterns").kind == "patterns"
    assert parse_data("folder:a/b").path == Path("a/b")
    assert parse_data("csv:x.csv").kind == "csv"
    assert parse_data("CIFAR-10").name == "cifar10"
    for wrong in ("folder:", "imagenet", ""):
        with pytest.raises(ConfigError, match="expected patterns, folder:PATH, csv:FILE"):
            parse_data(wrong)


def test_schedules() -> None:
    assert parse_schedule("step:5,0.1").step_size == 5
    assert parse_schedule("step:5,0.1").gamma == 0.1
    for wrong in ("step", "step:0,0.1", "step:5,x", "step:5,.", "linear"):
        with pytest.raises(ConfigError, match="expected constant, cosine or step:SIZE,GAMMA"):
            parse_schedule(wrong)


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


def test_seeds() -> None:
    assert parse_seeds("0,1, 2") == (0, 1, 2)
    assert parse_seeds("3-5") == (3, 4, 5)
    for wrong in ("", "a", "1,1", "1,-2", "2-1"):
        with pytest.raises(ConfigError, match="seeds"):
            parse_seeds(wrong)


def test_figure_endings() -> None:
    check_figure_path(Path("a.svg"))
    with pytest.raises(ConfigError, match=r"expected a file ending in \.png, \.svg, \.pdf, got no ending"):
        check_figure_path(Path("a"))
