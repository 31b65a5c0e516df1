"""Record a case of a zoo, and compare every metric of every row with the truth."""

from __future__ import annotations

import numpy as np
import torch

from gradlens.recorder import Recorder
from gradlens.sinks import ListSink
from tests.recorder.case import KNOWN_METRICS, Case
from tests.recorder.truth import Truth, find_truth


def record_case(case: Case, steps: int) -> tuple[ListSink, list[Truth]]:
    """Train a case with the recorder on; the truth is found on a copy before each step."""
    torch.manual_seed(0)
    model, sink = case.build(), ListSink()
    lazy = any(isinstance(p, torch.nn.UninitializedParameter) for p in model.parameters())
    if lazy:  # an optimizer needs to know the parameters, so a dry run goes before, as PyTorch demands
        args, kwargs = case.inputs(0)
        model(*args, **kwargs)
    truths = []
    optimizer = case.optimizer(model)
    with Recorder(
        model, sink, optimizer=optimizer, metrics=KNOWN_METRICS, layers=case.layers, on_error="raise"
    ) as recorder:
        for step in range(steps):
            case.before_step(model, step)
            truths.append(find_truth(case, model, step, optimizer.state_dict()))
            args, kwargs = case.inputs(step)
            torch.manual_seed(step)
            optimizer.zero_grad()
            case.backward(case.loss(model(*args, **kwargs)))
            optimizer.step()
            recorder.log(loss=0.0)
    return sink, truths


def expect(case: Case, sink: ListSink, truth: Truth, metric: str, found: np.ndarray) -> np.ndarray:
    """Return (L,) what a row should hold, in the order of the file; ``found`` is what it holds."""
    assert sink.header is not None
    names = [layer.name for layer in sink.header.layers]
    expected = np.array([getattr(truth, metric)[layer] for layer in names])
    if metric == "update_ratio" and sink.header.metrics[metric] == 1:  # weights of large models are copied in turn
        expected[np.isnan(found)] = np.nan
        assert np.isfinite(found).any()
    if metric == "activation_grad_norm":
        expected[[layer in case.silent for layer in names]] = np.nan
    return expected


def assert_right(case: Case, sink: ListSink, truths: list[Truth]) -> None:
    """Compare every metric of every row with the truth."""
    assert len(sink.rows) == len(truths)
    for row, truth in zip(sink.rows, truths, strict=True):
        for metric, found in row.metrics.items():
            expected = expect(case, sink, truth, metric, found)
            np.testing.assert_allclose(found, expected, rtol=case.rtol, err_msg=f"{metric}, step {row.step}")


def largest_errors(case: Case, sink: ListSink, truths: list[Truth]) -> dict[str, float]:
    """Return, for each metric, the largest relative error over layers and rows; inf where NaN or 0 disagree."""
    worst: dict[str, float] = {}
    for row, truth in zip(sink.rows, truths, strict=True):
        for metric, found in row.metrics.items():
            expected = expect(case, sink, truth, metric, found)
            with np.errstate(divide="ignore", invalid="ignore"):
                errors = np.abs(found - expected) / np.abs(expected)
            errors[(found == expected) | (np.isnan(found) & np.isnan(expected))] = 0
            worst[metric] = max(worst.get(metric, 0.0), float(np.nan_to_num(errors, nan=np.inf).max()))
    return worst
