"""The analysis of the rescaled network, on values whose answer is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from experiments.interventions.analyse import bounds
from experiments.interventions.arms import PLAIN, RESULTS, WHOLE, Learned, arm_of, read_learned
from experiments.rescaled.analyse import ARMS, RATES, RESCALED, answer, largest_deviation, main, table, table_of_rates
from experiments.rescaled.draw import draw
from gradlens.analysis.stats import mean_interval
from gradlens.experiment import read_experiment
from gradlens.study.kept_numbers import read_kept
from tests.study.planted_claims import planted

SCATTER = (-0.01, 0.0, 0.015)


def learned(rescaled: float, residual: float = 0.9) -> Learned:
    values = {
        arm: {seed: mean + SCATTER[seed] * (1 + i % 2) for seed in range(3)}
        for i, (arm, mean) in enumerate({PLAIN: 0.5, RESCALED: rescaled, WHOLE: residual}.items())
    }
    return Learned(values, values)


@pytest.mark.parametrize(
    ("rescaled", "residual", "expected"),
    [
        (0.82, 0.9, "supported"),
        (0.55, 0.9, "refuted"),
        (0.70, 0.9, "undecided"),
        (0.82, 0.5, "no verdict: no gap is shown"),
    ],
)
def test_the_answer_to_known_values(rescaled: float, residual: float, expected: str) -> None:
    found = learned(rescaled, residual)
    assert answer(found) == expected
    assert ("no gap is shown" in table(found)) == (residual == 0.5)
    if residual > 0.5:
        share = (found.speed[RESCALED][1] - 0.5) / (found.speed[WHOLE][1] - 0.5)
        assert found.share(RESCALED, "speed").mean == pytest.approx(share, abs=0.01)


def test_the_deviation_from_a_profile() -> None:
    run = planted("plain34", 0)
    norms = np.random.default_rng(0).uniform(1, 2, (60, len(run.layers)))
    other = norms * np.arange(1, 61)[:, None]  # rows of another size, but of the same profile
    a, b = (dataclasses.replace(run, metrics={"param_grad_norm": values}) for values in (norms, other))
    assert largest_deviation(b, a) == pytest.approx(0, abs=1e-12)
    other[7, 3] *= 1.01
    assert largest_deviation(b, a) == pytest.approx(0.01)


ROOT = Path(__file__).parents[2]


def test_the_ratio_under_sgd_is_what_the_page_says() -> None:
    runs = [run for run in read_kept(RESULTS) if arm_of(run, ARMS) == PLAIN]
    page = (ROOT / "experiments" / "rescaled.md").read_text(encoding="utf-8")
    for values in ([run.gradients.ratio[0] for run in runs], [np.median(run.gradients.ratio) for run in runs]):
        found = mean_interval(np.array(values))
        assert f"10^{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]" in page


def test_the_figure_has_a_line_for_each_run_and_each_mean() -> None:
    runs = [run for run in read_kept(RESULTS) if arm_of(run, ARMS) is not None]
    figure = draw(runs)
    assert [len(panel.lines) for panel in figure.axes] == [len(runs) + len(ARMS)] * 2
    thick = [line for line in figure.axes[0].lines if line.get_label() in ARMS.values()]
    learned = read_learned(arms=ARMS)
    for line in thick:
        speed = learned.speed[str(line.get_label())]
        assert np.mean(line.get_ydata()) == pytest.approx(np.mean(list(speed.values())))


def test_the_page_says_what_the_kept_runs_say(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    page = (ROOT / "experiments" / "rescaled.md").read_text(encoding="utf-8")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) == 2 * (2 + len(ARMS))
    assert [line for line in printed if line not in page] == []
    kept = read_learned(arms=ARMS)
    assert len(kept.seeds) >= 3
    for value in (kept.gap("speed"), kept.gap("unseen")):
        assert bounds(value) in page
    assert f"is **{answer(kept)}**" in page
    study = " ".join((ROOT / "docs" / "study.md").read_text(encoding="utf-8").split())
    share = kept.share(RESCALED, "speed")
    assert f"{100 * share.mean:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]" in study


def test_each_arm_is_trained_with_the_best_of_the_rates_that_were_tried() -> None:
    planned = read_experiment(ROOT / "experiments" / "rescaled.toml")
    lines = [line.split(",") for line in RATES.read_text(encoding="utf-8").splitlines()[1:]]
    for group in planned.groups:
        tried = {float(rate): float(value) for arm, rate, value in lines if arm == group.name}
        best = max(tried, key=lambda rate: tried[rate])
        assert group.settings["lr"] == best
        assert min(tried) < best < max(tried)  # the best is inside
    assert table_of_rates().count("**") == 2 * len(ARMS)
