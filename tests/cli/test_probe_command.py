"""``gradlens probe`` as a user meets it: the card, sweeps, formats, gates, mistakes."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest

from gradlens.cli import run_command

QUICK = ["--input", "3x32x32", "--batch-size", "4", "--seed", "0"]
NETS = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.mid, self.spare = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, x):
        return self.out(self.mid(self.emb(x)).relu())

def tied(): return Tied()
def deep(): return nn.Sequential(*[m for _ in range(20) for m in (nn.Linear(30, 30), nn.Sigmoid())], nn.Linear(30, 10))
def gray(num_classes): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, num_classes))
def breaks(): raise ValueError("no luck\\nand more of it")
def odd(): return nn.ModuleDict({"a": nn.Linear(2, 2)})
"""


@pytest.fixture(autouse=True)
def nets() -> None:
    Path("nets.py").write_text(NETS, encoding="utf-8")


def probe(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    assert run_command(["probe", *arguments]) == code, capsys.readouterr()
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out, err


@pytest.mark.parametrize("width", ["80", "120"])
def test_the_card(width: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    out, err = probe(capsys, "plain20", *QUICK)
    for said in ("plain20: looks trainable", "theory", "standard deviation", "ln(10) = 2.303", "dead units", "fp16"):
        assert said in out
    assert "layer1.0.conv1" in out
    assert "next" not in out
    assert max(map(len, out.splitlines())) <= int(width)
    assert err == ""
    assert sorted(path.name for path in Path().iterdir()) == ["nets.py"]


def test_a_net_that_vanishes_and_gates(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = probe(capsys, "nets.py:deep", "--fail-on", "vanishing", code=3)
    assert out.startswith("nets.py:deep: vanishes: layer '0' has 10^-1")
    assert "next  Add batch norm" in out
    assert "Error: nets.py:deep is vanishing" in err
    probe(capsys, "nets.py:deep", "--fail-on", "any", code=3)
    probe(capsys, "nets.py:deep", "--fail-on", "exploding, unused")


def test_shared_and_unused_parameters_of_a_model_of_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = probe(capsys, "nets.py:tied", "--seeds", "0,1")
    text = " ".join(out.split())
    assert "no gradient reaches 2 parameters: spare" in text
    assert "emb.weight = out.weight" in text
    assert "32 x long:32:20 of random tokens, 2 samples of weights" in text
    probe(capsys, "nets.py:tied", "--input", "long:7:5", "--fail-on", "unused", code=3)


def test_json_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    (facts,) = json.loads(probe(capsys, "resnet8", *QUICK[:-2], "--seeds", "0-1", "--format", "json")[0])
    assert facts["kind"] == "trainable"
    assert facts["expected_loss"] == pytest.approx(math.log(10))
    assert [sample["seed"] for sample in facts["draws"]] == [0, 1]
    assert len(facts["layers"]) == 8
    assert facts["layers"][1]["deviation"] is None or abs(facts["layers"][1]["deviation"]) < 5
    assert facts["parameter_entries"] == 2 * facts["parameters"]
    assert (facts["unused"], facts["shared"], facts["frozen"]) == ([], [], [])
    assert facts["output_under_fp16"] >= facts["output_lost_in_fp16"] >= facts["output_under_bf16"] == 0


def test_csv_has_a_row_per_layer_or_per_net(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(probe(capsys, "plain8", *QUICK, "--format", "csv")[0])))
    assert [row["layer"] for row in rows][:2] == ["conv1", "layer1.0.conv1"]
    assert float(rows[-2]["decades"]) == 0
    sweep = ["plain", "--depths", "8,14", "--norm", "batch,none", *QUICK]
    rows = list(csv.DictReader(io.StringIO(probe(capsys, *sweep, "--format", "csv")[0])))
    assert [(row["depth"], row["norm"]) for row in rows] == [
        ("8", "batch"), ("8", "none"), ("14", "batch"), ("14", "none"),
    ]  # fmt: skip
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_a_sweep_as_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    options = ["--norm", "batch,none", "--init", "he,default", "--input", "3x32x32", "--batch-size", "4"]
    out, _ = probe(capsys, "plain", "--depths", "8,20", *options)
    lines = [line.split() for line in out.splitlines() if line.split()[:1] in (["8"], ["20"])]
    assert [line[:3] for line in lines] == [
        [depth, norm, init] for depth in ("8", "20") for norm in ("batch", "none") for init in ("he", "default")
    ]
    assert lines[-1][-1] == "vanishes"
    assert lines[-4][-1] == "trainable"
    assert "1 sample of weights each" in out
    assert max(map(len, out.splitlines())) <= 80
    out, _ = probe(capsys, "resnet8", "--shortcut", "A,B", *QUICK)
    assert "shortcut" in out


@pytest.mark.parametrize("name", ["plain18", "plain8-nobn", "resnet18-nobn", "resnet20", "torchvision:resnet18"])
def test_every_family(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--input", "3x64x64", *QUICK[2:]] if name.startswith("torchvision") else QUICK
    (facts,) = json.loads(probe(capsys, name, *options, "--format", "json")[0])
    assert facts["theory_slope"] is not None
    assert abs(facts["decades"]) < 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "convnext_tiny", "densenet121", "swin_t"])
def test_nets_of_torchvision(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (facts,) = json.loads(probe(capsys, f"torchvision:{name}", "--seed", "0", "--format", "json")[0])
    assert facts["kind"] == ("unused" if name == "googlenet" else "trainable")
    assert abs(facts["decades"]) < 5


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["plain35"], 2, "no model of depth 35"),
        (["plain"], 2, "plain alone names no model"),
        (["plain", "--depths", "19"], 2, "no model of depth 19"),
        (["plain", "--depths", "deep"], 2, "expected whole numbers such as 18,34,56, got 'deep'"),
        (["plain", "--depths", "18,,34"], 2, "expected values with commas between them"),
        (["plain34", "--depths", "18"], 2, "--depths goes with plain and resnet, not with plain34"),
        (["plain34", "--norm", "layer"], 2, "--norm 'layer' is not known; expected some of batch, none"),
        (["plain34-nobn", "--norm", "batch"], 2, "contradicts its name"),
        (["plain34", "--shortcut", "B"], 2, "plain34 has no shortcuts"),
        (
            ["torchvision:resnet18", "--init", "he"],
            2,
            "are for plain and residual networks, not for torchvision:resnet18",
        ),
        (["torchvision:resnet19"], 1, "torchvision has no model 'resnet19'"),
        (["plain34", "--input", "big"], 2, "--input 'big': expected sizes such as 3x224x224"),
        (["plain34", "--input", "3x0x4"], 2, "every size must be at least 1"),
        (["plain34", "--input", "3x64x64:9"], 2, "expected sizes such as"),
        (["plain34", "--input", "9x99999x99999"], 2, "is too large"),
        (["plain34", "--data", "none"], 2, "unknown data 'none'"),
        (["plain34", "--data", "patterns", "--input", "1x8x8"], 2, "--input 3xSxS, not 1x8x8"),
        (["plain34", "--seed", "1", "--seeds", "1,2"], 2, "choose one of them"),
        (["plain34", "--seed", "-1"], 2, "--seed must be at least 0"),
        (["plain34", "--batch-size", "1"], 2, "--batch-size must be at least 2"),
        (["plain34", "--classes", "0"], 2, "--classes must be at least 1"),
        (["plain34", "--fail-on", "sad"], 2, "unknown kind 'sad'; expected some of exploding, nonfinite"),
        (["plain34", "--fail-on", ""], 2, "--fail-on '': a kind is missing; expected some of exploding, nonfinite"),
        (["plain34", "--fail-on", "vanishing,"], 2, "a kind is missing; expected some of exploding, nonfinite"),
        (["plain8", "--input", "1x32x32"], 1, "at conv1, a Conv2d(3, 16"),
        (["plain8", "--input", "long:8"], 1, "plain8 cannot take a batch of 32 inputs of long:8"),
        (["nets.py:gray"], 1, "which got (32, 15376)"),
        (["nets.py:breaks"], 1, "nets.py:breaks failed: ValueError: no luck"),
        (["nets.py:odd"], 1, "cannot take a batch of 32 inputs of 2"),
        (["none.py:net"], 1, "there is no such file"),
    ],
)
def test_mistakes_end_in_a_line(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = probe(capsys, *arguments, code=code)
    assert said in err
    assert err.startswith("Error: ")
    assert sum(not line.startswith("Tip: ") for line in err.splitlines()) == 1
    assert out == ""


def test_the_tip_names_an_input_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--input 3x64x64? " in probe(capsys, "plain8", "--input", "1x32x32", code=1)[1]
    out, _ = probe(capsys, "nets.py:gray", "--input", "1x28x28", "--classes", "4")
    assert "ln(4)" in out
