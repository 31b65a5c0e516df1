"""The JSON of a diagnosis: its keys are stable, documented, and the same as in the golden file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gradlens import Diagnosis, diagnose_arrays
from gradlens.cli import cli, run_command
from gradlens.diagnosis.explanations import EXPLANATIONS
from gradlens.diagnosis.findings import Verdict
from gradlens.diagnosis.kinds import KINDS
from gradlens.diagnosis.learning import Learning
from gradlens.format import to_json
from tests.diagnosis.recordings import LAYERS, arrays, facts, state

GOLDEN = Path(__file__).parent / "golden" / "diagnoses.json"
PAGE = (Path(__file__).parents[2] / "docs" / "diagnosis.md").read_text(encoding="utf-8")


def examples() -> list[Diagnosis]:
    """Return a healthy run, one with an exact cause and a note, one with a threshold, and one that is undecided."""
    layers = [f"layer{i + 1}" for i in range(LAYERS)]
    frozen = state(layers[:1], requires_grad=False, optimizer=None, gradient="none", seen=["none"])
    cleared = facts(parameters=[frozen, state(layers[1:], gradient="cleared", seen=["cleared"])])
    falls = {"loss": np.geomspace(2.0, 0.2, 60)}
    return [
        diagnose_arrays(arrays(noise=0.0), scalars=falls, facts=facts()),
        diagnose_arrays(arrays(noise=0.0), scalars=falls, facts=cleared),
        diagnose_arrays(arrays(-6, noise=0.0), scalars={"loss": np.full(60, 2.0)}),
        diagnose_arrays({name: values[:4] for name, values in arrays(noise=0.0).items()}),
    ]


def test_the_json_is_that_of_the_golden_file() -> None:
    """A key that changes its meaning or goes needs a new number of the schema; write the file anew on purpose."""
    found = json.loads(to_json([diagnosis.to_dict() for diagnosis in examples()]))
    assert found == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_every_key_is_in_the_page() -> None:
    documented = set(re.findall(r"`(\w+)`", PAGE))
    for item in json.loads(GOLDEN.read_text(encoding="utf-8")):
        assert set(item) <= documented
        for finding in item["findings"]:
            assert set(finding) <= documented
    assert set(KINDS) <= documented


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_explained(kind: str) -> None:
    said = CliRunner().invoke(cli, ["diagnose", "--explain", kind]).output
    assert said.startswith(f"{kind}: ")
    assert "measured: " in said
    assert "source: " in said
    assert all(remedy in said for _, remedy in EXPLANATIONS[kind].remedies)
    assert all(len(line) <= 120 for line in said.splitlines())


@pytest.mark.parametrize(("verdict", "code"), [("no", 3), ("unknown", 0), ("yes", 0)])
def test_a_model_that_does_not_learn_fells_the_gate(
    make_run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verdict: Verdict, code: int
) -> None:
    make_run("net", decades=0.0)
    monkeypatch.setattr("gradlens.diagnosis.diagnose.judge_learning", lambda rec: Learning(verdict, "a reason"))
    assert run_command(["diagnose", "net", "--fail-on", "learning"]) == code
    out, err = capsys.readouterr()
    assert ("net does not learn" in err) == (code == 3)
    assert f"learn {verdict}: a reason" in out
    assert ("plateau" in out) == (code == 3)
