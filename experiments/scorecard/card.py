"""The score card: train faulty and healthy models, record them, and ask each tool what is wrong.

    python experiments/scorecard/card.py --seeds 0,1,2,3,4 --jobs 2 -o results

Recordings are kept in a folder whose name follows from the code that made them, and are made only where they are
missing; the tables and ``scorecard.json`` are written anew each time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import faults  # noqa: E402, F401  (enters the faults)
import numpy as np  # noqa: E402
import tables  # noqa: E402
import torch  # noqa: E402
from healthy import BOOK  # noqa: E402
from judge import from_plain, judge, plain  # noqa: E402
from score import Answer, score  # noqa: E402
from training import STEPS, train  # noqa: E402

import gradlens  # noqa: E402

RECIPE = ("tasks.py", "nets.py", "training.py", "healthy.py", "faults.py")


def default_runs() -> Path:
    """Return the folder of recordings of exactly this code."""
    mark = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in RECIPE) + torch.__version__.encode())
    return Path(tempfile.gettempdir()) / f"gradlens-scorecard-{mark.hexdigest()[:12]}"


def work(item: tuple[str, int, str, int]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train a subject with a seed, where it was not, and judge it; in a process of its own."""
    name, seed, folder, steps = item
    torch.set_num_threads(1)
    subject = BOOK.subjects[name]
    path = Path(folder) / f"{name}-s{seed}.h5"
    begin = time.perf_counter()
    if not path.exists():
        train(subject, seed, path, steps)
    trained = time.perf_counter()
    answers, facts = judge(path, name, seed, subject.kinds, subject.first)
    facts |= {"seconds": trained - begin, "judged": time.perf_counter() - trained}
    return [plain(answer) for answer in answers], facts


def commit() -> str:
    """Return the commit that is checked out, with a mark where files are changed; "" where git does not tell."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def options(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4", help="0 to 2 are for tuning, others are held out")
    parser.add_argument("--subject", nargs="+", choices=list(BOOK.subjects), metavar="NAME", help="some only")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, help="folder of recordings")
    parser.add_argument("-o", "--out", type=Path, help="folder for scorecard.json and tables.md")
    parser.add_argument("--words", action="store_true", help="print gradlens's reports of what it gets wrong")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Make the card."""
    args = options(given)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    names = args.subject or list(BOOK.subjects)
    folder = args.runs or default_runs()
    folder.mkdir(parents=True, exist_ok=True)
    items = [(name, seed, str(folder), args.steps) for seed in seeds for name in names]
    begin = time.perf_counter()
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(work, items))
    rows = [row for found, _ in results for row in found]
    losses = {f"{name}-s{seed}": facts for (name, seed, _, _), (_, facts) in zip(items, results, strict=True)}
    answers = [from_plain(row) for row in rows]
    if args.words:
        for answer in answers:
            if answer.tool == "gradlens" and (not answer.right if answer.faulty else answer.alarmed_early):
                said = {rows: kinds for rows, kinds in answer.early.items() if kinds}
                print(f"{answer.subject}-s{answer.seed}, right: {sorted(answer.truth)}; early: {said}")
                print(losses[f"{answer.subject}-s{answer.seed}"]["words"], "\n")
    twins = {subject.name: subject.twin for subject in BOOK.subjects.values() if subject.faulty}
    text = tables.card(answers, losses, twins)
    print(text)
    print(f"\n{len(items)} runs, {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    if args.out:
        write(args.out, text, answers, losses, given)
    return 0


def brief_answer(answer: Answer) -> dict[str, Any]:
    """Return an answer in one short row: steps to a right alarm in place of what was said at each length."""
    row = plain(answer)
    del row["early"], row["truth"], row["first"]
    return row | {"right": answer.right, "steps": answer.steps, "alarmed_early": answer.alarmed_early}


def write(
    out: Path, text: str, answers: list[Answer], losses: dict[str, dict[str, Any]], given: Sequence[str] | None
) -> None:
    """Write the tables, and every answer with what is needed to make it again."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "tables.md").write_text(text + "\n", encoding="utf-8")
    versions = {"gradlens": gradlens.__version__, "torch": torch.__version__, "numpy": np.__version__}
    scores = {
        group: {tool: score([a for a in kept if a.tool == tool]).row() for tool in tables.TOOLS}
        for group, kept in tables.groups(answers).items()
    }
    brief = {run: {key: value for key, value in facts.items() if key != "words"} for run, facts in losses.items()}
    whole = {
        "command": ["card.py", *(sys.argv[1:] if given is None else given)],
        "versions": versions | {"python": sys.version.split()[0]},
        "commit": commit(),
        "scores": scores,
        "runs": brief,
        "answers": [brief_answer(answer) for answer in answers],
    }
    text = json.dumps(whole, separators=(",", ":")).replace('{"subject"', '\n{"subject"')
    (out / "scorecard.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
