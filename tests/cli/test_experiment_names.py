"""``gradlens run NAME``: what a name stands for, and what is said of one that stands for nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gradlens
from gradlens.cli import run_command
from gradlens.cli.experiment import find_experiment
from gradlens.errors import ConfigError
from gradlens.study.experiments import find_experiments

NAMES = ["cause", "collapse", "controls", "depth", "full", "interventions", "norm", "report", "rescaled", "sgd"]
ROOT = Path(gradlens.__file__).parent.parent


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_of_the_study_is_found_from_anywhere(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = find_experiment(name)
    assert found is not None
    assert found.name == f"{name}.toml"
    assert found.is_file()


def test_a_file_in_this_folder_comes_before_the_studys(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full.toml").touch()
    assert find_experiment("full") == find_experiment("full.toml") == Path("full.toml")


@pytest.mark.parametrize("name", ["plain34", "torchvision:resnet18", "nets.py:build"])
def test_a_model_wins_over_an_experiment_of_its_name(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain34.toml").touch()
    assert find_experiment(name) is None


def test_a_name_that_is_nothing_is_told_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "nonsense"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "unknown model 'nonsense'; expected one of plain18" in said
    assert f"or an experiment: {', '.join(NAMES)}, or FILE.toml" in said
    with pytest.raises(ConfigError, match=r"there is no model of depth 35; expected 18 or 34 .*CIFAR family\)$"):
        find_experiment("plain35")


def test_every_experiment_travels_in_the_wheel() -> None:
    wanted = "".join(f'"experiments/{name}.toml" = "gradlens/study/experiments/{name}.toml"\n' for name in NAMES)
    assert f"[tool.hatch.build.targets.wheel.force-include]\n{wanted}\n" in (ROOT / "pyproject.toml").read_text("utf-8")
    assert sorted(find_experiments((ROOT / "experiments",))) == NAMES


def test_the_packaged_ones_come_before_those_of_a_checkout(tmp_path: Path) -> None:
    packaged, beside = tmp_path / "packaged", tmp_path / "beside"
    beside.mkdir()
    (beside / "old.toml").touch()
    assert find_experiments((packaged, beside)) == {"old": beside / "old.toml"}
    packaged.mkdir()
    (packaged / "new.toml").touch()
    assert find_experiments((packaged, beside)) == {"new": packaged / "new.toml"}
    assert find_experiments((tmp_path / "nowhere",)) == {}


def test_every_experiment_that_is_named_in_a_tip_is_there() -> None:
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "gradlens").rglob("*.py"))
    named = set(re.findall(r"(?:gradlens run |\{COMMAND\})([a-z]+)\b", sources)) - {
        "did"
    }  # "that gradlens run did not make"
    assert {"report", "controls", "cause", "depth"} <= named <= {*NAMES, "plain"}
