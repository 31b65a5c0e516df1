"""``gradlens verify``: known laws, measured here by the recorder."""

from __future__ import annotations

import sys
import time

import click

from gradlens.cli.options import format_option, print_rows
from gradlens.errors import GateError


@click.command()
@format_option
def verify(form: str) -> None:
    """Check the recorder against laws of gradients that are known from the literature.

    Each law's net is built and recorded here, and what was measured is shown beside the law's value. Exit code 3 if one
    does not hold. Takes about half a minute.
    """
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
    fallen = [check.law for check in checks if not check.passed]
    if fallen:
        raise GateError(f"{len(fallen)} of {len(checks)} checks fell: {'; '.join(fallen)}")


def _is_terminal() -> bool:
    return sys.stderr.isatty()
