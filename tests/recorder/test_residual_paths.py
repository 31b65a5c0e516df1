"""The two addends of the gradient at a residual block's input, against float64 autograd on copies with probes."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck

from gradlens import read_run
from gradlens.errors import ConfigError
from gradlens.metrics import DEFAULT_METRICS, METRICS, METRICS_OF_PATHS
from gradlens.models import build_model
from gradlens.models.blocks import Block
from gradlens.recorder import Recorder
from gradlens.recorder.measurers.residual_paths import find_blocks
from gradlens.sinks import ListSink
from tests.processes import PATIENCE
from tests.recorder import residual_paths_ranks
from tests.recorder.case import rand

ALL = (*DEFAULT_METRICS, *METRICS_OF_PATHS)
ROOT = Path(__file__).parents[2]
Step = Callable[[nn.Module, int], None]


@pytest.fixture(autouse=True)
def every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in METRICS_OF_PATHS:
        monkeypatch.setitem(METRICS, name, replace(METRICS[name], every=1))


def record(model: nn.Module, step: Step, *, steps: int = 2, **options: Any) -> tuple[ListSink, list[nn.Module]]:
    """Train and record; the first row is taken by other hooks than the later ones; copies before each step."""
    sink, copies = ListSink(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with Recorder(model, sink, optimizer=optimizer, **{"metrics": ALL, "on_error": "raise", **options}):
        for i in range(steps):
            copies.append(copy.deepcopy(model))
            optimizer.zero_grad()
            step(model, i)
            optimizer.step()
    return sink, copies


def images(step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return rand(4, 3, 32, 32, seed=step).to(dtype)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return functional.cross_entropy(model(x), torch.arange(len(x)) % 3)


def train(model: nn.Module, step: int) -> None:
    loss_of(model, images(step, next(model.parameters()).dtype)).backward()


class Probes:
    """Gives each use of a block's input a zero of its own, whose gradient is what comes back of that use."""

    def __init__(self, model: nn.Module) -> None:
        self.found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        names = {id(module): name for name, module in model.named_modules()}
        for block in [m for m in model.modules() if isinstance(m, Block | BasicBlock | Bottleneck)]:
            if getattr(block, "residual", True):
                self.put(f"{names[id(block)]}.conv1", block)

    def put(self, name: str, block: Any) -> None:
        mine, inner = self.found.setdefault(name, []), block.forward

        def forward(x: Tensor) -> Tensor:
            branch = torch.zeros_like(x, requires_grad=True)
            shortcut = torch.zeros_like(x, requires_grad=True)
            mine.append((branch, shortcut))
            hooked = block.conv1.register_forward_pre_hook(lambda m, args: (args[0] - shortcut + branch,))
            out = inner(x + shortcut)  # everything reads this, and the first convolution has it put right
            hooked.remove()
            return out

        block.forward = forward

    def values(self, names: list[str], scale: float = 1.0) -> dict[str, np.ndarray]:
        """Return metric to (L,)."""
        table = {metric: np.full(len(names), np.nan) for metric in METRICS_OF_PATHS}
        for name, uses in self.found.items():
            zero = [(torch.zeros(1), torch.zeros(1))]
            uses = [(b, s) for b, s in uses if b.grad is not None] or zero
            branch = np.concatenate([b.grad.double().numpy().ravel() for b, _ in uses]) / scale
            # the shortcut's probe is taken off again before the convolution, so its gradient is the shortcut's alone
            shortcut = np.concatenate(
                [(np.zeros(b.shape) if s.grad is None else s.grad.double().numpy()).ravel() for b, s in uses]
            )
            shortcut = shortcut / scale
            sizes = float(np.linalg.norm(shortcut)), float(np.linalg.norm(branch))
            product = float(shortcut @ branch)
            i = names.index(name)
            table["shortcut_grad_norm"][i], table["branch_grad_norm"][i] = sizes
            table["path_cosine"][i] = product / sizes[0] / sizes[1] if sizes[0] and sizes[1] else np.nan
        return table


def names(sink: ListSink) -> list[str]:
    assert sink.header is not None
    return [layer.name for layer in sink.header.layers]


