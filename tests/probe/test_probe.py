"""Test the probe against plain autograd on a float64 copy, and on models with known faults."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradlens.errors import ModelError
from gradlens.models import build_model
from gradlens.probe import measure as probing
from gradlens.probe.faults import say_parameters
from gradlens.probe.histograms import Counting, count_entries
from gradlens.probe.inputs import first_input, make_noise
from gradlens.probe.judge import Judged, judge
from gradlens.probe.losses import find_loss, find_scores
from gradlens.probe.measure import probe
from gradlens.probe.plan import BF16_NORMAL, FP16_LOST, FP16_NORMAL, Input, ProbePlan, WeightSample
from gradlens.probe.stacks import describe_stack

SMALL = Input((3, 32, 32))


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Judged]:
    """Return a function that probes the model of a factory."""

    def run(build: Callable[[], nn.Module], **options) -> Judged:
        def built(name: str, *, seed: int, **_) -> nn.Module:
            torch.manual_seed(seed)
            return build()

        monkeypatch.setattr(probing, "build_model", built)
        return judge(probe(ProbePlan("nets.py:build", **options)))

    return run


def truth(model: nn.Module, inputs: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Return gradients of layers' outputs and of parameters, and the loss, by plain autograd in float64."""
    model = copy.deepcopy(model).double().train()
    kept: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):

            def keep(m, args, out, name=name) -> Tensor:
                out.retain_grad()
                kept[name] = out
                return out.clone()  # what follows may change it in place

            module.register_forward_hook(keep)
    scores = model(inputs.double())
    labels = torch.arange(len(scores)) % scores.shape[1]
    loss = -functional.log_softmax(scores, 1)[torch.arange(len(scores)), labels].mean()
    loss.backward()
    return {n: t.grad for n, t in kept.items()}, {n: p.grad for n, p in model.named_parameters()}, loss.item()


@pytest.mark.parametrize("name", ["plain8", "plain8-nobn", "resnet8", "resnet8-nobn"])
def test_numbers_equal_plain_autograd_in_float64(name: str, one_thread: None) -> None:
    plan = ProbePlan(name, input=SMALL, batch_size=8, seeds=(3,))
    sample = probe(plan).samples[0]
    model = build_model(name, num_classes=10, seed=3)
    outputs, parameters, loss = truth(model, make_noise(plan, model)[0])
    assert sample.loss == pytest.approx(loss, rel=1e-5)
    names = [layer.name for layer in sample.run.layers]
    measured = dict(zip(names, sample.run.metric("activation_grad_norm")[0], strict=True))
    for layer, grad in outputs.items():
        assert measured[layer] == pytest.approx(grad.norm().item(), rel=1e-4)
        _same_shares(sample.outputs[layer], grad)
    _same_shares(sample.all_parameters, torch.cat([grad.flatten() for grad in parameters.values()]))
    assert sample.numel == sum(grad.numel() for grad in parameters.values())


