"""Lightning, as ``lightning.pytorch`` or ``pytorch_lightning``: ``Trainer(callbacks=[GradlensCallback()])``.

With Lightning Fabric, give ``gradlens.record`` what ``fabric.setup`` returned.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module, util
from typing import TYPE_CHECKING, Any

from torch import nn

from gradlens.errors import MissingLibraryError
from gradlens.integrations.framework_recording import FrameworkRecording, guarded, renamed

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _find_base() -> Any:
    """Return the base class of callbacks, of the package that the program has loaded already if there is one."""
    found = [name for name in PACKAGES if util.find_spec(name.split(".")[0])]
    if not found:
        raise MissingLibraryError(
            "lightning is not installed", tip='python -m pip install "gradlens-toolkit[lightning]"'
        )
    return import_module(next((name for name in found if name in sys.modules), found[0])).Callback


if TYPE_CHECKING:

    class Callback:
        """What both packages have."""
else:
    Callback = _find_base()


class GradlensCallback(Callback):
    """Records a training of Lightning's Trainer, with automatic or manual optimisation.

    The file has a row per optimizer step. The loss is that of ``training_step``, averaged over accumulated batches;
    with manual optimisation, everything that the module logs with "loss" in its name. Each epoch has a row with the
    validation metrics. A training that is resumed from a checkpoint appends to its run.

    Args:
        path: The run file; by default ``runs/MODULE-sSEED.h5``.
        tracker: See ``gradlens.integrations.trackers``.
        options: Arguments of ``gradlens.record``, such as ``every`` and ``metrics``.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, tracker: Any = None, **options: Any) -> None:
        self.recording = FrameworkRecording(path, options, tracker)
        self.recording.close_with(self)

    @guarded
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start to record."""
        wrapped = trainer.strategy.model
        model = wrapped if isinstance(wrapped, nn.parallel.DistributedDataParallel) else pl_module
        optimizers = trainer.optimizers
        step = trainer.global_step if pl_module.automatic_optimization else trainer.global_step // len(optimizers)
        seed = os.environ.get("PL_GLOBAL_SEED")
        self.recording.begin(
            model,
            optimizers,
            scaler=getattr(trainer.strategy.precision_plugin, "scaler", None),
            seed=None if seed is None else int(seed),
            config={**pl_module.hparams, "max_epochs": trainer.max_epochs, "precision": trainer.precision},
            step=step,
            resumed=step > 0,
            name=type(pl_module).__name__,
        )

    @guarded
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add the loss."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None and pl_module.automatic_optimization:
            self.recording.log(loss=loss * trainer.accumulate_grad_batches)
        elif loss is not None:
            self.recording.log(loss=loss)
        else:
            self.recording.log({name: value for name, value in trainer.callback_metrics.items() if "loss" in name})

    @guarded
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Add the epoch, after its validation."""
        measured = trainer.callback_metrics
        trained = {
            f"train_{name}": measured[f"train_{name}"] for name in ("loss", "accuracy") if f"train_{name}" in measured
        }
        self.recording.log_epoch(trainer.current_epoch + 1, {**renamed(measured, "val_"), **trained})

    @guarded
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the file as interrupted or failed."""
        self.recording.end("interrupted" if isinstance(exception, KeyboardInterrupt) else "failed")

    @guarded
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the file."""
        self.recording.end()
