"""``gradlens.probe`` of modules as they are: the numbers are autograd's, and no trace is left."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from gradlens.errors import ConfigError, GradlensError, ModelError
from gradlens.probe.losses import find_loss
from gradlens.run import Run
from gradlens.terminal.probe import probe_facts


class DictOutput(nn.Module):
    """Two inputs by name, a dict as output, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(5, 6), nn.Linear(4, 6), nn.Linear(6, 2)
        self.calls = 0

    def forward(self, left: Tensor, *, right: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        self.seen = torch.tanh(self.left(left) + self.right(right))
        return {"mean": self.head(self.seen), "hidden": self.seen}


class Codes(nn.Module):
    """A frozen parameter and a buffer that the forward pass changes, one in a way that autograd does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        self.codes = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("sign", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.codes.data.mul_(0.5)
        self.sign = -self.sign
        return self.second(torch.relu_(self.first(x + self.codes)))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def stack() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))


def half_frozen() -> nn.Module:
    model = stack()
    model[0].requires_grad_(False)
    return model


def own(output: dict[str, Tensor]) -> Tensor:
    return output["mean"].square().mean()


def scores_loss(output: Tensor) -> Tensor:
    """Write down the default loss a second time."""
    rows = output.reshape(-1, output.shape[-1])
    picked = functional.log_softmax(rows, 1)[torch.arange(len(rows)), torch.arange(len(rows)) % rows.shape[1]]
    return -picked.mean()


def random_batch(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


Made = tuple[nn.Module, Any, Callable[[Any], Tensor] | None]
ZOO: dict[str, Callable[[], Made]] = {
    "stack": lambda: (stack(), random_batch(7, 6), None),
    "convolutions": lambda: (convolutions(), random_batch(4, 3, 6, 6), None),
    "eval": lambda: (convolutions().eval(), random_batch(4, 3, 6, 6), None),
    "transformer": lambda: (
        nn.Transformer(8, 2, 1, 1, 16, batch_first=True), (random_batch(3, 4, 8), random_batch(3, 5, 8)), None
    ),
    "dict output": lambda: (DictOutput(), {"left": random_batch(3, 5), "right": random_batch(3, 4)}, own),
    "frozen": lambda: (half_frozen(), random_batch(7, 6), None),
    "codes": lambda: (Codes(), (random_batch(7, 4),), None),
    "dropout": lambda: (nn.Sequential(nn.Linear(6, 9), nn.Dropout(), nn.Linear(9, 2)), random_batch(5, 6), None),
    "loss with weights": lambda: (
        stack(), random_batch(7, 6), nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 1), Mean())
    ),
}  # fmt: skip


class Mean(nn.Module):
    """The mean as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


def call(model: nn.Module, given: Any) -> Any:
    if isinstance(given, dict):
        return model(**given)
    return model(*given) if isinstance(given, tuple) else model(given)


def doubled(given: Any) -> Any:
    if isinstance(given, dict):
        return {key: value.double() for key, value in given.items()}
    return tuple(value.double() for value in given) if isinstance(given, tuple) else given.double()


def state(model: nn.Module) -> dict[str, Any]:
    """Return all that a probe must leave as it is, tensors as bytes."""

    def raw(tensor: Tensor | None) -> bytes | None:
        return None if tensor is None else tensor.detach().numpy().tobytes()

    found: dict[str, Any] = {name: raw(tensor) for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        found[f"{name}.grad"] = (id(parameter), id(parameter.grad), raw(parameter.grad), parameter.requires_grad)
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[f"{name}:{key}"] = dict(value) if isinstance(value, dict) and "hooks" in key else id(value)
    found["random"] = torch.rand(2).tolist(), np.random.rand(), random.random()  # noqa: NPY002
    return found


def seed() -> None:
    torch.manual_seed(4)
    np.random.seed(4)  # noqa: NPY002
    random.seed(4)


def with_state(model: nn.Module) -> nn.Module:
    """Give a module hooks, gradients, and modes of its own."""
    model.register_forward_hook(lambda m, args, output: None)
    for i, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        parameter.grad = torch.full_like(parameter, 3.0) if i % 2 else None
    next(model.children()).eval()
    return model


# --- numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_numbers_equal_plain_autograd_in_float64(name: str, one_thread: None) -> None:
    seed()
    model, given, loss = ZOO[name]()
    model, given = model.double(), doubled(given)
    loss = loss.double() if isinstance(loss, nn.Module) else loss
    second = copy.deepcopy(model)
    generators = torch.get_rng_state()
    judged = gradlens.probe(model, given, loss)
    torch.set_rng_state(generators)
    expected = (loss or scores_loss)(call(second, given))
    expected.backward()
    sample = judged.probe.samples[0]
    assert judged.loss == pytest.approx(expected.item(), rel=1e-12 if loss else 1e-6)
    norms = {layer.name: sample.run.metric("param_grad_norm")[0, i] for i, layer in enumerate(sample.run.layers)}
    compared = 0
    for layer, norm in norms.items():
        owner = second if layer == "(model)" else second.get_submodule(layer)
        grads = [p.grad for p in owner.parameters(recurse=False) if p.grad is not None]
        if grads:
            assert norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in grads)), rel=1e-5)
            compared += 1
    assert compared >= 2
    entries = torch.cat([p.grad.flatten() for p in second.parameters() if p.grad is not None])
    assert sample.all_parameters.total == entries.numel()
    assert sample.all_parameters.zeros == int((entries == 0).sum())
    assert sample.frozen == tuple(n for n, p in second.named_parameters() if not p.requires_grad)


