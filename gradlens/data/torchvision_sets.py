"""Open torchvision's data sets by name; they are downloaded into the user's cache on first use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradlens.data.images import to_square
from gradlens.errors import DataError
from gradlens.specs import TORCHVISION_SETS

# (training, validation) arguments of each constructor.
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cifar10": ({"train": True}, {"train": False}),
    "cifar100": ({"train": True}, {"train": False}),
    "fashionmnist": ({"train": True}, {"train": False}),
    "svhn": ({"split": "train"}, {"split": "test"}),
    "food101": ({"split": "train"}, {"split": "test"}),
    "flowers102": ({"split": "train"}, {"split": "val"}),
}


def cache_folder() -> Path:
    """Return the user's cache for data sets."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gradlens" / "data"


class DecodedOnDemand:
    """A data set of torchvision whose images are decoded on demand."""

    def __init__(self, dataset: Any, side: int) -> None:
        self.dataset = dataset
        self.side = side

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, indices: Any) -> Tensor:
        """Return (B, 3, side, side) uint8 for a list of indices."""
        images: list[Image.Image] = [self.dataset[int(i)][0] for i in indices]
        return torch.stack([to_square(image.convert("RGB"), self.side) for image in images])


def open_torchvision(name: str, side: int) -> tuple[DecodedOnDemand, DecodedOnDemand, tuple[str, ...]]:
    """Open a data set, and download it if it is not in the cache.

    Args:
        name: One of ``TORCHVISION_SETS``.
        side: Side of the square images in pixels.

    Returns:
        The training part, the validation part, and the names of the classes.

    Raises:
        DataError: The data set is not in the cache and cannot be downloaded.
    """
    from torchvision import datasets

    constructor = getattr(datasets, TORCHVISION_SETS[name])
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        train, val = (constructor(root=folder, download=True, **part) for part in PARTS[name])
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name} is not in {_short(folder)} and could not be downloaded ({reason})",
            tip="connect to the network once, or put torchvision's files there; --data patterns needs no download",
        ) from None
    labels = labels_of(train)
    names = getattr(train, "classes", None) or [str(i) for i in range(int(labels.max()) + 1)]
    return DecodedOnDemand(train, side), DecodedOnDemand(val, side), tuple(map(str, names))


def labels_of(dataset: Any) -> Tensor:
    """Return all labels (N,) without decoding an image."""
    for key in ("targets", "labels", "_labels"):
        if hasattr(dataset, key):
            return torch.as_tensor(np.asarray(getattr(dataset, key)), dtype=torch.int64)
    return torch.tensor([int(dataset[i][1]) for i in range(len(dataset))])


def _short(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home())}"
    except ValueError:
        return str(path)
