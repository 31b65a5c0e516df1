"""The two paths of the gradient back through a residual block: through its branch, and through its shortcut.

A residual block uses its input x twice, so dLoss/dx is a sum of two addends. Autograd computes both before it adds
them: each is the gradient that an operation which used x returns for it. These operations are found in the graph after
the forward pass of the block, starting at its output. Operations below the first convolution belong to the branch. The
others belong to the shortcut: the addition itself for an identity, else the slice or the projection. The hooks on these
operations only read, and the graph is not changed, so training is bit-identical to training without them.

A block is a module with ``conv1`` and ``downsample`` whose first convolution reads the block's own input: the blocks of
``gradlens.models`` (plain blocks have ``residual = False``), and torchvision's BasicBlock, Bottleneck and similar ones.
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
"""An operation in the graph, and the index of one of its inputs."""
BRANCH, SHORTCUT = 0, 1
MOST_NODES = 2000
"""Most operations of a block; the search of a larger graph has left the block, which is then not measured."""


@dataclass(frozen=True)
class Measured:
    """The two addends of the gradient of a block's input in one backward pass.

    Args:
        layer: Index of the block's first convolution.
        norms: Norms of the addends of the branch and of the shortcut.
        product: Their inner product.
    """

    layer: int
    norms: tuple[float | Tensor, float | Tensor]
    product: float | Tensor


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the residual blocks of a model."""
    return [module for module in model.modules() if _is_block(module)]


def _is_block(module: nn.Module) -> bool:
    has_both = isinstance(getattr(module, "conv1", None), nn.Module) and hasattr(module, "downsample")
    return has_both and bool(getattr(module, "residual", True))


@dataclass
class _Entry:
    """A block in its forward pass: its input, the edge of that in the graph, and the first convolution's operation."""

    x: Tensor
    source: Any
    conv: Any


@dataclass
class PathGradients:
    """Sums the gradients of both paths for one call of a block.

    Args:
        layer: Index of the block's first convolution.
        count: Number of operations that return a gradient for the input.
    """

    layer: int
    count: int
    sums: list[Tensor | None] = field(default_factory=lambda: [None, None])
    left: int = 0
    running: int = -1
    """The number of the backward pass that the sums belong to; -1 for none."""

    def add(self, path: int, grad: Tensor) -> bool:
        """Return whether the gradient of one operation, which is added to the sums, is the last one."""
        if self.running != in_backward():  # an earlier pass may have reached only some operations
            self.running, self.left, self.sums = in_backward(), self.count, [None, None]
        known = self.sums[path]
        self.sums[path] = grad if known is None else known + grad
        self.left -= 1
        return self.left == 0

    def take(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of the branch and of the shortcut, and reset them."""
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
        """Measured in the backward pass in progress."""
        self._counted: list[Measured] = []
        self._entries: dict[tuple[int, int], _Entry] = {}

    def forget_tensors(self) -> None:
        """Release blocks whose forward pass did not end."""
        self._entries.clear()

    def take_pass(self) -> list[Measured]:
        """Return what was measured in the backward pass in progress, and reset it."""
        taken, self.running = self.running, []
        return taken

    def add_pass(self, taken: list[Measured]) -> None:
        """Add what was measured in a pass to the step."""
        self._counted += taken

    def numbers(self) -> dict[str, Numbers]:
        """Return addend to the values of layers in the step."""
        return {
            BRANCH_NORM: [(found.layer, found.norms[BRANCH]) for found in self._counted],
            SHORTCUT_NORM: [(found.layer, found.norms[SHORTCUT]) for found in self._counted],
            PATH_PRODUCT: [(found.layer, found.product) for found in self._counted],
        }

    # --- the forward pass ---------------------------------------------------------------------------------

    def see_convolution(self, layer: int, module: nn.Module, x: Any, output: Any) -> None:
        """Remember the input of a block's first convolution, and its operation."""
        if not (isinstance(x, Tensor) and x.requires_grad and isinstance(output, Tensor)):
            return
        if output.grad_fn is not None:
            self._entries[layer, threading.get_ident()] = _Entry(x, get_gradient_edge(x), output.grad_fn)

    def see_block(
        self,
        layer: int,
        on_grad: Callable[[PathGradients, int, int, Any, Any], None],
        module: nn.Module,
        x: Any,
        output: Any,
    ) -> None:
        """Attach hooks to the operations that used the input of a block.

        Args:
            layer: Index of its first convolution.
            on_grad: Called with the sums, the path (``BRANCH`` or ``SHORTCUT``), the index of the operation's input,
                and the gradients of its inputs and outputs.
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
        sums = PathGradients(layer, len(branch) + len(shortcut))
        for path, uses in ((BRANCH, branch), (SHORTCUT, shortcut)):
            for node, i in uses:
                node.register_hook(functools.partial(on_grad, sums, path, i))

    # --- the backward pass --------------------------------------------------------------------------------

    def take(self, sums: PathGradients, path: int, grad: Tensor | None) -> None:
        """Take the gradient that one operation returns for a block's input; called during the backward pass.

        Args:
            sums: The sums of the block's call.
            path: ``BRANCH`` or ``SHORTCUT``.
            grad: The gradient; None where the pass needs no gradient of the input.
        """
        if grad is not None and sums.add(path, grad.detach()):
            self.running.append(self._measure(sums.layer, *sums.take()))

    def _measure(self, layer: int, branch: Tensor | None, shortcut: Tensor | None) -> Measured:
        norms = self._norm(layer, BRANCH, branch), self._norm(layer, SHORTCUT, shortcut)
        product = 0.0 if branch is None or shortcut is None else inner_product(branch, shortcut)
        return Measured(layer, norms, product)

    def _norm(self, layer: int, path: int, grad: Tensor | None) -> float | Tensor:
        if grad is None:
            return 0.0
        if not grad.is_cpu:
            return exact_norm(grad)
        found = self._expected[layer][path] = norm(grad, self._expected[layer][path])
        return found


def find_uses(start: Any, source: Any, *, stop: Any = None) -> list[Edge] | None:
    """Return the operations that used a tensor, in the graph below an operation.

    Args:
        start: The operation to start from.
        source: The tensor's ``GradientEdge``.
        stop: An operation below which the graph is not searched.

    Returns:
        Each operation with the index of its input that is the tensor; None if there are more than ``MOST_NODES``.
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
        A float on the CPU; on other devices a 0-d tensor, without waiting for it.
    """
    a, b = plain(a), plain(b)
    exact = torch.float32 if a.device.type in NO_FLOAT64 else torch.float64
    found = torch.dot(a.to(exact).reshape(-1), b.to(exact).reshape(-1))
    return float(found) if found.is_cpu else found
