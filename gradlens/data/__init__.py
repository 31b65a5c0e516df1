"""Images to train on: an embedded set, folders, tables, torchvision's sets; split without leaks."""

from gradlens.data.loaders import IGNORED, Batches, Share, make_batches, mix_seed
from gradlens.data.registry import Splits, load_data

__all__ = ["IGNORED", "Batches", "Share", "Splits", "load_data", "make_batches", "mix_seed"]
