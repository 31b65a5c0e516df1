"""Odd small models, and how each is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from gradlens.recorder.layers import all_leaves, with_norms
from tests.recorder.case import Case, Inputs, floats, images, matrix, rand, sequence, tokens

# --- models ---------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.relu(self.stem(x))
        x = self.relu(self.bn1(self.conv1(shortcut)))
        x = self.bn2(self.conv2(x))
        x += shortcut
        return self.fc(self.relu(x).mean((2, 3)))


class InPlaceOnView(nn.Module):
    """The output of a linear layer with three dimensions is a view, which is changed in place."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 6, bias=bias), nn.Linear(6, 6, bias=bias), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x), inplace=True)
        x = self.second(x)
        x *= 2
        return self.last(x)


@dataclass
class Out:
    main: Tensor
    extra: Tensor | None = None


class Pair(NamedTuple):
    main: Tensor
    extra: Tensor


class Wrapping(nn.Module):
    """A layer whose output is wrapped in something."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(rand(8, 6) * 0.3)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        out = x @ self.weight
        return self.wrap(out[:, :2], out[:, 2:].tanh())


class Unwrapping(nn.Module):
    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.before, self.wrapping, self.after = nn.Linear(8, 8), Wrapping(wrap), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.cat([part.float() for part in floats(self.wrapping(self.before(x)))], 1))


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bilinear, self.head = nn.Bilinear(8, 8, 4), nn.Linear(4, 2)

    def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
        return self.head(input=torch.tanh(self.bilinear(input1=left, input2=right)))


class Shared(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.shared, self.head, self.times = nn.Linear(8, 8), nn.Linear(8, 2), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = torch.tanh(self.shared(x))
        return self.head(x)


class Tied(nn.Module):
    def __init__(self, sparse: bool = False, tie: bool = True) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(10, 8, sparse=sparse), nn.Linear(8, 8)
        self.decoder = nn.Linear(8, 10, bias=False)
        if tie:
            self.decoder.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.hidden(self.embedding(x))))


class Parts(nn.Module):
    """Layers some of which are frozen, unused, or behind a gate."""

    def __init__(self, frozen: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.first, self.second, self.third, self.unused = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 2)
        for name in frozen:
            getattr(self, name).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))))


class Bare(nn.Module):
    """Parameters directly on the model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(rand(8, 3)), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight + self.bias)


class Scaled(nn.Module):
    """A module that owns a parameter and has layers too."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5]))
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.block(x)


class Recurrent(nn.Module):
    def __init__(self, rnn: nn.Module, packed: bool = False) -> None:
        super().__init__()
        self.rnn, self.head, self.packed = rnn, nn.LazyLinear(2), packed

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            out, _ = self.rnn(pack_padded_sequence(x, torch.tensor([5, 4, 2]), batch_first=True))
            assert isinstance(out, PackedSequence)
            return self.head(out.data)
        out, state = self.rnn(x)
        last = state[0] if isinstance(state, tuple) else state
        return self.head(out).sum(1) + self.head(last.transpose(0, 1).reshape(3, -1)[:, : out.shape[-1]])


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 5)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state)


class Attention(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        out, weights = self.attention(x, x, x, need_weights=self.need_weights)
        return self.head(out) + (0 if weights is None else weights.square().mean())


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.complex(rand(8, 4), rand(8, 4, seed=1)))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x.to(torch.complex64) @ self.weight).abs())


class ComplexLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 4, dtype=torch.complex64)
        self.second = nn.Linear(4, 2, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.to(torch.complex64)).tanh())


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.before, self.after = nn.Linear(8, 8), nn.Linear(8, 2)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.before(x))
        return self.after(checkpoint(self.block, x, use_reentrant=self.reentrant))


class Splitting(nn.Module):
    """A layer whose outputs are views of one tensor."""

    class Split(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return super().forward(x).chunk(2, 1)

    def __init__(self) -> None:
        super().__init__()
        self.split, self.head = self.Split(8, 6), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.split(x)
        return self.head(left * right.sigmoid())


class Prompt(nn.Module):
    """A layer whose output is its parameter itself."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(rand(1, 8))

        def forward(self) -> Tensor:
            return self.value

    def __init__(self) -> None:
        super().__init__()
        self.prompt, self.head = self.Constant(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.prompt())


class Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return (grad * weight).clamp(-0.1, 0.1), (grad * x).sum(0)


class CustomFunction(nn.Module):
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(rand(8))

        def forward(self, x: Tensor) -> Tensor:
            return Clamp.apply(x, self.weight)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.head = nn.Linear(8, 8), self.Gate(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gate(self.first(x)))


class Auxiliary(nn.Module):
    """A second head whose output only counts in training, and a third that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.auxiliary, self.ignored = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu_(self.stem(x))
        ignored = self.ignored(hidden)
        return {"main": self.head(hidden), "auxiliary": self.auxiliary(hidden), "ignored": ignored.detach()}


class Teacher(nn.Module):
    """One layer is called without a graph too, as a teacher of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.layer(x + 1)
        return self.head(self.layer(x) - target)


class Branching(nn.Module):
    """Another branch at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"even": nn.Linear(8, 8), "odd": nn.Linear(8, 8)})
        self.head, self.step = nn.Linear(8, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.step += 1
        return self.head(torch.tanh(self.branches["even" if self.step % 2 else "odd"](x)))


class Hooked(nn.Module):
    """The user's own forward hook replaces an output, and a tensor hook changes its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 2)
        self.first.register_forward_hook(double)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


class SlotState(nn.Linear):
    """A layer with a way of its own to be copied."""

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)


