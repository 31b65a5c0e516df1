"""CONTRIBUTING.md is true: a copy of the package gets a finding, a metric, a command and a figure.

Each is a file and a line; a metric that is a quotient is a line. Nothing else of the copy is changed, and what is new
appears in the file, the commands, the report and the JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import gradlens
from tests.processes import PATIENCE

PACKAGE = Path(gradlens.__file__).parent
RULE = '''"""The learning rate rises over the run."""

from __future__ import annotations

from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.recorded_rows import Recording


def rising(rec: Recording) -> list[Finding]:
    """Return a finding where the last learning rate is above the first."""
    lr = rec.scalar("lr")
    if not len(lr) or not lr[-1] > lr[0]:
        return []
    said = f"lr goes from {lr[0]:.1f} to {lr[-1]:.1f}"
    return [Finding("rising", (), (0, rec.last_step), said, "last > first", "a test", "Let it fall.", 0.5)]
'''
KIND = '    Kind("rising", "the learning rate rises", "laju pembelajaran naik (rising)", on_its_own=True),\n'
METRIC = (
    '        Metric("out_over_param", "output gradient over parameter gradient", "log", 1, "of_the_sums",'
    ' "A test.", quotient=("activation_grad_norm", "param_grad_norm")),\n'
)
MEASURER = '''"""The largest weight of each layer before the step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from gradlens.recorder.measured_row import Part
from gradlens.recorder.measurer import Measurer


class LargestWeight(Measurer):
    """Measures the largest absolute weight."""

    def before_step(self, due: Sequence[str], row: int) -> None:
        """Read the weights if they are due."""
        self.found = [max(float(p.abs().max()) for p in own) for own in self.context.own] if due else []

    def parts(self, scale: Tensor | float | None) -> dict[str, list[Part]]:
        """Return the values."""
        return {"largest_weight": [Part(np.arange(len(self.found)), np.array(self.found))]}


MEASURER = LargestWeight
'''
MEASURED = (
    '        Metric("largest_weight", "largest absolute weight", "log", 2, "as_accumulated", "A test.",'
    ' measured_by="largest_weight"),\n'
)
COMMAND = '''"""``gradlens rows``: how many rows a run has."""

from __future__ import annotations

import click

from gradlens.cli.options import open_runs, runs_argument


@click.command()
@runs_argument
def rows(runs: tuple[str, ...]) -> None:
    """Print the number of rows of each RUN."""
    for run in open_runs(runs, default="newest"):
        click.echo(f"{run.name}: {len(run.steps)}")
'''
FIGURE = '''"""The learning rate over the steps."""

from __future__ import annotations

from gradlens.plots.figure import GradlensFigure


def for_report(runs, groups):
    """Return the figure, its caption and the runs that have a learning rate."""
    shown = [run for run in runs if "lr" in run.scalars]
    figure = GradlensFigure()
    axes = figure.subplots()
    for run in shown:
        axes.plot(run.steps, run.scalars["lr"])
    return (figure, "The learning rate rises.", shown) if shown else None
