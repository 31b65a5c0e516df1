"""The callback in Lightning, under both of its names: automatic and manual optimisation, resume, errors; and Fabric."""

from __future__ import annotations

from importlib import import_module, util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import gradlens
from tests.integrations.reference import Later, Reference, assert_equal, needs, references  # noqa: F401

PACKAGES = [name for name in ("lightning.pytorch", "pytorch_lightning") if util.find_spec(name.split(".")[0])]
ours = Later("gradlens.integrations.lightning")
pytestmark = [*needs("lightning"), pytest.mark.filterwarnings("ignore::UserWarning:lightning")]


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> Any:
    return import_module(request.param)


def loader() -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 4, generator=generator)
    return DataLoader(TensorDataset(x, (x.sum(dim=1) > 0).long()), batch_size=4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def make_module(
    package: Any, *, manual: bool = False, fail_at: int = -1, error: type[BaseException] = ValueError
) -> Any:
    class Module(package.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"width": 8})
            self.net, self.losses = network(), []
            self.automatic_optimization = not manual

        def loss(self, batch: Any) -> Tensor:
            return functional.cross_entropy(self.net(batch[0]), batch[1])

        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            if self.global_step == fail_at:
                raise error("broken")
            loss = self.loss(batch)
            self.losses.append(float(loss))
            if not manual:
                return loss
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 0.1, "norm")
            optimizer.step()
            self.log("net_loss", loss)
            return None

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.net.parameters(), lr=1e-2)

    return Module()


def fit(package: Any, module: Any, callback: Any, epochs: int = 2, checkpoint: str | None = None, **given: Any) -> Any:
    trainer = package.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, callbacks=[callback], logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **given,
    )  # fmt: skip
    trainer.fit(module, loader(), loader(), ckpt_path=checkpoint)
    return trainer


def test_automatic_optimisation(package: Any, references: list[Reference]) -> None:  # noqa: F811
    package.seed_everything(3)
    module = make_module(package)
    fit(package, module, ours.GradlensCallback(), accumulate_grad_batches=2, gradient_clip_val=0.1)
    run = assert_equal("runs/Module-s3.h5", references[0])
    assert run.status == "complete"
    assert len(run.steps) == 6
    losses = np.array(module.losses)
    np.testing.assert_allclose(run.scalars["loss"], losses.reshape(6, 2).mean(axis=1), rtol=1e-5)
    assert run.scalars["clip_coefficient"].max() < 1
    assert run.epochs["epoch"].tolist() == [1, 2]
    np.testing.assert_allclose(run.epochs["train_loss"], losses.reshape(2, 6).mean(axis=1), rtol=1e-5)
    assert np.isfinite(run.epochs["val_loss"]).all()
    assert run.config["width"] == 8


def test_manual_optimisation_and_bfloat16(package: Any, references: list[Reference]) -> None:  # noqa: F811
    module = make_module(package, manual=True)
    fit(package, module, ours.GradlensCallback("a.h5"), precision="bf16-mixed")
    run = assert_equal("a.h5", references[0])
    np.testing.assert_allclose(run.scalars["net_loss"], module.losses, rtol=1e-5)


def test_it_changes_nothing(package: Any) -> None:
    alone, recorded = make_module(package), make_module(package)
    fit(package, alone, package.Callback())
    fit(package, recorded, ours.GradlensCallback("a.h5"))
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), recorded.parameters(), strict=True))


def test_a_resumed_training_appends_to_its_run(package: Any, references: list[Reference]) -> None:  # noqa: F811
    fit(package, make_module(package), ours.GradlensCallback()).save_checkpoint("a.ckpt")
    fit(package, make_module(package), ours.GradlensCallback(), epochs=3, checkpoint="a.ckpt")
    references[0].rows += references[1].rows
    run = assert_equal(next(iter(Path("runs").iterdir())), references[0])
    assert run.steps.tolist() == list(range(18))
    assert run.epochs["epoch"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("error", "status"), [(OSError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_after_an_exception_the_file_is_closed(package: Any, error: type[BaseException], status: str) -> None:
    with pytest.raises((error, SystemExit)):
        fit(package, make_module(package, fail_at=4, error=error), ours.GradlensCallback("a.h5"))
    run = gradlens.read_run("a.h5")
    assert run.status == status
    assert len(run.steps) == 4


def test_an_error_in_the_callback_ends_no_training(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = ours.GradlensCallback("a.h5")
    monkeypatch.setattr(callback.recording, "log", lambda *args, **more: 1 / 0)
    with pytest.warns(gradlens.GradlensWarning, match="training goes on without it: .*division by zero"):
        trainer = fit(package, make_module(package), callback)
    assert trainer.global_step == 12


def test_fabric_needs_no_callback() -> None:
    fabrics = [name for name in ("lightning.fabric", "lightning_fabric") if util.find_spec(name.split(".")[0])]
    fabric = import_module(fabrics[0]).Fabric(accelerator="cpu", devices=1)
    net = network()
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    reference = Reference(net, [optimizer.optimizer])
    with gradlens.record(net, "a.h5", optimizer=optimizer):
        for x, y in loader():
            optimizer.zero_grad()
            fabric.backward(functional.cross_entropy(model(x), y))
            optimizer.step()
    assert_equal("a.h5", reference)
