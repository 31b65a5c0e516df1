"""The original study's published numbers: last epoch, one run per network, five classes of Indonesian food."""

from __future__ import annotations

from gradlens.analysis.compare import Reference

NET = "original study, {}"
PUBLISHED = {
    "plain34": {"train_accuracy": 0.52, "val_accuracy": 0.47, "train_loss": 1.24, "val_loss": 1.30},
    "resnet34": {"train_accuracy": 0.7379, "val_accuracy": 0.6712, "train_loss": 0.8046, "val_loss": 1.0348},
}
REFERENCES = tuple(Reference(NET.format(model), model, numbers) for model, numbers in PUBLISHED.items())