def test_the_command_and_the_function_agree() -> None:
    from gradlens.models import build_model
    from gradlens.probe.inputs import make_noise
    from gradlens.probe.judge import judge
    from gradlens.probe.measure import probe
    from gradlens.probe.plan import ProbePlan, parse_input

    plan = ProbePlan("plain8", input=parse_input("3x16x16"), batch_size=4, seeds=(3,))
    model = build_model("plain8", num_classes=10, seed=3)
    told, given = judge(probe(plan)), gradlens.probe(model, make_noise(plan, model)[0])
    assert (given.ratio, given.loss, given.units) == (told.ratio, told.loss, told.units)
    assert given.kind == told.kind


# --- no trace -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_the_module_is_as_before(name: str) -> None:
    model, given, loss = ZOO[name]()
    with_state(model)
    models = [model, loss] if isinstance(loss, nn.Module) else [model]
    seed()
    before = [state(one) for one in models]
    inputs = copy.deepcopy(given)
    seed()
    first = gradlens.probe(model, given, loss)
    assert [state(one) for one in models] == before
    for a, b in zip(torch.utils._pytree.tree_leaves(given), torch.utils._pytree.tree_leaves(inputs), strict=True):
        assert torch.equal(a, b)
    assert a.grad is None
    seed()
    assert gradlens.probe(model, given, loss).loss == first.loss


@pytest.mark.parametrize("place", ["forward", "loss", "backward"])
def test_the_module_is_as_before_after_an_error(place: str) -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise ValueError("no way")

    def broken(output: Tensor) -> Tensor:
        torch.rand(3)
        return Fails.apply(output).mean() if place == "backward" else output.no_such_thing

    model = with_state(convolutions())
    given = random_batch(4, 3, 6, 6)
    if place == "forward":
        model[8] = nn.Linear(5, 3)
    seed()
    before = state(model)
    seed()
    with pytest.raises(ModelError) as caught:
        gradlens.probe(model, given, broken)
    assert state(model) == before
    assert "\n" not in str(caught.value)
    assert caught.value.tip


def test_a_graph_that_is_pending_survives() -> None:
    model = stack()
    pending = model(random_batch(7, 6)).sum()
    gradlens.probe(model, random_batch(7, 6))
    pending.backward()
    assert model[0].weight.grad is not None


def test_gradients_of_what_the_loss_uses_are_as_before() -> None:
    model, other = stack(), nn.Linear(5, 1)
    inputs = random_batch(7, 6).requires_grad_()
    gradlens.probe(model, inputs, lambda output: other(output).mean())
    assert inputs.grad is None
    assert other.weight.grad is None


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_are_measured_where_they_are_switched_off(context: Callable[[], Any]) -> None:
    model = stack()
    expected = gradlens.probe(model, random_batch(7, 6))
    with context():
        assert gradlens.probe(model, random_batch(7, 6)).ratio == expected.ratio


def test_an_output_layer_of_zeros_is_zero_afterwards() -> None:
    model = stack()
    nn.init.zeros_(model[4].weight)
    nn.init.zeros_(model[4].bias)
    judged = gradlens.probe(model, random_batch(7, 6))
    assert not model[4].weight.any()
    assert "are all 0" in judged.remarks[0]
    assert judged.loss == pytest.approx(math.log(5))


