"""``gradlens verify``: check the recorder against known laws of gradients."""

from __future__ import annotations

import time

import click

from gradlens.cli.options import format_option, print_rows
from gradlens.errors import GateError


@click.command()
@format_option
def verify(form: str) -> None:
    """Check the recorder against laws of gradients from the literature.

    For each law, gradlens builds a model, records its gradients, and compares the measured value with that of the law.
    The exit code is 3 if a check fails. Takes about half a minute.
    """
    from gradlens.terminal.spinner import working

    with working("loading PyTorch", at_once=True) as line:
        from gradlens.probe.verify import verify as measure

        started, checks = time.perf_counter(), []
        line.say("measuring")
        for check in measure():
            checks.append(check)
            line.say(f"{len(checks)} measured: {check.law}")
    from gradlens.terminal.console import results
    from gradlens.terminal.verify import check_rows, print_checks

    if form == "table":
        print_checks(results(), checks, time.perf_counter() - started)
    else:
        print_rows(check_rows(checks), form)
    failed = [check.law for check in checks if not check.passed]
    if failed:
        raise GateError(f"{len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}")
