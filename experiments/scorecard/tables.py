"""The card as tables of text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from judge import TOOLS
from score import NEVER, Answer, lost, score

TUNED = (0, 1, 2)
"""Seeds on which thresholds may be tuned; the others are held out."""
ROWS = {
    "precision": "precision",
    "recall": "recall",
    "strict_precision": "precision, kind right",
    "strict_recall": "recall, kind right",
    "any_kind": "a right kind among all findings",
    "first_layer": "first layer right",
    "false_alarms": "false alarms on healthy runs",
    "false_alarms_early": "the same, at any length",
    "steps": "steps until a right alarm, median",
    "in_time": "faults with a right alarm at any length",
}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def groups(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Split answers into those of tuning seeds and those of held-out seeds."""
    tuned = [answer for answer in answers if answer.seed in TUNED]
    held = [answer for answer in answers if answer.seed not in TUNED]
    named = {"tuning seeds": tuned, "held-out seeds": held}
    return {
        f"{name} {', '.join(str(s) for s in sorted({a.seed for a in kept}))}": kept
        for name, kept in named.items()
        if kept
    }


def score_table(answers: Sequence[Answer]) -> str:
    """Return the scores: a row per measure, a column per tool."""
    tools = [tool for tool in TOOLS if any(answer.tool == tool for answer in answers)]
    scores = {tool: score([answer for answer in answers if answer.tool == tool]) for tool in tools}
    rows = []
    for key, said in ROWS.items():
        cells = [getattr(scores[tool], key) for tool in tools]
        rows.append([said, *(f"{cell:.0f}" if isinstance(cell, float) else str(cell) for cell in cells)])
    return markdown(["", *tools], rows)


def without_dead(answers: Sequence[Answer]) -> list[Answer]:
    """Take findings of dead units out of the packs' answers: zero_fraction is a rough stand-in for what they count."""
    return [
        replace(
            answer,
            findings=tuple(finding for finding in answer.findings if finding[0] != "dead"),
            early={rows: tuple(kind for kind in kinds if kind != "dead") for rows, kinds in answer.early.items()},
        )
        for answer in answers
        if answer.tool != "gradlens"
    ]


def _said(answers: Sequence[Answer]) -> str:
    counted = Counter(answer.findings[0][0] if answer.findings else "-" for answer in answers)
    return ", ".join(f"{kind} {count}" if len(counted) > 1 else kind for kind, count in counted.most_common())


def _cost(least: float) -> str:
    """Say how much of its twin's progress the best of a fault's seeds lost; below a tenth it is no fault."""
    if math.isinf(least):
        return "not finite"
    return f"{least:.2f}" + (" (no fault?)" if least < 0.1 else "")


def fault_table(answers: Sequence[Answer], losses: dict[str, dict[str, Any]], twins: dict[str, str]) -> str:
    """Return a row per fault: what it costs beside its twin, and what each tool names first, over all seeds."""
    rows = []
    for name, twin in twins.items():
        mine = [answer for answer in answers if answer.subject == name]
        seeds = sorted({answer.seed for answer in mine})
        cost = [
            lost(losses[f"{name}-s{s}"]["end"], losses[f"{twin}-s{s}"]["end"], losses[f"{twin}-s{s}"]["start"])
            for s in seeds
            if f"{twin}-s{s}" in losses
        ]
        least = min(cost, default=math.nan)
        steps = [answer.steps for answer in mine if answer.tool == "gradlens" and answer.steps != NEVER]
        truth = " or ".join(sorted(mine[0].truth))
        said = [_said([answer for answer in mine if answer.tool == tool]) for tool in TOOLS]
        ours = [answer for answer in mine if answer.tool == "gradlens"]
        placed = f"{sum(a.placed for a in ours)}/{len(ours)}" if ours[0].layers else ""
        when = f"{min(steps)} to {max(steps)}" if steps and min(steps) < max(steps) else str(steps[0]) if steps else ""
        rows.append([name, twin, _cost(least), truth, *said, placed, when])
    head = ["fault", "twin", "progress lost, least", "right", *TOOLS, "layer", "steps"]
    return markdown(head, rows)


def healthy_table(answers: Sequence[Answer], losses: dict[str, dict[str, Any]]) -> str:
    """Return a row per healthy training: its loss, and what each tool finds."""
    rows = []
    for name in dict.fromkeys(answer.subject for answer in answers if not answer.faulty):
        mine = [answer for answer in answers if answer.subject == name]
        kept = [losses[f"{name}-s{seed}"] for seed in sorted({answer.seed for answer in mine})]
        start, end = (sum(item[key] for item in kept) / len(kept) for key in ("start", "end"))
        said = [_said([answer for answer in mine if answer.tool == tool]) for tool in TOOLS]
        early = sum(answer.alarmed_early for answer in mine if answer.tool == "gradlens")
        rows.append([name, f"{start:.2g} to {end:.2g}", *said, f"{early}/{len(kept)}" if early else ""])
    return markdown(["healthy training", "loss", *TOOLS, "early alarms"], rows)


def card(answers: Sequence[Answer], losses: dict[str, dict[str, Any]], twins: dict[str, str]) -> str:
    """Return the whole card."""
    parts = []
    for name, kept in groups(answers).items():
        count = len({(answer.subject, answer.seed) for answer in kept})
        faults = len({(answer.subject, answer.seed) for answer in kept if answer.faulty})
        parts += [f"## {name}: {faults} faulty runs, {count - faults} healthy ones", score_table(kept)]
        parts += ["The packs without their rules of dead units:", score_table(without_dead(kept))]
    there = {answer.subject for answer in answers}
    parts += ["## Faults", fault_table(answers, losses, {name: twin for name, twin in twins.items() if name in there})]
    parts += ["## Healthy trainings", healthy_table(answers, losses)]
    return "\n\n".join(parts)
