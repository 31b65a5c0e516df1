"""Decode image files, once per run if they fit in memory."""

from __future__ import annotations

import hashlib
import io
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from gradlens.data.tables import ImageFile
from gradlens.errors import DataError

T = TypeVar("T")
HASH_SIDE = 16
PROGRESS_S = 10.0
AT_ONCE = 4096
MOST_PIXELS = 64_000_000
"""Most pixels of an image: as many as the largest cameras have. Several images are decoded at once, each in 4 bytes a
pixel and more; a file of a few kilobytes may declare billions."""
MOST_BYTES = 1 << 28
SKIP = "--skip-broken trains without such images"


@dataclass
class Decoded:
    """The result of decoding a list of image files.

    Args:
        kept: Index in the list of each image that could be decoded.
        images: (N, 3, side, side) uint8, or None if they do not fit in memory.
        digests: N digests of the files' bytes.
        differences: (N, 512) differences of grey levels.
        broken: Error message of each image that was skipped.
    """

    kept: list[int] = field(default_factory=list)
    images: Tensor | None = None
    digests: list[bytes] = field(default_factory=list)
    differences: NDArray[np.int16] = field(default_factory=lambda: np.empty((0, 2 * HASH_SIDE**2), dtype=np.int16))
    broken: list[str] = field(default_factory=list)


def decode_images(
    files: list[ImageFile],
    side: int,
    *,
    skip_broken: bool,
    keep_images: bool,
    progress: Callable[[int], None] = lambda done: None,
) -> Decoded:
    """Decode all image files and compute their fingerprints.

    Args:
        files: The image files.
        side: Side of the square images in pixels.
        skip_broken: Skip files that are missing or cannot be decoded.
        keep_images: Keep the pixels in memory.
        progress: Is called every ten seconds with the number of files that are done.

    Returns:
        Fingerprints, and pixels if asked for, of the images that could be decoded.

    Raises:
        DataError: A file is missing or broken, and ``skip_broken`` is False; the message names file and row.
    """
    decoded = Decoded()
    differences: list[NDArray[np.int16]] = []
    arrays = torch.empty((len(files) if keep_images else 0, 3, side, side), dtype=torch.uint8)

    def work(file: ImageFile) -> tuple[bytes, NDArray[np.int16], Tensor] | DataError:
        try:
            return _decode_one(file, side)
        except DataError as error:
            return error

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # decoders warn about files that they can decode
        told = time.monotonic()
        for index, result in enumerate(_in_order(pool, work, files)):
            if time.monotonic() - told > PROGRESS_S:
                told = time.monotonic()
                progress(index)
            if isinstance(result, DataError):
                if not skip_broken:
                    raise result
                decoded.broken.append(result.message)
                continue
            digest, changes, pixels = result
            if keep_images:
                arrays[len(decoded.kept)] = pixels
            decoded.kept.append(index)
            decoded.digests.append(digest)
            differences.append(changes)
    if differences:
        decoded.differences = np.stack(differences)
    decoded.images = arrays[: len(decoded.kept)] if keep_images else None
    return decoded


def _in_order(pool: ThreadPoolExecutor, work: Callable[[ImageFile], T], files: list[ImageFile]) -> Iterator[T]:
    """Yield the results in order; a part of the files at a time, so that results of a million do not pile up."""
    for start in range(0, len(files), AT_ONCE):
        yield from pool.map(work, files[start : start + AT_ONCE])


def _decode_one(file: ImageFile, side: int) -> tuple[bytes, NDArray[np.int16], Tensor]:
    image, content = open_image(file)
    return hashlib.blake2b(content, digest_size=16).digest(), grey_differences(image), to_square(image, side)


def open_image(file: ImageFile) -> tuple[Image.Image, bytes]:
    """Read an image file.

    Args:
        file: The file, and its name in errors.

    Returns:
        The upright RGB image, and the file's bytes.

    Raises:
        DataError: The file is missing or is not an image.
    """
    try:
        if file.path.exists() and not file.path.is_file():  # a pipe would wait for its writer, a device has no end
            raise DataError(f"{file.where}: the image is no plain file ({file.path})", tip=SKIP)
        size = file.path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(f"{file.where}: the image has {size:,} bytes, at most {MOST_BYTES:,} are read", tip=SKIP)
        content = file.path.read_bytes()
    except OSError:
        raise DataError(
            f"{file.where}: the image is missing ({file.path})",
            tip=SKIP,
        ) from None
    try:
        image = Image.open(io.BytesIO(content))
        too_large = image.width * image.height > MOST_PIXELS
        if not too_large:
            return ImageOps.exif_transpose(image).convert("RGB"), content
    except Exception as error:  # decoders raise any kind of exception for damaged files
        raise DataError(
            f"{file.where}: the image cannot be decoded ({_first_line(error)})",
            tip=SKIP,
        ) from None
    raise DataError(
        f"{file.where}: the image has {image.width:,} x {image.height:,} pixels, at most {MOST_PIXELS:,} are decoded",
        tip=SKIP,
    )


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "not an image" if text.startswith("cannot identify image file") else text


def to_square(image: Image.Image, side: int) -> Tensor:
    """Scale the shorter side to ``side`` and crop the centre: (3, side, side) uint8."""
    fitted = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()


def grey_differences(image: Image.Image) -> NDArray[np.int16]:
    """Return the changes of the grey level to the right and downward on a 16 x 16 grid.

    The signs of the changes are the difference hash.

    Args:
        image: Any image.

    Returns:
        (512,), in grey levels from 0 to 255.

    Source: N. Krawetz 2013, "Kind of Like That" (dHash), in both directions.
    """
    grey = image.convert("L")
    n = HASH_SIDE
    across = np.asarray(grey.resize((n + 1, n), Image.Resampling.LANCZOS), dtype=np.int16)
    down = np.asarray(grey.resize((n, n + 1), Image.Resampling.LANCZOS), dtype=np.int16)
    return np.concatenate([(across[:, 1:] - across[:, :-1]).ravel(), (down[1:] - down[:-1]).ravel()])


class FileImages:
    """Images that do not fit in memory and are decoded on demand."""

    def __init__(self, paths: list[Path], side: int) -> None:
        self.paths = paths
        self.side = side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Any) -> Tensor:
        """Return (B, 3, side, side) uint8 for a list of indices."""
        files = [ImageFile(self.paths[i], "", str(self.paths[i])) for i in indices]
        return torch.stack([to_square(open_image(file)[0], self.side) for file in files])
