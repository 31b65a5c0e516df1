"""Values that are logged while the recorder finds out that optimizers step in turn belong to their own steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradlens.recorder import Recorder
from gradlens.sinks import ListSink


@pytest.mark.parametrize("before_step", [True, False])
@pytest.mark.parametrize("every", [1, 2])
def test_layers_trained_one_after_the_other_have_each_loss_in_its_row(before_step: bool, every: int) -> None:
    torch.manual_seed(0)
    layers, sink, losses = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)]), ListSink(), []
    optimizers = [torch.optim.SGD(layer.parameters(), 0.1) for layer in layers]
    with Recorder(layers, sink, optimizer=optimizers, every=every) as recorder:
        for layer, optimizer in zip(layers, optimizers, strict=True):
            for _ in range(4):
                optimizer.zero_grad()
                loss = layer(torch.randn(3, 4)).square().mean()
                loss.backward()
                if before_step:
                    recorder.log(loss=loss)
                optimizer.step()
                if not before_step:
                    recorder.log(loss=loss)
                losses.append(loss.item())
    assert [row.step for row in sink.rows] == list(range(0, 12, every))
    assert [row.scalars["loss"] for row in sink.rows] == pytest.approx(losses[::every], rel=1e-6)


@pytest.mark.parametrize("before_step", [True, False])
def test_two_optimizers_that_alternate_share_a_row_and_its_values(before_step: bool) -> None:
    torch.manual_seed(0)
    one, two, sink, losses = nn.Linear(4, 4), nn.Linear(4, 1), ListSink(), []
    optimizers = [torch.optim.SGD(part.parameters(), 0.1) for part in (one, two)]
    with Recorder(nn.ModuleList([one, two]), sink, optimizer=optimizers) as recorder:
        for _ in range(4):
            for part, optimizer in zip((one, two), optimizers, strict=True):
                optimizer.zero_grad()
                loss = part(torch.randn(3, 4)).square().mean()
                loss.backward()
                if before_step:
                    recorder.log(loss=loss)
                optimizer.step()
                if not before_step:
                    recorder.log(loss=loss)
                losses.append(loss.item())
    means = [sum(losses[i : i + 2]) / 2 for i in range(0, 8, 2)]
    assert [row.scalars["loss"] for row in sink.rows] == pytest.approx(means, rel=1e-6)
