"""``gradlens diagnose``: problems of runs, with evidence and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from gradlens.cli.options import open_runs, print_rows, runs_argument
from gradlens.diagnosis.kinds import HEALTHY, KINDS, LEARNING, UNDECIDED, list_kinds, parse_gates
from gradlens.errors import ConfigError, GateError, NoRunError

if TYPE_CHECKING:
    from gradlens.run import Run

PACKS = ("gradlens", "smdebug", "autotrainer", "deepchecker", "deepdiagnosis")


@click.command(epilog=f"\b\nKinds, the main one first:\n{list_kinds()}")
@runs_argument
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv", "junit"]),
    default="table",
    show_default=True,
    help="Format of the output on stdout; junit is XML for CI.",
)
@click.option(
    "--fail-on",
    metavar="KIND[,KIND]",
    default=None,
    help="Exit with code 3 if a run has a finding of these kinds; any stands for all kinds, undecided for a run "
    "without a verdict, learning for a model that does not learn.",
)
@click.option(
    "--explain", "kind", type=click.Choice(KINDS), help="Explain a kind: how it is measured, causes, remedies."
)
@click.option(
    "--rules", "pack", type=click.Choice(PACKS), default="gradlens", show_default=True,
    help="Rules to apply: those of gradlens, or those of an earlier tool for comparison.",
)  # fmt: skip
def diagnose(runs: tuple[str, ...], form: str, fail_on: str | None, kind: str | None, pack: str) -> None:
    """Diagnose RUNS: what is wrong, the evidence, and what to do.

    RUNS are files, names under runs/, or folders; default: the newest run. A run without a finding is healthy, or
    undecided if the data do not suffice.
    """
    if kind is not None:
        if runs or fail_on is not None:
            raise ConfigError("--explain explains a kind and judges no run: leave out RUNS and --fail-on")
        from gradlens.diagnosis.explanations import explain

        click.echo(explain(kind))
        return
    gates = parse_gates(fail_on, UNDECIDED, LEARNING)
    found = _open_for_gates(runs) if gates else open_runs(runs, default="newest", strict=False)
    from gradlens.diagnosis.diagnose import diagnose as judge
    from gradlens.diagnosis.other_tools import diagnose_by

    diagnoses = [judge(run) if pack == "gradlens" else diagnose_by(run, pack) for run in found]
    if form == "table":
        from gradlens.terminal.console import results
        from gradlens.terminal.diagnosis import print_diagnosis

        for diagnosis in diagnoses:
            print_diagnosis(results(), diagnosis)
    elif form == "junit":
        from gradlens.terminal.junit import junit

        click.echo(junit(diagnoses))
    else:
        from gradlens.terminal.diagnosis import diagnosis_rows

        if form == "json":
            print_rows([item.to_dict() for item in diagnoses], form)
        else:
            print_rows([row for item in diagnoses for row in diagnosis_rows(item)], form)
    seen = [(item.run, kind) for item in diagnoses for kind in item.kinds or (item.kind,)]
    failed = [f"{run} is {kind}" for run, kind in seen if _fails(kind, gates)]
    if LEARNING in gates:
        failed += [f"{item.run} does not learn" for item in diagnoses if item.learning == "no"]
    if failed:
        raise GateError("; ".join(failed))


def _open_for_gates(runs: tuple[str, ...]) -> Sequence[Run]:
    """Open runs that a gate judges; a missing run, and one without a row, is wrong usage of the gate."""
    try:
        found = open_runs(runs, default="newest", strict=True)
    except NoRunError as error:
        raise ConfigError(f"--fail-on has nothing to judge: {error.message}", tip=error.tip) from error
    empty = [run.name for run in found if not len(run.steps)]
    if empty:
        raise ConfigError(
            f"{', '.join(empty)}: there is no row, so --fail-on has nothing to judge",
            tip="diagnose a run that was recorded, or wait for its first row",
        )
    return found


def _fails(kind: str, gates: tuple[str, ...]) -> bool:
    """Return whether a finding of this kind fails the check of ``--fail-on``."""
    return kind in gates or ("any" in gates and kind not in (HEALTHY, UNDECIDED))
