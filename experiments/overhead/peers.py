"""Ways to watch gradients that other packages offer; each is imported only when its way begins."""

from __future__ import annotations

import os
from typing import ClassVar

from torch import Tensor
from ways import OWN, Way


class Wandb(Way):
    """``wandb.watch`` at every step, and ``wandb.log`` of the loss, offline: histograms of all gradients."""

    title = "wandb.watch, log_freq=1, offline"
    needs = package = "wandb"
    log_freq: ClassVar[int] = 1

    def begin(self) -> None:
        """Begin an offline run that asks and sends nothing."""
        os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
        for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            os.environ[name] = str(self.folder)
        import wandb

        settings = wandb.Settings(silent=True, console="off")
        self._run = wandb.init(project="overhead", mode="offline", dir=self.folder, settings=settings)
        self._run.watch(self.trained.model, log="gradients", log_freq=self.log_freq)

    def after_step(self, loss: float | Tensor) -> None:
        """Log the loss; with it go the histograms of the step."""
        self._run.log({"loss": loss})

    def end(self) -> None:
        """Finish the run."""
        self._run.unwatch(self.trained.model)
        self._run.finish()


class WandbDefault(Wandb):
    """``wandb.watch`` as it comes."""

    title = "wandb.watch, log_freq=1000 (its default), offline"
    log_freq = 1000


class TensorBoard(Way):
    """A histogram of every parameter's gradient at every step, and the loss."""

    title = "TensorBoard, histograms"
    needs = package = "tensorboard"

    def begin(self) -> None:
        """Open the writer."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder))
        self._step = 0

    def after_backward(self) -> None:
        """Add the histograms."""
        for name, parameter in self.trained.model.named_parameters():
            if parameter.grad is not None:
                self._writer.add_histogram(name, parameter.grad, self._step)

    def after_step(self, loss: float | Tensor) -> None:
        """Add the loss."""
        self._writer.add_scalar("loss", loss, self._step)
        self._step += 1

    def end(self) -> None:
        """Close the writer."""
        self._writer.close()


class Lightning(Way):
    """Lightning's ``grad_norm`` at every step; the norms stay in memory, nothing is written."""

    title = "Lightning grad_norm, not logged"
    needs = package = "lightning"

    def begin(self) -> None:
        """Import it."""
        from lightning.pytorch.utilities import grad_norm

        self._grad_norm = grad_norm

    def after_backward(self) -> None:
        """Take the norms, where a LightningModule would in ``on_before_optimizer_step``."""
        self.norms = self._grad_norm(self.trained.model, norm_type=2)


class LightningCsv(Lightning):
    """The same, and the norms go to Lightning's ``CSVLogger``."""

    title = "Lightning grad_norm, into its CSVLogger"

    def begin(self) -> None:
        """Open the logger."""
        super().begin()
        from lightning.pytorch.loggers import CSVLogger

        self._logger = CSVLogger(str(self.folder))
        self._step = 0

    def after_step(self, loss: float | Tensor) -> None:
        """Log norms and loss."""
        self._logger.log_metrics({**self.norms, "loss": loss}, self._step)
        self._step += 1

    def end(self) -> None:
        """Write what waits."""
        self._logger.save()


class TensorTracker(Way):
    """tensor-tracker on all modules, with the norm of each output and its gradient; forgotten after each step."""

    title = "tensor-tracker, norms"
    needs, package = "tensor_tracker", "tensor-tracker"
    out_of_place = True

    def begin(self) -> None:
        """Place its hooks."""
        import tensor_tracker

        self._tracker = tensor_tracker.track(self.trained.model, stash_value=self.stash_value)
        self._tracker.__enter__()

    @staticmethod
    def stash_value(tensor: Tensor) -> Tensor:
        """Reduce a tensor in the manner of its documentation."""
        return tensor.norm().detach().cpu()

    def after_step(self, loss: float | Tensor) -> None:
        """Forget the step, else memory would grow without end."""
        self._tracker.clear()

    def end(self) -> None:
        """Remove its hooks."""
        self._tracker.__exit__(None, None, None)


WAYS: dict[str, type[Way]] = OWN | {
    "wandb": Wandb,
    "wandb-default": WandbDefault,
    "tensorboard": TensorBoard,
    "lightning": Lightning,
    "lightning-csv": LightningCsv,
    "tensor-tracker": TensorTracker,
}
