"""The summary of a run: its diagnosis, what else is notable, and a row per layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gradlens.analysis.highlights import notable
from gradlens.analysis.profile import depth_profile
from gradlens.diagnosis.diagnose import diagnose
from gradlens.diagnosis.findings import Diagnosis
from gradlens.format import plain
from gradlens.lazy import shown_by
from gradlens.run import Run


@dataclass(frozen=True, repr=False)
class Summary:
    """What happened in a run.

    Args:
        run: The run; its epochs, scalars and settings are there.
        diagnosis: What is wrong with it, or that nothing is.
        notable: Sentences with their numbers, most important first.
        layers: A row per layer: its description, and the median of each metric over all rows.
    """

    run: Run
    diagnosis: Diagnosis
    notable: tuple[str, ...]
    layers: tuple[dict[str, Any], ...]

    _repr_html_ = shown_by("summary_card")

    def __repr__(self) -> str:
        """Return the run and the kinds of its findings in one line."""
        return f"Summary({self.run!r}, {', '.join(self.diagnosis.kinds) or self.diagnosis.verdict})"

    @property
    def overhead(self) -> float:
        """The share of the training time that recording took; NaN where the file does not say."""
        return float(self.run.info.get("overhead", math.nan))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is missing in the recording, and why."""
        return tuple(self.run.info.get("notes", ()))

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values, as ``gradlens summary --format json`` prints it."""
        return {
            "run": self.run.name,
            "model": self.run.model,
            "seed": self.run.seed if self.run.seed >= 0 else None,
            "status": self.run.status,
            "rows": len(self.run.steps),
            "diagnosis": self.diagnosis.to_dict(),
            "notable": list(self.notable),
            "overhead": plain(self.overhead),
            "notes": list(self.notes),
            "epochs": {name: plain(values) for name, values in self.run.epochs.items()},
            "layers": list(self.layers),
            "config": plain(self.run.config),
        }

    def __str__(self) -> str:
        """Return the diagnosis, what else is notable, and the notes, as text."""
        also = [f"  also: {sentence}" for sentence in self.notable]
        return "\n".join([str(self.diagnosis), *also, *(f"  note: {note}" for note in self.notes)])


def summarise(run: Run) -> Summary:
    """Diagnose a run, find what is notable, and take the median of each metric over all rows."""
    return Summary(run, diagnose(run), tuple(notable(run)), tuple(layer_rows(run)))


def layer_rows(run: Run) -> list[dict[str, Any]]:
    """Return a row per layer: its description and the median of each metric over all rows."""
    profiles = {name: depth_profile(run, name) for name in run.metrics}
    return [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "role": layer.role,
            "depth": layer.depth,
            "out_numel": layer.out_numel,
            "param_numel": layer.param_numel,
            **{name: plain(float(profile[i])) for name, profile in profiles.items()},
        }
        for i, layer in enumerate(run.layers)
    ]
