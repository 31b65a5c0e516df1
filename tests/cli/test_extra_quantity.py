"""Quantities of the table of epochs that the original study did not publish, next to its numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradlens import read_runs
from gradlens.analysis.compare import final_table
from gradlens.analysis.groups import group_runs
from gradlens.cli import run_command
from gradlens.run import Header, Layer, Row
from gradlens.storage import FileSink
from gradlens.study.published import REFERENCES

WAYS = [
    ["report", "-o", "x.html"], ["report", "-o", "x.md"], ["report", "-o", "x.pdf", "--lang", "id"],
    *(["compare", "--with-study", *more] for more in (["--terminal"], ["-o", "x.svg"], ["--format", "csv"])),
]  # fmt: skip


@pytest.fixture(params=[["top5"], ["val_loss", "top5"], ["train_accuracy", "val_accuracy"]], ids=" ".join)
def runs(request: pytest.FixtureRequest) -> list[str]:
    for model in ("plain34", "resnet34"):
        sink = FileSink(Path("runs") / f"{model}-s0.h5")
        layers = tuple(Layer(f"l{i}", "Conv2d", "main", i + 1, 10, 9) for i in range(3))
        sink.open(Header(layers, {"param_grad_norm": 1}, model, 0, {}))
        for step in range(4):
            sink.write_row(Row(step, step // 2, {"param_grad_norm": np.full(3, 0.1)}, {"loss": 1.0}))
        for epoch in (1, 2):
            sink.write_epoch({"epoch": epoch, **dict.fromkeys(request.param, 0.5)})
        sink.close("complete")
    return request.param


def test_it_has_no_number_there(runs: list[str]) -> None:
    rows = final_table(group_runs(read_runs("runs")), REFERENCES)
    assert len({tuple(row) for row in rows}) == 1
    found = {row["column"]: row["original study, plain34"] for row in rows}
    assert [bool(np.isnan(found[name])) for name in runs] == [name == "top5" for name in runs]


@pytest.mark.parametrize("arguments", WAYS, ids=" ".join)
def test_it_is_shown_without_one(arguments: list[str], runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command([*arguments, "runs"])
    out, err = capsys.readouterr()
    assert (code, "nan" in out.lower()) == (0, False), err
    if arguments[-1] == "x.md":
        assert (" - |" in Path("x.md").read_text(encoding="utf-8")) == ("top5" in runs)