'''
FIGURE_LINE = (
    '    ReportFigure("rates", "rates", ("Learning rate over steps", "A line per run."),'
    ' ("Laju pembelajaran", "Satu garis per pelatihan.")),\n'
)
TRAIN = """
import torch, gradlens
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
metrics = ["-param_norm", "-update_ratio", "out_over_param", "largest_weight"]
with gradlens.record(model, "runs/new-s0.h5", optimizer=optimizer, metrics=metrics) as recorder:
    for step in range(20):
        print(*[float(max(p.abs().max() for p in layer.parameters())) for layer in model if hasattr(layer, "weight")])
        optimizer.zero_grad(); model(torch.randn(8, 3)).square().mean().backward(); optimizer.step()
        recorder.log(lr=0.1 * (step + 1), loss=1.0)
"""


def add_line(file: Path, before: str, line: str) -> None:
    """Add a line before the only place where a text stands."""
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{before!r} in {file.name}"
    file.write_text(text.replace(before, line + before), encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a copy of the package that has more of everything, and a run recorded by it."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(PACKAGE, folder / "gradlens", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "gradlens" / "diagnosis" / "rising.py").write_text(RULE, encoding="utf-8")
    add_line(folder / "gradlens" / "diagnosis" / "kinds.py", ")\n# fmt: on", KIND)
    (folder / "gradlens" / "recorder" / "measurers" / "largest_weight.py").write_text(MEASURER, encoding="utf-8")
    add_line(folder / "gradlens" / "metrics.py", "    )\n}\n\nDEFAULT_METRICS", METRIC + MEASURED)
    (folder / "gradlens" / "cli" / "rows.py").write_text(COMMAND, encoding="utf-8")
    add_line(folder / "gradlens" / "cli" / "__init__.py", ')  # fmt: skip\n"""Each has a module', '    "rows",\n')
    (folder / "gradlens" / "plots" / "rates.py").write_text(FIGURE, encoding="utf-8")
    add_line(folder / "gradlens" / "report" / "figures.py", ')\n"""The figures in the order', FIGURE_LINE)
    (folder / "weights.txt").write_text(call(folder, "-c", TRAIN), encoding="utf-8")
    return folder


def call(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run Python in the folder with the copied package, and return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True,
        text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout


def command(folder: Path, *arguments: str, code: int = 0) -> str:
    return call(folder, "-m", "gradlens", *arguments, code=code)


@pytest.fixture(scope="module")
def pages(extended: Path) -> None:
    """Write the report in every form and language."""
    command(extended, "report", "-o", "page.html", "-o", "page.md", "-o", "page.pdf")
    command(extended, "report", "-o", "halaman.md", "--lang", "id")


@pytest.mark.slow
def test_the_copy_is_what_runs(extended: Path) -> None:
    assert Path(call(extended, "-c", "import gradlens; print(gradlens.__file__)").strip()).is_relative_to(extended)


@pytest.mark.slow
def test_a_finding_is_a_file_and_a_line(extended: Path, pages: None) -> None:
    said = "lr goes from 0.1 to 2.0"
    (facts,) = json.loads(command(extended, "diagnose", "--format", "json"))
    assert [finding["evidence"] for finding in facts["findings"] if finding["kind"] == "rising"] == [said]
    assert said in " ".join(command(extended, "diagnose").split())
    summary = json.loads(command(extended, "summary", "--format", "json"))
    assert "rising" in [finding["kind"] for finding in summary["diagnosis"]["findings"]]
    assert "rising" in command(extended, "summary")
    assert "the learning rate rises" in command(extended, "diagnose", "--help")
    assert 'name="rising"' in command(extended, "diagnose", "--format", "junit")
    command(extended, "diagnose", "--fail-on", "rising", code=3)
    assert said in (extended / "page.html").read_text(encoding="utf-8")
    assert said in (extended / "page.md").read_text(encoding="utf-8")
    assert "laju pembelajaran naik" in (extended / "halaman.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_quotient_of_metrics_is_a_line(extended: Path, pages: None) -> None:
    with h5py.File(extended / "runs" / "new-s0.h5") as file:
        new, above, below = (
            file[f"metric/{name}"][:] for name in ("out_over_param", "activation_grad_norm", "param_grad_norm")
        )
    assert new.shape == (20, 3)
    np.testing.assert_allclose(new, above / below, rtol=1e-6)
    summary = json.loads(command(extended, "summary", "--format", "json"))
    assert all(row["out_over_param"] > 0 for row in summary["layers"])
    for drawing in ("heatmap", "profile"):
        command(extended, drawing, "--metric", "out_over_param", "-o", f"{drawing}.png")
        assert (extended / f"{drawing}.png").stat().st_size > 1000
    assert "out_over_param" in command(extended, "export", "-o", "-").splitlines()[0]
    assert "out_over_param" in (extended / "page.html").read_text(encoding="utf-8")
    assert "out_over_param" in command(extended, "run", "--help")


@pytest.mark.slow
def test_a_measured_metric_is_a_file_and_a_line(extended: Path) -> None:
    largest = gradlens.read_run(extended / "runs" / "new-s0.h5").metric("largest_weight")
    expected = np.loadtxt(extended / "weights.txt")
    np.testing.assert_allclose(largest[::2], expected[::2], rtol=1e-6)
    assert np.isnan(largest[1::2]).all()
    summary = json.loads(command(extended, "summary", "--format", "json"))
    assert all(row["largest_weight"] > 0 for row in summary["layers"])
    command(extended, "heatmap", "--metric", "largest_weight", "-o", "largest.png")
    assert (extended / "largest.png").stat().st_size > 1000
    assert "largest_weight" in command(extended, "run", "--help")


@pytest.mark.slow
def test_a_command_is_a_file_and_a_line(extended: Path) -> None:
    assert command(extended, "rows") == command(extended, "rows", "runs/new-s0.h5") == "new-s0: 20\n"
    assert "Print the number of rows" in command(extended, "--help")
    command(extended, "rows", "nothing.h5", code=1)


@pytest.mark.slow
def test_a_figure_is_a_file_and_a_line(extended: Path, pages: None) -> None:
    text = (extended / "page.md").read_text(encoding="utf-8")
    assert "### Learning rate over steps\n\n![Learning rate over steps](page-rates.png)\n\nA line per run." in text
    assert (extended / "page-rates.png").stat().st_size > 1000
    facts = json.loads((extended / "page-rates.json").read_text(encoding="utf-8"))
    assert facts["caption"] == "The learning rate rises."
    assert "### Laju pembelajaran" in (extended / "halaman.md").read_text(encoding="utf-8")


def test_every_kind_on_its_own_has_its_file() -> None:
    from gradlens.diagnosis.diagnose import rule_of
    from gradlens.diagnosis.kinds import REGISTRY

    for kind in REGISTRY:
        if kind.on_its_own:
            assert rule_of(kind).__name__ == kind.name
