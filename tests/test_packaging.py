"""What is installed is the whole instrument: the wheel is built, installed, and used from an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from gradlens._version import __version__
from tests.processes import PATIENCE

ROOT = Path(__file__).parent.parent


def call(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(one) for one in arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
        env=clean,
    )


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and the source archive."""
    pytest.importorskip("hatchling", reason="builds them; it is among the extras of dev")
    folder = tmp_path_factory.mktemp("dist")
    built = call(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.slow
def test_an_index_would_accept_both(dist: Path) -> None:
    pytest.importorskip("twine", reason="checks them; it is among the extras of dev")
    files = sorted(dist.iterdir())
    assert [file.suffix for file in files] == [".whl", ".gz"]
    checked = call(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=dist)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
def test_the_wheel_holds_the_experiments_and_runs_them_by_name(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for file in (ROOT / "experiments").glob("*.toml"):
            assert archive.read(f"gradlens/study/experiments/{file.name}") == file.read_bytes()
        assert {"gradlens/report/page.css", "gradlens/skill.md"} <= set(archive.namelist())
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    installed = call(binaries / "python", "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    own = Path(call(binaries / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))",
                    cwd=tmp_path).stdout.strip())  # fmt: skip
    places = [sysconfig.get_path("purelib"), *(line for line in sys.path if line.endswith("site-packages"))]
    (own / "dependencies.pth").write_text("\n".join(dict.fromkeys(places)), encoding="utf-8")  # after its own packages
    empty = tmp_path / "empty"
    empty.mkdir()
    where = call(binaries / "python", "-c", "import gradlens; print(gradlens.__file__)", cwd=empty)
    assert Path(where.stdout.strip()).is_relative_to(own), where.stdout + where.stderr
    code = (
        "from gradlens.studies import experiments; from gradlens.experiment import read_experiment;"
        "print(*(f'{n}:{len(read_experiment(p).groups)}' for n, p in experiments().items()))"
    )
    found = call(binaries / "python", "-c", code, cwd=empty)
    expected = {path.stem: path.read_text("utf-8").count("[group.") for path in (ROOT / "experiments").glob("*.toml")}
    assert dict(one.split(":") for one in found.stdout.split()) == {n: str(g) for n, g in expected.items()}, (
        found.stderr
    )
    refused = call(binaries / "gradlens", "run", "full", "--live", cwd=empty)
    assert "--live shows one training, and an experiment has many" in " ".join(refused.stderr.split()), refused.stderr
    nonsense = call(binaries / "gradlens", "run", "nonsense", cwd=empty)
    assert nonsense.returncode == 2
    names = "cause, collapse, controls, depth, full, interventions, norm, report, rescaled, sgd"
    assert f"or an experiment: {names}" in " ".join(nonsense.stderr.split())


@pytest.mark.slow
def test_the_source_archive_holds_the_manual_and_what_its_tests_read(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    texts = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "LICENSE"}
    assert held >= {*pages, *texts, "docs/site/build.py", "tests/test_public.py", ".ci/run", "figures/story.json"}


def test_the_version_is_the_same_everywhere() -> None:
    changes, citation = ((ROOT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "CITATION.cff"))
    version, date = re.findall(r"^## (\S+), (\S+?)(?:,|$)", changes, flags=re.M)[0]
    assert version == __version__
    assert dict(re.findall(r"^(version|date-released): (\S+)$", citation, flags=re.M)) == {
        "version": version, "date-released": date,
    }  # fmt: skip
