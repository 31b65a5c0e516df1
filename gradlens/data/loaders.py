"""Make batches whose order and augmentation depend only on seed and epoch.

A run that is resumed at epoch 7 therefore gets the same batches as an uninterrupted run, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gradlens.data.registry import ImageSet

# Mean and standard deviation of ImageNet's colours, as torchvision's reference training uses.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Batch = tuple[Tensor, Tensor]

IGNORED = -100
"""The label of an image that only pads a part of a batch; ``cross_entropy`` ignores it."""
LEAST = 2
"""Smallest number of images in a part of a batch: batch norm cannot train on a single image."""

# Purpose numbers of the random streams.
ORDER, AUGMENTATION = 1, 2


def mix_seed(*parts: int) -> int:
    """Return a seed that depends on all parts; it has 32 bits, because torch's CPU generator uses only 32 bits."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


Transform = Callable[[Tensor], Tensor]


def make_augmentation(names: Sequence[str], side: int) -> Transform | None:
    """Return the random transform of one uint8 image (3, side, side), or None if no names are given.

    Importing torchvision takes as long as importing torch. The flip of the quick recipe does without it.

    Args:
        names: Names out of ``gradlens.config.AUGMENTATIONS``, applied in this order.
        side: Side of the square image in pixels.
    """
    known: dict[str, Transform] = {"flip": _flip}
    if set(names) - set(known):
        from torchvision.transforms import v2

        known |= {
            "crop": v2.RandomResizedCrop(side, scale=(0.7, 1.0), antialias=True),
            "rotation": v2.RandomRotation(15),
            "color": v2.ColorJitter(0.2, 0.2, 0.2, 0.05),
        }
    return _Sequence([known[name] for name in names]) if names else None


def _flip(image: Tensor) -> Tensor:
    """Mirror half of the images, as torchvision's RandomHorizontalFlip does, with the same random numbers."""
    return image if torch.rand(1) >= 0.5 else image.flip(-1)


@dataclass(frozen=True)
class _Sequence:
    """Transforms one after another; a class, so that it can be sent to the processes that prepare batches."""

    parts: Sequence[Transform]

    def __call__(self, image: Tensor) -> Tensor:
        for part in self.parts:
            image = part(image)
        return image


@dataclass(frozen=True)
class Share:
    """The part of each batch that one of several processes takes.

    Args:
        rank: The rank of the process.
        world_size: The number of processes.
    """

    rank: int
    world_size: int

    def of(self, keys: list[int]) -> tuple[list[int], int]:
        """Return this process's part of a batch.

        Args:
            keys: The keys of the whole batch.

        Returns:
            The keys of the part, and how many of them count; the others only pad the part.
        """
        mine = keys[self.rank :: self.world_size]
        own = len(mine)
        others = [key for key in keys if key not in mine] or keys
        return mine + [others[i % len(others)] for i in range(LEAST - own)], own


class _ImageDataset(Dataset[Batch]):
    """Whole batches by index; an index also holds the epoch (epoch * N + i), so that workers know the epoch."""

    def __init__(self, data: ImageSet, augmentation: Transform | None, seed: int, share: Share | None = None) -> None:
        self.data = data
        self.share = share
        self.augmentation = augmentation
        self.seed = seed

    def __getitems__(self, keys: list[int]) -> Batch:
        """Return images (B, 3, side, side) float and labels (B,)."""
        n = len(self.data)
        own = len(keys)
        if self.share is not None:
            keys, own = self.share.of(keys)
        indices = [key % n for key in keys]
        images = self.data.images[indices]
        if self.augmentation is not None:
            images = torch.stack([self._augment(image, key) for image, key in zip(images, keys, strict=True)])
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        labels = self.data.labels[indices]
        labels[own:] = IGNORED
        return (images.float() / 255 - mean) / std, labels

    def _augment(self, image: Tensor, key: int) -> Tensor:
        assert self.augmentation is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(self.seed, AUGMENTATION, key))
            changed: Tensor = self.augmentation(image)
        return changed


class _Order(Sampler[int]):
    """The order of one epoch after another."""

    def __init__(self, count: int, seed: int | None) -> None:
        self.count = count
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        if self.seed is None:
            order = torch.arange(self.count)
        else:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, ORDER, self.epoch))
            order = torch.randperm(self.count, generator=generator)
        return iter((order + self.epoch * self.count).tolist())

    def __len__(self) -> int:
        return self.count


class Batches:
    """Batches of one image set, epoch by epoch.

    Args:
        data: N images.
        batch_size: Images per batch; when shuffling, a last batch of one image is left out, because batch norm cannot
            train on it.
        shuffle_seed: Seed of order and augmentation; None keeps the order.
        augment: Names out of ``gradlens.config.AUGMENTATIONS``.
        side: Side of the square images in pixels.
        workers: Number of processes that prepare batches; 0 prepares them in this process.
        share: The part of each batch for this process; None for whole batches. A part with fewer than two images (of a
            short last batch) is padded with other images of the batch, with the label ``IGNORED``.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        *,
        shuffle_seed: int | None,
        augment: Sequence[str] = (),
        side: int = 0,
        workers: int = 0,
        share: Share | None = None,
    ) -> None:
        self._batch_size = batch_size
        self._order = _Order(len(data), shuffle_seed)
        self._loader: DataLoader[Batch] = DataLoader(
            _ImageDataset(data, make_augmentation(augment, side), shuffle_seed or 0, share),
            batch_size=batch_size,
            sampler=self._order,
            drop_last=shuffle_seed is not None and len(data) > 1 and len(data) % batch_size == 1,
            num_workers=workers,
            generator=torch.Generator().manual_seed(0),  # otherwise every epoch would use the global generator
            collate_fn=_as_it_is,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def size(self, batch: int) -> int:
        """Return the number of images of all processes in a batch; batches are counted from 0."""
        return min(self._batch_size, self._order.count - batch * self._batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Return the batches of an epoch.

        Args:
            number: The epoch, which selects order and augmentation.

        Returns:
            Iterator over images (B, 3, side, side) float32 and labels (B,) int64.
        """
        self._order.epoch = number
        return iter(self._loader)


def _as_it_is(batch: Any) -> Any:
    return batch


def make_batches(
    train: ImageSet,
    val: ImageSet,
    *,
    batch_size: int,
    seed: int,
    augment: Sequence[str],
    side: int,
    workers: int,
    share: Share | None = None,
) -> tuple[Batches, Batches]:
    """Make batches for training and validation.

    Args:
        train: Training images.
        val: Validation images.
        batch_size: Images per batch.
        seed: Seed of order and augmentation.
        augment: Names out of ``gradlens.config.AUGMENTATIONS``.
        side: Side of the square images in pixels.
        workers: Number of processes that prepare batches.
        share: The part of each batch for this process; None for whole batches.

    Returns:
        Training batches (shuffled and augmented), and validation batches (in order, not augmented).
    """
    return (
        Batches(train, batch_size, shuffle_seed=seed, augment=augment, side=side, workers=workers, share=share),
        Batches(val, batch_size, shuffle_seed=None, workers=workers, share=share),
    )
