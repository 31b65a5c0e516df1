"""Names and options as text: taken apart, or refused with what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradlens.errors import ConfigError
from gradlens.specs import check_figure_path, model_names, parse_data, parse_model, parse_schedule, parse_seeds


@pytest.mark.parametrize("name", model_names())
def test_every_registered_name_is_parsed(name: str) -> None:
    spec = parse_model(name)
    assert spec.source == "registry"
    half = {"both": "", "value": "-valueonly", "gradient": "-gradonly"}[spec.carries]
    half += {"whole": "", "from zero": "-skipinit", "from scale": "-branchscale"}[spec.branch]
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
        ("plain35", "no model of depth 35; expected 18 or 34"),
        ("resnet50", "bottleneck"),
        ("plain34-bn", "-bn is unknown; expected -valueonly, -gradonly, -skipinit, -branchscale, -nobn, -sigmoid"),
        ("resnet34-nobn-gradonly", "the correct order is resnet34-gradonly-nobn"),
        ("resnet34-nobn-nobn", "the correct order is resnet34-nobn"),
        ("resnet34-valueonly-gradonly", "only the value, or only the gradient"),
        ("resnet34-skipinit-branchscale", "begins at 0, or at 1"),
        ("plain34-skipinit", "-skipinit scales residual branches, and a plain model has none"),
        ("plain34-gradonly", "a plain model has none"),
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