def _same_shares(entries, grad: Tensor) -> None:
    """Compare counts with those in float64, but for entries that float32 rounds across a line."""
    sizes = grad.abs()
    assert entries.total == grad.numel()
    assert entries.nonfinite == 0
    for power in (FP16_NORMAL, FP16_LOST, BF16_NORMAL):
        below = int(((sizes < 2.0**power) & (sizes > 0)).sum())
        near = int(((sizes / 2.0**power - 1).abs() < 1e-3).sum()) + int((sizes > 0).sum()) // 1000 + 2
        assert abs(entries.below(power) - below) <= near


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_counts_of_entries_are_exact(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    powers = torch.randint(-30, 12, (5000,)).double()
    values = ((torch.rand(5000).double() + 0.5) * 2**powers * torch.randn(5000).sign()).to(dtype)
    values[:50], values[50:53] = 0, torch.tensor([math.nan, math.inf, -math.inf])
    entries = count_entries(values.reshape(50, 100).t())
    known = values.double()[torch.isfinite(values)].abs()
    assert (entries.zeros, entries.nonfinite, entries.total) == (int((known == 0).sum()), 3, 5000)
    for power in (-30, FP16_LOST, FP16_NORMAL, 0, 5):
        assert entries.below(power) == int(((known > 0) & (known < 2.0**power)).sum())
    assert 2.0 ** (entries.largest - 1) <= known.max() < 2.0**entries.largest


def test_entries_below_the_normal_range_of_float32_complex_and_sparse_ones() -> None:
    tiny = torch.tensor([1e-45, 1e-39, 2.0**-126, -(2.0**-126) * 1.5, 0.0])
    assert count_entries(tiny).below(BF16_NORMAL) == 2
    assert count_entries(tiny.double() * 1e-3).below(BF16_NORMAL) == 4
    both = count_entries(torch.complex(torch.tensor([0.0, 1e-6]), torch.tensor([1.0, 2.0])))
    assert (both.total, both.zeros, both.below(FP16_NORMAL)) == (4, 1, 1)
    values = torch.tensor([[1.0, 0.0], [1.0, 1e-9], [2.0, 3.0]])
    sparse = torch.sparse_coo_tensor(torch.tensor([[1, 1, 3]]), values, (5, 2), check_invariants=True)
    held = count_entries(sparse)
    assert (held.total, held.zeros, held.below(FP16_LOST)) == (10, 6, 1)


def test_dead_units_are_found_for_modules_functions_and_in_place_operations() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc, self.last = nn.Conv2d(1, 6, 3), nn.Linear(6, 5), nn.Linear(5, 4)
            with torch.no_grad():
                self.conv.bias[[1, 4]] = -100
                self.fc.bias[2] = -100

        def forward(self, x: Tensor) -> Tensor:
            x = functional.relu_(self.conv(x)).mean((2, 3))
            return self.last(nn.ReLU(inplace=True)(self.fc(x)))

    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.fc.bias[[0, 1, 3, 4]] = 10
        net.conv.bias[[0, 2, 3, 5]] = 10
    counting = Counting({"conv": net.conv, "fc": net.fc, "last": net.last})
    with counting:
        net(torch.randn(8, 1, 9, 9))
    assert counting.units == {"conv": (2, 6), "fc": (1, 5)}


def test_units_of_a_layer_called_twice_are_dead_if_they_are_in_both_calls() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    with Counting({"layer": layer}) as counting:
        layer(torch.tensor([[1.0, 1.0]])).relu()
        layer(torch.tensor([[-1.0, 1.0]])).relu()
    assert counting.units == {"layer": (1, 2)}


class Tied(nn.Module):
    """Tokens; the output's weights are the embedding's; one branch is never taken, one layer is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.mid, self.still = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False)
        self.branch, self.out = nn.Linear(8, 3), nn.Linear(8, 20, bias=False)
        self.out.weight = self.emb.weight

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": x.sum(), "logits": self.out(self.still(self.mid(self.emb(x)).relu()))}


def test_shared_unused_and_frozen_parameters(factory) -> None:
    judged = factory(Tied)
    sample = judged.probe.samples[0]
    assert judged.probe.plan.input == Input((32,), tokens=True, vocabulary=20)
    assert sample.shared == (("emb.weight", "out.weight"),)
    assert sample.unused == ("branch.weight", "branch.bias")
    assert sample.frozen == ("still.weight", "still.bias")
    assert sample.numel == 20 * 8 + 2 * (64 + 8) + 27
    assert sample.all_parameters.total == 20 * 8 + 72
    assert sample.scores == 20
    assert [f.kind for f in judged.findings] == ["unused"]
    assert judged.ends == ("emb", "still")
    assert np.isfinite(judged.profile[:, [0, 1, 2]]).all()


def test_the_loss_of_scores_of_known_spread() -> None:
    torch.manual_seed(0)
    scores = torch.randn(4000, 1000)
    assert find_loss(scores, None).item() == pytest.approx(math.log(1000) + 0.5, abs=0.06)
    assert find_loss(torch.zeros(6, 7), None).item() == pytest.approx(math.log(7))
    assert find_loss(torch.zeros(6, 1), None).item() == pytest.approx(math.log(2))
    assert find_loss(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])).item() == pytest.approx(math.log(3))


def test_outputs_of_other_forms() -> None:
    plan = ProbePlan("plain8")
    assert find_scores(torch.zeros(3, 5, 7), plan).shape == (15, 7)
    pictures = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    assert find_scores({"out": pictures}, plan)[1].tolist() == pictures[0, :, 0, 1].tolist()
    assert find_scores((torch.zeros(3), None), plan).shape == (3, 1)
    with pytest.raises(ModelError, match="gave a dict; expected scores"):
        find_scores({"a": 1}, plan)


def test_large_scores_are_remarked(factory) -> None:
    def build() -> nn.Module:
        net = nn.Sequential(*[nn.Linear(16, 16) for _ in range(4)], nn.Linear(16, 10))
        nn.init.normal_(net[-1].weight, std=100)
        return net

    judged = factory(build)
    assert judged.kind == "trainable"
    assert judged.loss > judged.probe.samples[0].expected_loss + 1
    assert any("nats above ln(10)" in remark for remark in judged.remarks)


def stack(activation: type[nn.Module], depth: int = 20, scale: float = 1.0, norm: bool = False) -> nn.Module:
    parts: list[nn.Module] = []
    for _ in range(depth):
        parts += [nn.Linear(64, 64), *([nn.BatchNorm1d(64)] if norm else []), activation()]
    net = nn.Sequential(*parts, nn.Linear(64, 10))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear):
                module.weight *= scale
    return net


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (lambda: stack(nn.Sigmoid), "vanishing"),
        (lambda: stack(nn.ReLU), "vanishing"),
        (lambda: stack(nn.ReLU, scale=math.sqrt(6)), "trainable"),
        (lambda: stack(nn.ReLU, norm=True), "trainable"),
        (lambda: stack(nn.Identity, scale=6), "exploding"),
        (lambda: stack(nn.ReLU, scale=1e6), "nonfinite"),
        (lambda: nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 5)), "undecided"),
    ],
)
def test_the_verdict(build: Callable[[], nn.Module], kind: str, factory) -> None:
    judged = factory(build)
    assert judged.kind == kind
    if kind in ("vanishing", "exploding", "nonfinite"):
        assert judged.findings[0].confidence == pytest.approx(4 / 5)


def test_theory_of_a_sequential_stack(factory) -> None:
    theory = factory(lambda: stack(nn.ReLU)).theory
    assert theory.predicted == pytest.approx(19 * math.log10(1 / math.sqrt(6)), rel=0.02)
    assert abs(theory.away) < 3
    assert theory.slope == pytest.approx(math.log10(1 / math.sqrt(6)), rel=0.02)
    assert factory(lambda: stack(nn.Sigmoid)).theory is None


def test_theory_of_a_convolutional_stack(factory) -> None:
    def build() -> nn.Module:
        parts: list[nn.Module] = []
        for inputs in (3, *(32,) * 7):
            parts += [nn.Conv2d(inputs, 32, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

    theory = factory(build, input=Input((3, 16, 16)), batch_size=8).theory
    assert theory.layer == "0"
    assert abs(theory.worst_away) < 3
    assert theory.measured_slope == pytest.approx(theory.slope, rel=0.1)


def test_what_is_a_stack() -> None:
    relu = {"activation": "relu", "norm": "none"}
    assert describe_stack(stack(nn.ReLU, 3)) == relu
    assert describe_stack(nn.Sequential(nn.Flatten(), nn.Sequential(stack(nn.ReLU, 3)))) == relu
    assert describe_stack(stack(nn.ReLU, 3, norm=True)) == {"activation": "relu", "norm": "batch"}
    assert describe_stack(stack(nn.Identity, 3)) == {"activation": "linear", "norm": "none"}
    conv = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    assert describe_stack(nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))) == relu
    for odd in (
        stack(nn.Sigmoid, 3),
        nn.Sequential(*conv, nn.Dropout(), nn.Flatten(), nn.Linear(8, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2)),
        Tied(),
    ):
        assert describe_stack(odd) == {}


def test_an_output_layer_of_zeros_does_not_hide_the_model(factory) -> None:
    def build() -> nn.Module:
        net = stack(nn.ReLU, 5, scale=math.sqrt(6))
        nn.init.zeros_(net[-1].weight)
        nn.init.zeros_(net[-1].bias)
        return net

    judged = factory(build)
    assert judged.kind == "trainable"
    assert judged.loss == pytest.approx(math.log(10))
    assert judged.probe.samples[0].reinitialised == "10"
    assert "are all 0" in judged.remarks[0]


def test_a_dead_layer(factory) -> None:
    def build() -> nn.Module:
        net = stack(nn.ReLU, 4)
        nn.init.constant_(net[2].bias, -100.0)
        return net

    judged = factory(build)
    assert judged.kind == "dead"
    assert judged.findings[0].layers[0] == "2"


def test_odd_models(factory) -> None:
    assert factory(lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3)), input=Input((5,))).kind
    assert factory(lambda: nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 9))).loss > 0
    logit = factory(lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)))
    assert logit.probe.samples[0].expected_loss == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: nn.Flatten(), "has no parameters: nothing to probe"),
        (lambda: nn.Linear(2, 2).requires_grad_(False), "has no parameters that want a gradient"),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)),
            r"at 1, a Linear\(.*which got \(32, 4\): RuntimeError",
        ),
    ],
)
def test_what_cannot_be_probed(build: Callable[[], nn.Module], said: str, factory) -> None:
    with pytest.raises(ModelError, match=said):
        factory(build)


def test_classes_must_fit(factory) -> None:
    with pytest.raises(ModelError, match="gives 2 scores for 7 classes"):
        factory(lambda: nn.Linear(3, 2), classes=7)


def test_random_generators_are_restored_and_nothing_is_written(tmp_path: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand()  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    probe(ProbePlan("plain8", input=SMALL, batch_size=2, seeds=(0,)))
    assert torch.equal(torch.rand(3), expected[0])
    assert np.random.rand() == expected[1]  # noqa: NPY002
    assert list(tmp_path.iterdir()) == []


def test_samples_depend_only_on_their_seed() -> None:
    def losses(*seeds: int) -> list[float]:
        return [d.loss for d in probe(ProbePlan("plain8", input=SMALL, batch_size=4, seeds=seeds)).samples]

    assert losses(0, 1)[1] == losses(1)[0] != losses(0)[0]


def test_real_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlens.data.patterns.TRAIN_IMAGES", 20)
    monkeypatch.setattr("gradlens.data.patterns.VAL_IMAGES", 10)
    plan = ProbePlan("resnet8", data="patterns", batch_size=8, seeds=(0,), input=SMALL)
    sample: WeightSample = probe(plan).samples[0]
    assert sample.scores == 5
    assert sample.run.layers[0].out_numel == 8 * 16 * 32 * 32


def test_first_inputs() -> None:
    for module, expected in (
        (nn.Conv2d(1, 2, 3), Input((1, 64, 64))),
        (nn.Conv1d(4, 2, 3), Input((4, 64))),
        (nn.Conv3d(2, 2, 3), Input((2, 16, 16, 16))),
        (nn.LSTM(7, 3), Input((32, 7))),
        (nn.ReLU(), None),
    ):
        assert first_input(nn.Sequential(module)) == expected


def test_parameters_are_named_briefly() -> None:
    assert say_parameters(["a.b.weight", "a.b.bias"]) == "a.b"
    assert say_parameters([f"aux1.c{i}.conv.weight" for i in range(9)] + ["aux1.fc.bias"]) == "aux1"
    assert say_parameters([f"m{i}.weight" for i in range(9)]) == "m0, m1, m2, m3 and 5 more"
    assert say_parameters(["scale"]) == "scale"


@pytest.mark.slow
@pytest.mark.parametrize(("init", "depth"), [("he", 18), ("he", 20), ("he", 56), ("default", 18), ("default", 20)])
@pytest.mark.parametrize("norm", ["", "-nobn"])
@pytest.mark.parametrize("family", ["plain", "resnet"])
def test_theory_holds_for_every_family(family: str, norm: str, init: str, depth: int) -> None:
    judged = judge(probe(ProbePlan(f"{family}{depth}{norm}", init=init, input=Input((3, 48, 48)))))
    theory = judged.theory
    assert theory is not None
    assert abs(theory.measured_slope - theory.slope) < 0.02 + 0.1 * abs(theory.slope)
