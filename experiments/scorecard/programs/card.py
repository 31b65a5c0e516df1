"""The card of programs: faults that strangers reported, with their mended twins, and trainings that work.

    python experiments/scorecard/programs/card.py --jobs 2 -o results

``faults/NAME.py`` has ``train(faulty, record)``, ``works/NAME.py`` has ``train(record)``; ``truth/*.toml`` says what is
true of each and was committed before any program was recorded. Half of the programs, chosen by a hash of the name, are
held out: no rule is written while looking at them. Recordings are made only where they are missing or their program has
changed; after a change of the recorder, name another folder with ``--runs``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import math
import multiprocessing
import re
import sys
import tempfile
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from score import share  # noqa: E402

TOOLS = ("gradlens", "smdebug", "autotrainer", "deepchecker", "deepdiagnosis")
FAULTY, TWIN, WORKS = "faulty", "twin", "works"


@dataclass(frozen=True)
class Item:
    """A training to record: a program in one of its variants.

    Args:
        name: The program.
        variant: "faulty", "twin" or "works".
        part: The file of its truth, "works" for trainings that work.
        truth: Its entry there.
    """

    name: str
    variant: str
    part: str
    truth: dict[str, Any]

    @property
    def script(self) -> Path:
        """The program."""
        return HERE / ("works" if self.variant == WORKS else "faults") / f"{self.name}.py"

    @property
    def held_out(self) -> bool:
        """Whether no rule may be written while looking at it; fixed by the name alone."""
        return is_held_out(self.name)


@dataclass(frozen=True)
class Answer:
    """What a tool says of a recording; the main finding is the first.

    Args:
        name: The program.
        variant: "faulty", "twin" or "works".
        part: The file of its truth.
        tool: Whose answer it is.
        kind: The main finding's kind, "healthy", "undecided" or "crash".
        says: Kind, evidence and remedy of the main finding.
        first_layer: Where the main finding starts.
        confidence: Of the main finding; NaN where there is none.
        right: Faulty: the main finding says the cause. Otherwise: there is no finding.
        placed: Whether the first layer is right; None where none is asked for.
        learning: "yes", "no" or "unknown"; "" for other tools.
        others: Kinds of the other findings.
    """

    name: str
    variant: str
    part: str
    tool: str
    kind: str
    says: str
    first_layer: str
    confidence: float
    right: bool
    placed: bool | None
    learning: str
    others: tuple[str, ...]

    @property
    def alarm(self) -> bool:
        """Whether there is a finding."""
        return self.kind not in ("healthy", "undecided", "crash")


def is_held_out(name: str) -> bool:
    """Return whether a program is held out: the first byte of the SHA-256 of its name is odd."""
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 1


def programs() -> list[Item]:
    """Return all trainings, in the order of the truth files."""
    items = []
    for path in sorted((HERE / "truth").glob("*.toml")):
        truth = tomllib.loads(path.read_text(encoding="utf-8"))
        for name, entry in truth.get("faults", {}).items():
            items += [Item(name, variant, path.stem, entry) for variant in (FAULTY, TWIN)]
        items += [Item(name, WORKS, path.stem, entry) for name, entry in truth.get("works", {}).items()]
    return items


def load(script: Path) -> Callable[..., dict[str, float]]:
    """Return the function ``train`` of a program."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module
    spec.loader.exec_module(module)
    return module.train


