"""Load and split the data of a run, and report copies and broken files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gradlens.config import RunConfig
from gradlens.data import patterns
from gradlens.data.copies import Copies, find_copies
from gradlens.data.images import Decoded, FileImages, decode_images
from gradlens.data.split import split_groups, split_random
from gradlens.data.tables import ImageFile, Table, read_csv, read_folder
from gradlens.data.torchvision_sets import labels_of, open_torchvision
from gradlens.errors import DataError
from gradlens.events import Listener, Note, ignore
from gradlens.format import plural
from gradlens.specs import DataSpec, parse_data

MEMORY_SHARE = 0.4
"""Share of the free memory that decoded images may use."""


class Images(Protocol):
    """Images that can be indexed by a list: a tensor in memory, or files."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any) -> Tensor:
        """Return (B, 3, side, side) uint8."""
        ...


@dataclass
class ImageSet:
    """Images and their labels."""

    images: Images
    """(N, 3, side, side) uint8 when indexed."""
    labels: Tensor
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Splits:
    """Training and validation images, and facts about them."""

    train: ImageSet
    val: ImageSet
    classes: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)


def load_data(config: RunConfig, listener: Listener = ignore) -> Splits:
    """Load and split the data of a run.

    Args:
        config: The configuration of the run.
        listener: Is called with notes about copies, broken images and leaks.

    Returns:
        Training and validation images.

    Raises:
        DataError: The data cannot be used; the message names the file and the row.
    """
    spec = parse_data(config.data)
    splits = LOADERS[spec.kind](spec, config, listener)
    splits.facts |= {
        "train_images": len(splits.train),
        "val_images": len(splits.val),
        "classes": list(splits.classes),
    }
    if len(splits.train) < config.batch_size:
        listener(Note(f"only {len(splits.train)} training images for a batch of {config.batch_size}", warning=True))
    return splits


def _load_patterns(spec: DataSpec, config: RunConfig, listener: Listener) -> Splits:
    parts = [
        patterns.make_patterns(count, config.image_size, config.seed, part)
        for part, count in enumerate((patterns.TRAIN_IMAGES, patterns.VAL_IMAGES))
    ]
    train, val = (ImageSet(torch.from_numpy(images), torch.from_numpy(labels)) for images, labels in parts)
    return Splits(train, val, patterns.CLASSES)


def _load_torchvision(spec: DataSpec, config: RunConfig, listener: Listener) -> Splits:
    side = config.image_size
    opened = open_torchvision(spec.name, side)
    sets = []
    for part in opened[:2]:
        images: Images = part
        if _fits(len(part), side):
            images = torch.cat([part[range(i, min(i + 512, len(part)))] for i in range(0, len(part), 512)])
        sets.append(ImageSet(images, labels_of(part.dataset)))
    return Splits(sets[0], sets[1], opened[2])


def _load_folder(spec: DataSpec, config: RunConfig, listener: Listener) -> Splits:
    assert spec.path is not None
    return _load_table(read_folder(spec.path), config, listener)


def _load_csv(spec: DataSpec, config: RunConfig, listener: Listener) -> Splits:
    assert spec.path is not None
    return _load_table(read_csv(spec.path, allow_outside=config.allow_outside), config, listener)


LOADERS: dict[str, Callable[[DataSpec, RunConfig, Listener], Splits]] = {
    "patterns": _load_patterns,
    "folder": _load_folder,
    "csv": _load_csv,
    "torchvision": _load_torchvision,
}