def assert_true(sink: ListSink, row: int, truth: dict[str, np.ndarray], tolerance: float = 1e-6) -> None:
    for metric, expected in truth.items():
        found = sink.rows[row].metrics[metric]
        absolute = tolerance if metric == "path_cosine" else 0
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=absolute, err_msg=metric)


NETS = {
    "identity and A": lambda: build_model("resnet20", num_classes=3),
    "B": lambda: build_model("resnet20", num_classes=3, shortcut="B"),
    "B without norm": lambda: build_model("resnet20-nobn", num_classes=3, shortcut="B"),
    "ImageNet stem": lambda: build_model("resnet18", num_classes=3),
    "sigmoid": lambda: build_model("resnet20-nobn-sigmoid", num_classes=3),
    "gradient only": lambda: build_model("resnet20-gradonly", num_classes=3),
    "gradient only, B": lambda: build_model("resnet20-gradonly-nobn", num_classes=3, shortcut="B"),
    "torchvision's BasicBlock": lambda: models.resnet18(num_classes=3),
    "torchvision's Bottleneck": lambda: models.resnet50(num_classes=3),
}


LARGE = ("ImageNet stem", "torchvision's Bottleneck", "sigmoid", "gradient only, B")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in LARGE)) for kind in NETS])
def test_both_addends_in_float64(kind: str) -> None:
    torch.manual_seed(0)
    sink, copies = record(NETS[kind]().double(), train)
    for i, model in enumerate(copies):
        probes = Probes(model)
        train(model, i)
        truth = probes.values(names(sink))
        assert np.isfinite(truth["path_cosine"]).sum() == len(find_blocks(model)) > 7
        assert_true(sink, i, truth, 1e-6)


@pytest.mark.parametrize("kind", ["identity and A", "B", "torchvision's BasicBlock"])
def test_both_addends_in_float32_are_those_that_autograd_adds(kind: str) -> None:
    torch.manual_seed(0)
    sink, copies = record(NETS[kind](), train, steps=1)
    uses = Uses(copies[0])
    train(copies[0], 0)
    assert_true(sink, 0, uses.values(names(sink)))


class Uses(Probes):
    """The same for float32, where adding a zero and taking it off again would round: x is used as two views."""

    def put(self, name: str, block: Any) -> None:
        mine, inner = self.found.setdefault(name, []), block.forward

        def forward(x: Tensor) -> Tensor:
            branch, shortcut = x.view_as(x), x.view_as(x)
            branch.retain_grad()
            shortcut.retain_grad()
            mine.append((branch, shortcut))
            hooked = block.conv1.register_forward_pre_hook(lambda m, args: (branch,))
            out = inner(shortcut)
            hooked.remove()
            return out

        block.forward = forward


@pytest.mark.parametrize("option", ["A", "B"])
def test_a_shortcut_that_passes_no_gradient_on_has_exactly_0(option: str) -> None:
    model = build_model("resnet20-valueonly", num_classes=3, shortcut=option)
    sink, copies = record(model, train, steps=1)
    row = sink.rows[0].metrics
    blocks = [name.endswith("conv1") and "layer" in name for name in names(sink)]
    assert (row["shortcut_grad_norm"][blocks] == 0).all()
    assert (row["branch_grad_norm"][blocks] > 0).all()
    assert np.isnan(row["path_cosine"]).all()
    assert np.isnan(row["branch_grad_norm"][~np.array(blocks)]).all()
    uses = Uses(copies[0])
    train(copies[0], 0)
    np.testing.assert_allclose(row["branch_grad_norm"], uses.values(names(sink))["branch_grad_norm"], rtol=1e-6)


