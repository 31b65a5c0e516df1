"""torch.compile: what is recorded is right, and a note says what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from gradlens.errors import GradlensWarning
from gradlens.recorder import Recorder
from gradlens.sinks import ListSink
from tests.processes import some_slow
from tests.recorder.case import GRADIENTS_AND_WEIGHTS
from tests.recorder.compile_ways import WAYS, Net, Outcome, Session, Way, inputs, run_way

BOUND = {"eager": 1e-5, "aot_eager": 1e-5, "inductor": 1e-4}
QUICK = ("torch.compile(model)", "compiled optimizer step, eager model", "fullgraph=True")
ONLY_IN_THE_MATRIX = ("compiled autograd, eager model", "the whole step and compiled autograd")
"""Very slow, and much like others; see experiments/compile/matrix.py."""
OF_INDUCTOR = (
    "torch.compile(model)",
    "model.compile()",
    "a compiled submodule",
    "compiled optimizer step",
    "called before the recorder",
    "a compiled function, called before",
    "fullgraph=True",
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
]
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def _fresh(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(Path(tmp_path_factory.getbasetemp()) / "inductor"))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_right_or_noted(outcome: Outcome, way: Way, bound: float) -> None:
    assert outcome.sink.status == "complete"
    assert len(outcome.sink.rows) == len(outcome.truths)
    for metric, error in outcome.errors.items():
        assert error < bound, metric
    missing = {metric for metric, count in outcome.missing.items() if count}
    assert missing <= set(way.missing)
    if missing:
        assert any("activation_grad_norm is missing" in text for text in outcome.said)
    else:
        assert outcome.said == list(way.notes)


@pytest.mark.parametrize("name", some_slow(QUICK, 2))
def test_quick_ways(name: str) -> None:
    assert_right_or_noted(run_way(WAYS[name], "eager"), WAYS[name], BOUND["eager"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WAYS if name not in ONLY_IN_THE_MATRIX])
def test_every_way(name: str) -> None:
    assert_right_or_noted(run_way(WAYS[name], "aot_eager"), WAYS[name], BOUND["aot_eager"])


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", OF_INDUCTOR)
def test_ways_with_inductor(name: str) -> None:
    assert_right_or_noted(run_way(WAYS[name], "inductor"), WAYS[name], BOUND["inductor"])


def start(backend: str) -> tuple[Session, torch.optim.Optimizer]:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    compiled = torch.compile(net, backend=backend)
    return Session(backend, net, optimizer, compiled, optimizer.step, compiled), optimizer  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_skipped_step_under_compiled_autograd_has_a_note() -> None:
    session, optimizer = start("eager")
    scaler, sink = torch.amp.GradScaler("cpu", init_scale=4.0), ListSink()
    with Recorder(session.recorded, sink, optimizer=optimizer, scaler=scaler) as recorder:
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            scaler.scale(session.call(inputs(0)).sum()).backward()
        with pytest.warns(GradlensWarning, match="a step that the GradScaler skips is merged into the next row"):
            scaler.step(optimizer)
        scaler.update()
        assert len(recorder.notes) == 1


@pytest.mark.parametrize("function", some_slow([False, True]), ids=["a model", "a function"])
def test_after_the_recorder_the_code_is_whole_again(function: bool) -> None:
    session, optimizer = start("eager")
    if function:
        net = session.net
        session.recorded, session.call = net, torch.compile(lambda x: net(x), backend="eager")
    else:
        session.train_step(0)
    with Recorder(session.recorded, ListSink(), optimizer=optimizer, metrics=GRADIENTS_AND_WEIGHTS):
        session.train_step(1)
        session.train_step(2)
    assert all(not module._forward_hooks for module in session.net.modules())
    assert all("_compiled_call_impl" not in vars(module) for module in session.net.modules())
    counters.clear()
    session.train_step(3)
    session.train_step(4)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_an_interval_causes_no_recompilation() -> None:
    session, optimizer = start("eager")
    sink = ListSink()
    with Recorder(session.recorded, sink, optimizer=optimizer, metrics=GRADIENTS_AND_WEIGHTS, every=3):
        for step in range(4):
            session.train_step(step)
        graphs = counters["stats"]["unique_graphs"]
        for step in range(4, 11):
            session.train_step(step)
        assert counters["stats"]["unique_graphs"] == graphs
    assert [row.step for row in sink.rows] == [0, 3, 6, 9]
