"""The two ways of the gradient back through a residual block: through its branch, and through its shortcut.

Where a block uses its input x twice, dLoss/dx is the sum of what comes back of either use. Both addends are there
while the backward pass runs, just before autograd adds them: as what the operations that used x hand on to it. They are
found in the graph when the block has run: from the block's output down, all operations that x went into; those below
the block's first convolution belong to the branch, the others to the shortcut (the addition itself, where the shortcut
is the identity; the slice or the projection, where it is none). Hooks on these operations read, and nothing is put into
the graph, so that the training is bit for bit what it is without them.

A block is a module with ``conv1`` and ``downsample``, whose first convolution reads the block's own input: the blocks
of ``gradlens.models`` (the plain ones have no shortcut, and say so by ``residual``), and torchvision's BasicBlock and
Bottleneck with their kin.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from gradlens.recorder.hooks.backward_pass import in_backward
from gradlens.recorder.norms import NO_FLOAT64, exact_norm, norm, plain
from gradlens.recorder.ratios import BRANCH_NORM, PATH_PRODUCT, SHORTCUT_NORM

Numbers = list[tuple[int, float | Tensor]]
Edge = tuple[Any, int]
"""An operation in the graph, and which of its inputs."""
BRANCH, SHORTCUT = 0, 1
MOST_NODES = 2000
"""Operations that a block may have; one with more has ways out of it, and is passed over."""


@dataclass(frozen=True)
class Measured:
    """What came back to a block's input in one backward pass.

    Args:
        layer: Index of the block's first convolution.
        norms: Of what came through the branch, and through the shortcut.
        product: Their inner product.
    """

    layer: int
    norms: tuple[float | Tensor, float | Tensor]
    product: float | Tensor


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """List the residual blocks of a model."""
    return [module for module in model.modules() if _is_block(module)]


def _is_block(module: nn.Module) -> bool:
    has_both = isinstance(getattr(module, "conv1", None), nn.Module) and hasattr(module, "downsample")
    return has_both and bool(getattr(module, "residual", True))


@dataclass
class _Entry:
    """A block that runs: its input, what made that, and the operation of its first convolution."""

    x: Tensor
    source: Any
    conv: Any


@dataclass
class Ways:
    """The two ways back to the input of one block, in one call of it.

    Args:
        layer: Index of the block's first convolution.
        count: Operations that hand a gradient on to the input.
    """

    layer: int
    count: int
    sums: list[Tensor | None] = field(default_factory=lambda: [None, None])
    left: int = 0
    running: int = -1
    """The number of the backward pass that they are of."""

    def add(self, way: int, grad: Tensor) -> bool:
        """Take what one operation hands on, and say whether it was the last one."""
        if self.running != in_backward():  # a pass before this one may have left something out
            self.running, self.left, self.sums = in_backward(), self.count, [None, None]
        known = self.sums[way]
        self.sums[way] = grad if known is None else known + grad
        self.left -= 1
        return self.left == 0

    def take(self) -> tuple[Tensor | None, Tensor | None]:
        """Return what came through the branch and through the shortcut, and forget it."""
        branch, shortcut = self.sums
        self.running, self.sums = -1, [None, None]
        return branch, shortcut


class Paths:
    """Measures both addends of the gradient at the input of each residual block.

    Args:
        model: The model.
        modules: Layer names to modules; only blocks whose first convolution is one of these are measured.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        layer_of = {id(module): layer for layer, module in enumerate(modules.values())}
        blocks = [(block, block.get_submodule("conv1")) for block in find_blocks(model)]
        self.blocks = [(layer_of[id(conv)], block, conv) for block, conv in blocks if id(conv) in layer_of]
        """Index of the first convolution, the block, and that convolution."""
        self._expected = [[1.0, 1.0] for _ in modules]
        self.clear()

    def clear(self) -> None:
        """Forget the step in progress."""
        self.running: list[Measured] = []
        """Of the backward pass in progress."""
        self._counted: list[Measured] = []
        self._entries: dict[tuple[int, int], _Entry] = {}

    def forget_tensors(self) -> None:
        """Let go of blocks that did not come to their end."""
        self._entries.clear()

    def take_pass(self) -> list[Measured]:
        """Return what the backward pass in progress brought, and forget it here."""
        taken, self.running = self.running, []
        return taken

    def add_pass(self, taken: list[Measured]) -> None:
        """Add what a pass brought to the step."""
        self._counted += taken

    def numbers(self) -> dict[str, Numbers]:
        """Return what was measured in the step, for each addend."""
        return {
            BRANCH_NORM: [(found.layer, found.norms[BRANCH]) for found in self._counted],
            SHORTCUT_NORM: [(found.layer, found.norms[SHORTCUT]) for found in self._counted],
            PATH_PRODUCT: [(found.layer, found.product) for found in self._counted],
        }

    # --- the forward pass ---------------------------------------------------------------------------------

    def see_convolution(self, layer: int, module: nn.Module, x: Any, output: Any) -> None:
        """Remember what went into the first convolution of a block, and what came out."""
        if not (isinstance(x, Tensor) and x.requires_grad and isinstance(output, Tensor)):
            return
        if output.grad_fn is not None:
            self._entries[layer, threading.get_ident()] = _Entry(x, get_gradient_edge(x), output.grad_fn)

    def see_block(
        self, layer: int, on_grad: Callable[[Ways, int, int, Any, Any], None], module: nn.Module, x: Any, output: Any
    ) -> None:
        """Hang hooks on the operations that the input of a block went into.

        Args:
            layer: Index of its first convolution.
            on_grad: Called with the ways, which of them, which input of the operation, and the gradients of its inputs
                and outputs.
            module: The block.
            x: Its input.
            output: Its output.
        """
        entry = self._entries.pop((layer, threading.get_ident()), None)
        if entry is None or entry.x is not x or not isinstance(output, Tensor) or output.grad_fn is None:
            return
        branch = find_uses(entry.conv, entry.source)
        shortcut = find_uses(output.grad_fn, entry.source, stop=entry.conv)
        if not branch or shortcut is None or set(branch) & set(shortcut):
            return
        ways = Ways(layer, len(branch) + len(shortcut))
        for way, uses in ((BRANCH, branch), (SHORTCUT, shortcut)):
            for node, i in uses:
                node.register_hook(functools.partial(on_grad, ways, way, i))

    # --- the backward pass --------------------------------------------------------------------------------

    def take(self, ways: Ways, way: int, grad: Tensor | None) -> None:
        """Take what one operation hands on to a block's input; called within the backward pass.

        Args:
            ways: Of the block.
            way: Of the branch or of the shortcut.
            grad: None where the pass wants no gradient of the input.
        """
        if grad is not None and ways.add(way, grad.detach()):
            self.running.append(self._measure(ways.layer, *ways.take()))

    def _measure(self, layer: int, branch: Tensor | None, shortcut: Tensor | None) -> Measured:
        norms = self._norm(layer, BRANCH, branch), self._norm(layer, SHORTCUT, shortcut)
        product = 0.0 if branch is None or shortcut is None else inner_product(branch, shortcut)
        return Measured(layer, norms, product)

    def _norm(self, layer: int, way: int, grad: Tensor | None) -> float | Tensor:
        if grad is None:
            return 0.0
        if not grad.is_cpu:
            return exact_norm(grad)
        found = self._expected[layer][way] = norm(grad, self._expected[layer][way])
        return found


def find_uses(start: Any, source: Any, *, stop: Any = None) -> list[Edge] | None:
    """List the operations, from one in the graph down, that a tensor went into.

    Args:
        start: The operation to begin with.
        source: The tensor's ``GradientEdge``.
        stop: An operation below which others look.

    Returns:
        Each operation with the input that the tensor is; None where there are too many operations to look through.
    """
    found: list[Edge] = []
    seen, waiting = {stop}, [start]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if len(seen) > MOST_NODES:
            return None
        for i, (below, number) in enumerate(node.next_functions):
            if below is not source.node:
                waiting.append(below)
            elif number == source.output_nr:
                found.append((node, i))
    return found


def inner_product(a: Tensor, b: Tensor) -> float | Tensor:
    """Return the inner product of two tensors of one shape, in float64 where the device has that.

    Returns:
        A number; of tensors that are not on the CPU a 0-d tensor, for which nothing waits.
    """
    a, b = plain(a), plain(b)
    exact = torch.float32 if a.device.type in NO_FLOAT64 else torch.float64
    found = torch.dot(a.to(exact).reshape(-1), b.to(exact).reshape(-1))
    return float(found) if found.is_cpu else found
