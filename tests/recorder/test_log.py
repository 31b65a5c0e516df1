"""What log() means: a value belongs to the step whose backward pass it follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradlens.errors import GradlensWarning
from gradlens.recorder import Recorder
from gradlens.sinks import ListSink
from tests.recorder.small import backward, mlp


def record(every: object = 1, **more: object):
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return model, sink, optimizer, Recorder(model, sink, optimizer=optimizer, every=every, on_error="raise", **more)


def scalars(sink: ListSink, name: str) -> list[float]:
    return [row.scalars.get(name, np.nan) for row in sink.rows]


def test_what_is_logged_after_each_micro_batch_is_averaged_into_the_step() -> None:
    model, sink, optimizer, recorder = record()
    expected = []
    with recorder:
        for step in range(3):
            optimizer.zero_grad()
            losses = []
            for part in range(4):
                losses.append(backward(model, 4 * step + part).item())
                recorder.log(loss=losses[-1], tensor=torch.tensor(losses[-1]))
            expected.append(np.mean(losses))
            optimizer.step()
    assert scalars(sink, "loss") == pytest.approx(expected)
    assert scalars(sink, "tensor") == pytest.approx(expected)


@pytest.mark.parametrize("when", ["between backward and step", "after the step", "both"])
@pytest.mark.parametrize("read_between", [False, True])
def test_a_value_belongs_to_its_step(when: str, read_between: bool) -> None:
    model, sink, optimizer, recorder = record()
    with recorder:
        for step in range(4):
            optimizer.zero_grad()
            backward(model, step)
            if when != "after the step":
                recorder.log(loss=float(step))
            optimizer.step()
            if read_between:
                assert recorder.last_row is not None
            if when != "between backward and step":
                recorder.log(loss=float(step) + (2.0 if when == "both" else 0.0), other=1.0)
    assert scalars(sink, "loss") == [step + (1.0 if when == "both" else 0.0) for step in range(4)]


@pytest.mark.parametrize("when", ["before the step", "after the step"])
def test_values_of_steps_that_are_not_recorded_are_in_no_row(when: str) -> None:
    model, sink, optimizer, recorder = record(every=3)
    with recorder:
        for step in range(8):
            optimizer.zero_grad()
            for part in range(2):
                backward(model, 2 * step + part)
                if when == "before the step":
                    recorder.log(loss=float(step))
            optimizer.step()
            if when == "after the step":
                recorder.log(loss=float(step))
    assert scalars(sink, "loss") == [0.0, 3.0, 6.0]


def test_before_the_first_pass_it_goes_into_the_first_row_with_a_warning() -> None:
    model, sink, optimizer, recorder = record()
    with recorder:
        with pytest.warns(GradlensWarning, match="before the first backward pass"):
            recorder.log(size=7.0)
        for step in range(2):
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()
            recorder.log(loss=float(step))
    assert scalars(sink, "size")[0] == 7.0
    assert scalars(sink, "loss") == [0.0, 1.0]


def test_after_the_last_step_and_after_an_epoch() -> None:
    model, sink, optimizer, recorder = record()
    with recorder:
        backward(model, 0)
        optimizer.step()
        recorder.log(loss=1.0)
        recorder.log(accuracy=0.5)
        recorder.log_epoch(epoch=1)
        with pytest.warns(GradlensWarning, match=r"log\(\) after log_epoch\(\) is in no row"):
            recorder.log(loss=3.0)
    assert sink.rows[0].scalars["loss"] == 1.0
    assert sink.rows[0].scalars["accuracy"] == 0.5


def test_the_value_of_a_discarded_pass_is_not_averaged_in() -> None:
    model, sink, optimizer, recorder = record()
    with recorder:
        for step in range(3):
            optimizer.zero_grad()
            loss = backward(model, 50 + step, float("inf"))
            recorder.log(loss=loss, only_there=1.0)
            optimizer.zero_grad()
            backward(model, step)
            recorder.log(loss=float(step))
            optimizer.step()
    assert scalars(sink, "loss") == [0.0, 1.0, 2.0]
    assert scalars(sink, "only_there")[:2] == [1.0, 1.0]  # nothing is lost: it is in the row that was closed before


def test_by_hand() -> None:
    model, sink = mlp(), ListSink()
    with Recorder(model, sink, on_error="raise") as recorder:
        for step in range(3):
            model.zero_grad()
            backward(model, step)
            recorder.log(early=float(step))
            recorder.step(loss=float(step))
            recorder.log(late=float(step))
    for name in ("early", "loss", "late"):
        assert scalars(sink, name) == [0.0, 1.0, 2.0]
