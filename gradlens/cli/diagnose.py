"""``gradlens diagnose``: what is wrong with a run."""

from __future__ import annotations

import click

from gradlens.cli.options import open_runs, parse_gates, print_rows, runs_argument
from gradlens.errors import GateError

PACKS = ("gradlens", "smdebug", "autotrainer", "deepchecker", "deepdiagnosis")


@click.command()
@runs_argument
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv", "junit"]),
    default="table",
    show_default=True,
    help="What is printed on stdout; junit is XML for CI.",
)
@click.option(
    "--fail-on",
    metavar="KIND[,KIND]",
    help="Exit code 3 if a run has a finding of these kinds; any: of whatever kind.",
)
@click.option(
    "--rules", "pack", type=click.Choice(PACKS), default="gradlens", show_default=True,
    help="Whose rules: an earlier tool's, over the same recording, for comparison.",
)  # fmt: skip
def diagnose(runs: tuple[str, ...], form: str, fail_on: str | None, pack: str) -> None:
    """Say what is wrong with runs, what shows it, and what to do.

    RUNS are files, names under runs/, or folders; left out, it is the newest run. Kinds: vanishing, exploding,
    incoherent, dead, saturated, nonfinite, frozen, unused; else healthy, or undecided where the data do not suffice.
    """
    from gradlens.analysis.diagnose import diagnose as judge
    from gradlens.analysis.findings import KINDS, UNDECIDED
    from gradlens.analysis.rules import diagnose_by

    gates = parse_gates(fail_on, (*KINDS, UNDECIDED))
    found = open_runs(runs, default="newest")
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
        from gradlens.terminal.diagnosis import diagnosis_facts, diagnosis_rows

        if form == "json":
            print_rows([diagnosis_facts(item) for item in diagnoses], form)
        else:
            print_rows([row for item in diagnoses for row in diagnosis_rows(item)], form)
    seen = [(item.run, kind) for item in diagnoses for kind in item.kinds or (item.kind,)]
    fallen = [f"{run} is {kind}" for run, kind in seen if _falls(kind, gates)]
    if fallen:
        raise GateError("; ".join(fallen))


def _falls(kind: str, gates: tuple[str, ...]) -> bool:
    """Say whether a kind is one of those that were to be none."""
    return kind in gates or ("any" in gates and kind not in ("healthy", "undecided"))
