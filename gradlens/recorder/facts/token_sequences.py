"""Compare sequences of indices that embeddings get with the targets of the loss, and with what attention sees of them.

An embedding gets (B, L): a batch of sequences. What is compared here holds exactly or is not noted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.recorder.facts.layer_inputs import MOST_ELEMENTS
from gradlens.recorder.facts.loss.graph_reading import (
    MOST_NODES,
    Facts,
    children,
    dim_of,
    labels_of,
    op_of,
    saved,
    shape_of,
)

FARTHEST = 3
"""Targets are compared with the inputs of up to so many positions later."""
MOST_ATTENTIONS = 4
MOST_WEIGHTS = 16 * MOST_ELEMENTS
"""Larger tables of attention are not looked at."""
FUSED = "ScaledDotProduct"
MOVES = {
    "View", "UnsafeView", "ReshapeAlias", "Clone", "Alias", "ToCopy", "Transpose", "Permute", "LogSoftmax", "Slice",
    "Unsqueeze", "Squeeze",
}  # fmt: skip
"""Operations between the last layer and the loss of a sequence."""


class TokenSequences:
    """What the first passes show of sequences of indices."""

    def __init__(self) -> None:
        self._step = -1
        self._tokens: dict[str, Tensor] = {}
        """Name of an embedding to the (B, L) indices of this step."""
        self._places: dict[str, tuple[Tensor, int]] = {}
        """Name of an embedding that gets (B, 1) to these indices and to its number of rows."""
        self._before: dict[str, Tensor] = {}
        """Name of such an embedding to the sequences that were beside it in the step before."""
        self._unread: list[tuple[str, Facts, Tensor]] = []
        self._calls: list[str] = []
        """Names of the embeddings that got sequences in this step, one for each call."""
        self._recurrent: list[bool] = []
        """Whether each recurrent layer that ran in this step goes in both directions."""
        self._found: dict[str, list[Facts]] = {"shifts": [], "seen": [], "places": [], "next": []}

    def note_call(self, name: str, module: nn.Module, inputs: Tensor, step: int) -> None:
        """Note the indices that an embedding gets.

        Args:
            name: Its name.
            module: A module.
            inputs: Its first argument.
            step: The step in progress.
        """
        if step != self._step:
            self._step = step
            self.forget()
        if isinstance(module, nn.RNNBase):
            self._recurrent.append(module.bidirectional)
        if not isinstance(module, nn.Embedding) or inputs.dim() != 2 or inputs.is_floating_point():
            return
        if inputs.shape[0] < 2 or inputs.numel() > MOST_ELEMENTS:
            return
        if inputs.shape[1] == 1:
            self._places[name] = inputs, module.num_embeddings
        else:
            self._tokens.setdefault(name, inputs)
            self._calls.append(name)

    def end(self) -> None:
        """Let go of everything that is no fact."""
        self.forget()
        self._before.clear()

    def forget(self) -> None:
        """Let go of the indices of a step."""
        self._tokens.clear()
        self._places.clear()
        self._calls.clear()
        self._recurrent.clear()

    @torch.no_grad()
    def read(self, tensors: Sequence[Tensor], step: int) -> None:
        """Compare the indices of this step with what the graph of a loss shows.

        Args:
            tensors: What ``backward`` was called with.
            step: The step in progress.
        """
        if not self._tokens or step != self._step:
            return
        self._compare_places(step)
        attentions, views = 0, list[Tensor]()
        for node in _nodes([tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]):
            op = op_of(node)
            if op.startswith("NllLoss"):
                self._compare_targets(node, step)
            elif attentions < MOST_ATTENTIONS and (op == "Softmax" or op.startswith(FUSED)):
                attentions += 1
                self._compare_seen(node, op, step)
                views += self._views_of_next(node, op)
        self._compare_next(views, step)
        self.forget()

    def _views_of_next(self, node: Any, op: str) -> list[Tensor]:
        """Return how an attention of a sequence to itself sees later positions: [(2,)], or [] if it is none.

        The two are whether each position sees the next one, if any sees that, and whether none sees a later one.
        """
        length = next(iter(self._tokens.values())).shape[1]
        if op == "Softmax":
            weights = saved(node, "result")
            if weights is None or dim_of(node, weights.dim()) != weights.dim() - 1:
                return []
            kept = weights != 0
        else:
            query, key, mask = (saved(node, name) for name in ("query", "key", "attn_mask"))
            if query is None or key is None or (query.shape[-2], key.shape[-2]) != (length, length):
                return []
            if mask is None:
                causal = bool(getattr(node, "_saved_is_causal", False))
                return [torch.tensor([not causal, causal], device=query.device)]
            kept = mask if mask.dtype == torch.bool else mask > -math.inf
        if kept.dim() < 2 or kept.shape[-2:] != (length, length) or kept.numel() > MOST_WEIGHTS:
            return []
        following, later = kept.diagonal(1, -2, -1), kept.tril(-1).any(-2)[..., 1:]
        is_open = (following | ~later).all() & following.any()  # padding is seen from nowhere
        return [torch.stack([is_open, ~kept.triu(1).any()])]

    def _compare_next(self, views: list[Tensor], step: int) -> None:
        """Note what the layers that mix positions see of later ones, where one embedding got one sequence."""
        if len(self._calls) != 1 or not (views or self._recurrent):
            return
        device = next(iter(self._tokens.values())).device
        seen = torch.stack(views).sum(0) if views else torch.zeros(2, device=device)
        counts = torch.tensor([len(views), len(self._recurrent), sum(self._recurrent)], device=device)
        self._unread.append(("next", {"layer": self._calls[0], "since": step}, torch.cat([counts, seen.to(counts)])))

    def _compare_places(self, step: int) -> None:
        """Note whether an embedding gets the numbers of the examples, beside sequences."""
        for name, (indices, rows) in self._places.items():
            count = indices.shape[0]
            beside = next((ids for ids in self._tokens.values() if ids.shape[0] == count), None)
            if beside is None or beside.device != indices.device:
                continue
            fact = {"layer": name, "rows": rows, "examples": count, "length": beside.shape[1], "since": step}
            before = self._before.get(name, beside)
            self._before[name] = beside.clone()
            is_new = (before != beside).any() if before.shape == beside.shape else torch.ones_like(beside).any()
            counted = torch.arange(count, device=indices.device)
            self._unread.append(("places", fact, torch.stack([(indices[:, 0] == counted).all(), is_new])))

    def _compare_targets(self, loss: Any, step: int) -> None:
        target = saved(loss, "target")
        slices = _slices(loss)
        if target is None or slices is None:
            return
        first, shape = slices
        for name, ids in self._tokens.items():
            if tuple(ids.shape) != shape[:2] or target.numel() % ids.shape[0] or target.device != ids.device:
                continue
            rows = target.reshape(ids.shape[0], -1)
            if first + rows.shape[1] <= ids.shape[1]:
                before = self._sources(name)
                found = [_equals(rows, ids, first + distance) for distance in range(FARTHEST + 1)]
                if rows.shape == ids.shape:  # sequences may also be columns
                    found += [_equals(rows.t(), ids.t(), distance) for distance in range(1, FARTHEST + 1)]
                places = torch.stack([_counts_up(each).to(rows.device) for each in (*before, rows)]).any()
                fact = {"layer": name, "since": step, "after": len(before)}
                self._unread.append(("shifts", fact, torch.stack([places, *found])))

    def _sources(self, name: str) -> list[Tensor]:
        """Return the sequences that embeddings got before the last one got its own; [] where this is not the last."""
        is_last = self._calls[-1] == name and self._calls.count(name) == 1
        return [self._tokens[each] for each in self._calls[:-1]] if is_last else []

    def _compare_seen(self, node: Any, op: str, step: int) -> None:
        """Note which indices lie where attention sees something, and which where it sees nothing."""
        for name, ids in self._tokens.items():
            visible = _visible(node, op, tuple(ids.shape))
            if visible is None or visible.device != ids.device:
                continue
            least, largest = _range(ids, visible)
            low, high = _range(ids, ~visible)
            kept = ((ids == least) & ~visible).any()
            found = torch.stack([least, largest, low, high, kept.to(least.dtype)])
            self._unread.append(("seen", {"layer": name, "since": step}, found))

    def facts(self) -> Facts:
        """Return what was found; this waits for an accelerator where something was compared since."""
        taken, self._unread = self._unread, []
        for kind, fact, values in taken:
            self._found[kind].append(fact | {"values": [int(value) for value in values.tolist()]})
        return {
            "shifts": [item for name in self._names("shifts") for item in self._shift(name)],
            "seen": [item for name in self._names("seen") for item in self._only_index(name)],
            "places": [item for name in self._names("places") for item in self._numbered(name)],
            "next": [item for name in self._names("next") for item in self._next(name)],
        }

    def _names(self, kind: str) -> list[str]:
        return list(dict.fromkeys(fact["layer"] for fact in self._found[kind]))

    def _shift(self, name: str) -> list[Facts]:
        """Return by how many positions targets lie behind the inputs, where that is one number in all passes."""
        facts = [fact for fact in self._found["shifts"] if fact["layer"] == name]
        values = list(zip(*(fact["values"][1:] for fact in facts), strict=False))
        always = [i for i, found in enumerate(values) if all(found)]
        ever = [i for i, found in enumerate(values) if any(found)]
        if len(ever) != 1 or ever != always:
            return []
        after = 0 if any(fact["values"][0] for fact in facts) else min(fact["after"] for fact in facts)
        distance = ever[0] if ever[0] <= FARTHEST else ever[0] - FARTHEST
        known = {"layer": name, "distance": distance, "after": after}
        return [known | {"passes": len(facts), "since": facts[0]["since"]}]

    def _only_index(self, name: str) -> list[Facts]:
        """Return the only index that attention sees, where it is the same in all passes and is seen wherever it is."""
        facts = [fact for fact in self._found["seen"] if fact["layer"] == name]
        seen = {tuple(fact["values"][:2]) for fact in facts}
        hidden = [fact["values"][3] - fact["values"][2] for fact in facts]
        if len(seen) != 1 or len(set(*seen)) != 1 or min(hidden) < FARTHEST or any(f["values"][4] for f in facts):
            return []
        return [{"layer": name, "index": facts[0]["values"][0], "passes": len(facts), "since": facts[0]["since"]}]

    def _next(self, name: str) -> list[Facts]:
        """Return what sees later positions of a sequence, where it is the same in all passes."""
        facts = [fact for fact in self._found["next"] if fact["layer"] == name]
        if len({tuple(fact["values"]) for fact in facts}) != 1:
            return []
        keys = ("attentions", "recurrent", "both_ways", "open", "causal")
        counted = dict(zip(keys, facts[0]["values"], strict=True))
        return [{"layer": name, "passes": len(facts), "since": facts[0]["since"], **counted}]

    def _numbered(self, name: str) -> list[Facts]:
        facts = [fact for fact in self._found["places"] if fact["layer"] == name]
        if not all(fact["values"][0] for fact in facts) or not any(fact["values"][1] for fact in facts):
            return []
        return [{key: value for key, value in facts[0].items() if key != "values"} | {"passes": len(facts)}]


def _nodes(roots: list[Any]) -> Iterator[Any]:
    stack, seen = list(roots), set(roots)
    while stack and len(seen) < MOST_NODES:
        node = stack.pop()
        yield node
        for child, _ in children(node):
            if child not in seen:
                seen.add(child)
                stack.append(child)


def _slices(loss: Any) -> tuple[int, tuple[int, ...]] | None:
    """Return at which position the outputs begin that a loss compares, and the shape (B, L, C) of the layer's output.

    None where the last layer's output has another shape, or was cut in another way.
    """
    node, first = loss, 0
    while len(below := children(node)) == 1:
        node = below[0][0]
        shape = shape_of(node)
        if labels_of(node) and op_of(node) != "LogSoftmax":
            return (first, shape) if len(shape) == 3 else None
        if op_of(node) not in MOVES:
            return None
        if op_of(node) == "Slice":
            start, dim = _start(node), dim_of(node, len(shape))
            if start is None or (start and (dim != 1 or len(shape) != 3)):
                return None
            first += start
    return None


def _start(node: Any) -> int | None:
    """Return where a slice begins; None where it takes not every element, or torch does not tell."""
    start, step = getattr(node, "_saved_start", None), getattr(node, "_saved_step", None)
    if not isinstance(start, int) or step != 1:
        return None
    return start if start >= 0 else None


def _equals(targets: Tensor, ids: Tensor, first: int) -> Tensor:
    """Return (): whether (B, M) targets are the indices from a position on; negative ones are left out."""
    count = min(targets.shape[1], ids.shape[1] - first)
    if count < max(targets.shape[1] // 2, 1):
        return torch.zeros((), dtype=torch.bool, device=ids.device)
    part, kept = targets[:, :count], targets[:, :count] >= 0
    return ((part == ids[:, first : first + count]) | ~kept).all() & (2 * kept.sum() >= kept.numel())


def _counts_up(ids: Tensor) -> Tensor:
    """Return (): whether (B, L) indices are places, each one more than the one before."""
    return (ids[:, 1:] - ids[:, :-1] == 1).all()


def _range(ids: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the largest chosen index; 0 and -1 where none is chosen."""
    none = ~chosen.any()
    least = torch.where(chosen, ids, torch.iinfo(ids.dtype).max).min()
    largest = torch.where(chosen, ids, -1).max()
    return torch.where(none, 0, least), largest


def _visible(node: Any, op: str, shape: tuple[int, ...]) -> Tensor | None:
    """Return (B, L): the positions that some query sees with some head; None where torch does not keep it."""
    if op == "Softmax":
        weights = saved(node, "result")
        if weights is None or dim_of(node, weights.dim()) != weights.dim() - 1:
            return None
        kept = weights != 0
    else:
        mask = saved(node, "attn_mask")
        if mask is None or mask.dim() != 4:
            return None
        kept = mask if mask.dtype == torch.bool else mask > -math.inf
    if kept.numel() > MOST_WEIGHTS or kept.shape[-1] != shape[1] or kept.shape[0] % shape[0]:
        return None
    return kept.reshape(shape[0], -1, shape[1]).any(1)
