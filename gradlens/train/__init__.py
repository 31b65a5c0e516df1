"""Train a net with the recorder on."""

from gradlens.train.session import train_run

__all__ = ["train_run"]
