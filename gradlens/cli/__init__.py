"""The command line: click at the top, everything heavy inside the callbacks."""

from __future__ import annotations

import os
import sys
import time

import click

from gradlens._version import __version__
from gradlens.cli.claims import claims
from gradlens.cli.compare import compare
from gradlens.cli.diagnose import diagnose
from gradlens.cli.export import export
from gradlens.cli.heatmap import heatmap
from gradlens.cli.ls import ls
from gradlens.cli.probe import probe
from gradlens.cli.profile import profile
from gradlens.cli.recover import recover
from gradlens.cli.report import report
from gradlens.cli.run import run
from gradlens.cli.summary import summary
from gradlens.cli.verify import verify
from gradlens.cli.watch import watch
from gradlens.errors import ConfigError, GateError, GradlensError
from gradlens.launch import LAUNCH_VARIABLES

PATIENCE_S = 10
"""Seconds that a process waits with an error for the first to say it."""
OK, FAILED, USAGE, GATE, INTERRUPTED = 0, 1, 2, 3, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gradlens")
def cli() -> None:
    """See where a network's gradient goes.

    gradlens trains nets with a recorder of per-layer gradient norms, and shows what was recorded.
    A first look: gradlens run plain34, then gradlens heatmap.
    """


for command in (
    run, ls, summary, heatmap, profile, compare, diagnose, claims, report, watch, probe, verify, export, recover,
):  # fmt: skip
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 fine, 1 a gradlens error, 2 wrong usage, 3 a gate fell, 130 interrupted."""
    sys.exit(run_command(arguments))


def run_command(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; every error that a user can make ends in one line and a tip."""
    try:
        return int(cli.main(arguments, prog_name="gradlens", standalone_mode=False) or OK)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        _let_the_first_speak()
        error.show()
        return USAGE
    except GradlensError as error:
        _say(error)
        return USAGE if isinstance(error, ConfigError) else GATE if isinstance(error, GateError) else FAILED
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe left; that is no error
        return OK


def _let_the_first_speak() -> None:
    """Of several processes that met the same error, wait until torchrun ends this one after the first has said it."""
    environment = os.environ
    if environment.keys() >= set(LAUNCH_VARIABLES) and environment["RANK"] != "0":
        time.sleep(PATIENCE_S)


def _say(error: GradlensError) -> None:
    _let_the_first_speak()
    click.echo(f"{click.style('Error:', fg='red', bold=True)} {error.message}", err=True)
    if error.tip:
        click.echo(f"{click.style('Tip:', fg='cyan')} {error.tip}", err=True)