def test_the_addends_are_those_of_the_whole_gradient() -> None:
    """|s + b|^2 = |s|^2 + |b|^2 + 2 cos |s| |b|: the next layer down has that gradient, behind its ReLU."""
    sink, copies = record(build_model("resnet20", num_classes=3).double(), train, steps=1)
    whole: dict[str, float] = {}
    for name, module in copies[0].named_modules():
        if isinstance(module, Block):
            module.register_forward_pre_hook(
                lambda m, args, n=name: args[0].register_hook(lambda g: whole.update({n: float(g.norm())})) and None
            )
    train(copies[0], 0)
    row = sink.rows[0].metrics
    for name, expected in whole.items():
        i = names(sink).index(f"{name}.conv1")
        s, b, c = (row[metric][i] for metric in METRICS_OF_PATHS)
        assert np.sqrt(s**2 + b**2 + 2 * c * s * b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scaled", [False, True])
def test_micro_batches_count_as_one_larger_batch_and_the_scale_is_taken_off(scaled: bool) -> None:
    model = build_model("resnet8-nobn", num_classes=3)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    sink, copies = ListSink(), []
    with Recorder(model, sink, optimizer=optimizer, metrics=ALL, scaler=scaler, on_error="raise"):
        for i in range(2):
            copies.append(copy.deepcopy(model))
            optimizer.zero_grad()
            for part in range(3):
                loss = loss_of(model, images(10 * i + part)) / 3
                (scaler.scale(loss) if scaler else loss).backward()
                with torch.no_grad():
                    model(images(99))
                model(images(98))  # a forward pass that no gradient comes back through
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
    for i, before in enumerate(copies):
        uses = Uses(before)
        for part in range(3):
            (loss_of(before, images(10 * i + part)) / 3).backward()
        assert_true(sink, i, uses.values(names(sink)), 2e-6)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.stem = nn.Conv2d(3, 8, 3)
        self.first = Block(8, 8, shortcut="A", norm=False)
        self.second = Block(8, 16, 2, shortcut="A", norm=False)
        self.head = nn.Linear(16, 3)
        self.off = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in (self.first, self.second):
            x = block(x) if self.off else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_block_counts_once(reentrant: bool) -> None:
    sink, copies = record(Checkpointed(reentrant), train)
    for i, model in enumerate(copies):
        model.off = True
        uses = Uses(model)
        train(model, i)
        assert_true(sink, i, uses.values(names(sink)))


def test_passes_that_reach_no_parameter_do_not_count() -> None:
    def step(model: nn.Module, i: int) -> None:
        x = images(i).requires_grad_()
        torch.autograd.grad(model(5 * x).square().sum(), x)
        loss_of(model, x.detach()).backward()

    sink, _ = record(build_model("resnet8-nobn", num_classes=3), step)
    alone, _ = record(build_model("resnet8-nobn", num_classes=3), train)
    for metric in METRICS_OF_PATHS:
        np.testing.assert_allclose(sink.metric(metric), alone.metric(metric), rtol=1e-6)


def test_two_passes_through_one_graph_add_up() -> None:
    def step(model: nn.Module, i: int) -> None:
        loss = loss_of(model, images(i))
        loss.backward(retain_graph=True)
        loss.backward()

    sink, _ = record(build_model("resnet8", num_classes=3), step, steps=1)
    once, _ = record(build_model("resnet8", num_classes=3), train, steps=1)
    for metric, factor in zip(METRICS_OF_PATHS, (2**0.5, 2**0.5, 1), strict=True):
        np.testing.assert_allclose(sink.metric(metric), factor * once.metric(metric), rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("identity and A", None),
        pytest.param("identity and A", torch.bfloat16, marks=pytest.mark.slow),
        ("B", None),
        pytest.param("torchvision's BasicBlock", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_training_is_bit_identical_to_training_without(kind: str, precision: torch.dtype | None) -> None:
    def step(model: nn.Module, i: int) -> None:
        with torch.autocast("cpu", precision, enabled=precision is not None):
            loss = loss_of(model, images(i))
        loss.backward()

    torch.manual_seed(0)
    model = NETS[kind]()
    bare = copy.deepcopy(model)
    record(model, step)
    optimizer = torch.optim.SGD(bare.parameters(), 0.01)
    for i in range(2):
        optimizer.zero_grad()
        step(bare, i)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), bare.state_dict().values(), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_in_low_precision_the_norms_are_those_of_the_gradients_as_they_are() -> None:
    def step(model: nn.Module, i: int) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, images(i))
        loss.backward()

    sink, copies = record(build_model("resnet8", num_classes=3, shortcut="B"), step, steps=1)
    uses = Uses(copies[0])
    step(copies[0], 0)
    assert_true(sink, 0, uses.values(names(sink)))


def test_tiny_gradients_have_a_norm_and_a_cosine() -> None:
    sink, copies = record(
        build_model("resnet8-nobn", num_classes=3), lambda m, i: (1e-25 * loss_of(m, images(i))).backward(), steps=1
    )
    uses = Uses(copies[0])
    loss_of(copies[0], images(0)).backward()
    truth = uses.values(names(sink), 1e25)
    assert (truth["branch_grad_norm"][~np.isnan(truth["branch_grad_norm"])] < 1e-20).all()
    assert_true(sink, 0, truth, 1e-5)


def test_a_plain_model_a_frozen_start_and_an_unusual_block_have_none() -> None:
    assert find_blocks(build_model("plain20", num_classes=3)) == []
    sink, _ = record(build_model("plain8", num_classes=3), train, steps=1)
    assert all(np.isnan(sink.metric(metric)).all() for metric in METRICS_OF_PATHS)

    model = build_model("resnet8", num_classes=3)
    model.conv1.requires_grad_(False)
    model.bn1.requires_grad_(False)
    sink, _ = record(model, train, steps=1)
    known = dict(zip(names(sink), np.isfinite(sink.metric("path_cosine")[0]), strict=True))
    assert {name for name, there in known.items() if there} == {"layer2.0.conv1", "layer3.0.conv1"}

    class Before(BasicBlock):  # its first convolution does not read the block's own input
        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv2(self.conv1(self.relu(self.bn1(x))))

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Before(8, 8), nn.Flatten(), nn.LazyLinear(3))
    model(images(0))
    sink, _ = record(model, train, steps=1)
    assert np.isnan(sink.metric("path_cosine")).all()


