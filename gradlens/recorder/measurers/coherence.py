"""Weight gradients of the two halves of a batch, without a second forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradlens.recorder.norms import NO_FLOAT64
from gradlens.recorder.ranks.tensor_layouts import is_distributed
from gradlens.recorder.ratios import COSINES, NOISE, PAIRS, SIGNAL

FORWARDS = (nn.Linear.forward, nn.Conv2d.forward)
STEPS_TO_WEIGHT = ("TBackward0", "ToCopyBackward0", "TransposeBackward0", "PermuteBackward0")
STEPS_TO_NODE = 4
HALF_PRECISION = (torch.float16, torch.bfloat16)
Halves = tuple[Tensor, Tensor]
Numbers = list[tuple[int, float | Tensor]]


@dataclass
class PassHalves:
    """The halves of weight gradients that one backward pass brought."""

    halves: dict[int, Halves] = field(default_factory=dict)
    """Layer to the weight gradients of the first and of the second half of the batch."""
    unknown: set[int] = field(default_factory=set)
    """Layers with a call that cannot be split."""
    counts: list[tuple[int, int]] = field(default_factory=list)
    """For each call, the number of examples in both halves."""
    clear: bool = True
    """Whether each layer was called once, in this pass only, so that the batch size is known."""

    def add(self, layer: int, halves: Halves) -> None:
        """Add the halves of one call to those of the layer's other calls."""
        known = self.halves.get(layer)
        self.halves[layer] = halves if known is None else (known[0] + halves[0], known[1] + halves[1])


@dataclass
class Use:
    """One call of a layer.

    Args:
        layer: Its index.
        module: The layer.
        x: Its input.
    """

    layer: int
    module: nn.Module
    x: Tensor
    version: int = -1
    passes: int = 0


