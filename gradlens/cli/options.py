"""Options that several commands share, and the printing of rows."""

from __future__ import annotations

import csv
import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gradlens.errors import ConfigError, GradlensError, RunFileError
from gradlens.format import plain, plural, safe_cell, to_json, visible
from gradlens.metrics import SHOWN_METRICS
from gradlens.specs import check_figure_path, parse_span

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradlens.plots.style import Look
    from gradlens.run import Run

Command = TypeVar("Command", bound=Callable[..., Any])


class GivenPath(click.Path):
    """A path that must not be empty: an unset variable in a script gives an empty one: the working folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path.

        Raises:
            ConfigError: It is empty.
        """
        if not str(value).strip():
            option = param is not None and param.param_type_name == "option"
            what = "the name of a run or folder" if param is None or not option else param.opts[-1]
            raise ConfigError(f"{what} is empty ({str(value)!r}, as where a script's variable is not set)")
        return super().convert(value, param, ctx)


class GivenFile(GivenPath):
    """The path of a file to write: not empty, and not one that ends in a slash, as that of a folder does."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path.

        Raises:
            ConfigError: It is empty, or that of a folder.
        """
        check_is_file_name(str(value))
        return super().convert(value, param, ctx)


def check_is_file_name(text: str) -> None:
    """Raise a ConfigError if the name of a file to write ends in a slash, as that of a folder does."""
    if text.endswith(("/", os.sep)):
        raise ConfigError(f"-o {text}: expected the name of a file, got that of a folder (it ends in a slash)")


def runs_argument(command: Command) -> Command:
    """Add the argument RUNS: any number of files, folders, or names under runs/."""
    return click.argument("runs", nargs=-1, type=GivenPath())(command)


def format_option(command: Command) -> Command:
    """Add the option --format."""
    return click.option(
        "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True,
        help="Format of the output on stdout.",
    )(command)  # fmt: skip


def figure_options(command: Command) -> Command:
    """Add the options for the file of a figure."""
    command = click.option(
        "-o", "--output", "outputs", multiple=True, type=GivenFile(dir_okay=False, path_type=Path),
        help="Write the figure to this file (.png, .svg, .pdf); repeatable. Default: figures/NAME.png.",
    )(command)  # fmt: skip
    return click.option("--terminal", is_flag=True, help="Print to the terminal only; write no figure.")(command)


def metrics_option(default: str, *, several: bool = False) -> Callable[[Command], Command]:
    """Return a decorator that adds the option --metric.

    Args:
        default: The metric that is shown by default.
        several: Whether several may be given, separated by commas or with the option repeated.

    Returns:
        The decorator.
    """
    what = f"Metric to show: {', '.join(SHOWN_METRICS)}."
    if not several:
        return click.option(
            "--metric", type=click.Choice(list(SHOWN_METRICS)), default=default, show_default=True, metavar="METRIC",
            help=what,
        )  # fmt: skip
    return click.option(
        "--metric", "metrics", multiple=True, callback=_split_metrics, metavar="METRIC,...", default=(default,),
        show_default=True, help=f"{what} Several metrics are drawn side by side.",
    )  # fmt: skip


