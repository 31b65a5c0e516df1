"""What the graphs of the first losses show together: a table of kinds (``kinds``), and what losses reach.

==================  ===================================================================================================
When                What happens
==================  ===================================================================================================
A module runs       Its outputs are labelled.
``backward``        The graph of the loss is read once as a whole and once from the loss to the model's outputs. What
                    holds numbers on the device is kept unread.
``facts``           It is read; then the facts of all passes are returned.
==================  ===================================================================================================
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.recorder.facts.loss.bare_terms import has_bare_term, is_output
from gradlens.recorder.facts.loss.graph_reading import MODEL, MODEL_KEY, MOST_FACTS, Facts, label
from gradlens.recorder.facts.loss.graph_walk import Reading, read_graph
from gradlens.recorder.facts.loss.kinds import BY_NAME, KINDS, OF_GRAPH
from gradlens.recorder.facts.loss.loss_reading import read_loss
from gradlens.recorder.facts.loss.loss_terms import terms_apart
from gradlens.recorder.facts.loss.loss_values import bare_number
from gradlens.recorder.facts.loss.penalised import penalised_instead
from gradlens.recorder.facts.loss.reached_modules import ReachedModules
from gradlens.recorder.facts.loss.targets_and_masks import describe_mask
from gradlens.recorder.facts.loss.unregistered_leaves import UnregisteredLeaves
from gradlens.recorder.facts.parameter_states import sample
from gradlens.recorder.layers import clean_name

MOST_GRADIENTS = 2
"""Gradients of outputs taken in a step, from which on they draw samples."""
VARIES = ("count", "shape", "shapes", "output", "before", "result", "zeros", "weights")
"""What may differ from step to step in one fact."""


class LossGraph:
    """Collects what the graphs of the first losses show.

    Args:
        model: The model.
        names: ``id`` of its parameters to their names.
    """

    def __init__(self, model: nn.Module, names: Mapping[int, str]) -> None:
        self._model, self._names = model, names
        self.modules = ReachedModules()
        self._leaves = UnregisteredLeaves(model, names)
        self._facts: dict[str, list[Facts]] = defaultdict(list)
        self._keys: dict[tuple[str, str], Facts] = {}
        self._collectors = {kind.name: kind.collector() for kind in KINDS if kind.collector}
        self._unread: list[tuple[str, Facts, int]] = []
        """Facts with numbers on the device that are not read yet, each with its kind and its step."""
        self._mask: Tensor | None = None
        """Some elements of the last mask: dropout draws others each time."""
        self._bare: list[tuple[Tensor, Tensor, int]] = []
        """What was added to the other terms of a loss, these, both unread, and the step."""
        self._bare_numbers: list[list[float]] = []
        self._values: list[tuple[Tensor, int]] = []
        """Copies of losses that are not read yet, and their steps."""
        self._nonfinite_since: int | None = None
        self._taken: tuple[list[str], int, int] = [], -1, 0
        """Modules of which a gradient without a graph was taken last, in which step, and how many were in it."""
        self._no_graph: Facts | None = None
        self._source = ""
        self._steps: list[int] = []
        """The step of each pass."""
        self._complete = True
        self._is_own = False
        """Whether a loss reached a parameter or an output of the model."""

    def note_gradients(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], step: int) -> None:
        """Note a gradient of a model's output with respect to what is no parameter, which has no graph of its own.

        The gradient of a loss makes adversarial examples, and many gradients in a step draw samples (Langevin): both
        are meant to have no graph.

        Args:
            outputs: What is differentiated.
            inputs: With respect to what.
            step: The step in progress.
        """
        roots = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
        if roots and inputs and not any(id(tensor) in self._names for tensor in inputs):
            modules = list(read_graph(roots, self._names).modules) if all(map(is_output, roots)) else []
            self._taken = modules, step, self._taken[2] + 1 if self._taken[1] == step else 1

    @property
    def last_layers(self) -> set[str]:
        """Names of the modules from whose outputs the losses are computed."""
        return {fact["layer"] for fact in self._facts["outputs"] if fact["layer"]}

    def note_model(self, tensors: Sequence[Tensor]) -> None:
        """Label what the model as a whole returned."""
        for tensor in tensors:
            label(tensor, MODEL, MODEL_KEY)

    @property
    def was_read(self) -> bool:
        """Whether a loss was read."""
        return bool(self._steps)

    def read(
        self,
        tensors: Sequence[Tensor],
        step: int,
        source: str,
        in_optimizer: set[int],
        *,
        nodes: Sequence[Any] = (),
        is_inner: bool = False,
    ) -> None:
        """Read the graph of a loss.

        Args:
            tensors: What ``backward`` was called with.
            step: The step in progress.
            source: "backward" or "log".
            in_optimizer: ``id`` of all parameters in optimizers.
            nodes: Nodes of the graph with which it was called, without the tensors that they made.
            is_inner: Whether the pass is part of another one, as in a checkpointed model.
        """
        made = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
        roots = list(dict.fromkeys([*made, *nodes]))
        if is_inner:
            self.modules.reach(read_graph(roots, self._names).modules)
            return
        self._source = self._source or source
        self._steps.append(step)
        self._note_leaf(tensors, step)
        graph = read_graph(roots, self._names) if roots else None
        if graph is not None:
            self.modules.reach(graph.modules)
            self._complete &= graph.complete
            self._leaves.note(graph, step, in_optimizer)
            if not self._concerns_model(graph):
                return
        self._values += [(tensor.detach().clone(), step) for tensor in tensors if tensor.numel() == 1]
        if graph is None:
            return
        self._add_whole(graph, step)
        self._note_penalty(roots, step)
        for fact in penalised_instead(roots, graph, self._model, self._names):
            self._add("penalised", fact, step)
        is_number = len(roots) == 1 and len(tensors) == 1 and tensors[0].numel() == 1
        if is_number and graph.modules and (number := bare_number(roots[0], tensors[0])) is not None:
            self._bare.append((*number, step))
        for root in roots:
            for fact in terms_apart(root, self.modules.order):
                self._add("terms_apart", fact, step)
            for name, facts in read_loss(root).items():
                for fact in facts:
                    self._take(name, fact, step)

    def _concerns_model(self, graph: Reading) -> bool:
        """Return whether a loss reaches the model, or none has reached it so far.

        A loss that reaches nothing of it is that of another model. What such losses have shown is forgotten once one
        reaches the model; a model whose layers are not registered is never reached.
        """
        reaches = bool(graph.modules) or not self._names.keys().isdisjoint(graph.leaves)
        if reaches and not self._is_own:
            self._is_own, self._nonfinite_since = True, None
            self._facts.clear()
            self._keys.clear()
            self._collectors = {kind.name: kind.collector() for kind in KINDS if kind.collector}
            for several in (self._unread, self._bare, self._bare_numbers, self._values):
                several.clear()
        return reaches or not self._is_own

    def _note_leaf(self, tensors: Sequence[Tensor], step: int) -> None:
        """Note a loss that is a leaf."""
        bare = [tensor for tensor in tensors if tensor.grad_fn is None and tensor.requires_grad]
        if bare and not any(id(tensor) in self._names for tensor in bare):
            self._no_graph = self._no_graph or {"since": step, "passes": 0}
            self._no_graph["passes"] += 1

    def _add_whole(self, graph: Reading, step: int) -> None:
        """Add what the graph as a whole shows."""
        recurrent = {clean_name(name) for name, part in self._model.named_modules() if isinstance(part, nn.RNNBase)}
        for name, facts in graph.facts.items():
            for fact in facts:
                ends_here = name == "curvature" and fact["layer"] in self.modules.order[-1:]  # no first derivative, too
                if not ends_here and (name != "mixed_views" or fact["layer"] in recurrent):
                    self._add(name, fact, step)
        for name, of_graph in OF_GRAPH:
            for fact in of_graph(graph.nodes):
                self._take(name, fact, step)
        for (op, training), count in graph.normalisation.items():
            self._add("normalisation", {"op": op, "training": training, "count": count}, step)

    def _note_penalty(self, roots: Sequence[Any], step: int) -> None:
        """Note that a gradient without a graph was taken in this step, where something without one is in the loss."""
        modules, taken, count = self._taken
        if modules and taken == step and count <= MOST_GRADIENTS and any(has_bare_term(root) for root in roots):
            layers = [name for name in self.modules.order if name in modules][:MOST_FACTS]
            self._add("penalties", {"layers": layers, "count": len(modules)}, step)

    def _take(self, name: str, fact: Facts, step: int) -> None:
        kind = BY_NAME[name]
        if kind.later or kind.collector or name == "masks":
            self._unread.append((name, fact, step))
        else:
            self._add(name, fact, step)

    def _read_later(self) -> None:
        """Read the numbers that passes have left on the device, and let go of them."""
        values, self._values = self._values, []
        broken = [step for value, step in values if not torch.isfinite(value).all().tolist()]
        if broken and self._nonfinite_since is None:
            self._nonfinite_since = broken[0]
        bare, self._bare = self._bare, []
        self._bare_numbers += [[step, float(number), float(rest)] for number, rest, step in bare]
        unread, self._unread = self._unread, []
        for name, taken, step in unread:
            later = BY_NAME[name].later
            if later is not None:
                for kind, fact in later(taken):
                    self._add(kind, fact, step)
            elif name == "masks":
                self._read_mask(taken, step)
            else:
                self._collectors[name].read(taken, step)

    def _read_mask(self, taken: Facts, step: int) -> None:
        """Add what outputs are multiplied by, where it is another mask than the one before."""
        before, self._mask = self._mask, sample(taken["values"])
        is_new = before is not None and not torch.equal(before, self._mask)
        if is_new and (described := describe_mask(**taken)) is not None:
            self._add("masks", described, step)

    def _add(self, name: str, fact: Facts, step: int) -> None:
        """Add a fact, or count it if it is known; shapes may differ from step to step."""
        key = name, repr({part: value for part, value in fact.items() if part not in VARIES})
        counts_passes = name in BY_NAME and BY_NAME[name].counts_passes
        if key in self._keys:
            if counts_passes:
                self._keys[key]["passes"] += 1
        elif len(self._facts[name]) < MOST_FACTS:
            self._keys[key] = fact | {"since": step} | ({"passes": 1} if counts_passes else {})
            self._facts[name].append(self._keys[key])

    def facts(self, with_gradient: set[str]) -> Facts:
        """Return what was found; see ``docs/facts.md``.

        Args:
            with_gradient: Modules of whose parameters one had a gradient at some look; they are not cut.
        """
        if not self._steps:
            return {}
        self._read_later()
        collected = {name: collector.facts()[:MOST_FACTS] for name, collector in self._collectors.items()}
        targets = [fact | self.modules.calls_of(fact["layer"]) for fact in self._facts["only_targets"]]
        return {
            "source": self._source,
            "step": self._steps[0],
            "last_step": self._steps[-1],
            "passes": len(self._steps),
            "complete": self._complete,
            **{kind.name: collected.get(kind.name, self._facts[kind.name]) for kind in KINDS},
            "only_targets": targets,
            "bare_numbers": self._bare_numbers[:MOST_FACTS],
            "modules": self.modules.counts(),
            "nonfinite_since": self._nonfinite_since,
            "unregistered": self._leaves.facts(),
            "cut": self.modules.cuts(with_gradient) if self._complete and not self._no_graph else [],
            "no_graph": self._no_graph,
            "unreached_calls": self.modules.unreached_calls() if self._complete else [],
            "normalisation": self._facts["normalisation"],
        }
