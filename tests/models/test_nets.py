"""Plain and residual models: as in the paper and in torchvision, and equal in all shared weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from gradlens.config import INITS
from gradlens.errors import ModelError
from gradlens.models import build_model
from gradlens.models.blocks import PadShortcut
from gradlens.specs import model_names, parse_model
from tests.models.second import SecondNet


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


LARGE = [n for n in model_names() if not n.lstrip("plainrest").startswith("20") and n not in ("plain18", "resnet18")]
DEPTHS_OF_BRANCHES = ("resnet20", "resnet34")
"""A factor of the branch is the same in every block: two depths are enough."""
CHECKED = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in model_names()
    if parse_model(name).branch == "whole" or name.startswith(DEPTHS_OF_BRANCHES)
]  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
def test_every_registered_model_trains_a_step(name: str) -> None:
    net = build_model(name, num_classes=3)
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert has_norm != ("-nobn" in name)
    logits = net(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    weighted = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == int("".join(c for c in name.split("-")[0] if c.isdigit()))


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("option", ["A", "B"])
def test_values_and_gradients_are_those_of_a_second_implementation(name: str, option: str) -> None:
    if option == "B" and name.startswith("plain"):
        pytest.skip("a plain model has no shortcut")
    net = build_model(name, num_classes=3, seed=1, shortcut=option).double()
    torch.manual_seed(0)
    for module in net.modules():  # batch norms and biases that are not just 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, 0, 0.2)
        if getattr(module, "alpha", None) is not None:
            nn.init.constant_(module.alpha, 0.7)
    weights = {key: p.detach().clone().requires_grad_() for key, p in net.named_parameters()}
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    factors = torch.randn(3, 3, dtype=torch.float64)
    ours, theirs = net(images), SecondNet(name, weights)(images)
    # batch norm without shortcuts makes differences grow by up to 1.21 a layer (Yang et al. 2019), rounding too
    close = max(1e-9, 1e-15 * 1.25 ** parse_model(name).depth)
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)
    (ours * factors).sum().backward()
    (theirs * factors).sum().backward()
    for key, parameter in net.named_parameters():
        scale = float(weights[key].grad.abs().max())
        torch.testing.assert_close(parameter.grad, weights[key].grad, rtol=100 * close, atol=close * scale)


@pytest.mark.parametrize("suffix", ["", "-nobn", "-sigmoid", "-nobn-sigmoid"])
def test_variants_start_from_equal_weights_and_keep_one_half_of_the_shortcut(suffix: str) -> None:
    images, nets = torch.randn(2, 3, 32, 32), {}
    names = {"both": "resnet20", "value": "resnet20-valueonly", "gradient": "resnet20-gradonly", "none": "plain20"}
    for half, name in names.items():
        nets[half] = build_model(f"{name}{suffix}", num_classes=5, seed=3)
    states = [net.state_dict() for net in nets.values()]
    assert all(state.keys() == states[0].keys() for state in states)
    assert all(torch.equal(state[key], states[0][key]) for state in states for key in state)
    with torch.no_grad():
        out = {half: net(images) for half, net in nets.items()}
    assert torch.equal(out["both"], out["value"])  # bit for bit
    assert torch.equal(out["none"], out["gradient"])
    assert not torch.equal(out["both"], out["none"])


def test_the_factor_of_a_branch_begins_at_zero_or_at_its_scale() -> None:
    images = torch.randn(2, 3, 32, 32)
    zero = build_model("resnet20-skipinit-nobn", num_classes=5, seed=3)
    alphas = {key: value.item() for key, value in zero.state_dict().items() if key.endswith("alpha")}
    assert len(alphas) == 9
    assert set(alphas.values()) == {0.0}
    streams = []
    zero.layer1.register_forward_hook(lambda module, given, output: streams.extend([given[0], output]))
    zero(images).square().sum().backward()
    torch.testing.assert_close(*streams, rtol=0, atol=0)  # ReLU of what a ReLU gave
    assert all(p.grad.abs().max() > 0 for key, p in zero.named_parameters() if key.endswith("alpha"))
    assert not zero.layer1[0].conv1.weight.grad.any()
    scaled = build_model("resnet20-branchscale", num_classes=5, seed=3)
    assert scaled.layer1[0].alpha.item() == pytest.approx(1 / 3)
    whole = build_model("resnet20", num_classes=5, seed=3).state_dict()
    assert all(torch.equal(whole[key], value) for key, value in scaled.state_dict().items() if "alpha" not in key)


def test_a_projection_learns_though_the_gradient_through_it_is_cut() -> None:
    net = build_model("resnet20-valueonly", num_classes=5, shortcut="B")
    net(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in net.named_parameters() if "downsample" in n)


@pytest.mark.parametrize("depth", [18, 34])
def test_resnets_with_torchvisions_weights_give_torchvisions_output(depth: int) -> None:
    torch.manual_seed(0)
    theirs = models.get_model(f"resnet{depth}", num_classes=7)
    for module in theirs.modules():  # running statistics and affine parameters that are not just 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = build_model(f"resnet{depth}", num_classes=7, shortcut="B")
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 96, 96)
    for train in (False, True):
        ours.train(train)
        theirs.train(train)
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_the_cifar_family_has_the_papers_parameters(name: str, millions: float) -> None:
    # He et al. 2015, table 6.
    tolerance = 0.05 if millions > 1 else 0.01
    assert parameters(build_model(name, num_classes=10)) / 1e6 == pytest.approx(millions, abs=tolerance)


@pytest.mark.parametrize(("name", "billions"), [("34", 3.6), ("18", 1.8)])
def test_multiply_adds_are_the_papers(name: str, billions: float) -> None:
    # He et al. 2015, table 1 and sec. 3.3: 3.6e9 for 34 layers, plain or residual; 1.8e9 for 18.
    counted = {}
    for family in ("plain", "resnet"):
        net = build_model(family + name, num_classes=1000).to("meta")
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 224, 224, device="meta"))
        counted[family] = counter.get_total_flops() / 2 / 1e9
    assert counted["plain"] == counted["resnet"] == pytest.approx(billions, abs=0.07)


@pytest.mark.parametrize("suffix", ["", "-nobn"])
@pytest.mark.parametrize("depth", [18, 20, *(pytest.param(depth, marks=pytest.mark.slow) for depth in (34, 56))])
@pytest.mark.parametrize("init", ["he", "default"])
def test_plain_and_residual_start_from_equal_weights(depth: int, suffix: str, init: str) -> None:
    plain = build_model(f"plain{depth}{suffix}", num_classes=5, seed=3, init=init).state_dict()
    for option in ("A", "B"):
        residual = build_model(f"resnet{depth}{suffix}", num_classes=5, seed=3, init=init, shortcut=option).state_dict()
        assert all(torch.equal(plain[key], residual[key]) for key in plain)
        assert (set(residual) == set(plain)) == (option == "A")
    other = build_model(f"plain{depth}{suffix}", num_classes=5, seed=4, init=init).state_dict()
    assert not torch.equal(plain["conv1.weight"], other["conv1.weight"])


def test_building_a_model_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    build_model("plain20", num_classes=5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_plain_model_is_the_residual_model_without_the_addition() -> None:
    plain = build_model("plain20", num_classes=5).eval()
    residual = build_model("resnet20", num_classes=5).eval()
    images = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(plain(images), residual(images))
    for module in residual.modules():
        if hasattr(module, "residual"):
            module.residual = False
    torch.testing.assert_close(plain(images), residual(images), rtol=0, atol=0)


def test_option_a_takes_every_second_pixel_and_pads_with_zeros() -> None:
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    out = PadShortcut(2, 5, 2)(x)
    assert out.shape == (1, 5, 2, 2)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2])
    assert (out[:, 2:] == 0).all()


def test_initialisations_have_the_variance_they_claim() -> None:
    he = build_model("plain34", num_classes=5).layer3[0].conv2.weight
    assert he.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    default = build_model("plain34", num_classes=5, init="default").layer3[0].conv2.weight
    assert default.abs().max().item() <= (1 / (256 * 9)) ** 0.5
    assert default.std().item() == pytest.approx((1 / (3 * 256 * 9)) ** 0.5, rel=0.01)
    reference = nn.Conv2d(256, 256, 3).weight
    assert default.std().item() == pytest.approx(reference.std().item(), rel=0.01)


@pytest.mark.parametrize("init", INITS)
def test_every_initialisation_trains_every_family(init: str) -> None:
    for name in ("plain20", "resnet20-nobn", "plain18-nobn"):
        net = build_model(name, num_classes=3, seed=1, init=init)
        net(torch.randn(2, 3, 32, 32)).square().sum().backward()
        assert all(torch.isfinite(p).all() and p.grad is not None for p in net.parameters())
        again = dict(build_model(name, num_classes=3, seed=1, init=init).named_parameters())
        assert all(torch.equal(value, again[key]) for key, value in net.named_parameters())


def test_a_delta_orthogonal_layer_keeps_norms_times_the_gain() -> None:
    conv = build_model("plain34-nobn", num_classes=5, init="delta-orthogonal").layer2[0].conv1  # 64 to 128, stride 2
    x = torch.randn(3, 64, 8, 8)
    seen = conv(x)
    assert seen.square().sum().item() == pytest.approx(2 * x[:, :, ::2, ::2].square().sum().item(), rel=1e-5)
    other = build_model("plain34-nobn", num_classes=5, seed=1, init="delta-orthogonal").layer2[0].conv1
    assert not torch.allclose(conv.weight, other.weight)


@pytest.mark.parametrize("name", ["plain20-nobn", "plain56-nobn"])
def test_a_looks_linear_model_is_linear_at_its_initialisation(name: str) -> None:
    net = build_model(name, num_classes=5, init="looks-linear").double()
    x, y = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
    zero = net(torch.zeros_like(x))
    with torch.no_grad():
        torch.testing.assert_close(net(2 * x - 3 * y) - zero, 2 * (net(x) - zero) - 3 * (net(y) - zero))
        assert (net(x) - zero).abs().max() > 0.01
    usual = build_model(name, num_classes=5).double()
    with torch.no_grad():
        assert not torch.allclose(usual(x + y) - usual(x), usual(y) - usual(torch.zeros_like(x)), atol=1e-6)


def test_other_peoples_models(tmp_path: Path) -> None:
    assert parameters(build_model("torchvision:resnet18", num_classes=5)) == parameters(models.resnet18(num_classes=5))
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n"
        "def build(num_classes): return nn.Linear(3, num_classes)\n"
        "def fixed(): return nn.Linear(3, 2)\n"
        "def wrong(): return 3\n"
        "def broken(): raise RuntimeError('no luck')\n"
    )
    assert build_model(f"{path}:build", num_classes=4).out_features == 4
    assert build_model(f"{path}:fixed", num_classes=4).out_features == 2
    assert isinstance(build_model("torch.nn:Identity", num_classes=4), nn.Identity)
    for name, said in [
        (f"{path}:wrong", "returned a value of type int; expected a torch.nn.Module"),
        (f"{path}:broken", "failed: RuntimeError: no luck"),
        (f"{path}:absent", "has no callable 'absent'"),
        ("nowhere.py:build", "there is no such file"),
        ("no_such_module:build", "no module named 'no_such_module'"),
        ("torchvision:resnet17", "torchvision has no model 'resnet17'; expected"),
    ]:
        with pytest.raises(ModelError, match=said):
            build_model(name, num_classes=4)
