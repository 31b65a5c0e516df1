"""Scores of the tools' answers: precision, recall, kinds, layers and steps, by plain counting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

NEVER = -1


@dataclass(frozen=True)
class Answer:
    """The answer of a tool about a run, and the truth.

    Args:
        subject: Whose run it is.
        seed: Its seed.
        tool: Who says it.
        truth: Kinds that are right; empty for a healthy run.
        layers: First layers that are right; empty where none is asked for.
        findings: (kind, first layer) of each finding, the main one first; empty for no alarm, "undecided" included.
        early: Rows to the kinds found in so many rows, main one first.
    """

    subject: str
    seed: int
    tool: str
    truth: frozenset[str]
    layers: frozenset[str]
    findings: tuple[tuple[str, str], ...]
    early: dict[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def faulty(self) -> bool:
        """Whether the run has a fault."""
        return bool(self.truth)

    @property
    def alarm(self) -> bool:
        """Whether the tool finds anything."""
        return bool(self.findings)

    @property
    def right(self) -> bool:
        """Whether the main finding is of a right kind."""
        return self.alarm and self.findings[0][0] in self.truth

    @property
    def somewhere(self) -> bool:
        """Whether any finding is of a right kind."""
        return any(kind in self.truth for kind, _ in self.findings)

    @property
    def placed(self) -> bool:
        """Whether a finding of a right kind, preferably the main finding, names a right first layer."""
        return next((layer in self.layers for kind, layer in self.findings if kind in self.truth), False)

    @property
    def steps(self) -> int:
        """Rows until the main finding is of a right kind; ``NEVER`` where it is not."""
        return min((rows for rows, kinds in self.early.items() if kinds and kinds[0] in self.truth), default=NEVER)

    @property
    def alarmed_early(self) -> bool:
        """Whether there was an alarm at any length."""
        return self.alarm or any(self.early.values())


def wilson(hits: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927), (0, 1) where nothing was counted."""
    if of == 0:
        return 0.0, 1.0
    share, square = hits / of, z * z / of
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / of + square / (4 * of))
    return max(middle - half, 0.0), min(middle + half, 1.0)


@dataclass(frozen=True)
class Share:
    """A count out of a total."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        """The share; NaN where nothing was counted."""
        return self.hits / self.of if self.of else math.nan

    def __str__(self) -> str:
        """Return it with its interval."""
        low, high = wilson(self.hits, self.of)
        return f"{self.value:.3f} ({low:.2f} to {high:.2f})" if self.of else "none"


def share(found: Iterable[bool]) -> Share:
    """Count."""
    kept = list(found)
    return Share(sum(kept), len(kept))


@dataclass(frozen=True)
class Score:
    """The scores of a tool's answers.

    Args:
        precision: Alarms on faulty runs, of all alarms.
        strict_precision: Alarms with a right main kind, of all alarms.
        recall: Faulty runs with an alarm.
        strict_recall: Faulty runs whose main finding is of a right kind.
        any_kind: Faulty runs one of whose findings is of a right kind.
        first_layer: Faulty runs with a right first layer, of those for which one is asked.
        false_alarms: Healthy runs with an alarm.
        false_alarms_early: Healthy runs with an alarm at any length.
        steps: Median rows until a right alarm, of the runs that got one.
        in_time: Faulty runs that got one.
    """

    precision: Share
    strict_precision: Share
    recall: Share
    strict_recall: Share
    any_kind: Share
    first_layer: Share
    false_alarms: Share
    false_alarms_early: Share
    steps: float
    in_time: Share

    def row(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            name: [value.hits, value.of, *wilson(value.hits, value.of)] if isinstance(value, Share) else value
            for name, value in vars(self).items()
        }


def score(answers: Sequence[Answer]) -> Score:
    """Count a tool's answers."""
    faulty = [answer for answer in answers if answer.faulty]
    healthy = [answer for answer in answers if not answer.faulty]
    alarms = [answer for answer in answers if answer.alarm]
    steps = [answer.steps for answer in faulty if answer.steps != NEVER]
    return Score(
        share(answer.faulty for answer in alarms),
        share(answer.right for answer in alarms),
        share(answer.alarm for answer in faulty),
        share(answer.right for answer in faulty),
        share(answer.somewhere for answer in faulty),
        share(answer.placed for answer in faulty if answer.layers),
        share(answer.alarm for answer in healthy),
        share(answer.alarmed_early for answer in healthy),
        float(statistics.median(steps)) if steps else math.nan,
        share(answer.steps != NEVER for answer in faulty),
    )


def lost(faulty: float, twin: float, start: float) -> float:
    """Return which share of its twin's progress a training lost: 0 none, 1 all; infinite where the loss is none.

    Args:
        faulty: The loss that it ends with.
        twin: The loss that its twin ends with.
        start: The loss that its twin begins with.
    """
    if not math.isfinite(faulty):
        return math.inf
    return (faulty - twin) / (start - twin) if start > twin else math.nan