def test_hooks_are_placed_only_in_rows_with_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in METRICS_OF_PATHS:
        monkeypatch.setitem(METRICS, name, replace(METRICS[name], every=2))
    hooked: list[int] = []

    def step(model: nn.Module, i: int) -> None:
        hooked.append(len(model.layer1[0]._forward_hooks))
        train(model, i)

    sink, _ = record(build_model("resnet8", num_classes=3), step, steps=4)
    assert hooked == [1, 0, 1, 0]
    assert [row.step for row in sink.rows if "path_cosine" in row.metrics] == [0, 2]
    off, _ = record(build_model("resnet8", num_classes=3), step, metrics=DEFAULT_METRICS)
    assert hooked[4:] == [0, 0]
    assert not set(off.rows[0].metrics) & set(METRICS_OF_PATHS)


def test_the_cosine_alone_brings_no_other_metric() -> None:
    both, _ = record(build_model("resnet8", num_classes=3), train)
    sink, _ = record(build_model("resnet8", num_classes=3), train, metrics=["path_cosine"])
    np.testing.assert_array_equal(sink.metric("path_cosine"), both.metric("path_cosine"))
    assert set(sink.rows[0].metrics) == {"path_cosine"}


@pytest.mark.slow
def test_two_ranks_record_what_one_process_records_of_the_whole_batch(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.recorder.residual_paths_ranks", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in residual_paths_ranks.NETS:
        residual_paths_ranks.train(build_model(name, num_classes=3), tmp_path / f"{name}-alone.h5")
        whole, got = (read_run(tmp_path / f"{name}{end}.h5") for end in ("-alone", ""))
        for metric in METRICS_OF_PATHS:
            np.testing.assert_allclose(got.metric(metric), whole.metric(metric), rtol=1e-5, atol=1e-6)
        blocks = 3 * residual_paths_ranks.STEPS
        assert np.isfinite(got.metric("path_cosine")).sum() == (0 if "valueonly" in name else blocks)
        assert (got.metric("shortcut_grad_norm") == 0).sum() == (blocks if "valueonly" in name else 0)


def test_there_is_no_root_mean_square_of_them() -> None:
    from gradlens.analysis.profile import element_scale

    with pytest.raises(ConfigError, match="is a norm at the input of a residual block"):
        element_scale(None, "branch_grad_norm")  # type: ignore[arg-type]
