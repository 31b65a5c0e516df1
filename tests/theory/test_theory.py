"""Theory against independent computations and against the recorder's measurements at initialisation."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradlens import read_run
from gradlens.models import build_model
from gradlens.recorder import Recorder
from gradlens.run import Run
from gradlens.sinks import ListSink
from gradlens.theory.architecture import recognise_net, recognise_stack
from gradlens.theory.laws import (
    batch_norm_growth,
    branch_share,
    default_variance,
    he_variance,
    log_norm_law,
    noise_scale,
    norm_ratio,
    scaled_weight_gradient,
)
from gradlens.theory.mean_field import Conv, Likeness, normalised, open_share, plain_gains, relu_product
from gradlens.theory.mean_field_residual import Block, residual_gains
from gradlens.theory.predict import deviation, first_predicted, first_profile, predicted_profile, say_deviation
from tests.conftest import SAMPLE

# --- laws -------------------------------------------------------------------------------------------------


def test_the_laws_have_the_values_of_the_literature() -> None:
    assert norm_ratio(512, default_variance(512), "linear") == pytest.approx(0.5774, abs=5e-5)
    assert norm_ratio(512, default_variance(512), "relu") == pytest.approx(0.4082, abs=5e-5)
    assert norm_ratio(512, he_variance(512), "relu") == pytest.approx(1.0)
    assert batch_norm_growth(math.inf, "relu") == pytest.approx(1.2112, abs=5e-5)
    assert batch_norm_growth(1e6, "relu") == pytest.approx(1.2112, abs=5e-5)
    for batch, value in ((8, 1.0954), (16, 1.0377), (32, 1.0171), (math.inf, 1.0)):
        assert batch_norm_growth(batch, "linear") == pytest.approx(value, abs=5e-5)
    law = log_norm_law([100] * 20)
    assert (law.variance, law.mean) == pytest.approx((1.0, -0.5))
    assert law.spread_decades == pytest.approx(0.2171, abs=1e-4)
    assert log_norm_law([100] * 20, "linear").variance == pytest.approx(0.4)
    assert [round(branch_share(block), 3) for block in (1, 2, 4, 8, 16, 32)] == [0.5, 0.333, 0.2, 0.111, 0.059, 0.03]
    assert scaled_weight_gradient(4) == 0.25


def test_the_noise_scale_of_exact_squares_is_exact() -> None:
    signal, noise = 2.0, 30.0
    found = noise_scale(signal + noise / 8, signal + noise / 64, 8, 64)
    assert (found.signal, found.noise, found.scale) == pytest.approx((2.0, 30.0, 15.0))


@pytest.mark.parametrize("correlation", [-1.0, -0.4, 0.0, 0.7, 1.0])
def test_the_mean_product_of_two_rectified_numbers(correlation: float) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 400_000))
    b = correlation * a + math.sqrt(1 - correlation**2) * b
    drawn = np.mean(np.maximum(a, 0) * np.maximum(b, 0))
    assert relu_product(correlation) == pytest.approx(drawn, abs=0.004)


@pytest.mark.parametrize("count", [8, 32])
def test_the_share_that_passes_relu_and_batch_norm(count: int) -> None:
    """Sample outputs and gradients, and remove both parts directly."""
    rng = np.random.default_rng(0)
    z, v = rng.normal(size=(2, 20_000, count))
    z, v = (x - x.mean(1, keepdims=True) for x in (z, v))
    z /= np.sqrt(np.mean(z**2, axis=1, keepdims=True))
    left = np.where(z > 0, v, 0)
    left = left - left.mean(1, keepdims=True)
    left = left - z * np.mean(left * z, axis=1, keepdims=True)
    assert open_share(count) == pytest.approx(np.mean(np.sum(left**2, 1)) / np.mean(np.sum(v**2, 1)), rel=0.02)
    assert open_share(math.inf) == 0.5


def test_the_spectrum_after_normalisation() -> None:
    shares, inverse = normalised(np.array([[2.0, 7.0]]))
    assert shares == pytest.approx([1.0])
    assert inverse == pytest.approx(1 / (2 * 5), rel=1e-6)  # E[1 / chi-squared(7)] = 1 / 5
    rng = np.random.default_rng(0)
    parts = np.array([3.0 * rng.chisquare(3, 200_000), 0.5 * rng.chisquare(40, 200_000)])
    shares, inverse = normalised(np.array([[3.0, 3.0], [0.5, 40.0], [0.0, 5.0]]))
    np.testing.assert_allclose(shares, [*(parts / parts.sum(0)).mean(1), 0.0], rtol=0.01)
    assert inverse == pytest.approx((1 / parts.sum(0)).mean(), rel=0.01)


# --- convolutions beside torch ----------------------------------------------------------------------------

CONVS = [(3, 1, 1, 5), (3, 2, 1, 8), (7, 2, 3, 9), (1, 2, 0, 6), (3, 1, 1, 1), (3, 2, 1, 7)]


@pytest.mark.parametrize(("kernel", "stride", "padding", "side"), CONVS)
def test_mean_squares_through_a_convolution_agree_with_torch(kernel: int, stride: int, padding: int, side: int) -> None:
    conv = Conv(3, 4, kernel, stride, padding, side, 0.2)
    layer = nn.Conv2d(1, 1, kernel, stride, padding, bias=False)
    nn.init.ones_(layer.weight)
    square = torch.rand(1, 1, side, side, requires_grad=True)
    out = layer(square)
    assert conv.out_side == out.shape[-1]
    np.testing.assert_allclose(conv.forward(square[0, 0].detach().numpy()), 0.6 * out[0, 0].detach().numpy(), rtol=1e-5)
    gradient = torch.rand_like(out)
    out.backward(gradient)
    assert square.grad is not None
    np.testing.assert_allclose(conv.back(gradient[0, 0].numpy()), 0.6 * square.grad[0, 0].numpy(), rtol=1e-5)


def test_a_map_of_one_place_is_a_fully_connected_network() -> None:
    """Both derivations of the law of Yang et al. for a finite batch agree once the correlations have converged."""
    convs = [Conv(64, 64, 1, 1, 0, 1, 0.03)] * 16
    for batch in (8, 32):
        gains = plain_gains(convs, norm=True, batch=batch)
        assert gains[8] / gains[9] == pytest.approx(batch_norm_growth(batch, "relu") ** 2, rel=1e-6)
        assert math.isnan(gains[0])
    likeness, inverse = Likeness(np.ones((1, 1)), 1.0, -1 / 7).rectified().normed(convs[0], 8)
    assert likeness.images == pytest.approx(-1 / 7)
    assert inverse > 0


def test_without_batch_norm_the_ratio_is_that_of_the_law() -> None:
    convs = [Conv(50, 50, 1, 1, 0, 1, default_variance(50))] * 5
    gains = plain_gains(convs, norm=False)
    np.testing.assert_allclose(np.sqrt(gains), (1 / 6) ** (np.arange(4, -1, -1) / 2))


def test_the_share_of_residual_branches_falls_with_depth() -> None:
    conv = Conv(64, 64, 3, 1, 1, 32, 0.01)
    gains, shares = residual_gains(conv, [Block(conv, conv)] * 8, norm=True, batch=64)
    assert (np.diff(shares) < 0).all()
    assert math.isnan(gains[0])
    assert gains[-1] == 1.0


# --- runs -------------------------------------------------------------------------------------------------


def measured_run(name: str, model: nn.Module, x: torch.Tensor, info: dict) -> Run:
    """Record one step, in memory."""
    sink, names = ListSink(), ["activation_grad_norm", "param_norm"]
    with Recorder(model, sink, metrics=names, info=info) as recorder:
        loss = nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 5)
        loss.backward()
        recorder.step()
    assert sink.header is not None
    return Run(
        name, Path(name), sink.header.layers, np.array([0]), np.array([0], dtype=np.int32), {},
        {metric: sink.metric(metric) for metric in names}, {}, "complete", {"model": "", "seed": 0, **info},
    )  # fmt: skip


def net_run(name: str, init: str, shortcut: str, side: int, batch: int, seed: int) -> Run:
    model = build_model(name, num_classes=5, seed=seed, init=init, shortcut=shortcut)  # type: ignore[arg-type]
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))
    config = {"init": init, "shortcut": shortcut, "image_size": side}
    return measured_run(f"{name}-s{seed}", model, x, {"model": name, "seed": seed, "config": config})


NETS = [
    ("plain20", "he", "A", 16, 16, 0.12),
    ("plain20-nobn", "he", "A", 16, 16, 0.2),
    ("plain20-nobn", "default", "A", 16, 16, 0.3),
    ("resnet20", "he", "A", 16, 16, 0.08),
    ("resnet20", "he", "B", 16, 16, 0.08),
    ("resnet20-nobn", "he", "A", 16, 16, 0.12),
    ("resnet20-nobn", "default", "B", 16, 16, 0.12),
]


@pytest.mark.parametrize(("name", "init", "shortcut", "side", "batch", "within"), NETS)
def test_models_start_as_theory_predicts(
    name: str, init: str, shortcut: str, side: int, batch: int, within: float, one_thread: None
) -> None:
    runs = [net_run(name, init, shortcut, side, batch, seed) for seed in range(3)]
    prediction = predicted_profile(runs[0])
    assert prediction is not None
    firsts = [first_profile(run) for run in runs]
    known = np.isfinite(prediction.decades)
    assert known.sum() >= len(known) - 3
    error = np.mean(firsts, axis=0) - prediction.decades
    assert np.abs(error[known]).max() < within
    away = np.array([deviation(prediction, first) for first in firsts])[:, known][:, :-1]
    assert np.abs(away).max() < 3
    assert np.isfinite(away).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "init", "shortcut", "side", "within"),
    [
        ("plain34", "he", "A", 32, 0.1), ("plain34", "default", "A", 64, 0.15),
        ("plain34-nobn", "default", "A", 32, 0.2),
        ("resnet34", "he", "A", 32, 0.35), ("resnet34", "he", "B", 48, 0.35), ("resnet34-nobn", "he", "A", 32, 0.1),
        ("plain56", "he", "A", 32, 0.35), ("resnet56", "he", "A", 32, 0.15), ("resnet18", "he", "A", 64, 0.35),
    ],
)  # fmt: skip
def test_deep_models_start_as_theory_predicts(name: str, init: str, shortcut: str, side: int, within: float) -> None:
    test_models_start_as_theory_predicts(name, init, shortcut, side, 8, within, None)


@pytest.mark.slow
def test_torchvisions_residual_network_is_recognised(one_thread: None) -> None:
    model = build_model("torchvision:resnet18", num_classes=5, seed=0)
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    run = measured_run("tv", model, x, {"model": "torchvision:resnet18", "config": {"image_size": 32}})
    net = recognise_net(run)
    assert net is not None
    assert (net.residual, net.norm, net.batch, net.pooled, len(net.blocks)) == (True, True, 8, True, 8)
    prediction, first = predicted_profile(run), first_profile(run)
    assert prediction is not None
    assert first is not None
    assert np.nanmax(np.abs(deviation(prediction, first))) < 3


def test_the_recorded_sample_is_within_a_few_standard_deviations_of_theory() -> None:
    run = read_run(SAMPLE)
    prediction, first = predicted_profile(run), first_profile(run)
    assert prediction is not None
    assert first is not None
    assert first_predicted(prediction) == 2  # conv1 and the layer behind the pooling depend on the data
    assert np.nanmax(np.abs(deviation(prediction, first))) < 1
    rms, norm = prediction.per_element(run), prediction.decades
    numel = np.array([run.layers[i].out_numel for i in prediction.layers])
    np.testing.assert_allclose((norm - rms)[2:-1], np.log10(numel / numel[-2])[2:-1] / 2, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "plain20"},
        {"model": "mine"},
        {"model": "plain34-sigmoid"},
        {"model": "resnet34-gradonly"},
        {"config": {}},
        {"config": {"image_size": 224}},
    ],
)
def test_a_model_that_does_not_agree_with_its_name_has_no_prediction(change: dict) -> None:
    run = read_run(SAMPLE)
    config = {"config": {**run.config, **change.get("config", {})}} if change.get("config") else change
    assert recognise_net(replace(run, info={**run.info, **config})) is None


def mlp(widths: list[int], init: str, norm: bool, activation: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        linear = nn.Linear(inputs, outputs)
        if init == "he":
            nn.init.kaiming_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
        modules.append(linear)
        if i < len(widths) - 2:
            modules += [nn.BatchNorm1d(outputs)] * norm + [nn.ReLU()] * (activation == "relu")
    return nn.Sequential(*modules)


@pytest.mark.parametrize("init", ["he", "default"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_fully_connected_stacks_start_as_theory_predicts(
    init: str, norm: bool, activation: str, one_thread: None
) -> None:
    widths = [20, 128, 96, 128, 160, 128, 128, 5]
    config = {"activation": activation, "norm": "batch" if norm else "none"}
    runs = []
    for seed in range(5):
        x = torch.randn(24, 20, generator=torch.Generator().manual_seed(seed))
        runs.append(measured_run(f"m{seed}", mlp(widths, init, norm, activation, seed), x, {"config": config}))
    stack, prediction = recognise_stack(runs[0]), predicted_profile(runs[0])
    assert stack is not None
    assert prediction is not None
    assert stack.batch == 24
    assert [conv.outputs for conv in stack.hidden] == widths[1:-1]
    firsts = np.array([first_profile(run) for run in runs])
    known = np.isfinite(prediction.decades)
    assert known.tolist() == [not norm, *[True] * 5, False]
    assert np.abs(firsts.mean(0) - prediction.decades)[known].max() < 0.1
    spread = firsts[:, known].std(axis=0, ddof=1)[:-1]
    assert (spread < 2 * prediction.spread[known][:-1]).all()


@pytest.mark.parametrize("norm", [False, True])
def test_stacks_of_convolutions_start_as_theory_predicts(norm: bool, one_thread: None) -> None:
    torch.manual_seed(0)
    channels = [3, 24, 32, 24, 32]
    modules: list[nn.Module] = []
    for i in range(4):
        modules += [nn.Conv2d(channels[i], channels[i + 1], 3, padding=1), *[nn.BatchNorm2d(channels[i + 1])] * norm]
        modules.append(nn.ReLU())
    model = nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))
    config = {"activation": "relu", "norm": "batch" if norm else "none", "batch_size": 16}
    run = measured_run("convs", model, torch.randn(16, 3, 8, 8), {"config": config})
    stack, prediction, first = recognise_stack(run), predicted_profile(run), first_profile(run)
    assert stack is not None
    assert [(c.outputs, c.kernel, c.side) for c in stack.hidden] == [(24, 3, 8), (32, 3, 8), (24, 3, 8), (32, 3, 8)]
    assert prediction is not None
    assert first is not None
    assert np.nanmax(np.abs(first - prediction.decades)) < 0.12


def test_a_file_with_too_little_information_has_no_prediction(make_run) -> None:
    assert predicted_profile(read_run(make_run())) is None
    x = torch.randn(8, 6)
    told = {"activation": "relu", "norm": "none"}
    for i, config in enumerate(({}, {"activation": "tanh", "norm": "none"}, {"activation": "relu"}, told)):
        run = measured_run(f"n{i}", mlp([6, 16, 16, 16, 5], "he", False, "relu", 0), x, {"config": config})
        assert (predicted_profile(run) is not None) == (config is told)


@pytest.mark.slow
def test_the_spread_between_seeds_is_that_of_the_law_for_one_input(one_thread: None) -> None:
    """Hanin & Nica: for one input, the standard deviation over initialisations is as predicted, the median lower."""
    logs = []
    config = {"activation": "relu", "norm": "none"}
    for seed in range(150):
        x = torch.randn(1, 30, generator=torch.Generator().manual_seed(seed))
        run = measured_run(f"h{seed}", mlp([30, *[50] * 12, 5], "he", False, "relu", seed), x, {"config": config})
        prediction, first = predicted_profile(run), first_profile(run)
        assert prediction is not None
        assert first is not None
        logs.append(first[0] - prediction.decades[0])
    assert np.std(logs, ddof=1) == pytest.approx(prediction.spread[0], rel=0.25)
    assert np.mean(logs) == pytest.approx(log_norm_law([50] * 11).mean / 2 / math.log(10), abs=0.08)


@pytest.mark.parametrize(
    ("deviations", "text"),
    [
        (-3.0, "3.0 standard deviations below theory"), (0.34, "0.3 standard deviations above theory"),
        (1.0, "1.0 standard deviation above theory"), (-math.inf, "infinitely far below theory"),
    ],
)  # fmt: skip
def test_the_sentence_for_a_deviation_from_theory(deviations: float, text: str) -> None:
    assert say_deviation(deviations) == text
