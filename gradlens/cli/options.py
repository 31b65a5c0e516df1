"""Options that several commands share, and how rows are printed."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gradlens.config import FIGURE_ENDINGS, check_figure_path
from gradlens.errors import ConfigError
from gradlens.metrics import SHOWN_METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradlens.plots.style import Look
    from gradlens.run import Run

Command = TypeVar("Command", bound=Callable[..., Any])


def runs_argument(command: Command) -> Command:
    """Take any number of runs: files, folders, or names under runs/."""
    return click.argument("runs", nargs=-1, type=click.Path())(command)


def format_option(command: Command) -> Command:
    """Choose how rows are printed."""
    return click.option(
        "--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True,
        help="How rows are printed on stdout.",
    )(command)  # fmt: skip


def figure_options(command: Command) -> Command:
    """Choose where a picture goes."""
    command = click.option(
        "-o", "--output", "outputs", multiple=True, type=click.Path(dir_okay=False, path_type=Path),
        help="Write the picture to this file (.png, .svg, .pdf); repeatable. Default: figures/NAME.png.",
    )(command)  # fmt: skip
    return click.option("--terminal", is_flag=True, help="Show it in the terminal only; write no file.")(command)


def metrics_option(default: str, *, several: bool = False) -> Callable[[Command], Command]:
    """Choose what is shown of each layer: one metric, or several, separated by commas or given again and again."""
    what = f"What of each layer: {', '.join(SHOWN_METRICS)}."
    if not several:
        return click.option(
            "--metric", type=click.Choice(list(SHOWN_METRICS)), default=default, show_default=True, metavar="METRIC",
            help=what,
        )  # fmt: skip
    return click.option(
        "--metric", "metrics", multiple=True, callback=_split_metrics, metavar="METRIC,...", default=(default,),
        show_default=True, help=f"{what} Several are drawn side by side.",
    )  # fmt: skip


def _split_metrics(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    names = [name.strip() for part in value for name in part.split(",") if name.strip()]
    choice = click.Choice(list(SHOWN_METRICS))
    return tuple(dict.fromkeys(choice.convert(name, parameter, context) for name in names))


def parse_gates(text: str | None, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of findings that ``--fail-on`` names, "any" among them; none where it is not given.

    An empty one, as where a variable of a script is not set, would let everything pass.

    Raises:
        ConfigError: A kind is empty or unknown.
    """
    if text is None:
        return ()
    gates, allowed = tuple(kind.strip() for kind in text.split(",")), (*kinds, "any")
    wrong = [kind for kind in gates if kind not in allowed]
    if wrong:
        what = f"unknown kind {', '.join(map(repr, filter(None, wrong)))}" if any(wrong) else "a kind is missing"
        raise ConfigError(f"--fail-on {text!r}: {what}; expected some of {', '.join(allowed)}")
    return gates


def metric_names(metrics: Sequence[str], default: Sequence[str]) -> list[str]:
    """Return what stands for metrics in a file's name: nothing for what is drawn unasked."""
    return [] if tuple(metrics) == tuple(default) else ["-".join(metrics)]


def look_options(command: Command) -> Command:
    """Choose a picture's ground and width."""
    command = click.option(
        "--theme",
        type=click.Choice(["light", "dark"]),
        default="light",
        show_default=True,
        help="The picture's ground.",
    )(command)
    return click.option(
        "--width", type=click.Choice(["one", "two", "screen"]), default="screen", show_default=True,
        help="One or two columns of print (89, 183 mm), or as wide as the contents want.",
    )(command)  # fmt: skip


def open_runs(arguments: Sequence[str], *, default: str, deep: bool = False) -> list[Run]:
    """Read the runs that the arguments name; if deep, those in the folders below, too."""
    from gradlens.storage import read_run, resolve_runs

    return [read_run(path) for path in resolve_runs(arguments, default=default, deep=deep)]


def command_line() -> str:
    """Return the command as it was typed."""
    return shlex.join(["gradlens", *sys.argv[1:]])


def write_figures(
    draw: Callable[[], Figure],
    default: Path,
    outputs: Sequence[Path],
    *,
    runs: Sequence[Run],
    caption: str,
    look: Look | None = None,
) -> None:
    """Draw a figure, write it to the files that were asked for or to its default place, and say where."""
    from gradlens.plots.files import save_figure

    figure = draw()
    for path in outputs or (default,):
        save_figure(figure, path, command=command_line(), runs=runs, caption=caption, asked=bool(outputs), look=look)
        click.echo(f"wrote {path} and {path.with_suffix('.json').name} beside it", err=True)


def check_figure_options(outputs: Sequence[Path], terminal: bool, endings: tuple[str, ...] = FIGURE_ENDINGS) -> None:
    """Refuse options that contradict each other, and files of another format."""
    if outputs and terminal:
        raise ConfigError("--terminal writes no file, -o FILE names one: choose one of them")
    for path in outputs:
        check_figure_path(path, endings)


def print_rows(rows: Sequence[dict[str, Any]], form: str) -> None:
    """Print rows as JSON or CSV on stdout."""
    if form == "json":
        click.echo(json.dumps(list(rows), indent=2, ensure_ascii=False, allow_nan=False, default=str))
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    click.echo(text.getvalue(), nl=False)
