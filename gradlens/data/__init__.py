"""Images to train on: an embedded set, folders, tables, torchvision's sets; split without leaks."""

from gradlens.data.loaders import Batches, make_batches
from gradlens.data.registry import Splits, load_data

__all__ = ["Batches", "Splits", "load_data", "make_batches"]
