"""Claims A and B: which rows, which measure, and how much came through shortcuts alone."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import gradlens
from gradlens.models import build_model
from gradlens.run import Layer, Run
from gradlens.study import judge_claims
from gradlens.study.measures import (
    first_ratio,
    last_live_ratio,
    product_ratio,
    ratio_at_norms,
    ratio_per_element,
    shortcuts_alone,
    typical_ratio,
)
from gradlens.study.run_groups import WITHOUT
from gradlens.study.study_run import as_study_run
from tests.study.planted_claims import LAYERS, ROWS, pair, planted, seeds, verdict


def collapsing(seed: int, *, before: float, after: float, at: int = 20, falls: bool = True) -> Run:
    """Return a run without batch norm whose ratio changes where its loss returns to the level of guessing for good."""
    run = planted("plain34-nobn", seed, decades=before + seed / 100)
    later = planted("plain34-nobn", seed, decades=after + seed / 100)
    run.metrics["activation_grad_norm"][at:] = later.metrics["activation_grad_norm"][at:]
    run.scalars["loss"][:] = 1.609
    if falls:
        run.scalars["loss"][:at] = 1.4
        run.scalars["loss"][3] = 1.7  # back to guessing, and not for good
    return run


def test_rows_after_a_collapse_are_not_taken_for_the_cause() -> None:
    runs = [collapsing(seed, before=-0.6, after=-6.0) for seed in range(5)]
    found = verdict(runs, "A", WITHOUT)
    assert found.verdict == "mixed"
    assert found.why.startswith("it depends on the rows: in the median over rows it vanishes (10^-6.0 [-6.0, -6.0]); ")
    assert "at the first step it keeps its size (10^-0.6 [-0.6, -0.6])" in found.why
    names = [one.name for one in found.evidence]
    assert names[:3] == [
        "plain network, first / last hidden layer",
        "plain network, first / last hidden layer, the first step",
        "plain network, first / last hidden layer, the last row before the loss stays at guessing",
    ]
    assert "10^-0.6 [-0.6, -0.6] at the first step" in judge_claims(runs).explanation


def test_what_vanishes_before_during_and_after_is_supported_and_named() -> None:
    runs = [collapsing(seed, before=-5.0, after=-6.0) for seed in range(5)]
    found = verdict(runs, "A", WITHOUT)
    assert found.verdict == "supported"
    assert (
        "it rests on the median over rows, the first step (10^-5.0 [-5.0, -5.0]) and the last row before" in found.why
    )


def test_the_last_row_before_the_loss_stays_at_guessing() -> None:
    assert last_live_ratio(as_study_run(collapsing(0, before=-0.6, after=-6.0))) == pytest.approx(-0.6, abs=1e-4)
    never = as_study_run(collapsing(0, before=-0.6, after=-6.0, falls=False))
    assert last_live_ratio(never) == first_ratio(never) == pytest.approx(-0.6, abs=1e-4)
    learns = collapsing(0, before=-0.6, after=-6.0)
    learns.scalars["loss"][-1] = 0.3
    assert math.isnan(last_live_ratio(as_study_run(learns)))
    broken = collapsing(0, before=-0.6, after=-6.0)
    broken.scalars["loss"][20:] = math.nan
    assert last_live_ratio(as_study_run(broken)) == pytest.approx(-0.6, abs=1e-4)
    late = collapsing(0, before=-0.6, after=-6.0)
    object.__setattr__(late, "steps", late.steps + 5)
    assert math.isnan(first_ratio(as_study_run(late)))


def with_weights(run: Run, scale: float) -> Run:
    """Return the run as if its first layer's weights, before a norm, were multiplied by ``scale``."""
    grads = run.metrics["activation_grad_norm"].copy()
    norms = np.full((ROWS, LAYERS), np.nan)
    norms[::25] = 2.0
    grads[:, 0] /= scale
    norms[::25, 0] *= scale
    found = {"activation_grad_norm": grads, "param_grad_norm": grads.copy(), "param_norm": norms}
    run.metrics.update(found)  # type: ignore[attr-defined]
    return run


def test_scaled_weights_change_the_plain_ratio_and_not_the_product() -> None:
    runs = [with_weights(planted("plain34", seed, decades=0.2 + seed / 100), 1e5) for seed in range(5)]
    ones = [as_study_run(run) for run in runs]
    assert typical_ratio(ones[0]) == pytest.approx(-4.8, abs=1e-3)
    assert product_ratio(ones[0]) == pytest.approx(0.2, abs=1e-3)
    found = verdict(runs, "A")
    assert found.verdict == "supported"
    assert "depends on the measure: by first / last hidden layer by |W| |dL/dW| it is refuted (10^0.2" in found.why
    assert "hangs" not in verdict([with_weights(planted("plain34", s, decades=-5.0), 1.0) for s in range(5)], "A").why


