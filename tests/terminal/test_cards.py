"""Cards: the verdict first, then why and what next; they fit the window and say the same without colour."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from gradlens import diagnose, read_run
from gradlens.analysis.compare import compare_runs, find_lead
from gradlens.analysis.groups import group_runs
from gradlens.analysis.stats import difference_interval
from gradlens.run_summary import summarise
from gradlens.terminal.cards import BAD, GOOD, OPEN, Card, print_card
from gradlens.terminal.compare import compare_card, print_compare
from gradlens.terminal.diagnosis import diagnosis_card, print_diagnosis
from gradlens.terminal.listing import print_listing, run_rows
from gradlens.terminal.panels import curve_panel, panel_width, side_by_side
from gradlens.terminal.summary import print_summary, summary_card
from tests.conftest import SAMPLE


def printed(print_it, width: int = 80, *, colour: bool = False) -> list[str]:
    """Return the lines that a function prints, without colours."""
    console = Console(
        file=io.StringIO(), width=width, height=40, force_terminal=colour, highlight=False, legacy_windows=False,
        color_system="truecolor" if colour else None,
    )  # fmt: skip
    print_it(console)
    text = console.file.getvalue()
    assert colour or "\x1b" not in text
    return [Text.from_ansi(line).plain for line in text.splitlines()]


def words(lines: list[str]) -> str:
    """Return what lines say, without frames and wrapping."""
    return " ".join(" ".join(lines).replace("│", " ").split())


def broken(grid: np.ndarray) -> np.ndarray:
    grid[7, :2] = np.inf
    return grid


# --- one card ---------------------------------------------------------------------------------------------


def test_labels_stand_in_a_column_and_what_they_say_wraps_beside_them() -> None:
    card = Card("[a]", "bad [b]", BAD, ["12 rows"], [("why", "because " * 12 + "[c]"), ("also", "x"), ("also", "y")])
    lines = printed(lambda console: print_card(console, card), 40)
    assert lines[0].startswith("╭─ [a] ─")
    assert lines[1].startswith("│ bad [b] · 12 rows")
    assert lines[2].startswith("│ why   because")
    assert lines[3].startswith("│       because")
    assert "[c]" in words(lines)
    assert [line[2:9].strip() for line in lines if line.rstrip("│ ").endswith((" x", " y"))] == ["also  x", "y"]
    assert {len(line) for line in lines} == {40}


@pytest.mark.parametrize("width", [40, pytest.param(80, marks=pytest.mark.slow), 160])
@pytest.mark.parametrize("colour", [True, False])
def test_every_card_fits_the_window(width: int, colour: bool, make_run) -> None:
    paths = [SAMPLE, make_run("a-run-of-a-rather-long-name-s0", change=broken, epochs=8, steps=80)]
    paths += [make_run("other-s0", model="other", accuracy=0.9)]
    runs = [read_run(path) for path in paths]
    views = [
        lambda console: print_diagnosis(console, diagnose(runs[1])),
        lambda console: print_listing(console, Path("runs"), run_rows(paths)),
    ]
    if width > 40:
        views += [lambda console: [print_summary(console, run) for run in runs]]
        views += [lambda console: print_compare(console, compare_runs(runs))]
    for view in views:
        lines = printed(view, width, colour=colour)
        assert max(map(len, lines)) <= width
        start = next(i for i, line in enumerate(lines) if line.startswith("╭"))
        assert start == 0 or lines[0].startswith("Not equal: ")


# --- diagnosis and summary --------------------------------------------------------------------------------


def test_the_verdict_comes_first_then_why_and_what_next(make_run) -> None:
    diagnosis = diagnose(read_run(make_run(change=broken, decades=0.0)))
    card = diagnosis_card(diagnosis)
    assert (card.verdict, card.style) == ("nonfinite", BAD)
    assert [label for label, _ in card.lines[:2]] == ["why", "next"]
    lines = printed(lambda console: print_diagnosis(console, diagnosis))
    text = words(lines)
    assert text.index("nonfinite") < text.index("why") < text.index("next") < text.index("Evidence")
    evidence = text[text.index("Evidence") :]
    finding = diagnosis.findings[0]
    assert all(said in evidence for said in ("where", "threshold", "source", words([finding.threshold])))
    assert text.count(words([finding.evidence])) == 1
    assert diagnosis_card(diagnose(read_run(SAMPLE))).style == GOOD
    assert diagnosis_card(diagnose(read_run(make_run("few-s0", steps=2)))).style == OPEN


def test_the_summary_begins_with_the_diagnosis(make_run) -> None:
    run = read_run(make_run(change=broken, decades=0.0, notes=("hooks were lost",)))
    card = summary_card(run)
    assert card.verdict == diagnose(run).kind == "nonfinite"
    assert card.beside[0] == "complete"
    said = dict(card.lines)
    assert set(said) == {"why", "next", "learn", "also", "run", "note"}
    assert "20 rows x 6 layers" in said["run"]
    assert "hooks were lost" in said["note"]
    assert summarise(run).to_dict()["diagnosis"]["kind"] == "nonfinite"


def test_curves_are_drawn_where_there_are_epochs_enough(make_run) -> None:
    few = printed(lambda console: print_summary(console, read_run(make_run(epochs=2))))
    assert not any("⠉" in line or "⣀" in line for line in few)
    run = read_run(make_run("many-s0", steps=80, epochs=8))
    coloured = printed(lambda console: print_summary(console, run), colour=True)
    (line,) = [line for line in coloured if line.startswith("loss")]
    assert line.split() == ["loss", "train", "0.125", "val", "0.25", "accuracy", "train", "0.5", "val", "0.4"]
    plain = printed(lambda console: print_summary(console, run))
    assert sum(line.startswith("loss") for line in plain) == 1
    assert "loss  train 0.125" in "\n".join(plain)
    assert "6 of 8 epochs" in "\n".join(plain)


# --- curves -----------------------------------------------------------------------------------------------


def test_a_curve_runs_from_its_lowest_to_its_highest_value() -> None:
    panel = curve_panel("loss", [("train", np.array([1.0, 2.0, 3.0]))], 20, 3, colour=False)
    lines = printed(lambda console: console.print(panel))
    assert lines[0] == "loss  train 3"
    assert [line[:2].strip() for line in lines[1:]] == ["3", "", "1"]
    assert lines[1][-1] != " "
    assert lines[3][2] != " "
    log = printed(lambda c: c.print(curve_panel("loss", [("a", np.array([1.0, 100.0]))], 30, 3, colour=False)))
    assert log[-1].startswith("1 log")
    empty = printed(lambda c: c.print(curve_panel("loss", [("a", np.array([np.nan]))], 30, 3, colour=False)))
    assert empty[0] == "loss  a -"


def test_panels_stand_beside_each_other_where_there_is_room() -> None:
    def lines(width: int) -> list[str]:
        console = Console(width=width)
        panels = [Text("one"), Text("two"), Text("three")]
        return printed(lambda c: c.print(side_by_side(c, panels, panel_width(console, 3))), width)

    assert [line.split() for line in lines(80)] == [["one", "two"], ["three"]]
    assert [line.split() for line in lines(60)] == [["one"], ["two"], ["three"]]


# --- ls ---------------------------------------------------------------------------------------------------


def test_what_all_runs_have_in_common_is_said_once(make_run) -> None:
    config = {"data": "csv:a/rather/long/path/of/photos.csv"}
    paths = [make_run(f"net-s{seed}", seed=seed, config=config) for seed in range(3)]
    lines = printed(lambda console: print_listing(console, Path("runs"), run_rows(paths)))
    assert words(lines).count("photos.csv") == 1
    assert words(lines).startswith("╭─ 3 runs in runs")
    assert "3 complete" in lines[1]
    assert max(map(len, lines)) <= 80


def test_what_is_wrong_with_a_folder_is_said_first(make_run, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "bad.h5").write_text("hello")
    paths = [make_run("good-s0"), tmp_path / "runs" / "bad.h5"]
    lines = printed(lambda console: print_listing(console, Path("runs"), run_rows(paths)), 100)
    assert "1 complete, 1 unreadable" in lines[1]
    text = words(lines)
    assert text.index("why bad:") < text.index("next gradlens recover")
    (row,) = [line for line in lines if line.strip().startswith("good-s0")]
    assert row.split()[:4] == ["good-s0", "complete", "2", "20"]
    assert not printed(lambda console: print_listing(console, Path("runs"), []))[1].startswith("│ 0")


# --- compare ----------------------------------------------------------------------------------------------


def groups_of(make_run, *accuracies: tuple[float, ...]):
    runs = []
    for number, seeds in enumerate(accuracies):
        for seed, accuracy in enumerate(seeds):
            folder, model = f"{len(accuracies)}-{len(seeds)}", f"net{number}"
            more = {"accuracy": accuracy / 0.8, "config": {"recipe": "quick"}}  # as gradlens run makes them
            path = make_run(f"{model}-s{seed}", folder=folder, model=model, seed=seed, **more)
            runs.append(read_run(path))
    return group_runs(runs)


def test_who_is_ahead_is_said_with_how_sure_that_is(make_run) -> None:
    shown = compare_card(groups_of(make_run, (0.50, 0.51, 0.52), (0.70, 0.71, 0.72)))
    assert (shown.verdict, shown.style) == ("net1 is ahead of net0 in validation accuracy", GOOD)
    assert "a difference of +0.200 [+0.177, +0.223]" in shown.lines[0][1]


@pytest.mark.slow
def test_a_difference_that_is_not_shown_is_not_claimed(make_run) -> None:
    card = compare_card(groups_of(make_run, (0.3, 0.6, 0.9), (0.4, 0.5, 0.95), (0.1, 0.1, 0.1)))
    assert card.verdict == "net1 and net0: no difference in validation accuracy is shown"
    assert card.style == OPEN
    assert "the two best of 3" in card.lines[1][1]
    single = compare_card(groups_of(make_run, (0.5,), (0.6,)))
    assert single.verdict.endswith("by one seed only")
    assert "--seeds" in single.lines[-1][1]
    alone = groups_of(make_run, (0.5, 0.6))
    assert find_lead(alone) is None
    assert compare_card(alone).verdict == "net0: validation accuracy 0.550 ± 0.071"


def test_the_difference_of_means_has_welchs_interval() -> None:
    # By hand: variances 2.5 and 10, error sqrt(0.5 + 2) = 1.5811, degrees 2.5^2 / (0.25 / 4 + 4 / 4) = 5.882,
    # t(5.882) 2.4588, half width 3.8877
    found = difference_interval(np.arange(1.0, 6.0), np.arange(2.0, 12.0, 2.0))
    assert found.mean == -3.0
    assert (found.low, found.high) == (pytest.approx(-6.8877, abs=1e-3), pytest.approx(0.8877, abs=1e-3))
    same = difference_interval(np.ones(3), np.full(3, 2.0))
    assert (same.low, same.high) == (-1.0, -1.0)
    assert np.isnan(difference_interval(np.ones(1), np.ones(3)).low)
    assert difference_interval(np.array([np.nan]), np.ones(3)).n == 0
