"""The rules of the house: imports point downwards, heavy packages stay in their rooms, commands start fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gradlens
from tests.processes import PATIENCE

PACKAGE = Path(gradlens.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    "errors": 0,
    "lazy": 0,
    "blocks": 0.5,
    "metrics": 0.5,
    "modelspec": 0.5,
    "run": 1,
    "config": 1,
    "provenance": 1,
    "probing": 2,  # speaks of runs and names
    "events": 2,  # speaks of configurations and runs
    "experiment": 2,
    "storage": 3.5,
    "jobs": 3.8,
    "analysis": 3.5,
    "recorder": 4,
    "models": 4,
    "data": 4,
    "plots": 4,
    "terminal": 4,
    "export": 4,
    "notebook": 4.5,
    "views": 4.5,
    "train": 5,
    "report": 5,
    "cli": 6,
    "": 7,
    "__main__": 7,
}
VIEW_WING = {"analysis", "plots", "terminal", "export", "report", "notebook", "views"}
HOMES = {
    "torch": {"recorder", "models", "data", "train"},
    "torchvision": {"models", "data"},
    "matplotlib": {"plots"},
    "rich": {"terminal"},
    "h5py": {"storage"},
    "click": {"cli"},
    "pyarrow": {"export"},
    "tensorboard": {"export"},
    "scipy": set(),  # a second truth for tests alone
}
OPTIONAL = {"pyarrow", "tensorboard"}


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imports(tree: ast.AST) -> list[tuple[str, bool]]:
    """List imported modules, each with whether it is at the top of the file."""
    top = set(ast.iter_child_nodes(tree))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, node in top))
    return found


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards_only(path: Path) -> None:
    here = room(path)
    for module, _ in imports(tree_of(path)):
        if module == "gradlens" or not module.startswith("gradlens."):
            continue
        there = module.split(".")[1]
        if there == here or here in ("", "__main__"):
            continue
        assert FLOORS[there] < FLOORS[here], f"{path.name} ({here}) imports {module}: not a lower floor"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_stay_in_their_rooms(path: Path) -> None:
    here = room(path)
    for module, at_top in imports(tree_of(path)):
        package = module.split(".")[0]
        if package not in HOMES or (here == "cli" and not at_top):
            continue
        in_type_checking = package == "matplotlib" and here == "cli" and not at_top
        assert here in HOMES[package] or in_type_checking, f"{path.name} ({here}) imports {module}"
        assert not (package == "torch" and here in VIEW_WING)


@pytest.mark.parametrize("path", [p for p in FILES if room(p) == "cli"], ids=lambda p: p.name)
def test_the_command_line_imports_nothing_heavy_at_the_top(path: Path) -> None:
    light = {"click", "gradlens.errors", "gradlens.config", "gradlens.metrics", "gradlens"}
    for module, at_top in imports(tree_of(path)):
        if at_top and (module.split(".")[0] in HOMES or module.startswith("gradlens")):
            assert module in light or module.startswith("gradlens.cli"), f"{path.name} imports {module} at the top"


def test_optional_packages_are_imported_inside_functions() -> None:
    for path in FILES:
        for module, at_top in imports(tree_of(path)):
            assert not (at_top and module.split(".")[0] in OPTIONAL), f"{path.name} imports {module} at the top"


def test_no_pyplot_anywhere() -> None:
    for path in FILES:
        assert all(module != "matplotlib.pyplot" for module, _ in imports(tree_of(path))), path


def test_nothing_is_public_by_accident() -> None:
    assert sorted(gradlens.__all__) == [
        "Diagnosis", "Finding", "GradlensError", "GradlensWarning", "Layer", "Recorder", "Run", "__version__",
        "all_leaves", "claims", "compare", "diagnose", "diagnose_arrays", "follow_run", "heatmap", "log_spaced",
        "profile", "read_run", "read_runs", "record", "with_norms",
    ]  # fmt: skip
    for name in gradlens.__all__:
        assert getattr(gradlens, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gradlens.nothing


def loaded_after(arguments: list[str], cwd: Path) -> set[str]:
    code = (
        "import sys, gradlens.cli as c; code = c.run_command(sys.argv[1:]);"
        "sys.stderr.write('\\nLOADED ' + ' '.join(sorted(m for m in sys.modules if '.' not in m)));"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["heatmap", "--help"],
        ["profile", "--help"],
        ["claims", "--help"],
        ["verify", "--help"],
        ["probe", "--help"],
        ["export", "--help"],
        ["report", "--help"],
        ["--version"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    heavy = {"torch", "torchvision", "numpy", "h5py", "matplotlib", "rich", "PIL", *OPTIONAL}
    assert not heavy & loaded_after(arguments, tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"],
        ["summary"],
        ["heatmap"],
        ["profile"],
        ["compare"],
        ["diagnose"],
        ["diagnose", "--format", "junit"],
        ["diagnose", "--rules", "smdebug"],
        ["claims"],
        ["summary", "--format", "json"],
        ["report"],
        ["report", "-o", "report.md"],
        ["export"],
        ["export", "--to", "parquet"],
        ["export", "--to", "tensorboard"],
    ],
    ids=" ".join,
)
def test_the_view_wing_never_imports_torch(arguments: list[str], make_run, tmp_path: Path) -> None:
    make_run(model="plain34")
    loaded = loaded_after(arguments, tmp_path)
    assert ("numpy" in loaded) == (arguments != ["ls"])  # finished runs are listed without opening them
    assert not {"torch", "torchvision"} & loaded
    assert OPTIONAL & loaded == {"parquet": {"pyarrow"}, "tensorboard": {"tensorboard"}}.get(arguments[-1], set())
