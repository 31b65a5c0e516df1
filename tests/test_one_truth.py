"""The same fact reads the same in every view: how the gradient at the first layer compares with the last hidden one's.

Five odd runs go through every view that speaks of it. What each prints over all rows must be one number and one word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gradlens.analysis.gradient_ratio import FATES, fate_of, gradient_ratio, say_power
from gradlens.analysis.highlights import notable
from gradlens.charts.curves import make_curves
from gradlens.cli import run_command
from gradlens.diagnosis.diagnose import diagnose
from gradlens.notebook import run_card
from gradlens.plots import heatmap as heatmap_figure
from gradlens.plots import profile as profile_figure
from gradlens.run import Run
from gradlens.storage import read_run
from gradlens.study.measures import typical_ratio
from gradlens.study.study_run import DECIMALS, as_study_run
from gradlens.terminal.live.watch import ratio_line
from gradlens.terminal.live.watched_run import Watched
from tests.processes import some_slow

ROWS = 60
METRIC = "activation_grad_norm"


def first_zero(grid: np.ndarray) -> np.ndarray:
    grid[: ROWS * 6 // 10, 0] = 0
    return grid


def all_zero_late(grid: np.ndarray) -> np.ndarray:
    grid[ROWS * 8 // 10 :] = 0
    return grid


def nan_rows(grid: np.ndarray) -> np.ndarray:
    grid[::3] = np.nan
    grid[1::7] = np.inf
    return grid


def two_heads(grid: np.ndarray) -> np.ndarray:
    grid[::2, -1], grid[1::2, -2] = np.nan, np.nan  # each head has every other step
    grid[:3] = 1.0  # but for the first steps, in which both learn
    return grid


ODD: dict[str, dict] = {
    "first layer 0 in 60 % of the rows": {"change": first_zero},
    "all zero late": {"change": all_zero_late},
    "NaN rows": {"change": nan_rows, "decades": -4.5},
    "one layer": {"layers": 1},
    "two heads": {"change": two_heads, "layers": 8},
}


def heatmap_caption(run: Run) -> str:
    return heatmap_figure.caption([run])


def profile_caption(run: Run) -> str:
    return profile_figure.caption(make_curves([run], METRIC), METRIC)


def watch_line(run: Run) -> str:
    watched = Watched(run.path)
    try:
        return ratio_line(watched)
    finally:
        close = getattr(watched, "close", None)
        if close:
            close()


def printed(*arguments: str) -> Callable[[Run], str]:
    def view(run: Run, capsys: pytest.CaptureFixture[str] | None = None) -> str:
        assert capsys is not None
        assert run_command([part.replace("RUN", str(run.path)) for part in arguments]) == 0
        return " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())

    return view


def markdown_report(run: Run) -> str:
    assert run_command(["report", str(run.path), "-o", "page.md"]) == 0
    return Path("page.md").read_text(encoding="utf-8")


VIEWS: dict[str, Callable[..., str]] = {
    "highlights": lambda run: "\n".join(notable(run)),
    "summary": printed("summary", "RUN"),
    "heatmap's caption": heatmap_caption,
    "profile's caption": profile_caption,
    "profile": printed("profile", "RUN", "--terminal"),
    "diagnosis": lambda run: str(diagnose(run)),
    "notebook card": lambda run: re.sub(r"src=\"[^\"]*\"", "", run_card(run)),
    "watch": watch_line,
    "report": markdown_report,
}


def text_of(view: str, run: Run, capsys: pytest.CaptureFixture[str]) -> str:
    if view in ("summary", "profile"):
        return VIEWS[view](run, capsys)
    text = VIEWS[view](run)
    capsys.readouterr()
    return text


def numbers(text: str, run: Run) -> set[str]:
    """Return the powers of ten that a text gives for the first layer over the last hidden one, over all rows."""
    ratio = gradient_ratio(run)
    assert ratio is not None
    first, last = re.escape(ratio.first.name), re.escape(ratio.last.name)
    power = r"(10\^-?\d+\.\d|0)"
    patterns = (
        rf"{first} / {last}:? {power}",
        rf"'?{first}'? has (?:about [\d,./]+ (?:times )?\()?{power}\)?(?: times| of)?",
        rf"(?:norm of|at) '?{first}'? is exactly (0)",
    )
    found = set()
    for pattern in patterns:
        for match in re.finditer(pattern, text):
            after = text[match.end() : match.end() + 120]
            if "half of the rows" not in after.split(";")[0] and "fifth of the rows" not in after.split(";")[0]:
                found.add(match[1])
    return found


def fates(text: str) -> set[str]:
    return {name for name, words in FATES.items() if words in text}


@pytest.mark.parametrize("odd", some_slow([name for name in ODD if name != "one layer"], 4))
def test_one_number_and_one_word(odd: str, make_run, capsys: pytest.CaptureFixture[str]) -> None:
    run = read_run(make_run(steps=ROWS, **ODD[odd]))
    ratio = gradient_ratio(run)
    assert ratio is not None
    truth = ratio.typical()
    assert not math.isnan(truth)
    spoke = 0
    for view in VIEWS:
        text = text_of(view, run, capsys)
        said = numbers(text, run)
        assert said <= {say_power(truth)}, (view, said, text)
        assert fates(text) <= {fate_of(truth)}, (view, fates(text), text)
        spoke += bool(said)
    assert spoke >= 5, spoke
    judged = typical_ratio(as_study_run(run))  # kept to four decimals
    assert judged == pytest.approx(truth, abs=0.5001 * 10**-DECIMALS) or math.isnan(judged)


@pytest.mark.parametrize("view", VIEWS)
def test_one_layer_has_no_ratio_and_no_view_invents_one(
    view: str, make_run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = read_run(make_run(steps=ROWS, **ODD["one layer"]))
    assert gradient_ratio(run) is None
    text = text_of(view, run, capsys)
    assert not fates(text)
    assert not re.search(r"has (about|10\^|0 times)", text)
    assert "nan" not in text.lower()


def test_all_zero_rows_are_named_wherever_they_are_most_of_them(make_run) -> None:
    def most(grid: np.ndarray) -> np.ndarray:
        grid[10:] = 0
        return grid

    run = read_run(make_run(steps=ROWS, change=most))
    said = "all gradients are exactly 0 in 50 of 60 rows"
    assert said in "\n".join(notable(run))
    assert said in heatmap_caption(run)