def _load_table(table: Table, config: RunConfig, listener: Listener) -> Splits:
    files = table.files + (table.validation or [])
    keep = _fits(len(files), config.image_size)
    decoded = decode_images(
        files,
        config.image_size,
        skip_broken=config.skip_broken,
        keep_images=keep,
        progress=lambda done: listener(Note(f"{done:,} of {len(files):,} images are decoded")),
    )
    kept = [files[i] for i in decoded.kept]
    facts: dict[str, Any] = {"broken_skipped": len(decoded.broken)}
    if decoded.broken:
        skipped = plural(len(decoded.broken), "broken image")
        listener(Note(f"{skipped} skipped, first: {decoded.broken[0]}", warning=True))
    if table.passed_over:
        listener(Note(f"{plural(table.passed_over, 'hidden file')} passed over (files of macOS, or names with a dot)"))
    number = {name: i for i, name in enumerate(table.classes)}
    labels = np.array([number[file.label] for file in kept], dtype=np.int64)
    _check_left(table, labels)
    copies = find_copies(decoded.digests, decoded.differences)
    _note_labels(kept, labels, copies, listener)
    if table.validation is None:
        if config.split == "group":
            train, val = split_groups(labels, copies.group, config.val_fraction, config.seed)
        else:
            train, val = split_random(labels, config.val_fraction, config.seed)
    else:
        in_train = np.array(decoded.kept) < len(table.files)
        train, val = np.flatnonzero(in_train), np.flatnonzero(~in_train)
    _check_sides(table, labels, val, listener)
    exact, shared = copies.shared(train, val)
    facts |= {
        "different_pictures": copies.different,
        "exact_copy_groups": copies.exact_groups,
        "exact_copy_files": copies.exact_files,
        "near_copies": copies.near_files,
        "val_share_exact_copy_in_train": round(exact, 4),
        "val_share_any_copy_in_train": round(shared, 4),
    }
    _note_copies(copies, len(kept), (exact, shared), config, listener)
    images = _as_images(decoded, kept, config.image_size)
    parts = [ImageSet(_select(images, indices), torch.from_numpy(labels[indices])) for indices in (train, val)]
    return Splits(parts[0], parts[1], table.classes, facts)


def _note_labels(files: list[ImageFile], labels: np.ndarray[Any, Any], copies: Copies, listener: Listener) -> None:
    """Report images that occur twice, with different labels."""
    first: dict[int, int] = {}
    twice = [(first[group], i) for i, group in enumerate(copies.exact.tolist()) if first.setdefault(group, i) != i]
    differing = [(a, b) for a, b in twice if labels[a] != labels[b]]
    if differing:
        a, b = (files[i] for i in differing[0])
        listener(
            Note(
                f"{plural(len(differing), 'image')} with two labels, first: {a.where} is {a.label!r}, and the same "
                f"image {b.where} is {b.label!r}",
                warning=True,
            )
        )


def _check_left(table: Table, labels: np.ndarray[Any, Any]) -> None:
    counts = np.bincount(labels, minlength=len(table.classes))
    for name, count in zip(table.classes, counts, strict=True):
        if count < 2:
            raise DataError(
                f"class {name!r} has {plural(count, 'usable image')} after broken ones are skipped; expected at least "
                "two"
            )


def _check_sides(table: Table, labels: np.ndarray[Any, Any], val: np.ndarray[Any, Any], listener: Listener) -> None:
    """Reject a split without validation images, and report classes without validation images."""
    if not len(val):
        raise DataError(
            "no validation images are left: each class consists of copies of one image",
            tip="add images, or use --split random, which puts copies on both sides",
        )
    without = [name for i, name in enumerate(table.classes) if not (labels[val] == i).any()]
    if without:
        text = f"no validation image of class {', '.join(without)}: it consists of copies of one image"
        listener(Note(text, warning=True))


def _note_copies(
    copies: Copies, count: int, shared: tuple[float, float], config: RunConfig, listener: Listener
) -> None:
    if not copies.searched_near:
        listener(Note(f"{count} images are too many to search for near copies; only exact copies were searched"))
    if copies.different == count:
        return
    if copies.largest > max(20, 0.1 * count):
        text = f"one group of near copies holds {copies.largest} of {count} images"
        listener(Note(f"{text}: if these are different images, use --split random", warning=True))
    listener(
        Note(
            f"{copies.different} different images among {count}: {plural(copies.exact_files, 'file')} in "
            f"{plural(copies.exact_groups, 'group')} of exact copies, {copies.near_files} more near copies"
        )
    )
    if shared[1]:
        listener(
            Note(
                f"{shared[1]:.0%} of the validation images have a copy among the training images ({shared[0]:.0%} an "
                "exact one): validation accuracy is partly memory (--split group keeps copies on one side)",
                warning=True,
            )
        )
    elif config.split == "group":
        listener(Note("copies are kept on one side of the split (--split random does not)"))


def _as_images(decoded: Decoded, kept: list[ImageFile], side: int) -> Images:
    return FileImages([file.path for file in kept], side) if decoded.images is None else decoded.images


def _select(images: Images, indices: np.ndarray[Any, Any]) -> Images:
    if isinstance(images, FileImages):
        return FileImages([images.paths[i] for i in indices], images.side)
    return images[torch.from_numpy(indices)]


def _fits(count: int, side: int) -> bool:
    """Return whether this many decoded images may be kept in memory."""
    return count * 3 * side * side <= MEMORY_SHARE * free_memory()


def free_memory() -> float:
    """Return the free memory in bytes; 4 GiB if the system does not report it."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 4.0 * 1024**3
