"""The rules of the house: imports point downwards, heavy packages stay in their rooms, commands start fast."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradlens
from gradlens.metrics import SHOWN_METRICS
from tests.processes import some_slow

PACKAGE = Path(gradlens.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS: list[set[str]] = [
    {"_version", "errors", "lazy"},
    {"atomic", "format"},
    {"row_chunks", "metrics", "specs", "launch", "provenance"},
    {"run", "config", "engine_settings"},
    {"sinks", "events", "experiment"},
    {"storage"},
    {"analysis"},
    {"theory", "export", "recorder", "models", "data"},
    {"diagnosis", "train"},
    {"charts", "study", "engines", "probe"},
    {"plots", "studies", "run_summary"},
    {"terminal", "notebook", "report", "integrations"},
    {"api"},
    {""},
    {"cli"},
    {"__main__"},
]
"""The rooms of the house, from the ground up; a module imports from its own room and from floors below."""
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
UPWARDS_BY_STRING = {("gradlens.lazy", "gradlens.notebook")}
"""Classes show themselves in a notebook through a module above them, which is looked up by name when it is needed."""
VIEW_WING = {
    "analysis", "theory", "diagnosis", "charts", "plots", "terminal", "export", "report", "study", "studies",
    "run_summary", "notebook", "api",
}  # fmt: skip
HOMES = {
    "torch": {"recorder", "models", "data", "train", "probe", "integrations"},
    "torchvision": {"models", "data"},
    "matplotlib": {"plots"},
    "rich": {"terminal"},
    "h5py": {"storage"},
    "click": {"cli"},
    "pyarrow": {"export"},
    "tensorboard": {"export"},
    "docx": {"report"},
    "scipy": set(),  # a second truth for tests alone
}
OPTIONAL = {"docx", "pyarrow", "tensorboard"}


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


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def arrows(path: Path) -> set[str]:
    """Return what a file imports of the package: at its top, inside functions, for types only, or by a string."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import, which no check here would see"
            found |= {full if (full := f"{node.module}.{a.name}") in MODULES else str(node.module) for a in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value if "." in node.value else "")
    return (found & MODULES.keys()) - {module_name(path)}


class Arrows(dict[str, set[str]]):
    """The imports of each module, read when they are asked for: every process of the tests collects this file."""

    def __missing__(self, module: str) -> set[str]:
        self[module] = arrows(MODULES[module])
        return self[module]


ARROWS = Arrows()


def room_of(module: str) -> str:
    return [*module.split("."), ""][1]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards_only(module: str) -> None:
    here = room_of(module)
    for target in ARROWS[module]:
        there = room_of(target)
        if there != here and (module, target) not in UPWARDS_BY_STRING:
            assert FLOOR[there] < FLOOR[here], f"{module} imports {target}: not from a lower floor"


def test_the_arrow_by_string_is_there_and_the_only_one() -> None:
    up = {(a, b) for a in MODULES for b in ARROWS[a] if FLOOR[room_of(b)] > FLOOR[room_of(a)]}
    assert up == UPWARDS_BY_STRING


def find_cycle(arrows: dict[str, set[str]]) -> list[str]:
    """Return the modules of a cycle, in order; nothing where there is none."""
    done: set[str] = set()

    def follow(module: str, way: list[str]) -> list[str]:
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return []
        for target in sorted(arrows.get(module, ())):
            if cycle := follow(target, [*way, module]):
                return cycle
        done.add(module)
        return []

    return next((cycle for module in sorted(arrows) if (cycle := follow(module, []))), [])


def test_no_cycle_anywhere() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert not find_cycle({a: {b for b in ARROWS[a] if (a, b) not in UPWARDS_BY_STRING} for a in MODULES})


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
    light = {  # knows no more than names
        "click",
        "gradlens._version",
        "gradlens.errors",
        "gradlens.format",
        "gradlens.config",
        "gradlens.diagnosis.kinds",
        "gradlens.launch",
        "gradlens.metrics",
        "gradlens.specs",
    }
    for module, at_top in imports(tree_of(path)):
        if at_top and (module.split(".")[0] in HOMES or module.startswith("gradlens")):
            assert module in light or module.startswith("gradlens.cli"), f"{path.name} imports {module} at the top"