def one_step(path: Path, scale: float) -> Run:
    """Record a step of a plain network with batch norm whose first convolution is multiplied by ``scale``."""
    model = build_model("plain8", num_classes=3, seed=0).double()
    with torch.no_grad():
        model.conv1.weight.mul_(scale)
        model.bn1.eps = 1e-5 * scale**2  # or the function would change a little
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(8, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with gradlens.record(model, path, optimizer=optimizer, layers=gradlens.with_norms):
        model(x).square().mean().backward()
        optimizer.step()
    return gradlens.read_run(path)


def test_a_network_that_is_scaled_behind_a_norm_has_the_same_invariant_ratios(tmp_path: Path) -> None:
    usual, scaled = (as_study_run(one_step(tmp_path / f"{scale}.h5", scale)) for scale in (1.0, 1e5))
    assert typical_ratio(scaled) - typical_ratio(usual) == pytest.approx(-5, abs=2e-4)
    assert product_ratio(scaled) == pytest.approx(product_ratio(usual), abs=2e-4)
    assert ratio_at_norms(scaled) == pytest.approx(ratio_at_norms(usual), abs=2e-4)
    assert math.isfinite(product_ratio(usual) + ratio_at_norms(usual))


def test_per_element_and_at_the_norms_outputs() -> None:
    run = planted("plain34", 0, decades=-2.0)
    layers = [Layer(one.name, one.kind, one.role, one.depth, 6400 if i == 0 else 64, 9)
              for i, one in enumerate(run.layers)]  # fmt: skip
    layers += [Layer(f"bn{i}", "BatchNorm2d", "norm", i, 6400 // 100**i, 9) for i in (0, 1)]
    grid = np.column_stack([run.metrics["activation_grad_norm"], np.full(ROWS, 50.0), np.full(ROWS, 0.5)])
    object.__setattr__(run, "layers", tuple(layers))
    run.metrics["activation_grad_norm"] = grid  # type: ignore[index]
    found = as_study_run(run)
    assert ratio_per_element(found) == pytest.approx(-3.0, abs=1e-4)  # a hundred times the elements, ten in the root
    assert ratio_at_norms(found) == pytest.approx(math.log10((50 / 80) / (0.5 / 8)), abs=1e-4)
    assert {"per element", "norm's output"} <= {
        part for one in verdict([run, planted("plain34", 1, decades=-2.1)], "A").evidence
        for part in ("per element", "norm's output") if part in one.name
    }  # fmt: skip


# --- B --------------------------------------------------------------------------------------------------------------


def test_the_share_of_shortcuts_alone_is_that_of_one_of_all_paths() -> None:
    """Six blocks y = x + b x: autograd's gradient is the sum over 64 paths, one of which takes shortcuts alone."""
    factors = np.array([0.3, 0.9, 0.1, 2.0, 0.5, 1.2])
    x = torch.ones((), dtype=torch.float64, requires_grad=True)
    y = x
    for factor in factors:
        y = y + float(factor) * y
    y.backward()
    paths = [math.prod(f for f, branch in zip(factors, chosen, strict=True) if branch)
             for chosen in itertools.product((False, True), repeat=len(factors))]  # fmt: skip
    assert float(x.grad) == pytest.approx(sum(paths))
    run = planted("resnet34", 0)
    rows, blocks = np.arange(0, ROWS, 5), np.arange(1, LAYERS - 1, 2)
    used = [*factors[: len(blocks) - 1], math.prod(1 + factors[len(blocks) - 1 :]) - 1]  # five blocks are recorded
    for block, factor in zip(blocks, used, strict=True):
        run.metrics["shortcut_grad_norm"][rows, block] = 7.0
        run.metrics["branch_grad_norm"][rows, block] = 7.0 * factor
        run.metrics["path_cosine"][rows, block] = 1.0
    assert shortcuts_alone(as_study_run(run)) == pytest.approx(math.log10(1 / sum(paths)), abs=1e-3)


def test_a_shortcut_that_passes_nothing_refutes_the_path() -> None:
    found = verdict(pair({}, {}), "B")
    assert found.verdict == "supported"
    assert "through shortcuts alone came 10^-1.1" in found.why  # 0.6 to the fifth
    blocked = pair({}, {})
    for run in blocked:
        if run.model.startswith("resnet"):
            run.metrics["shortcut_grad_norm"][::5, 3] = 0.0
            run.metrics["path_cosine"][::5, 3] = np.nan
    refuted = verdict(blocked, "B")
    assert (refuted.verdict, refuted.evidence[1].value) == ("refuted", 0.0)
    some = verdict([*blocked[:-1], seeds("resnet34", 5)[-1]], "B")
    assert some.verdict == "undecided"
    assert "in 4 of 5 runs a block passes none" in some.why
