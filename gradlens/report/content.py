"""Collect what a report says before anything is written, so that HTML, Markdown and PDF state the same facts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradlens.analysis.compare import final_table
from gradlens.analysis.groups import Group, group_runs, label_runs, repeated_runs
from gradlens.diagnosis.diagnose import diagnose
from gradlens.diagnosis.findings import Diagnosis, say_layers, say_steps
from gradlens.errors import ConfigError
from gradlens.format import visible, without_folders
from gradlens.provenance import commit, versions
from gradlens.run import Run
from gradlens.studies import Judgement, judge_pairs, references

SETTINGS_FIRST = (
    "model", "data", "image_size", "split", "val_fraction", "augment", "recipe", "epochs", "patience", "batch_size",
    "optimizer", "lr", "schedule", "weight_decay", "label_smoothing", "init", "shortcut", "amp", "device", "workers",
    "every", "metrics",
)  # fmt: skip
"""The order of hyper-parameters; others follow by name."""
FIRST_SETTINGS = (
    "model", "data", "image_size", "data: training images", "data: validation images", "batch_size", "optimizer", "lr",
    "schedule", "epochs trained", "seeds", "parameters in them", "layers recorded", "weight_decay", "init",
)  # fmt: skip
"""The settings that a reader asks for first."""
SHORT_COMMIT = 12
"""Characters of a commit's name that are shown."""
MOST_SETTINGS = 12
"""Rows of settings that are shown at once; the others are folded, or follow at the end."""
IN_OWN_ROWS = {"data_facts", "seed"}
"""Keys of the configuration that have rows of their own in the table of settings."""
DATA_FACTS = (
    "classes", "train_images", "val_images", "different_pictures", "exact_copy_files", "near_copies",
    "val_share_any_copy_in_train",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """A kind of finding in a group of seeds, or the statement that the group has no fault.

    Args:
        group: The group's label.
        kind: The finding's kind, "healthy" or "undecided".
        runs: Names of the runs that show it.
        seeds: The seeds of these runs.
        of: The number of runs in the group.
        each: For each run: its name, the layers and steps, and what was measured.
        threshold: The threshold and its source; "" where there is no finding.
        remedy: What to do next; "" where there is no finding.
        learning: Why it is known whether the first run learns, or why not.
        learns: Whether all these runs are known to learn.
    """

    group: str
    kind: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    of: int
    each: tuple[tuple[str, str, str], ...]
    threshold: str
    remedy: str
    learning: str = ""
    learns: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table that has one column per group.

    Args:
        name: The setting or fact that the row shows.
        values: One text per group.
        differs: Whether the values differ between groups.
    """

    name: str
    values: tuple[str, ...]
    differs: bool


@dataclass(frozen=True)
class Facts:
    """Everything that a report says.

    Args:
        groups: Groups of runs that differ only in the seed.
        runs: All runs, group by group.
        labels: One name per run.
        left_out: Runs that repeat a seed.
        claims: The judged claims of the study; None where the study compares no pair of these runs.
        seen: The findings, group by group.
        finals: The table of the last epoch.
        settings: Hyper-parameters.
        environment: Hardware, software and files of the runs.
        command: The command that makes the report.
        made_with: Versions of the packages that make the report, and the commit.
    """

    groups: tuple[Group, ...]
    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    left_out: tuple[Path, ...]
    claims: Judgement | None
    seen: tuple[Seen, ...]
    finals: tuple[dict[str, Any], ...]
    settings: tuple[Row, ...]
    environment: tuple[Row, ...]
    command: str
    made_with: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """The groups' labels."""
        return [group.label for group in self.groups]

    @property
    def claims_first(self) -> bool:
        """Whether the claims of the study come first: where these runs decide any. Else the runs come first."""
        return self.claims is not None and self.claims.is_decided

    @property
    def has_epochs(self) -> bool:
        """Whether any run has finished an epoch."""
        return any(len(run.epochs.get("epoch", ())) for run in self.runs)


def collect(runs: Sequence[Run], *, command: str) -> Facts:
    """Collect everything that a report says.

    Args:
        runs: The runs; where several repeat a seed of the same model and settings, only the first counts.
        command: The command that makes the report.

    Returns:
        The facts, the same for every form of report.

    Raises:
        ConfigError: No run has a row or an epoch.
    """
    usable = [run for run in runs if len(run.steps) or len(run.epochs.get("epoch", ()))]
    if not usable:
        names = ", ".join(run.name for run in runs) or "none"
        raise ConfigError(
            f"nothing to report: expected a run with rows or epochs, got {names}", tip="gradlens ls shows the runs"
        )
    groups = group_runs(usable)
    kept = [run for group in groups for run in group.runs]
    made = (commit() or "").partition("-")
    return Facts(
        groups=tuple(groups),
        runs=tuple(kept),
        labels=tuple(label_runs(kept)),
        left_out=tuple(run.path for run in repeated_runs(usable)),
        claims=judge_pairs(kept),
        seen=tuple(found for group in groups for found in findings_of(group)),
        finals=tuple(final_table(groups, references())),
        settings=tuple(settings_of(groups)),
        environment=tuple(environment_of(groups)),
        command=without_folders(command),
        made_with=versions() | ({"commit": made[0][:SHORT_COMMIT] + made[1] + made[2]} if made[0] else {}),
    )


def findings_of(group: Group) -> list[Seen]:
    """Diagnose the runs of a group.

    Returns:
        One entry per kind of finding, the kind that most runs show first.
    """
    kinds: dict[str, list[tuple[Run, Diagnosis]]] = {}
    for run in group.runs:
        diagnosis = diagnose(run)
        for kind in diagnosis.kinds or (diagnosis.kind,):
            kinds.setdefault(kind, []).append((run, diagnosis))
    seen = []
    for kind, members in sorted(kinds.items(), key=lambda item: -len(item[1])):
        findings = [(run, diagnosis.of_kind(kind)) for run, diagnosis in members]
        first = next((found[0] for _, found in findings if found), None)
        each = [
            (run.name, f"{say_layers(item.layers)}; {say_steps(item.steps)}", item.evidence)
            for run, found in findings
            for item in found
        ]
        each = each or [(run.name, "", diagnosis.reason) for run, diagnosis in members]
        seen.append(
            Seen(
                group=group.label,
                kind=kind,
                runs=tuple(run.name for run, _ in members),
                seeds=tuple(run.seed for run, _ in members),
                of=len(group.runs),
                each=tuple(each),
                threshold=f"{first.threshold} ({first.source})" if first else "",
                remedy=first.remedy if first else "",
                learning=members[0][1].learning_evidence,
                learns=all(diagnosis.learning == "yes" for _, diagnosis in members),
            )
        )
    return seen


def settings_of(groups: Sequence[Group]) -> list[Row]:
    """Return the hyper-parameters of the groups side by side; a missing value is a dash."""
    found = {key for group in groups for run in group.runs for key in run.config} - IN_OWN_ROWS
    ordered = [key for key in SETTINGS_FIRST if key in found] + sorted(found - set(SETTINGS_FIRST))
    rows = [_row(key, groups, _config(key)) for key in ordered]
    if "model" not in found:
        rows.insert(0, _row("model", groups, lambda run: run.model or run.name))
    if any(seed >= 0 for group in groups for seed in group.seeds):
        rows.append(
            _plain_row("seeds", [", ".join(str(seed) for seed in group.seeds if seed >= 0) for group in groups])
        )
    if any(len(run.epochs.get("epoch", ())) for group in groups for run in group.runs):
        rows.append(_plain_row("epochs trained", [group.say_length() for group in groups]))
    rows.append(_row("optimizer steps recorded", groups, lambda run: len(run.steps)))
    rows.append(_row("layers recorded", groups, lambda run: len(run.layers)))
    rows.append(_row("parameters in them", groups, lambda run: sum(layer.param_numel for layer in run.layers)))
    for key in DATA_FACTS:
        if any(key in data_facts(run) for group in groups for run in group.runs):
            name = key.replace("_", " ").replace("val ", "validation ").replace("train ", "training ")
            rows.append(_row(f"data: {name}", groups, _data_fact(key)))
    return rows


def data_facts(run: Run) -> Mapping[str, Any]:
    """Return what the run file says about the run's data."""
    facts = run.config.get("data_facts", {})
    return facts if isinstance(facts, Mapping) else {}


def environment_of(groups: Sequence[Group]) -> list[Row]:
    """Return hardware, software and files of the runs, side by side."""
    found = {key for group in groups for run in group.runs for key in _environment(run)}
    first = [key for key in ("device", "device_name", "platform", "python", "torch", "torchvision") if key in found]
    ordered = first + sorted(found - set(first))
    rows = [_row(key.replace("_", " "), groups, _environment_value(key)) for key in ordered]
    rows.append(_row("recorded on", groups, lambda run: str(run.info.get("created", ""))[:10]))
    rows.append(_row("status", groups, lambda run: run.status))
    rows.append(_row("files", groups, lambda run: visible(shown_path(run.path)), marked=False))
    return rows


def shown_path(path: Path) -> str:
    """Return the path of a run's file as the user gave it, or below the current folder; else its last two names."""
    if path.is_absolute():
        return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(*path.parts[-2:]))
    return str(path)