def test_optional_packages_are_imported_inside_functions() -> None:
    for path in FILES:
        for module, at_top in imports(tree_of(path)):
            assert not (at_top and module.split(".")[0] in OPTIONAL), f"{path.name} imports {module} at the top"


def test_one_median_for_all() -> None:
    """In recorded values, NaN and infinities are treated in one way: by ``analysis.stats``."""
    found = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(r"\bnp\.(nan)?median\(", line)
    ]
    assert not found


def test_metrics_are_named_by_the_constants_of_their_table() -> None:
    """A literal would be missed where a metric gets another name, and misspelt without a sound."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.value}"
        for path in FILES
        if path != PACKAGE / "metrics.py"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in SHOWN_METRICS
    ]
    assert not found


def test_no_pyplot_anywhere() -> None:
    for path in FILES:
        assert all(module != "matplotlib.pyplot" for module, _ in imports(tree_of(path))), path


SERVER = """
import json, os, sys
for name in sys.argv[1:]:
    __import__(name)
import gradlens.cli
for line in iter(sys.stdin.readline, ""):
    folder, arguments = json.loads(line)
    child = os.fork()
    if not child:
        said = os.open(f"{folder}/said.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(folder)
        code = 99
        try:
            code = gradlens.cli.run_command(arguments)
            print("\\nLOADED", *sorted(name for name in sys.modules if "." not in name))
            sys.stdout.flush()
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
VIEWING = ("numpy", "h5py", "rich.console", "matplotlib.backends.backend_agg", "matplotlib.font_manager", "PIL.Image")
"""What commands that draw import; none of it imports torch."""


class Loading:
    """Runs commands in processes forked from one that has imported nothing but the command line, and what is given."""

    def __init__(self, *given: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, *given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def after(self, arguments: list[str], folder: Path, code: int = 0) -> set[str]:
        """Return the packages that are loaded when a command has run."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(folder), arguments]) + "\n")
        self._process.stdin.flush()
        ended = self._process.stdout.readline()
        said = (folder / "said.txt").read_text()
        assert int(ended) == code, said
        return set(said.rpartition("LOADED ")[2].split())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def light() -> Iterator[Loading]:
    started = Loading()
    yield started
    started.close()


@pytest.fixture(scope="module")
def viewing() -> Iterator[Loading]:
    started = Loading(*VIEWING)
    yield started
    started.close()


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
def test_help_imports_nothing_heavy(arguments: list[str], light: Loading, tmp_path: Path) -> None:
    heavy = {"torch", "torchvision", "numpy", "h5py", "matplotlib", "rich", "PIL", *OPTIONAL}
    loaded = light.after(arguments, tmp_path)
    assert "click" in loaded
    assert not heavy & loaded


@pytest.mark.parametrize(
    "arguments",
    some_slow(
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
        ]
    ),
    ids=" ".join,
)
def test_the_view_wing_never_imports_torch(
    arguments: list[str], light: Loading, viewing: Loading, make_run, tmp_path: Path
) -> None:
    make_run(model="plain34")
    loaded = (light if arguments[0] in ("ls", "summary") else viewing).after(arguments, tmp_path)
    assert ("numpy" in loaded) == (arguments != ["ls"])  # finished runs are listed without opening them
    assert not {"torch", "torchvision"} & loaded
    assert OPTIONAL & loaded == {"parquet": {"pyarrow"}, "tensorboard": {"tensorboard"}}.get(arguments[-1], set())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "no-such-model"], 2),
        (["run", "torchvision:nothing"], 1),
        (["run", "plain34", "--data", "folder:nowhere"], 1),
        (["run", "plain34"], 1),  # the run is there
        (["probe", "torchvision:nothing"], 1),
        (["heatmap", "no-such.h5"], 1),
        (["report", "no-such.h5"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_mistakes_are_answered_before_anything_heavy_is_imported(
    arguments: list[str], code: int, light: Loading, make_run, tmp_path: Path
) -> None:
    make_run("plain34-s0")
    heavy = {"torch", "torchvision", "matplotlib", "PIL"}
    assert not heavy & light.after(arguments, tmp_path, code)
