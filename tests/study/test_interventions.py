"""The analysis of the interventions, on values whose answer is known."""

import math
from pathlib import Path

import pytest
import torch

from experiments.interventions.analyse import bounds, correlations, main, table, verdict
from experiments.interventions.arms import ARMS, EXPLANATIONS, Learned, read_learned
from experiments.interventions.start import forward_identity
from gradlens.analysis.stats import Interval
from gradlens.models import build_model
from gradlens.models.blocks import Block
from gradlens.study.claims import judge_claims
from gradlens.study.kept_numbers import read_kept

SPEED = dict(zip(ARMS.values(), (0.5, 0.4, 0.8, 1.1, 1.0, 0.55, 0.45, 0.9, 0.6, 0.9), strict=True))


def learned() -> Learned:
    scatter = (-0.01, 0.0, 0.015)
    values = {
        arm: {seed: speed + scatter[seed] * (1 + i % 3) for seed in range(3)}
        for i, (arm, speed) in enumerate(SPEED.items())
    }
    return Learned(values, values)


def test_shares_and_verdicts_of_known_values() -> None:
    found = learned()
    assert found.share("value alone", "speed").mean == pytest.approx((0.8 - 0.5) / (0.9 - 0.5), abs=0.03)
    assert verdict(found.share("value alone", "speed")) == "closes the gap"
    assert verdict(found.share("gradient alone", "speed")) == "does not"
    assert verdict(Interval(0.9, math.nan, -math.inf, math.inf, 3)) == "undecided"
    assert verdict(Interval(0.9, math.nan, 0.8, 1.0, 2)) == "undecided"
    assert all(arm in table(found) for arm in ARMS.values())


def test_an_explanation_that_orders_the_arms_as_they_learn_has_a_correlation_of_1() -> None:
    found = learned()
    start = {
        name: {arm: {s: sign * v for s, v in found.speed[arm].items()} for arm in SPEED}
        for name, sign in EXPLANATIONS.items()
    }
    assert all(value.mean == pytest.approx(1) for value in correlations(found, start).values())


def test_forward_identity_rises_from_no_shortcut_to_nothing_but_shortcuts() -> None:
    endings = ("plain20", "resnet20-gradonly", "resnet20", "resnet20-branchscale", "resnet20-skipinit")
    none, gradient, usual, scaled, whole = (
        forward_identity(build_model(model, num_classes=5, seed=0), 32) for model in endings
    )
    assert none == gradient == 0 < usual < scaled < whole == 1


def test_forward_identity_of_one_block_is_the_share_of_its_mean_square() -> None:
    torch.manual_seed(0)
    block = Block(3, 3, shortcut="A", norm=True, branch_scale=0.5)
    found = forward_identity(block, 8)
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    with torch.no_grad():
        branch = 0.5 * block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(images)))))
    assert found == pytest.approx(float(images.square().mean() / (images + branch).square().mean()), rel=1e-5)


ROOT = Path(__file__).parents[2]


def test_the_page_says_what_the_kept_runs_say(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    page = (ROOT / "experiments" / "interventions.md").read_text(encoding="utf-8")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) == 2 + len(ARMS) + 2 + len(EXPLANATIONS)
    assert [line for line in printed if line not in page] == []
    kept = read_learned()
    for value in (kept.gap("speed"), kept.gap("unseen"), kept.difference("plain34, early layers frozen", "plain34")):
        assert bounds(value) in page
    study = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    part = " ".join(study[study.index("## Interventions") : study.index("## Agreement between batches")].split())
    for arm in ("resnet34, early layers frozen", "resnet34, early noise", "gradient alone", "value alone"):
        share = kept.share(arm, "speed")
        assert f"{100 * share.mean:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]" in part


def test_the_claims_are_judged_from_the_kept_runs() -> None:
    judged = judge_claims(read_kept(ROOT / "experiments" / "results"))
    assert "the plain network's gradient is shown to vanish in none of the settings" in judged.explanation
    found = judged.claims
    verdicts = {each.claim.key: each.overall["with batch norm"].verdict for each in found}
    assert verdicts == dict(
        zip("ABCDEF", ("mixed", "supported", "supported", "undecided", "undecided", "refuted"), strict=True)
    )
    settings = {verdict.setting: verdict.verdict for verdict in found[0].verdicts}
    assert settings == {
        "34 layers, 32 px": "refuted",
        "34 layers, 32 px, init=looks-linear": "refuted",
        "34 layers, 32 px, lr=0.001, optimizer=sgd": "mixed",  # it grows at the first step, not in the median
    }
