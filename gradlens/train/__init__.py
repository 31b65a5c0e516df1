"""Train a model while the recorder measures it."""

from gradlens.train.distributed import joined
from gradlens.train.session import train_run

__all__ = ["joined", "train_run"]
