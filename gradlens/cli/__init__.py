"""The command line: click is imported at the top, everything slow to import inside the commands."""

from __future__ import annotations

import difflib
import os
import re
import sys
import time
from importlib import import_module
from pathlib import Path

import click

from gradlens._version import __version__
from gradlens.errors import ConfigError, GateError, GradlensError
from gradlens.format import visible
from gradlens.launch import LAUNCH_VARIABLES
from gradlens.metrics import SHOWN_METRICS

OTHERS_WAIT_S = 10
"""Seconds that the other processes of a torchrun wait before they print the same error as the first."""
OK, FAILED, USAGE, GATE, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes; 130 is the shell's own for Ctrl-C."""
TOO_MUCH: dict[type[Exception], str] = {
    MemoryError: "there is not enough memory for this",
    RecursionError: "something in a file lies too deep inside itself",
    OverflowError: "a number in a file is too large",
}
SCALARS = " Logged scalars, such as the loss, are shown by gradlens summary and gradlens compare."
MOST_SHOWN = 400
"""Characters of a message about a file's name, which may be as long as its system allows, or longer."""
SIGNALS = 128
"""Exit codes beyond are those of signals, with which the full screen ends."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gradlens")
@click.option(
    "--skill",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, _, given: _print_skill(context, given),
    help="Print what an agent needs to know to use gradlens, as Markdown, and exit.",
)
def cli() -> None:
    """Record and inspect the gradients of each layer of a PyTorch model.

    gradlens trains a model, records the gradient norms of each layer into a file, and draws and diagnoses them.
    To begin: gradlens run plain34, then gradlens heatmap.
    """


COMMANDS = (
    "run", "ls", "summary", "heatmap", "profile", "compare", "diagnose", "claims", "report", "watch", "probe",
    "verify", "export", "recover",
)  # fmt: skip
"""Each has a module of its name in this folder, which defines a function of its name."""
for name in COMMANDS:
    cli.add_command(getattr(import_module(f"gradlens.cli.{name}"), name))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 success, 1 a gradlens error, 2 wrong usage, 3 a failed check, 130 interrupted.

    Args:
        arguments: The arguments; None means those of the process.
    """
    sys.exit(run_command(arguments))


def run_command(arguments: list[str] | None = None) -> int:
    """Run the command line; an error of the user is printed as one line and a tip.

    Args:
        arguments: The arguments; None means those of the process.

    Returns:
        The exit code, as in ``main``.
    """
    try:
        return int(cli.main(arguments, prog_name="gradlens", standalone_mode=False) or OK)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        _wait_for_the_first()
        error.__dict__["message"] = visible(error.message) + _hint(error)
        error.show()
        return USAGE
    except GradlensError as error:
        _print_error(error)
        return USAGE if isinstance(error, ConfigError) else GATE if isinstance(error, GateError) else FAILED
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except SystemExit as error:
        if "PacifyFlush" in type(sys.stdout).__name__:  # click's own answer to a pipe without a reader
            return OK
        if isinstance(error.code, int) and error.code > SIGNALS:
            return error.code
        # In the user's own code, such as a model's forward: never the exit code of success.
        _print_error(GradlensError(f"code of the model or of the data ended the program (SystemExit: {error.code})"))
        return FAILED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of the pipe has exited, as head does; that is no error
        return OK
    except (MemoryError, RecursionError, OverflowError) as error:
        _print_error(GradlensError(f"{TOO_MUCH[type(error)]}; expected a run of a size that this machine can show"))
        return FAILED
    except OSError as error:
        if error.errno is None:
            raise
        _print_error(GradlensError(f"{error.filename or 'a file'}: {error.strerror}"[:MOST_SHOWN]))
        return FAILED


def _hint(error: click.ClickException) -> str:
    """Return what else a wrong value of an option may have meant; "" where nothing is near."""
    given = re.match(r"'(.*?)' is not", error.message)
    if given is None or not isinstance(error, click.BadParameter) or error.param is None:
        return ""
    kind = error.param.type
    if isinstance(kind, click.Choice) or error.param.opts[-1] == "--metric":
        choices = [str(choice) for choice in kind.choices] if isinstance(kind, click.Choice) else SHOWN_METRICS
        near = difflib.get_close_matches(given[1], choices, 1)
        if near:
            return f" Did you mean {near[0]!r}?"
        return SCALARS if error.param.opts[-1] == "--metric" else ""
    if kind is click.FLOAT and re.fullmatch(r"\d+,\d+", given[1]):
        return f" Write {given[1].replace(',', '.')} with a point."
    return ""


def _print_skill(context: click.Context, given: bool) -> None:
    if given:
        click.echo((Path(__file__).parents[1] / "skill.md").read_text(encoding="utf-8"), nl=False)
        context.exit()


def _wait_for_the_first() -> None:
    """Wait in all processes of a torchrun but the first: torchrun ends them once the first has printed the error."""
    environment = os.environ
    if environment.keys() >= set(LAUNCH_VARIABLES) and environment["RANK"] != "0":
        time.sleep(OTHERS_WAIT_S)


def _print_error(error: GradlensError) -> None:
    _wait_for_the_first()
    click.echo(f"{click.style('Error:', fg='red', bold=True)} {visible(error.message)}", err=True)
    if error.tip:
        click.echo(f"{click.style('Tip:', fg='cyan')} {visible(error.tip)}", err=True)
