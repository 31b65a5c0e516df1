"""The analysis of the collapse: signals that are planted to go at known steps are found there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.collapse.analyse import (
    CONFIRMATORY,
    EXPLORATORY,
    Steps,
    judge_gain,
    judge_order,
    lost_from,
    mean_over,
    needed_seeds,
    of,
    print_gains,
    print_order,
    read_steps,
    say,
)
from experiments.collapse.measure import COLUMNS, planned, relative_spread
from gradlens.analysis.stats import mean_interval

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
STEPS = 40


def fall(at: int, high: float, low: float) -> np.ndarray:
    return np.where(np.arange(STEPS) < at, high, low)


def test_a_signal_is_lost_when_it_stays_beyond_its_line() -> None:
    back = fall(10, 0.2, 1e-4)
    back[3], back[20] = 1e-4, 0.2  # gone for a step, and back for one
    run = Steps("recipe", 0, back, fall(12, -2.0, -3.5), fall(15, 0.0, 0.3), fall(30, 0.9, 0.1), fall(0, 1.6, 1.6))
    assert run.lost == {"spread": 21, "ratio": 12, "ratio below 10^-3": 12, "dead": 15, "update": 30}
    assert run.kept_spread == pytest.approx(math.log10(1e-4 / 0.2))
    assert run.update_at_loss == 0.9
    assert lost_from(np.zeros(STEPS)) == STEPS
    assert lost_from(np.ones(STEPS)) == 0
    broken = Steps("recipe", 0, fall(5, 0.2, math.nan), *(fall(5, 0.0, math.nan),) * 2, *(fall(0, 1.0, 1.0),) * 2)
    assert (broken.lost["spread"], broken.lost["ratio"], broken.kept_spread) == (5, 5, -8.0)


@pytest.mark.parametrize(
    ("leads", "said"),
    [
        ([0, 0, 0, 1, 0], "refuted; both go within one step"),
        ([5, 6, 4, 5, 5], "refuted; the features go first"),
        ([-5, -6, -4, -5, -5], "supported"),
        ([0, 3, 1, 2, 0], "first: refuted"),
        ([-5, 5, 0, -1, 2], "undecided"),
    ],
)
def test_the_order_is_judged_as_planned(leads: list[float], said: str) -> None:
    assert said in judge_order(mean_over(leads))


def test_a_gain_is_judged_by_one_decade() -> None:
    verdicts = [judge_gain(mean_over(gains)) for gains in ([3, 3.2, 2.9], [0.1, 0.2, 0.1], [0, 3, 1])]
    assert verdicts == ["supported", "refuted", "undecided"]
    assert needed_seeds(mean_interval(np.array([0.0, 2.0])), 2.0) == math.ceil((2.8 * math.sqrt(2)) ** 2) + 2


def test_rows_are_read_and_every_planned_run_is_made_once(tmp_path) -> None:
    rows = [f"recipe,1,{t},1.6,{0.2 if t < 7 else 1e-5},0.9,0,0,-2,-5,-4,-1.6,-3.221849" for t in range(STEPS)]
    (tmp_path / "a.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    (run,) = of(read_steps(tmp_path / "a.csv"), "recipe", EXPLORATORY).values()
    assert run.lost["spread"] == 7
    assert run.update_at_loss == pytest.approx(1.0, abs=1e-3)  # 10^-3.22 is the rate
    runs = planned("patterns", (0, 1), [])
    assert [config.seed for _, config, _ in runs] == [0] * 9 + [1] * 9
    assert len({(name, config.seed) for name, config, _ in runs}) == 18
    assert [eps for name, _, eps in runs if name == "size-free"] == [1e-30] * 2


def test_the_page_says_what_the_kept_rows_say(capsys: pytest.CaptureFixture[str]) -> None:
    runs = read_steps(EXPERIMENTS / "results" / "collapse.csv.gz")
    assert {len(run.spread) for run in runs} == {STEPS}
    print_order(runs)
    print_gains(runs)
    page = (EXPERIMENTS / "collapse.md").read_text(encoding="utf-8")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) > 30
    assert [line for line in printed if line not in page] == []
    order = mean_over([run.lost["ratio"] - run.lost["spread"] for run in of(runs, "recipe", CONFIRMATORY).values()])
    assert f"{say(order)} steps: that the gradient vanishes first is refuted" in page
    every = [run.lost["ratio"] - run.lost["spread"] for run in runs if run.group == "recipe"]
    assert (len(every), set(every)) == (10, {0, 1})
    assert sum(run.largest_ratio_before > 1.9 for run in runs if run.group == "recipe") == 6
    assert all(0.44 < run.update_at_loss < 0.76 for run in runs if run.group == "recipe")


def test_the_spread_is_relative_and_0_where_no_image_matters() -> None:
    same = torch.ones(4, 1, 1, 1) * torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)
    assert relative_spread(same) == 0
    outputs = torch.tensor([[1.0, 0.0], [3.0, 4.0]]).view(2, 2, 1, 1)
    assert relative_spread(outputs) == pytest.approx(math.sqrt((1 + 4) / 2) / math.sqrt((1 + 0 + 9 + 16) / 4))
    assert relative_spread(outputs * 1e-20) == pytest.approx(relative_spread(outputs))
    assert math.isnan(relative_spread(torch.zeros(2, 3)))