def _split_metrics(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    names = [name.strip() for part in value for name in part.split(",") if name.strip()]
    choice = click.Choice(list(SHOWN_METRICS))
    return tuple(dict.fromkeys(choice.convert(name, parameter, context) for name in names))


def metric_names(metrics: Sequence[str], default: Sequence[str]) -> list[str]:
    """Return the part of a file name for these metrics; none for the default."""
    return [] if tuple(metrics) == tuple(default) else ["-".join(metrics)]


def look_options(command: Command) -> Command:
    """Add the options for the theme, the width and the caption of a figure."""
    command = click.option(
        "--caption/--no-caption", default=True, show_default=True,
        help="Write the caption into the figure; without it, for papers, it is in the metadata and the JSON file only.",
    )(command)  # fmt: skip
    command = click.option(
        "--theme",
        type=click.Choice(["light", "dark"]),
        default="light",
        show_default=True,
        help="Light or dark background of the figure.",
    )(command)
    return click.option(
        "--width", type=click.Choice(["one", "two", "screen"]), default="screen", show_default=True,
        help="Width of the figure: one or two columns of print (89, 183 mm), or as wide as the content needs.",
    )(command)  # fmt: skip


def say(text: str) -> None:
    """Print a message on stderr; hidden characters in it are shown as escapes."""
    click.echo(visible(text), err=True)


def open_runs(arguments: Sequence[str], *, default: str, strict: bool = False) -> list[Run]:
    """Read the runs that the arguments name; of several files, those that cannot be read are named and left out.

    Args:
        arguments: Files, folders, or names under runs/.
        default: "newest" or "all": which runs are read where there is no argument.
        strict: Whether a file that cannot be read is an error among others too.

    Returns:
        The runs.

    Raises:
        RunFileError: None of them can be read.
    """
    from gradlens.storage import resolve_runs
    from gradlens.terminal.spinner import working

    paths = resolve_runs(arguments, default=default)
    found: list[Run] = []
    left_out = []
    with working(f"reading {plural(len(paths), 'run')}") as line:
        from gradlens.storage import read_run

        for number, path in enumerate(paths, 1):
            line.say(f"reading run {number} of {len(paths)}")
            try:
                found.append(read_run(path))
            except GradlensError as error:
                if strict or len(paths) == 1:
                    raise
                left_out.append(f"left out: {error.message}")
    for text in left_out:
        say(text)
    if not found:
        raise RunFileError(f"none of {plural(len(paths), 'file')} can be read", tip="gradlens ls lists them")
    return found


def parse_steps(text: str) -> tuple[int | None, int | None]:
    """Parse --steps; a span of one step is named on stderr, since both ends are included."""
    first, last = parse_span(text)
    if first is not None and first == last:
        click.echo(f"--steps {text} is one step (both ends are included)", err=True)
    return first, last


def command_line() -> str:
    """Return the command as it was typed."""
    return visible(shlex.join(["gradlens", *sys.argv[1:]]))


def load_plots() -> None:
    """Import what draws figures, which takes a second, and show that this is being done."""
    from gradlens.terminal.spinner import working

    with working("loading matplotlib"):
        from gradlens.plots import figure_files  # noqa: F401


def write_figures(
    draw: Callable[[], Figure],
    default: Path,
    outputs: Sequence[Path],
    *,
    runs: Sequence[Run],
    caption: str,
    look: Look | None = None,
) -> None:
    """Draw a figure, write it to the files that the user named or to its default file, and print the names.

    Args:
        draw: Draws the figure.
        default: The default file.
        outputs: The files that the user named.
        runs: The runs in the figure.
        caption: The caption for the JSON file.
        look: The look that the figure is drawn with.
    """
    from gradlens.terminal.spinner import working

    with working("drawing the figure"):
        from gradlens.plots.figure_files import save_figure

        figure = draw()
    for path in outputs or (default,):
        with working(f"writing {path}"):
            save_figure(
                figure, path, command=command_line(), runs=runs, caption=caption, asked=bool(outputs), look=look
            )
        say(f"wrote {path} and {path.with_suffix('.json').name}")


def check_figure_options(outputs: Sequence[Path], terminal: bool) -> None:
    """Check that the options for the figure agree, and that its format is known.

    Args:
        outputs: The files that the user named.
        terminal: Whether no file is to be written.

    Raises:
        ConfigError: --terminal and -o are both given, or an ending is unknown.
    """
    if outputs and terminal:
        raise ConfigError("--terminal writes no file, -o FILE names one: choose one of them")
    for path in outputs:
        check_figure_path(path)


def print_rows(rows: Sequence[dict[str, Any]], form: str) -> None:
    """Print rows on stdout.

    Args:
        rows: The rows; their keys become columns.
        form: "json" or "csv".
    """
    if form == "json":
        click.echo(to_json(rows))
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerow({name: safe_cell(name) for name in columns})
    writer.writerows(plain({key: safe_cell(value) for key, value in row.items()}) for row in rows)
    click.echo(text.getvalue(), nl=False)