# --- what is said -------------------------------------------------------------------------------------------


def test_print_shows_the_verdict_and_the_facts() -> None:
    judged = gradlens.probe(stack(), random_batch(7, 6))
    text = str(judged)
    assert text.startswith("Sequential: looks trainable")
    assert "probed        7x6 float32; the weights as they are, in training mode, " in text
    assert "ln(5) = 1.609" in text
    assert "seed" not in text
    assert repr(judged).startswith("Judged(Sequential: looks trainable")
    assert "\n" not in repr(judged)
    assert isinstance(judged, gradlens.Judged)
    assert isinstance(judged.probe.samples[0].run, Run)
    assert probe_facts(judged)["input"] == "6"


def test_a_finding_is_shown_with_its_remedy() -> None:
    model = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(8, 8), nn.Sigmoid())), nn.Linear(8, 5))
    judged = gradlens.probe(model, random_batch(7, 8))
    assert judged.kind == "vanishing"
    assert "vanishes: " in str(judged)
    assert "\nnext  Add batch norm" in str(judged)


def test_nothing_is_said_of_classes_with_a_loss_of_ones_own() -> None:
    model, given, loss = ZOO["dict output"]()
    judged = gradlens.probe(model, given, lambda output: 1000 * loss(output) + 50)
    assert "ln(" not in str(judged)
    assert "scores" not in str(judged)
    assert "left 3x5 float32, right 3x4 float32" in str(judged)
    assert probe_facts(judged)["expected_loss"] is None


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torchscript_is_refused_and_compiled_modules_are_not() -> None:
    model = stack()
    with pytest.raises(ModelError, match=r"is TorchScript"):
        gradlens.probe(nn.Sequential(torch.jit.script(model)), random_batch(7, 6))
    compiled = gradlens.probe(torch.compile(model, backend="eager"), random_batch(7, 6))
    assert compiled.ratio == gradlens.probe(model, random_batch(7, 6)).ratio


def test_labels_are_on_the_device_of_the_scores() -> None:
    assert find_loss(torch.empty(4, 3, device="meta"), None).is_meta


# --- bad inputs ---------------------------------------------------------------------------------------------

X = torch.zeros(4, 6)


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (("plain34", X), ConfigError, r"module must be a torch.nn.Module, got a str"),
        ((stack(), [X]), ConfigError, r"a tensor, a tuple .* or a dict .*, got a list"),
        ((stack(), {1: X}), ConfigError, r"example_input must be .*, got a dict"),
        ((stack(), ()), ConfigError, r"example_input holds no tensor"),
        ((stack(), X, X), ConfigError, r"loss must be a function of the module's output, got a Tensor"),
        ((stack(), X[:, :3]), ModelError, r"example_input, 4x3 float32: at 0, a Linear\(.*which got \(4, 3\): Runt"),
        ((stack(), (X, X)), ModelError, r"Sequential cannot take example_input, 4x6 float32, 4x6 float32: .*TypeError"),
        ((stack(), X.double()), ModelError, r"example_input, 4x6 float64: at 0, .*dtype"),
        ((nn.Sequential(nn.LazyLinear(3)), X), ModelError, r"not initialised: 0.weight has no shape yet"),
        ((nn.Linear(6, 2, device="meta"), X), ModelError, r"weight is on the meta device"),
        ((nn.Flatten(), X), ModelError, r"has no parameters: nothing to probe"),
        ((stack().requires_grad_(False), X), ModelError, r"has no parameters that want a gradient"),
        ((nn.BatchNorm1d(6), X), ModelError, r"no layer with a weight, norm layers aside"),
        (
            (DictOutput(), {"left": X[:, :5], "right": X[:, :4]}),
            ModelError,
            r"gave a dict; expected scores.*give loss=",
        ),
        ((stack(), X, nn.CrossEntropyLoss()), ModelError, r"loss failed .*TypeError: .*loss=lambda output"),
        ((stack(), X, lambda output: output), ModelError, r"one real number, got a torch.float32 tensor \(4, 5\)"),
        ((stack(), X, lambda output: output.sum().item()), ModelError, r"one real number, got a float"),
        ((stack(), X, lambda output: output.sum().detach()), ModelError, r"no gradient leads from its output"),
    ],
)
def test_what_cannot_be_probed(arguments: tuple[Any, ...], kind: type[GradlensError], said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        gradlens.probe(*arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.tip
