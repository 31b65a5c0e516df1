"""The trial of the remedies: the advice that is printed for a fault is applied to the program, literally.

    python experiments/scorecard/programs/remedies.py -o results

``remedies.toml`` has the change for each fault of the open half that gets a finding, and words of the advice that it
follows. The faulty program is recorded and diagnosed, the words are looked for in the main finding's remedy, then the
program is trained with the change, and as the mended twin. A program without an entry gets no advice.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import tomllib
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # another card.py is one folder up

from card import FAULTY, HERE, TWIN, Item, load, programs, record_all, table

CURED, SOME = 0.9, 0.1
"""Share of the way from the fault to the twin from which on a fault counts as cured, and as helped."""
ACCURACY = "accuracy"


@dataclass(frozen=True)
class Trial:
    """What the advice of a fault did.

    Args:
        name: The program, and which of several pieces of advice.
        advice: The words of the remedy that were followed; "" where there is no finding.
        said: Whether the main finding's remedy has these words today.
        before: The faulty program's measure, a loss unless ``measure`` says otherwise.
        after: The measure after the change.
        twin: The mended twin's.
        measure: What is measured.
        outcome: "cured", "helped", "no effect", "worse" or "no advice".
        share: Share of the way from the fault to the twin.
    """

    name: str
    advice: str
    said: bool
    before: float
    after: float
    twin: float
    measure: str
    outcome: str
    share: float


def judge(before: float, after: float, twin: float, measure: str) -> tuple[str, float]:
    """Return the outcome, and the share of the way from the fault to the twin.

    Args:
        before: The faulty program's measure.
        after: The measure after the change.
        twin: The mended twin's.
        measure: "accuracy" is better when larger, all else when smaller.
    """
    sign = 1 if measure == ACCURACY else -1
    if not math.isfinite(after):
        return "no effect" if not math.isfinite(before) else "worse", math.nan
    share = sign * (after - before) / (sign * (twin - before))
    if share >= CURED:
        return "cured", share
    return "helped" if share >= SOME else "worse" if share <= -SOME else "no effect", share


def train_changed(script: Path, old: str, new: str, folder: Path) -> dict[str, float]:
    """Train the faulty program after a change of its text; nothing is recorded of it that is kept.

    Raises:
        ValueError: The piece is not in the program, or not once.
    """
    import torch

    import gradlens

    text = script.read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise ValueError(f"{script.stem} has {text.count(old)} times: {old}")
    changed = folder / f"{script.stem}_changed.py"
    changed.write_text(text.replace(old, new), encoding="utf-8")
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(changed)(
            True, record=lambda model, **k: gradlens.record(model, folder / "changed.h5", overwrite=True, **k)
        )


def try_remedy(name: str, entry: dict[str, str], runs: Path) -> Trial:
    """Apply the advice of a fault and return what it did; the runs of fault and twin are there already."""
    from gradlens import diagnose

    program = name.split(",")[0]
    item = Item(program, FAULTY, "", {})
    achieved = {v: json.loads((runs / f"{program}-{v}.json").read_text()) for v in (FAULTY, TWIN)}
    found = diagnose(runs / f"{program}-{FAULTY}.h5").findings
    measure = entry.get("measure", "loss" if "loss" in achieved[FAULTY] else ACCURACY)
    before, twin = achieved[FAULTY][measure], achieved[TWIN][measure]
    if "old" not in entry:
        said = found[0].remedy if found else ""
        return Trial(name, said, not found, before, math.nan, twin, measure, "no advice", math.nan)
    with tempfile.TemporaryDirectory() as folder:
        after = train_changed(item.script, entry["old"], entry["new"], Path(folder))[measure]
    said = bool(found) and entry["advice"] in " ".join(found[0].remedy.split())
    return Trial(name, entry["advice"], said, before, after, twin, measure, *judge(before, after, twin, measure))


def tables(trials: list[Trial], entries: dict[str, dict[str, str]]) -> str:
    """Return the counts by program, and a row per trial."""
    tried = [trial for trial in trials if trial.outcome != "no advice"]
    first = Counter(trial.outcome for trial in tried if "," not in trial.name)
    silent = [trial for trial in trials if trial.outcome == "no advice"]
    counts = ", ".join(f"{first[key]} {key}" for key in ("cured", "helped", "no effect", "worse"))
    rows = [
        [
            trial.name, trial.advice if trial.said else f"{trial.advice} (**not printed today**)",
            f"{trial.before:.3g}", f"{trial.after:.3g}", f"{trial.twin:.3g}",
            "" if trial.measure == "loss" else trial.measure,
            trial.outcome if math.isnan(trial.share) else f"{trial.outcome} ({trial.share:.0%})",
            entries[trial.name].get("before", ""),
        ]
        for trial in tried
    ]  # fmt: skip
    head = ["fault", "advice", "before", "after", "twin", "measure", "outcome", "the advice before it was mended"]
    names = ", ".join(f"`{trial.name}`" for trial in silent)
    count = sum(first.values())
    return "\n\n".join([
        f"Of {count + len(silent)} faults, {count} get advice that can be applied: {counts}.",
        table(head, rows),
        f"No finding, so no advice: {names}.",
    ])  # fmt: skip


def main() -> int:
    """Try all remedies of the open half."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names, with commas between them")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, help="folder of recordings, that of card.py")
    parser.add_argument("-o", "--out", type=Path, help="folder for remedies.json and remedies.md")
    args = parser.parse_args()
    runs = args.runs or Path(tempfile.gettempdir()) / "gradlens-programs"
    runs.mkdir(parents=True, exist_ok=True)
    only = set(filter(None, args.only.split(",")))
    items = [i for i in programs() if i.variant != "works" and not i.held_out and (not only or i.name in only)]
    for item, error in zip(items, record_all(items, runs, (), args.jobs), strict=True):
        if error:
            print(f"{item.name} ({item.variant}) was not recorded: {error}", file=sys.stderr)
            return 1
    entries = tomllib.loads((HERE / "remedies.toml").read_text(encoding="utf-8"))
    trials = []
    for item in items:
        if item.variant == FAULTY:
            named = [name for name in entries if name.split(",")[0] == item.name] or [item.name]
            trials += [try_remedy(name, entries.setdefault(name, {}), runs) for name in named]
            print(f"{item.name}: {trials[-1].outcome}", file=sys.stderr)
    said = tables(trials, entries)
    print(said)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "remedies.md").write_text(said + "\n", encoding="utf-8")
        (args.out / "remedies.json").write_text(json.dumps([asdict(t) for t in trials], indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
