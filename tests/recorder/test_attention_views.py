"""Attention whose output is changed in place through a view of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradlens.recorder.recorder import Recorder
from gradlens.sinks import ListSink

WIDTH, STEPS = 8, 3


class Fields(nn.Module):
    """Attention over the fields of an example, with a residual that is added in place."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.embedding, self.in_place = nn.Linear(WIDTH, WIDTH), in_place
        self.attention = nn.MultiheadAttention(WIDTH, 2)
        self.residual, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        fields = self.embedding(x).transpose(0, 1)
        out, _ = self.attention(fields, fields, fields)
        if not self.in_place:
            self.seen = out
            out.retain_grad()
        mixed = out.transpose(0, 1)
        if self.in_place:
            mixed += self.residual(x)
        else:
            mixed = mixed + self.residual(x)
        scores: Tensor = self.last(torch.relu(mixed))
        return scores


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 4, WIDTH, generator=generator) for _ in range(STEPS)]


@pytest.mark.parametrize("in_place", [True, False])
def test_the_gradient_of_an_output_that_a_view_changes(in_place: bool) -> None:
    torch.manual_seed(0)
    model, truth = Fields(in_place=in_place), Fields(in_place=False).double()
    truth.load_state_dict(model.state_dict())
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, truth)]
    sink, expected = ListSink(), []
    with Recorder(model, sink, optimizer=optimizers[0], on_error="raise"):
        for x in batches():
            for each, optimizer, data in ((model, optimizers[0], x), (truth, optimizers[1], x.double())):
                optimizer.zero_grad()
                each(data).square().mean().backward()
                optimizer.step()
            assert truth.seen is not None
            assert truth.seen.grad is not None
            expected.append(float(truth.seen.grad.norm()))
    names = [layer.name for layer in sink.header.layers]
    np.testing.assert_allclose(sink.metric("activation_grad_norm")[:, names.index("attention")], expected, rtol=1e-5)
