"""Ask each tool about a recording, whole and as it was after a given number of rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from score import Answer

from gradlens import Diagnosis, Run, diagnose, read_run
from gradlens.diagnosis.other_tools import PACKS, diagnose_by

PREFIXES = (10, 15, 20, 30, 50, 75, 100, 150, 200, 300)
TOOLS = ("gradlens", *PACKS)


def prefix(run: Run, rows: int) -> Run:
    """Return a run as it was after a given number of rows."""
    return replace(
        run,
        steps=run.steps[:rows],
        epoch_of_step=run.epoch_of_step[:rows],
        scalars={name: np.asarray(values)[:rows] for name, values in run.scalars.items()},
        metrics={name: np.asarray(run.metric(name))[:rows] for name in run.metrics},
        status="complete",
    )


def ask(run: Run, tool: str) -> Diagnosis:
    """Return the answer of a tool."""
    return diagnose(run) if tool == "gradlens" else diagnose_by(run, tool)


def judge(path: Path, name: str, seed: int, kinds: frozenset[str], first: frozenset[str]) -> tuple[list[Answer], dict]:
    """Ask all tools.

    Returns:
        An answer per tool, and of the run itself the losses at its beginning and end and gradlens's own words.
    """
    run = read_run(path)
    whole = prefix(run, len(run.steps))
    parts = {rows: prefix(whole, rows) for rows in PREFIXES if rows <= len(run.steps)}
    answers, words = [], ""
    for tool in TOOLS:
        said = ask(whole, tool)
        words = str(said) if tool == "gradlens" else words
        found = tuple((f.kind, f.layers[0] if f.layers else "") for f in said.findings)
        early = {rows: ask(part, tool).kinds for rows, part in parts.items()}
        answers.append(Answer(name, seed, tool, kinds, first, found, early))
    loss = np.asarray(run.scalars["loss"], dtype=np.float64)
    late = loss[-max(len(loss) // 5, 1) :]
    end = float(np.median(late)) if np.isfinite(late).all() else math.nan
    return answers, {"start": float(np.mean(loss[:5])), "end": end, "words": words}


def plain(answer: Answer) -> dict[str, Any]:
    """Return an answer as plain values."""
    return {
        "subject": answer.subject,
        "seed": answer.seed,
        "tool": answer.tool,
        "truth": sorted(answer.truth),
        "first": sorted(answer.layers),
        "findings": [list(finding) for finding in answer.findings],
        "early": {str(rows): list(kinds) for rows, kinds in answer.early.items()},
    }


def from_plain(row: dict[str, Any]) -> Answer:
    """Return the answer that ``plain`` wrote."""
    return Answer(
        row["subject"],
        row["seed"],
        row["tool"],
        frozenset(row["truth"]),
        frozenset(row["first"]),
        tuple((kind, layer) for kind, layer in row["findings"]),
        {int(rows): tuple(kinds) for rows, kinds in row["early"].items()},
    )