class Coherence:
    """Splits weight gradients of linear layers and 2-d convolutions along the first dimension of the layer's input.

    The gradient of a weight is a sum over examples. The part from each half of the batch is computed from the layer's
    input and from the gradient that autograd passes to the operation itself, which hooks and in-place changes of the
    output do not affect. Parts of several calls and micro-batches are summed, as autograd sums the gradient.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the step in progress."""
        self.running = PassHalves()
        self._whole = PassHalves()
        self._first = self._second = 0

    def find_node(self, module: nn.Module, x: Any, output: Any) -> Any:
        """Return the operation in the graph of the output that used the layer's weight; None where it is not found."""
        weight = module._parameters.get("weight")
        ours = type(module).forward in FORWARDS and "forward" not in module.__dict__
        if not (ours and isinstance(x, Tensor) and isinstance(output, Tensor)):
            return None
        if weight is None or not weight.requires_grad or weight.is_complex() or is_distributed(weight):
            return None
        node: Any = output.grad_fn
        for _ in range(STEPS_TO_NODE):
            if node is None:
                return None
            if any(_leads_to(below, weight) for below, _ in node.next_functions):
                return node
            node = node.next_functions[0][0] if node.next_functions else None
        return None

    def take(self, use: Use, grad: Tensor | None) -> None:
        """Split the gradient of the operation of one call; called during the backward pass."""
        if grad is None:
            return
        taken = self.running
        use.passes += 1
        split = None if use.x._version != use.version else split_gradient(use.module, use.x, grad)
        if split is None:
            taken.unknown.add(use.layer)
            return
        taken.clear &= use.passes == 1 and use.layer not in taken.halves
        taken.add(use.layer, split)
        taken.counts.append((len(use.x) // 2, len(use.x) - len(use.x) // 2))

    def take_pass(self) -> PassHalves:
        """Return the halves of the backward pass in progress, and reset it."""
        taken, self.running = self.running, PassHalves()
        return taken

    def add_pass(self, taken: PassHalves) -> None:
        """Add the halves of a pass to the step."""
        whole = self._whole
        if taken.halves and whole.halves:  # part of a pass (reentrant checkpoints) if layers differ, else a micro-batch
            whole.clear &= taken.halves.keys() == whole.halves.keys()
        for layer, halves in taken.halves.items():
            whole.add(layer, halves)
        whole.unknown |= taken.unknown
        if taken.halves:
            whole.clear &= taken.clear and len(set(taken.counts)) == 1
            first, second = taken.counts[0]
            self._first, self._second = self._first + first, self._second + second

    def numbers(self) -> dict[str, Numbers]:
        """Return, for each addend, layers and their numbers; signal and noise carry the square of the loss scale."""
        found: dict[str, Numbers] = {COSINES: [], PAIRS: [], SIGNAL: [], NOISE: []}
        sizes = (self._first, self._second) if self._whole.clear else None
        for layer, halves in self._whole.halves.items():
            if layer in self._whole.unknown:
                continue
            cosine, there, signal, noise = compare_halves(*halves, sizes)
            found[COSINES].append((layer, cosine))
            found[PAIRS].append((layer, there))
            if signal is not None and noise is not None:
                found[SIGNAL].append((layer, signal))
                found[NOISE].append((layer, noise))
        return found


def compare_halves(
    first: Tensor, second: Tensor, sizes: tuple[int, int] | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Compare the gradients of two halves of a batch.

    Args:
        first: The part of the first half in the gradient of a mean over the batch.
        second: The part of the second half, in the same shape.
        sizes: Number of examples in each half; None where unknown.

    Returns:
        Four 0-d tensors: the cosine (0 where undefined), 1 where it is defined (else 0), signal and noise (see
        ``gradlens.recorder.ratios.noise_scalars``; None where the sizes are unknown).
    """
    dtype = torch.float32 if first.device.type in NO_FLOAT64 else torch.float64
    a, b = first.reshape(-1).to(dtype), second.reshape(-1).to(dtype)
    aa, bb, ab = torch.dot(a, a), torch.dot(b, b), torch.dot(a, b)
    cosine = ab / (aa.sqrt() * bb.sqrt())
    there = torch.isfinite(cosine)
    cosine = torch.where(there, cosine, torch.zeros_like(cosine))
    if sizes is None:
        return cosine, there.to(dtype), None, None
    p, q = (sum(sizes) / size for size in sizes)
    noise = (aa * p**2 + bb * q**2 - 2 * ab * p * q) / (1 / sizes[0] + 1 / sizes[1])
    return cosine, there.to(dtype), ab * p * q, noise


def split_gradient(module: nn.Module, x: Tensor, grad: Tensor) -> Halves | None:
    """Return the parts of a weight's gradient from two halves of the batch.

    Args:
        module: A linear layer, or a 2-d convolution.
        x: (B, ...) its input.
        grad: The gradient of its output, in any shape with the examples in order.

    Returns:
        Two tensors of the weight's number of elements; None for fewer than two examples.
    """
    x, grad = x.detach(), grad.detach()
    is_conv = isinstance(module, nn.Conv2d)
    if len(x.shape) < 2 or len(x) < 2 or (is_conv and x.dim() != 4):
        return None
    dtype = torch.promote_types(x.dtype, grad.dtype)
    dtype = torch.float32 if dtype in HALF_PRECISION else dtype
    with torch.autocast(x.device.type, enabled=False):
        x, grad = x.to(dtype), grad.to(dtype)
        half = len(x) // 2
        if is_conv:
            x, padding = _padded(module, x)
            parts = zip(_split(x, half), _split(grad, half), strict=True)
            first, second = (_conv_gradient(module, *part, padding) for part in parts)
            return first, second
        half *= x[0].numel() // x.shape[-1]
        x, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        return grad[:half].t() @ x[:half], grad[half:].t() @ x[half:]


def _split(tensor: Tensor, half: int) -> Sequence[Tensor]:
    return tensor[:half], tensor[half:]


def _padded(module: Any, x: Tensor) -> tuple[Tensor, Any]:
    """Return the input of a convolution, padded where the module pads by itself, and the remaining padding."""
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return x, module.padding
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(x, module._reversed_padding_repeated_twice, mode=mode), (0, 0)


def _conv_gradient(module: Any, x: Tensor, grad: Tensor, padding: Any) -> Tensor:
    """Return the gradient of a convolution's weight, in the type of its input."""
    gradient: Tensor = torch.ops.aten.convolution_backward(
        grad,
        x,
        x.new_empty(module.weight.shape),  # only its shape is used
        None,
        module.stride,
        padding,
        module.dilation,
        False,
        [0, 0],
        module.groups,
        [False, True, False],
    )[1]
    return gradient


def _leads_to(node: Any, weight: Tensor) -> bool:
    """Return whether a node belongs to a weight, or to its transpose or cast."""
    for _ in range(len(STEPS_TO_WEIGHT)):
        if node is None:
            return False
        if getattr(node, "variable", None) is weight:
            return True
        if node.name() not in STEPS_TO_WEIGHT:
            return False
        node = node.next_functions[0][0]
    return False
