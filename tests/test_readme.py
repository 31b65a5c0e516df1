"""The README is the manual: its commands parse, its code runs, every command is in it, every picture is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import torch
from torch import nn

from gradlens.cli import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def gradlens_commands() -> list[list[str]]:
    lines = [part for block in blocks("sh") for line in block.splitlines() for part in line.split("&&")]
    words = [shlex.split(line, comments=True) for line in lines]
    return [w[1:] for w in words if w and Path(w[0]).name == "gradlens"]


@pytest.mark.parametrize("arguments", gradlens_commands(), ids=" ".join)
def test_every_command_line_parses(arguments: list[str]) -> None:
    command = cli.commands[arguments[0]]
    with click.Context(command, info_name=arguments[0]) as context:
        assert command.make_context(arguments[0], list(arguments[1:]), parent=context).params


def test_every_command_is_shown() -> None:
    assert {arguments[0] for arguments in gradlens_commands()} == set(cli.commands)


def test_the_code_runs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    names = {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters()),
        "criterion": nn.CrossEntropyLoss(),
        "loader": [(torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1]))] * 4,
    }
    loop, reader = blocks("python")
    exec(loop, names)
    run = names["run"]
    exec(reader, names)
    assert (names["norms"] == run.metric("activation_grad_norm")).all()
    assert names["names"].tolist() == [layer.name for layer in run.layers]
    assert names["loss"].tolist() == run.scalars["loss"].tolist()
    assert set(names["epochs"]) == set(run.epochs)
    assert run.metric("activation_grad_norm").shape == (4, 2)
    assert run.status == "complete"


def test_the_two_commands_stand_on_the_first_screen() -> None:
    first = README[:2000]
    assert "gradlens run plain34 && .venv/bin/gradlens heatmap" in first
    assert ".venv/bin/pytest" in first
    assert "<!-- the test command -->" in first


def test_every_picture_and_link_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).with_suffix(".json").exists(), f"{picture}: no JSON beside it"


def test_every_figure_has_its_facts() -> None:
    for picture in (ROOT / "figures").glob("*.png"):
        assert picture.with_suffix(".json").exists(), picture.name