def train_one(script: Path, variant: str, out: Path, metrics: Sequence[str]) -> None:
    """Train a program in this process; the recording, and what it achieves as JSON, are named when they are whole."""
    import torch

    import gradlens

    torch.set_num_threads(1)
    part = out.with_suffix(".part.h5")

    def record(model: Any, **options: Any) -> Any:
        return gradlens.record(
            model, part, **({"metrics": list(metrics)} if metrics else {}), overwrite=True, **options
        )

    arguments = () if variant == WORKS else (variant == FAULTY,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        achieved = load(script)(*arguments, record=record)
    part.replace(out)
    out.with_suffix(".json").write_text(json.dumps(achieved), encoding="utf-8")


def recorded(item: Item, folder: Path, metrics: Sequence[str]) -> str:
    """Record an item where it is missing, in a process of its own; return the last line of its error, or ""."""
    out = folder / f"{item.name}-{item.variant}.h5"
    mark = hashlib.sha256(item.script.read_bytes()).hexdigest()
    noted = out.with_suffix(".sha256")
    if out.exists() and noted.exists() and noted.read_text() == mark:
        return ""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            train_one(item.script, item.variant, out, metrics)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    noted.write_text(mark)
    return ""


def record_all(items: Sequence[Item], folder: Path, metrics: Sequence[str], jobs: int) -> list[str]:
    """Record items, each in a process that is forked from one that has imported torch; return their errors."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "gradlens.recorder.recorder"])
    record = functools.partial(recorded, folder=folder, metrics=metrics)
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        return list(pool.map(record, items))


def ask(item: Item, path: Path, tool: str) -> Answer:
    """Ask a tool about a recording."""
    from gradlens import diagnose, read_run
    from gradlens.diagnosis.other_tools import diagnose_by

    run = read_run(path)
    said = diagnose(run) if tool == "gradlens" else diagnose_by(run, tool)
    if not said.findings:
        kind, says, layer, confidence = said.kind, said.reason, "", math.nan
    else:
        main = said.findings[0]
        kind, says, confidence = main.kind, f"{main.kind}: {main.evidence} -> {main.remedy}", main.confidence
        layer = main.layers[0] if main.layers else ""
    alarm = bool(said.findings)
    if item.variant == FAULTY:
        right = alarm and re.search(item.truth["says"], says, re.I | re.S) is not None
        asked = item.truth.get("first_layer") or []
        placed = layer in asked if asked and right else None
    else:
        right, placed = not alarm and not (tool == "gradlens" and said.learning == "no"), None
    learning = said.learning if tool == "gradlens" else ""
    others = tuple(finding.kind for finding in said.findings[1:])
    return Answer(
        item.name, item.variant, item.part, tool, kind, says, layer, confidence, right, placed, learning, others
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def counts(answers: Sequence[Answer], hard: frozenset[str]) -> list[str]:
    """Return the cells of a tool: causes named, named or not hard to see, false findings, first layer."""
    faulty = [a for a in answers if a.variant == FAULTY]
    well = [a for a in answers if a.variant != FAULTY]
    seen = [a for a in faulty if a.name not in hard]
    placed = [bool(a.placed) for a in faulty if a.placed is not None]
    alarms = [a.alarm for a in faulty]
    return [
        str(share(a.right for a in seen)),
        f"{sum(a.right for a in faulty if a.name in hard)} of {len(faulty) - len(seen)}",
        str(share(alarms)),
        str(share(a.alarm for a in well)),
        str(share(placed)),
    ]


def score_tables(answers: Sequence[Answer], items: Sequence[Item]) -> list[str]:
    """Return the table of each half: held out, and not."""
    hard = frozenset(item.name for item in items if item.truth.get("may_miss"))
    parts = []
    for said, held in (("Held out: no rule was written while looking at these", True), ("The other half", False)):
        kept = [a for a in answers if is_held_out(a.name) is held]
        names = {(a.name, a.variant) for a in kept}
        faults = sum(variant == FAULTY for _, variant in names)
        rows = [[tool, *counts([a for a in kept if a.tool == tool], hard)] for tool in TOOLS]
        head = ["tool", "cause named", "and of those hard to see", "any finding", "false findings", "first layer"]
        parts += [f"## {said}: {faults} faults, {len(names) - faults} working programs", table(head, rows)]
    return parts


def reliability(answers: Sequence[Answer]) -> str:
    """Return how often findings of each confidence are right: faulty programs by cause, working ones never."""
    mine = [a for a in answers if a.tool == "gradlens" and a.alarm]
    rows = []
    for low, high in ((0, 0.7), (0.7, 0.9), (0.9, 0.99), (0.99, 1), (1, 2)):
        kept = [a for a in mine if low <= a.confidence < high]
        name = "exactly 1" if low == 1 else f"{low} to {high}"
        rows.append(
            [
                name,
                str(len(kept)),
                str(share(a.variant == FAULTY for a in kept)),
                str(share(a.right and a.variant == FAULTY for a in kept)),
            ]
        )
    return table(["confidence", "findings", "in a faulty program", "cause right"], rows)


def _achieved(folder: Path, name: str, variant: str) -> str:
    path = folder / f"{name}-{variant}.json"
    if not path.exists():
        return "-"
    return ", ".join(f"{key} {value:.3g}" for key, value in json.loads(path.read_text()).items())


def program_tables(answers: Sequence[Answer], folder: Path) -> list[str]:
    """Return a row per program: what it achieves, and what each tool says first."""

    def said(name: str, variant: str) -> list[str]:
        found = {a.tool: a for a in answers if (a.name, a.variant) == (name, variant)}
        return [f"**{found[t].kind}**" if found[t].right else found[t].kind for t in TOOLS if t in found]

    faults = dict.fromkeys(a.name for a in answers if a.variant == FAULTY)
    rows = [
        [
            n,
            "held out" if is_held_out(n) else "",
            _achieved(folder, n, FAULTY),
            _achieved(folder, n, TWIN),
            *said(n, FAULTY),
            said(n, TWIN)[0],
        ]
        for n in faults
    ]
    head = ["fault", "", "it achieves", "its twin achieves", *TOOLS, "gradlens of the twin"]
    parts = ["## Faults (in bold: the cause is named)", table(head, rows)]
    works = dict.fromkeys(a.name for a in answers if a.variant == WORKS)
    rows = [[n, "held out" if is_held_out(n) else "", _achieved(folder, n, WORKS), *said(n, WORKS)] for n in works]
    return [*parts, "## Working programs", table(["program", "", "it achieves", *TOOLS], rows)]


def main(given: Sequence[str] | None = None) -> int:
    """Make the card."""
    arguments = list(sys.argv[1:] if given is None else given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="names, with commas between them")
    parser.add_argument("--half", choices=["both", "open", "held-out"], default="both")
    parser.add_argument("--metrics", default="", help="metrics beside the default ones, with commas between them")
    parser.add_argument("--runs", type=Path, help="folder of recordings")
    parser.add_argument("-o", "--out", type=Path, help="folder for programs.json and programs.md")
    parser.add_argument("--words", action="store_true", help="print what gradlens says where it is wrong")
    args = parser.parse_args(arguments)
    folder = args.runs or Path(tempfile.gettempdir()) / "gradlens-programs"
    folder.mkdir(parents=True, exist_ok=True)
    only, metrics = set(filter(None, args.only.split(","))), list(filter(None, args.metrics.split(",")))
    halves = {"both": (True, False), "open": (False,), "held-out": (True,)}[args.half]
    items = [i for i in programs() if (not only or i.name in only) and i.held_out in halves]
    answers = []
    for item, error in zip(items, record_all(items, folder, metrics, args.jobs), strict=True):
        path = folder / f"{item.name}-{item.variant}.h5"
        if error:
            print(f"{item.name} ({item.variant}) was not recorded: {error}", file=sys.stderr)
            continue
        for tool in TOOLS:
            answers.append(ask(item, path, tool))
    if args.words:
        for a in answers:
            if a.tool == "gradlens" and not a.right:
                print(f"{a.name} ({a.variant}, learning {a.learning}) {a.says} | others: {', '.join(a.others)}\n")
    parts = [*score_tables(answers, items), "## Confidence of gradlens's main findings", reliability(answers)]
    parts += program_tables(answers, folder)
    print("\n\n".join(parts))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "programs.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        kinds = Counter(f"{a.tool} {a.variant} {a.kind}" for a in answers)
        whole = {"command": ["card.py", *arguments], "kinds": kinds, "answers": [asdict(a) for a in answers]}
        (args.out / "programs.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return 0 if len(answers) == len(TOOLS) * len(items) else 1


if __name__ == "__main__":
    sys.exit(main())
