"""All judged claims of the original study: verdicts, controls, the explanation, and what to run next."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from gradlens.lazy import shown_by
from gradlens.study.controls import Control
from gradlens.study.evidence import JudgedClaim
from gradlens.study.next_experiments import listed, names_experiment, trained_conditions, what_decides

REACHED = ("refuted", "supported", "mixed")
SCHEMA = 2
"""Version of what ``to_dict`` returns. Version 1, which the output did not name, had "not supported" for "refuted"."""


@dataclass(frozen=True)
class Judgement:
    """The judgement of all claims.

    Args:
        claims: The claims in the original study's order.
        controls: The positive and the negative control.
        explanation: Three or four sentences that summarise the verdicts.
        notes: What was left out, and why.
        runs: The number of runs that were given.
    """

    claims: tuple[JudgedClaim, ...]
    controls: tuple[Control, ...]
    explanation: str
    notes: tuple[str, ...]
    runs: int

    @property
    def conditions(self) -> list[str]:
        """The conditions that were trained."""
        return trained_conditions(self.claims)

    def __repr__(self) -> str:
        """Return the verdicts in one line."""
        verdicts = "; ".join(
            f"{one}: " + ", ".join(f"{j.claim.key} {j.overall[one].verdict}" for j in self.claims if one in j.overall)
            for one in self.conditions
        )
        return f"Judgement({self.runs} runs; {verdicts})"

    _repr_html_ = shown_by("judgement_card")

    @property
    def title(self) -> str:
        """The title of the claims."""
        return "The original study's claims"

    @property
    def is_decided(self) -> bool:
        """Whether any claim has a verdict in any setting, or one that a failed control withholds."""
        found = (one for judged in self.claims for one in (*judged.overall.values(), *judged.verdicts))
        return any(one.verdict != "undecided" for one in found)

    @property
    def next_steps(self) -> list[str]:
        """Experiments that would decide the undecided claims; empty if all are decided."""
        return what_decides(self.claims, self.controls, self.notes)

    @property
    def remarks(self) -> list[str]:
        """The notes that name no experiment."""
        return [note for note in self.notes if not names_experiment(note)]

    def decided(self, condition: str) -> str:
        """Return the decided claims of a condition by verdict: ``A and F not supported``."""
        reached: dict[str, list[str]] = {}
        for judged in self.claims:
            if condition in judged.overall:
                reached.setdefault(judged.overall[condition].verdict, []).append(judged.claim.key)
        return ", ".join(f"{listed(keys)} {verdict}" for verdict, keys in reached.items() if verdict in REACHED)

    def to_dict(self) -> dict[str, Any]:
        """Return the judgement as values for JSON; NaN as None, infinities as text.

        Returns:
            ``schema`` (2; it rises when a key changes its meaning or goes), ``conditions``, ``controls``, ``claims``
            (each with its criteria, ``overall`` by condition, and ``verdicts`` by setting; a verdict is "supported",
            "refuted", "mixed", "undecided" or "withheld"), ``explanation``, ``notes`` and ``runs``.
        """
        claims = [
            {
                **asdict(judged.claim),
                "overall": {condition: _plain(asdict(verdict)) for condition, verdict in judged.overall.items()},
                "verdicts": [_plain(asdict(verdict)) for verdict in judged.verdicts],
            }
            for judged in self.claims
        ]
        return {
            "schema": SCHEMA,
            "conditions": self.conditions,
            "controls": [asdict(control) for control in self.controls],
            "claims": claims,
            "explanation": self.explanation,
            "notes": list(self.notes),
            "runs": self.runs,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per claim, setting and number."""
        found = []
        for judged in self.claims:
            for verdict in judged.verdicts:
                head = {
                    "claim": judged.claim.key,
                    "condition": verdict.condition,
                    "setting": verdict.setting,
                    "verdict": verdict.verdict,
                }
                empty = {"evidence": None, "value": None, "low": None, "high": None, "unit": None, "n": 0, "note": ""}
                numbers = [{("evidence" if key == "name" else key): value for key, value in asdict(one).items()}
                           for one in verdict.evidence]  # fmt: skip
                found += [_plain({**head, **one}) for one in numbers or [empty]]
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
