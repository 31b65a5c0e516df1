"""Decode image files, once per run where they fit in memory."""

from __future__ import annotations

import hashlib
import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from gradlens.data.tables import Picture
from gradlens.errors import DataError

HASH_SIDE = 16


@dataclass
class Decoded:
    """What was read of a list of pictures.

    Args:
        kept: Index of each good picture in the list.
        images: (N, 3, side, side) uint8, or None where they do not fit in memory.
        digests: A digest of each file's bytes.
        differences: (N, 512), the pictures' grey differences.
        broken: What was said of each picture that was passed over.
    """

    kept: list[int] = field(default_factory=list)
    images: Tensor | None = None
    digests: list[bytes] = field(default_factory=list)
    differences: NDArray[np.int16] = field(default_factory=lambda: np.empty((0, 2 * HASH_SIDE**2), dtype=np.int16))
    broken: list[str] = field(default_factory=list)


def decode_pictures(pictures: list[Picture], side: int, *, skip_broken: bool, keep_images: bool) -> Decoded:
    """Decode all pictures, fingerprint them, and keep the pixels where asked.

    Args:
        pictures: The files.
        side: Pixels of the square that is kept.
        skip_broken: Pass over files that are missing or cannot be decoded.
        keep_images: Keep the pixels in memory.

    Raises:
        DataError: A file is missing or broken, and ``skip_broken`` is False; names file and row.
    """
    done = Decoded()
    differences: list[NDArray[np.int16]] = []
    arrays = torch.empty((len(pictures) if keep_images else 0, 3, side, side), dtype=torch.uint8)

    def work(picture: Picture) -> tuple[bytes, NDArray[np.int16], Tensor] | DataError:
        try:
            return _decode_one(picture, side)
        except DataError as error:
            return error

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # what decoders grumble about and yet decode
        for index, result in enumerate(pool.map(work, pictures)):
            if isinstance(result, DataError):
                if not skip_broken:
                    raise result
                done.broken.append(result.message)
                continue
            digest, changes, pixels = result
            if keep_images:
                arrays[len(done.kept)] = pixels
            done.kept.append(index)
            done.digests.append(digest)
            differences.append(changes)
    if differences:
        done.differences = np.stack(differences)
    done.images = arrays[: len(done.kept)] if keep_images else None
    return done


def _decode_one(picture: Picture, side: int) -> tuple[bytes, NDArray[np.int16], Tensor]:
    image, content = open_image(picture)
    return hashlib.blake2b(content, digest_size=16).digest(), grey_differences(image), to_square(image, side)


def open_image(picture: Picture) -> tuple[Image.Image, bytes]:
    """Return the upright RGB image and the file's bytes.

    Raises:
        DataError: The file is missing or is no image.
    """
    try:
        content = picture.path.read_bytes()
    except OSError:
        raise DataError(
            f"{picture.where}: the image is missing ({picture.path})",
            tip="--skip-broken trains without such images",
        ) from None
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"), content
    except Exception as error:  # decoders raise what they like on damaged files
        raise DataError(
            f"{picture.where}: the image cannot be decoded ({_first_line(error)})",
            tip="--skip-broken trains without such images",
        ) from None


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "not an image" if text.startswith("cannot identify image file") else text


def to_square(image: Image.Image, side: int) -> Tensor:
    """Scale the shorter side to ``side`` and crop the centre: (3, side, side) uint8."""
    fitted = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()


def grey_differences(image: Image.Image) -> NDArray[np.int16]:
    """Return how the grey level changes to the right, and downwards, on a 16 x 16 grid: (512,).

    Its signs are the difference hash. Source: N. Krawetz 2013, "Kind of Like That" (dHash), in both directions.
    """
    grey = image.convert("L")
    n = HASH_SIDE
    across = np.asarray(grey.resize((n + 1, n), Image.Resampling.LANCZOS), dtype=np.int16)
    down = np.asarray(grey.resize((n, n + 1), Image.Resampling.LANCZOS), dtype=np.int16)
    return np.concatenate([(across[:, 1:] - across[:, :-1]).ravel(), (down[1:] - down[:-1]).ravel()])


class FileImages:
    """Images that do not fit in memory, decoded when they are asked for."""

    def __init__(self, paths: list[Path], side: int) -> None:
        self.paths = paths
        self.side = side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Any) -> Tensor:
        """Return (B, 3, side, side) uint8 for a list of indices, or a view for a slice of the list."""
        pictures = [Picture(self.paths[i], "", str(self.paths[i])) for i in indices]
        return torch.stack([to_square(open_image(picture)[0], self.side) for picture in pictures])
