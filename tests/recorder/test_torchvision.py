"""Every metric of torchvision's models, untouched, against the truth."""

from __future__ import annotations

import numpy as np
import pytest

from tests.recorder.against_truth import assert_right, record_case
from tests.recorder.torchvision_zoo import QUICK, SLOW

STEPS = 3
STEPS_OF_SLOW = 2  # the first is recorded by other hooks than the later ones


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "resnet18" else []) for name in QUICK]
)
def test_every_metric_of_a_quick_model(name: str) -> None:
    assert_right(QUICK[name], *record_case(QUICK[name], STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_metric_of_a_slow_model(name: str) -> None:
    sink, truths = record_case(SLOW[name], STEPS_OF_SLOW)
    assert_right(SLOW[name], sink, truths)
    if name == "googlenet":
        assert sink.header is not None
        auxiliary = [layer.name.startswith("aux") for layer in sink.header.layers]
        assert sum(auxiliary) == 6
        for metric in ("activation_grad_norm", "param_grad_norm"):
            assert np.isfinite(sink.metric(metric)[:, auxiliary]).all()
