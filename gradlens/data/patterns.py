"""The embedded data: five classes of generated texture images, so that a first run needs no files.

Each image shows one texture in a soft-edged patch with random position, size, scale, angle, phase and colour. The
background is smooth clutter with a few distracting bars and pixel noise. The classes differ in texture and slightly in
their average hue. Hue is learned quickly and identifies about half of the images; texture requires a model that trains
well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLASSES = ("stripes", "waves", "checks", "dots", "rings")
TRAIN_IMAGES = 800
VAL_IMAGES = 250
HUE_SPREAD = 0.15
"""Standard deviation of a class's hue, as a share of the colour circle; the mean hues are 0.2 apart."""

Image = NDArray[np.float32]


def make_patterns(count: int, size: int, seed: int, part: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Generate images with cyclic classes.

    Args:
        count: N, the number of images.
        size: Side in pixels.
        seed: The seed; together with ``part`` and an image's index it determines the image.
        part: 0 for training, 1 for validation.

    Returns:
        Images (N, 3, size, size) uint8 and labels (N,).
    """
    labels = np.arange(count, dtype=np.int64) % len(CLASSES)
    images = np.empty((count, 3, size, size), dtype=np.uint8)
    for i, label in enumerate(labels):
        rng = np.random.default_rng([seed, part, i])
        images[i] = draw_pattern(int(label), size, rng)
    return images, labels


def draw_pattern(label: int, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Generate one image.

    Args:
        label: Index of the class.
        size: Side in pixels.
        rng: Source of all random choices.

    Returns:
        (3, size, size) uint8.
    """
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    background = _clutter(x, y, rng)
    low, high = _two_colours(label, rng)
    wave = _texture(label, x, y, rng)[None]
    textured = low + (high - low) * (0.5 + 0.5 * wave)
    patch = _patch(x, y, rng)[None]
    image = background * (1 - patch) + textured * patch
    image = image + rng.normal(0, 0.05, image.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def _texture(label: int, x: Image, y: Image, rng: np.random.Generator) -> Image:
    """Return a texture in [-1, 1]."""
    angle = rng.uniform(0, np.pi)
    frequency = np.pi * rng.uniform(4, 9)
    u = np.cos(angle) * x + np.sin(angle) * y
    v = -np.sin(angle) * x + np.cos(angle) * y
    shift_u, shift_v = rng.uniform(0, 2 * np.pi, 2)
    a, b = frequency * u + shift_u, frequency * v + shift_v
    match CLASSES[label]:
        case "stripes":
            wave = np.sin(a)
        case "waves":
            wave = np.sin(a + rng.uniform(1.2, 2.0) * np.sin(0.5 * b))
        case "checks":
            wave = np.sin(a) * np.sin(b) * 1.4
        case "dots":
            wave = np.cos(a) + np.cos(b) - 0.6
        case _:
            centre = rng.uniform(-0.5, 0.5, 2)
            wave = np.sin(frequency * np.hypot(x - centre[0], y - centre[1]) + shift_u)
    texture: Image = np.tanh(rng.uniform(1, 4) * wave).astype(np.float32)
    return texture


def _patch(x: Image, y: Image, rng: np.random.Generator) -> Image:
    """Return the patch's opacity in [0, 1]."""
    centre = rng.uniform(-0.35, 0.35, 2)
    radius = rng.uniform(0.6, 1.1)
    distance = np.hypot(x - centre[0], y - centre[1])
    opacity = rng.uniform(0.75, 1.0)
    patch: Image = (opacity / (1 + np.exp((distance - radius) / 0.05))).astype(np.float32)
    return patch


def _two_colours(label: int, rng: np.random.Generator) -> tuple[Image, Image]:
    """Return two colours (3, 1, 1): a dark one of random hue, and a light one with a hue near that of the class."""
    hue = label / len(CLASSES) + rng.normal(0, HUE_SPREAD)
    light = _colour(hue, rng.uniform(0.3, 0.8), rng.uniform(0.65, 1.0))
    dark = _colour(rng.uniform(), rng.uniform(0.2, 0.9), rng.uniform(0.05, 0.4))
    return dark, light


def _colour(hue: float, saturation: float, value: float) -> Image:
    """Convert hue, saturation and value in [0, 1] to red, green and blue (3, 1, 1)."""
    channels = 1 - saturation * np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) * -1 + 2, 0, 1)
    colour: Image = (value * channels)[:, None, None].astype(np.float32)
    return colour


def _clutter(x: Image, y: Image, rng: np.random.Generator) -> Image:
    """Return a smooth background of low frequencies with a few bars across it, (3, size, size)."""
    image = np.empty((3, *x.shape), dtype=np.float32)
    for channel in range(3):
        field = np.full_like(x, rng.uniform(0.3, 0.7))
        for _ in range(4):
            kx, ky, phase = rng.normal(0, 3.0), rng.normal(0, 3.0), rng.uniform(0, 2 * np.pi)
            field += rng.uniform(0.03, 0.1) * np.sin(kx * x + ky * y + phase)
        image[channel] = field
    for _ in range(rng.integers(0, 3)):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.8, 0.8)
        distance = np.abs(np.cos(angle) * x + np.sin(angle) * y - offset)
        bar = distance < rng.uniform(0.03, 0.12)
        image[:, bar] = rng.uniform(0, 1, (3, 1))
    return image
