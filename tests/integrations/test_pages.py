"""The example on each page of docs/integrations runs as it is printed, and every integration has a page."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import gradlens
from tests.integrations.reference import ONLY_OURS

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "integrations").glob("*.md"))
NEEDS = {"README": "tensorboard"}
pytestmark = ONLY_OURS


def test_every_integration_has_a_page_and_an_extra() -> None:
    modules = {path.stem for path in (ROOT / "gradlens" / "integrations").glob("*.py")}
    frameworks = modules - {"__init__", "framework_recording", "run_paths", "trackers"}
    assert {page.stem for page in PAGES} == {*frameworks, "README"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {*frameworks, "wandb", "trackio", "mlflow", "tensorboard"} <= extras.keys()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "ultralytics"], ids=lambda page: page.stem)
def test_the_example_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = NEEDS.get(page.stem, page.stem)
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    code = re.search(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert code is not None
    given: dict[str, Any] = {"__name__": "example"}
    exec(compile(code.group(1), page.name, "exec"), given)
    run = gradlens.read_run(next(iter(Path("runs").glob("*.h5"))))
    assert run.status == "complete"
    assert len(run.steps) >= 6
    assert (run.scalars["loss"] == run.scalars["loss"]).any()
    named = re.findall(r"# (runs/\S+\.h5)", code.group(1))
    assert all(Path(name).exists() for name in named)
