"""Load and split training images: an embedded set, folders, CSV tables, torchvision's data sets."""

from gradlens.data.loaders import IGNORED, Batches, Share, make_batches, mix_seed
from gradlens.data.registry import Splits, load_data

__all__ = ["IGNORED", "Batches", "Share", "Splits", "load_data", "make_batches", "mix_seed"]