def split_settings(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows that are shown at once, at most ``MOST_SETTINGS``, and the others.

    Rows in which the groups differ come first, then those that a reader asks for first.
    """
    names = [row.name for row in rows]
    wanted = [row.name for row in rows if row.differs]
    wanted += [name for name in FIRST_SETTINGS if name in names and name not in wanted]
    wanted += [name for name in names if name not in wanted]
    chosen = set(wanted[:MOST_SETTINGS])
    return [row for row in rows if row.name in chosen], [row for row in rows if row.name not in chosen]


def _environment(run: Run) -> Mapping[str, Any]:
    environment = run.info.get("environment", {})
    return environment if isinstance(environment, Mapping) else {}


def _row(name: str, groups: Sequence[Group], value: Callable[[Run], Any], *, marked: bool = True) -> Row:
    return _plain_row(name, [_say_all([value(run) for run in group.runs]) for group in groups], marked=marked)


def _say_all(values: Sequence[Any]) -> str:
    """Write the values of several runs: equal values once, different counts as a range."""
    if len(set(map(str, values))) > 1 and all(type(value) is int for value in values):
        return f"{min(values):,} to {max(values):,}"
    return "; ".join(dict.fromkeys(map(say_value, values)))


def _config(key: str) -> Callable[[Run], Any]:
    return lambda run: run.config.get(key)


def _data_fact(key: str) -> Callable[[Run], Any]:
    return lambda run: data_facts(run).get(key)


def _environment_value(key: str) -> Callable[[Run], Any]:
    def value(run: Run) -> Any:
        found = _environment(run).get(key)
        if key == "commit" and isinstance(found, str):
            commit, dirty, _ = found.partition("-dirty")
            return commit[:SHORT_COMMIT] + dirty
        return found

    return value


def _plain_row(name: str, values: Sequence[str], *, marked: bool = True) -> Row:
    return Row(name, tuple(value or "–" for value in values), marked and len(set(values)) > 1)


def say_value(value: Any) -> str:
    """Write a setting for people."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(say_value(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return without_folders(json.dumps(value, ensure_ascii=False, sort_keys=True, default=str))
    return without_folders(str(value))