class LastTwo(nn.Module):
    """Only a part of each output counts; large next to small."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(8, 3000), nn.Linear(3000, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.relu(self.wide(x)))


def weight_normed() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 2))


def spectral_normed() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 2))


def mlp(*activations: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    layers = [part for activation in activations for part in (nn.Linear(8, 8), activation)]
    return nn.Sequential(*layers, nn.Linear(8, 2)).to(dtype)


def twice(loss: Tensor) -> None:
    """Two backward passes through one graph."""
    loss.backward(retain_graph=True)
    (0.5 * loss).backward()


def with_graph(loss: Tensor) -> None:
    loss.backward(create_graph=True)


def unfreeze(model: nn.Module, step: int) -> None:
    if step == 1:
        model.first.requires_grad_(True)  # type: ignore[union-attr]


def empty(step: int) -> Inputs:
    return (rand(0, 8),), {}


def cast(inputs: Callable[[int], Inputs], dtype: torch.dtype) -> Callable[[int], Inputs]:
    return lambda step: (tuple(x.to(dtype) for x in inputs(step)[0]), {})


def all_parameters(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 1e-3)


ZOO: dict[str, Case] = {
    "in-place activation": Case(lambda: mlp(nn.ReLU(inplace=True), nn.Tanh(), nn.ELU(inplace=True))),
    "in-place activation, all leaves": Case(lambda: mlp(nn.ReLU(inplace=True), nn.Tanh()), layers=all_leaves),
    "x += shortcut": Case(Residual, images),
    "x += shortcut, norms too": Case(Residual, images, layers=with_norms),
    "x += shortcut, all leaves": Case(Residual, images, layers=all_leaves),
    "in place on a view": Case(InPlaceOnView, sequence),
    "in place on a view, no bias": Case(lambda: InPlaceOnView(bias=False), sequence),
    "three dimensions": Case(lambda: mlp(nn.ReLU(), nn.GELU()), sequence),
    "tuple": Case(lambda: Unwrapping(lambda a, b: (a, b))),
    "dict": Case(lambda: Unwrapping(lambda a, b: {"a": a, "more": [b, None, 3]})),
    "dataclass": Case(lambda: Unwrapping(Out)),
    "named tuple": Case(lambda: Unwrapping(Pair)),
    "nested": Case(lambda: Unwrapping(lambda a, b: [a, ("text", {"b": b, "again": a})])),
    "keywords": Case(Keywords, lambda step: ((), {"left": rand(5, 8, seed=step), "right": rand(5, 8, seed=step + 9)})),
    "called twice": Case(lambda: Shared(2)),
    "called seven times": Case(lambda: Shared(7)),
    "tied weights": Case(Tied, tokens),
    "sparse embedding": Case(lambda: Tied(sparse=True, tie=False), tokens),
    "frozen first": Case(lambda: Parts(("first",))),
    "frozen middle": Case(lambda: Parts(("second",))),
    "frozen, given to the optimizer": Case(lambda: Parts(("first",)), optimizer=all_parameters),
    "unfrozen late": Case(lambda: Parts(("first",)), optimizer=all_parameters, before_step=unfreeze),
    "parameters on the model": Case(Bare),
    "a parameter beside layers": Case(Scaled),
    "lazy": Case(lambda: nn.Sequential(nn.LazyLinear(6), nn.ReLU(inplace=True), nn.LazyLinear(2))),
    "RNN": Case(lambda: Recurrent(nn.RNN(8, 6, batch_first=True)), sequence),
    "LSTM": Case(lambda: Recurrent(nn.LSTM(8, 6, num_layers=2, batch_first=True)), sequence),
    "GRU, two ways": Case(lambda: Recurrent(nn.GRU(8, 3, batch_first=True, bidirectional=True)), sequence),
    "packed LSTM": Case(lambda: Recurrent(nn.LSTM(8, 6, batch_first=True), packed=True), sequence),
    "cells": Case(Cells, sequence),
    "attention": Case(lambda: Attention(True), sequence, silent=("attention.out_proj",)),
    "attention, fused": Case(lambda: Attention(False), sequence, silent=("attention.out_proj",)),
    "transformer": Case(
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), sequence, silent=("self_attn.out_proj",)
    ),
    "transformer, norms first": Case(
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, dropout=0.0),
        sequence,
        layers=with_norms,
        silent=("self_attn.out_proj",),
    ),
    "weight norm": Case(weight_normed),
    "spectral norm": Case(spectral_normed),
    "complex parameter": Case(Complex),
    "complex layers": Case(ComplexLayers),
    "empty batch": Case(lambda: mlp(nn.ReLU()), empty),
    "checkpoint": Case(lambda: Checkpointed(False)),
    "checkpoint, reentrant": Case(lambda: Checkpointed(True)),
    "data parallel": Case(lambda: nn.DataParallel(mlp(nn.ReLU(inplace=True)))),
    "views of one tensor": Case(Splitting),
    "output is a parameter": Case(Prompt),
    "custom function": Case(CustomFunction),
    "auxiliary head": Case(Auxiliary),
    "its own teacher": Case(Teacher),
    "another branch each step": Case(Branching),
    "a user's hook": Case(Hooked),
    "a layer's own __getstate__": Case(lambda: nn.Sequential(SlotState(8, 8), nn.ReLU(), SlotState(8, 2))),
    "two backward passes": Case(lambda: mlp(nn.ReLU(inplace=True)), backward=twice),
    "create_graph": Case(lambda: mlp(nn.Tanh()), backward=with_graph),
    "float64": Case(lambda: mlp(nn.ReLU(), dtype=torch.float64), cast(matrix, torch.float64)),
    "bfloat16": Case(lambda: mlp(nn.ReLU(), dtype=torch.bfloat16), cast(matrix, torch.bfloat16)),
    "large outputs": Case(LastTwo, lambda step: ((rand(400, 8, seed=step),), {})),
    "channels last": Case(
        lambda: Residual().to(memory_format=torch.channels_last),
        lambda step: ((images(step)[0][0].to(memory_format=torch.channels_last),), {}),
    ),
    "transposed convolutions": Case(
        lambda: nn.Sequential(nn.Conv1d(8, 4, 3), nn.ReLU(inplace=True), nn.ConvTranspose1d(4, 2, 3)),
        lambda step: ((rand(2, 8, 9, seed=step),), {}),
    ),
    "embedding bag": Case(lambda: nn.Sequential(nn.EmbeddingBag(10, 8), nn.Linear(8, 2)), tokens),
}
