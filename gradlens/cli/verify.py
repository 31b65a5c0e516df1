"""``gradlens verify``: check the recorder against known laws of gradients."""

from __future__ import annotations

import sys
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
    from gradlens.terminal.working import working

    with working("loading PyTorch", at_once=True):
        from gradlens.probe.verify import verify as measure
    from gradlens.terminal.console import results
    from gradlens.terminal.verify import check_rows, print_checks

    started, checks = time.perf_counter(), []
    for check in measure():
        checks.append(check)
        click.echo(f"\r{len(checks)} measured: {check.law}\033[K" if _is_terminal() else "", nl=False, err=True)
    click.echo("\r\033[K" if _is_terminal() else "", nl=False, err=True)
    if form == "table":
        print_checks(results(), checks, time.perf_counter() - started)
    else:
        print_rows(check_rows(checks), form)
    failed = [check.law for check in checks if not check.passed]
    if failed:
        raise GateError(f"{len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}")


def _is_terminal() -> bool:
    return sys.stderr.isatty()
