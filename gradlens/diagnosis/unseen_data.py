"""Notes on data that are not trained on: overfitting, or a validation that has other labels or other inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradlens.analysis.overfitting import LASTING
from gradlens.analysis.stats import median_of_all
from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.learning import classes_of, guessing_of
from gradlens.diagnosis.loss import overfits
from gradlens.diagnosis.recorded_rows import Recording

GUESSED, KNOWN = 1.1, 0.9
"""An accuracy of at most so many times 1 / C is that of guessing, and one above ``KNOWN`` in training is not. A model
that learns its data by heart still tells something of data of the same kind; no outside source for the limits."""
LEAST_CLASSES = 3
"""With two classes, an accuracy near 1/2 is what hard data give an overfitted model, too."""
BELOW = 0.5
"""Share of the accuracy of guessing below which a validation is systematically wrong; no outside source."""


def note_on_unseen_data(rec: Recording, findings: Sequence[Finding]) -> list[str]:
    """Return a note on a validation that is far worse than the training, or nothing.

    Args:
        rec: The recording.
        findings: What was found.
    """
    if said := _guesses(rec):
        return [said]
    said = overfits(rec, guessing_of(rec))
    if not said or any(said in finding.evidence for finding in findings):
        return []
    return [
        f"{said}: the model learns its training data by heart (overfitting); more data, weight decay, dropout, a "
        "smaller model or an earlier stop help"
    ]


def _guesses(rec: Recording) -> str:
    """Say that a classifier that is nearly always right in training only guesses in validation, or ""."""
    classes, table = classes_of(rec), rec.run.epochs
    seen, unseen = (_in_shares(table.get(name, np.empty(0))) for name in ("train_accuracy", "val_accuracy"))
    if classes < LEAST_CLASSES or len(unseen) <= LASTING or not len(seen):
        return ""
    here, there, guess = median_of_all(seen[-2:]), median_of_all(unseen[-max(len(unseen) // 3, 2) :]), 1 / classes
    if not here > KNOWN or not unseen.max() <= 2 * guess or not there <= GUESSED * guess:
        return ""
    order = (
        "it is far below guessing, as where the classes are numbered in another order"
        if there < BELOW * guess
        else "it is no better than guessing"
    )
    return (
        f"the validation accuracy ends at {there:.2g}, and that in training at {here:.2g}; guessing between {classes} "
        f"classes has {guess:.2g}: {order}. Overfitting alone rarely does that. Compare validation and training first: "
        "the numbers of the classes (class_to_idx; the order of listdir differs), the preprocessing (normalisation, "
        "order of channels), the weights that are validated, and the statistics of batch norm"
    )


def _in_shares(values: np.ndarray) -> np.ndarray:
    """Return the finite accuracies from 0 to 1; they may be logged in percent."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return known / 100 if len(known) and known.max() > 1 else known
