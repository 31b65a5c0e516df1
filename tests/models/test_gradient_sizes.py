"""Gradients whose sizes are those of another run, compared with an obvious second computation in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradlens import read_run
from gradlens.config import RunConfig, make_config
from gradlens.errors import ConfigError
from gradlens.models import build_model
from gradlens.models.gradient_sizes import follow_sizes
from gradlens.run import Layer, Run
from gradlens.train import train_run
from tests.study.planted_claims import planted


def example(names: list[str], steps: tuple[int, ...]) -> Run:
    """A run with norms from 1e-3 to 1e3 at every layer."""
    norms = 10 ** np.random.default_rng(0).uniform(-3, 3, (len(steps), len(names)))
    layers = tuple(Layer(name, "Conv2d", "main", i + 1, 64, 9) for i, name in enumerate(names))
    run = planted("resnet8", 0)
    given = {**vars(run), "layers": layers, "steps": np.array(steps), "metrics": {"param_grad_norm": norms}}
    return Run(**{key: given[key] for key in Run.__dataclass_fields__})


def layers_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]


def set_gradients(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def flat(model: nn.Module, name: str) -> np.ndarray:
    """The gradient of a layer, weight and bias in one vector."""
    parts = [p.grad for p in model.get_submodule(name).parameters(recurse=False)]
    return np.concatenate([part.double().flatten().numpy() for part in parts])


def test_sizes_are_those_of_the_run_and_directions_are_kept() -> None:
    model = build_model("plain8", num_classes=5)
    names, optimizer = layers_of(model), torch.optim.SGD(model.parameters(), lr=0.0)
    order = [*reversed(names[:-1]), names[-1]]  # the run may list them in another order
    run = example(order, (0, 2))
    follow_sizes(model, optimizer, run)
    for step, row in enumerate((0, 0, 1, 1)):  # a step without a row takes the row before it
        set_gradients(model, step)
        before = {name: flat(model, name) for name in names}
        optimizer.step()
        for name in names:
            size = run.metric("param_grad_norm")[row, order.index(name)] / run.metric("param_grad_norm")[row, -1]
            wanted = before[name] / np.sqrt((before[name] ** 2).sum()) * size * np.sqrt((before[names[-1]] ** 2).sum())
            np.testing.assert_allclose(flat(model, name), wanted, rtol=2e-6)


def test_a_layer_without_a_gradient_and_one_whose_gradient_is_0_are_left_alone() -> None:
    model = build_model("plain8", num_classes=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    follow_sizes(model, optimizer, example(layers_of(model), (0,)))
    set_gradients(model, 0)
    model.bn1.weight.grad = model.bn1.bias.grad = None
    model.conv1.weight.grad.zero_()
    optimizer.step()
    assert model.bn1.weight.grad is None
    assert not model.conv1.weight.grad.any()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_a_run_that_lacks_a_layer_or_a_gradient_is_refused() -> None:
    model = build_model("plain8", num_classes=5)
    names, optimizer = layers_of(model), torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(ConfigError, match=f"has no layer {names[1]}: its gradients' sizes are no example"):
        follow_sizes(model, optimizer, example([names[0], *names[2:]], (0,)))
    with pytest.raises(ConfigError, match="has other layers"):
        follow_sizes(model, optimizer, example(["other", *names], (0,)))
    run = example(names, (0, 1))
    run.metrics["param_grad_norm"][1, 3] = np.nan
    with pytest.raises(ConfigError, match="does not have every layer's gradient in every row"):
        follow_sizes(model, optimizer, run)


def config(model: str, **options: object) -> RunConfig:
    given = {"image_size": 16, "batch_size": 10, "epochs": 2, "optimizer": "sgd", "norms": True, **options}
    return make_config(model, **given)


@pytest.fixture
def few_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlens.data.patterns.TRAIN_IMAGES", 40)
    monkeypatch.setattr("gradlens.data.patterns.VAL_IMAGES", 20)


def ratios(path: Path) -> dict[str, np.ndarray]:
    run = read_run(path)
    norms = run.metric("param_grad_norm").astype(np.float64)
    return {layer.name: norms[:, i] / norms[:, -1] for i, layer in enumerate(run.layers)}


@pytest.mark.usefixtures("few_patterns")
def test_what_is_recorded_is_what_the_optimizer_gets_also_after_a_resumption(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    train_run(config("resnet8", seed=3), tmp_path / "residual" / "resnet8-s3.h5")
    train_run(config("plain8", seed=3), tmp_path / "plain8-s3.h5")
    asked = {"seed": 3, "rescale_to": "../residual/resnet8"}
    train_run(config("plain8", **asked), whole / "plain8-s3.h5")

    example, own, found = (
        ratios(path)
        for path in (tmp_path / "residual/resnet8-s3.h5", tmp_path / "plain8-s3.h5", whole / "plain8-s3.h5")
    )
    assert example.keys() == own.keys() == found.keys()
    for name in example:
        np.testing.assert_allclose(found[name], example[name], rtol=1e-5)
    assert max(abs(np.log10(own[name][0] / example[name][0])) for name in own) > 0.1
    assert read_run(whole / "plain8-s3.h5").config["rescale_to"] == "../residual/resnet8"

    def stop(event: object) -> None:
        if type(event).__name__ == "StepDone" and event.epoch == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(config("plain8", **asked), part / "plain8-s3.h5", listener=stop)
    train_run(config("plain8", **asked), part / "plain8-s3.h5", resume=True)
    np.testing.assert_array_equal(
        read_run(part / "plain8-s3.h5").metric("param_grad_norm"),
        read_run(whole / "plain8-s3.h5").metric("param_grad_norm"),
    )


@pytest.mark.usefixtures("few_patterns")
def test_a_run_that_is_not_complete_is_refused(tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if type(event).__name__ == "StepDone":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(config("resnet8"), tmp_path / "resnet8-s0.h5", listener=stop)
    with pytest.raises(ConfigError, match="is not complete: rescale_to needs all of its steps"):
        train_run(config("plain8", rescale_to="resnet8"), tmp_path / "plain8-s0.h5")


def test_earlier_settings_do_not_have_it() -> None:
    assert "rescale_to" not in config("plain8").to_dict()
    assert config("plain8", rescale_to="a").differences(config("plain8")) == ["rescale_to:  there, a here"]
