"""What the graphs of the first losses show together: what is not reached, not registered, or made in an odd way."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradlens.recorder.bare_terms import has_bare_term, is_output
from gradlens.recorder.even_softmax import even_softmaxes
from gradlens.recorder.exponent_signs import exponent_signs
from gradlens.recorder.graph_reading import MODEL, MODEL_KEY, MOST_FACTS, Facts, Reading, label, read_graph
from gradlens.recorder.label_signs import DISTANCES
from gradlens.recorder.layers import clean_name
from gradlens.recorder.loss_reading import describe_mask, describe_targets, read_loss
from gradlens.recorder.loss_terms import terms_apart
from gradlens.recorder.loss_values import bare_number
from gradlens.recorder.loss_weights import count_classes
from gradlens.recorder.own_targets import log_as_deviation
from gradlens.recorder.parameter_states import sample
from gradlens.recorder.penalised import penalised_instead
from gradlens.recorder.registered import registered_parameters
from gradlens.recorder.returned_outputs import ReturnedOutputs
from gradlens.recorder.undefined_values import whole_number

MOST_GRADIENTS = 2
"""Gradients of outputs taken in a step, from which on they draw samples."""
OFTEN = 4
"""A module is said to have calls that no loss reaches if it ran so many times as often as it is reached."""

WEIGHTS = {"weight", "weights", "kernel", "w"}
"""Names that tell of weights."""
COUNTED = (
    "entropies", "penalties", "losses", "targets", "masks", "late_weights", "equal_examples", "clamps", "label_signs",
    "even_softmax", "penalised", "exponents",
)  # fmt: skip
"""Kinds of facts whose passes are counted."""


def find_holders(model: nn.Module) -> dict[int, str]:
    """Find parameters that modules hold in plain attributes, such as a list of modules.

    Args:
        model: The model.

    Returns:
        ``id`` of each parameter to the attribute that holds it.
    """
    registered = {id(parameter) for parameter in model.parameters()}
    found: dict[int, str] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not key.startswith(("_parameters", "_modules", "_buffers", "_forward", "_backward")):
                for tensor in _tensors_in(value, 3):
                    if id(tensor) not in registered:
                        found.setdefault(id(tensor), f"{name}.{key}".lstrip("."))
    return found


def find_weights_in_buffers(model: nn.Module) -> list[Facts]:
    """Find modules that train only vectors, and have a buffer of two or more dimensions with a name of weights.

    Args:
        model: The model.

    Returns:
        Their facts, at most ``MOST_FACTS``; a frozen batch norm and a fixed filter are not among them.
    """
    found = []
    for name, module in model.named_modules():
        own = [parameter for parameter in registered_parameters(module).values() if parameter.requires_grad]
        if own and all(parameter.ndim < 2 for parameter in own):
            buffers = [(key, value) for key, value in module.named_buffers(recurse=False) if key.lower() in WEIGHTS]
            found += [
                {"layer": clean_name(name) or "(model)", "name": key, "shape": list(value.shape)}
                for key, value in buffers
                if value.ndim > 1 and value.is_floating_point()
            ]
    return found[:MOST_FACTS]


def _tensors_in(value: Any, depth: int) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    if isinstance(value, nn.Module):
        return list(value.parameters())
    if depth and isinstance(value, Mapping):
        value = list(value.values())
    if depth and isinstance(value, list | tuple | set):
        return [tensor for part in value for tensor in _tensors_in(part, depth - 1)]
    return []


UNREAD = (
    "class_weights", "late_weights", "equal_examples", "soft_targets", "logarithms", "counted", "clamps", "label_signs",
)  # fmt: skip
"""Kinds of facts that hold numbers on the device."""
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
        self.reached: set[str] = set()
        self.returned = ReturnedOutputs()
        self.ran: dict[str, int] = {}
        """Modules with parameters that require a gradient, in the order in which they ran, and when first."""
        self.without_graph: set[str] = set()
        """Those that ran without a graph, and never with one."""
        self._order: list[str] = []
        self._calls: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        """Name of a module to its calls with a graph, and how many outputs of theirs losses reached."""
        self._facts: dict[str, list[Facts]] = defaultdict(list)
        self._keys: dict[tuple[str, str], Facts] = {}
        self._targets: list[tuple[Facts, int]] = []
        """Copies of targets that are not read yet, and their steps."""
        self._masks: list[tuple[Facts, int]] = []
        """Copies of what outputs were multiplied by, likewise."""
        self._later: dict[str, list[tuple[Facts, int]]] = defaultdict(list)
        """Facts of other kinds that hold numbers on the device, likewise."""
        self._weights: dict[str, Facts] = {}
        self._logarithms: dict[str, Facts] = {}
        self._bare: list[tuple[Tensor, Tensor, int]] = []
        """What was added to the other terms of a loss, these, both unread, and the step."""
        self._bare_numbers: list[list[float]] = []
        self._counted: dict[str, Facts] = {}
        self._values: list[tuple[Tensor, int]] = []
        """Copies of losses that are not read yet, and their steps."""
        self._nonfinite_since: int | None = None
        self._mask: Tensor | None = None
        """Some elements of the last of them: dropout draws others each time."""
        self._taken: tuple[list[str], int, int] = [], -1, 0
        """Modules of which a gradient without a graph was taken last, and in which step."""
        self._leaves: dict[Any, Facts] = {}
        self._first_leaves: dict[int, Tensor] = {}
        """Some elements of parameters that are not the model's, as they were first."""
        self._moved_leaves: list[tuple[int, Tensor]] = []
        """Whether they were others later, unread."""
        self._no_graph: Facts | None = None
        self._source = ""
        self._steps: list[int] = []
        self._complete = True
        self._passes = 0

    def note_call(self, name: str, tensors: Sequence[Tensor], *, trains: bool, step: int) -> None:
        """Note that a module ran, and label its outputs.

        Args:
            name: Its name.
            tensors: Its outputs.
            trains: Whether it owns a parameter that requires a gradient.
            step: The step in progress.
        """
        graphs = [tensor for tensor in tensors if tensor.grad_fn is not None]
        for tensor in graphs:
            label(tensor, name)
        if name not in self._order:
            self._order.append(name)
        self._calls[name][0] += bool(graphs)
        if trains and tensors:
            if graphs:
                self.without_graph.discard(name)
            elif name not in self.ran:
                self.without_graph.add(name)
            self.ran.setdefault(name, step)

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
        return self._passes > 0

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
            self._reach(read_graph(roots, self._names).modules)
            return
        self._source = self._source or source
        self._steps.append(step)
        self._passes += 1
        self._values += [(tensor.detach().clone(), step) for tensor in tensors if tensor.numel() == 1]
        bare = [tensor for tensor in tensors if tensor.grad_fn is None and tensor.requires_grad]
        if bare and not any(id(tensor) in self._names for tensor in bare):
            self._no_graph = self._no_graph or {"since": step, "passes": 0}
            self._no_graph["passes"] += 1
        if not roots:
            return
        graph = read_graph(roots, self._names)
        self._reach(graph.modules)
        self._complete &= graph.complete
        for fact in graph.softmax_dims:
            self._add("softmax_dims", fact, step)
        for name in sorted(graph.own_functions):
            self._add("own_functions", {"op": name}, step)
        for fact in graph.flat:
            self._add("flat", fact, step)
        for fact in graph.bounded:
            self._add("bounded", fact, step)
        for fact in graph.clamped:
            self._add("clamped", fact, step)
        for fact in graph.curvature:
            if fact["layer"] in self._order[-1:]:
                continue  # it ends the network, so that its first derivative has no graph either
            self._add("curvature", fact, step)
        for fact in graph.stacked:
            self._add("stacked", fact, step)
        self._later["even_softmax"] += [(fact, step) for fact in even_softmaxes(graph.nodes)]
        for fact in penalised_instead(roots, graph, self._model, self._names):
            self._add("penalised", fact, step)
        for fact in log_as_deviation(graph.nodes):
            self._add("log_as_deviation", fact, step)
        for kind in ("doubled", "with_itself", "logs_of_logs", "divided", "written"):
            for fact in getattr(graph, kind):
                self._add(kind, fact, step)
        recurrent = {clean_name(name) for name, part in self._model.named_modules() if isinstance(part, nn.RNNBase)}
        for fact in graph.mixed_views:
            if fact["layer"] in recurrent:
                self._add("mixed_views", fact, step)
        for (op, training), count in graph.normalisation.items():
            self._add("normalisation", {"op": op, "training": training, "count": count}, step)
        self._note_leaves(graph, step, in_optimizer)
        modules, taken, count = self._taken
        if modules and taken == step and count <= MOST_GRADIENTS and any(has_bare_term(root) for root in roots):
            fact = {"layers": [name for name in self._order if name in modules][:MOST_FACTS], "count": len(modules)}
            self._add("penalties", fact, step)
        is_number = len(roots) == 1 and len(tensors) == 1 and tensors[0].numel() == 1
        if is_number and graph.modules and (number := bare_number(roots[0], tensors[0])) is not None:
            self._bare.append((*number, step))
        for root in roots:
            for fact in exponent_signs(root, graph.nodes):
                self._add("exponents", fact, step)
            for fact in terms_apart(root, self._order):
                self._add("terms_apart", fact, step)
            loss = read_loss(root)
            for kind, facts in vars(loss).items():
                for fact in facts:
                    if kind in ("targets", "masks"):
                        (self._targets if kind == "targets" else self._masks).append((fact, step))
                    elif kind in UNREAD:
                        self._later[kind].append((fact, step))
                    else:
                        self._add(kind, fact, step)

    def _read_targets(self) -> None:
        """Read the values that passes have left, and let go of them."""
        taken, self._targets = self._targets, []
        for fact, step in taken:
            if (described := describe_targets(**fact)) is not None:
                self._add("targets", described, step)
        values, self._values = self._values, []
        broken = [step for value, step in values if not torch.isfinite(value).all().tolist()]
        if broken and self._nonfinite_since is None:
            self._nonfinite_since = broken[0]
        bare, self._bare = self._bare, []
        self._bare_numbers += [[step, float(number), float(rest)] for number, rest, step in bare]
        masks, self._masks = self._masks, []
        for fact, step in masks:
            before, self._mask = self._mask, sample(fact["values"])
            is_new = before is not None and not torch.equal(before, self._mask)
            if is_new and (described := describe_mask(**fact)) is not None:
                self._add("masks", described, step)

        self._read_weights()

    def _read_weights(self) -> None:
        """Count the examples of classes that have weights, and read what was compared."""
        taken, self._later = self._later, defaultdict(list)
        for fact, step in taken["class_weights"]:
            counted = count_classes(fact["weights"], fact["values"], fact["ignored"])
            if counted is None:
                continue
            key = repr((fact["op"], counted[0]))
            known = self._weights.setdefault(
                key, {"op": fact["op"], "weights": counted[0], "counts": [0] * len(counted[1]), "since": step}
            )
            known["counts"] = [a + b for a, b in zip(known["counts"], counted[1], strict=True)]
        for fact, step in taken["late_weights"]:
            if fact["varies"].tolist():
                self._add("late_weights", fact | {"varies": True}, step)
        for fact, step in taken["logarithms"]:
            name = repr({name: value for name, value in fact.items() if name != "least"})
            known = self._logarithms.setdefault(name, fact | {"least": []})
            if math.isfinite(least := float(fact["least"])):  # NaN comes from further below
                known["least"].append([step, least])
        for number, (fact, step) in enumerate(taken["counted"]):
            count = whole_number(fact["count"])
            place = sum(other[1] == step for other in taken["counted"][:number])
            if count is not None:
                known = self._counted.setdefault(f"{fact['op']} {place}", {"op": fact["op"], "counts": []})
                known["counts"].append([step, count])
        for fact, step in taken["clamps"]:
            if fact["all_off"].tolist():
                self._add("clamps", fact | {"all_off": True}, step)
        for fact, step in taken["label_signs"]:
            if fact["op"] == DISTANCES:
                self._add("pairs", {"op": DISTANCES}, step)
            if 0 < (zeros := float(fact["zeros"])) <= 1:  # NaN for other labels
                self._add("label_signs", fact | {"zeros": zeros}, step)
        for fact, step in taken["equal_examples"]:
            if fact["alike"].tolist():
                self._add("equal_examples", fact | {"alike": True}, step)
        for fact, step in taken["even_softmax"]:
            if fact["even"].tolist():
                self._add("even_softmax", fact | {"even": True}, step)
        for fact, step in taken["soft_targets"]:
            whole, *sums = fact["sums"].tolist()
            if whole and sums[0] != sums[1]:
                self._add("many_labels", {"op": fact["op"], "least": sums[0], "largest": sums[1]}, step)

    def _reach(self, modules: Counter[str]) -> None:
        self.reached.update(modules)
        for name, count in modules.items():
            self._calls[name][1] += count

    def _add(self, kind: str, fact: Facts, step: int) -> None:
        """Add a fact, or count it if it is known; shapes may differ from step to step."""
        key = kind, repr({name: value for name, value in fact.items() if name not in VARIES})
        if key in self._keys:
            if kind in COUNTED:
                self._keys[key]["passes"] += 1
        elif len(self._facts[kind]) < MOST_FACTS:
            self._keys[key] = fact | {"since": step} | ({"passes": 1} if kind in COUNTED else {})
            self._facts[kind].append(self._keys[key])

    def _note_leaves(self, graph: Reading, step: int, in_optimizer: set[int]) -> None:
        others = {key: leaf for key, leaf in graph.leaves.items() if key not in self._names}
        holders = find_holders(self._model) if others else {}
        for key, leaf in others.items():
            if isinstance(leaf, nn.Parameter):
                now, then = sample(leaf), self._first_leaves.get(key)
                self._first_leaves.setdefault(key, now)
                if then is not None and then.shape == now.shape and then.device == now.device:
                    self._moved_leaves.append((key, (now != then).any()))
            self._leaves.setdefault(
                key if isinstance(leaf, nn.Parameter) else tuple(leaf.shape),  # an input is another one in each step
                {
                    "shape": list(leaf.shape),
                    "parameter": isinstance(leaf, nn.Parameter),
                    "held_in": holders.get(key),
                    "in_optimizer": key in in_optimizer,
                    "between": key in graph.between,
                    "inside": key in graph.inside if graph.has_model else None,
                    "since": step,
                },
            )

    def facts(self, with_gradient: set[str]) -> Facts:
        """Return what was found; see ``docs/facts.md``.

        Args:
            with_gradient: Modules of whose parameters one had a gradient at some look; they are not cut.
        """
        if not self._steps:
            return {}
        self._read_targets()
        kinds = (
            "losses", "outputs", "softmax_twice", "probabilities_as_logs", "softmax_dims", "broadcast", "flat",
            "bounded", "targets", "masks", "clamped", "minimax", "curvature", "mixed_views", "stacked",
            "softmax_off_classes", "mixed_classes", "ratios", "logit_range", "likelihoods", "signed_errors",
            "terms_apart", "compared", "late_weights", "equal_examples", "penalties", "picked", "entropies", "doubled",
            "with_itself", "logs_of_logs", "many_labels", "own_targets", "smoothing",
            "log_as_deviation", "clamps", "label_signs", "pairs", "overlaps", "divided", "written",
            "policy_gradients", "own_functions", "trained_advantages", "maximized_divergences",
            "even_softmax", "penalised", "exponents",
        )  # fmt: skip
        return {
            "source": self._source,
            "step": self._steps[0],
            "last_step": self._steps[-1],
            "passes": self._passes,
            "complete": self._complete,
            **{kind: self._facts[kind] for kind in kinds},
            "only_targets": [
                fact | dict(zip(("calls", "reached"), self._calls[fact["layer"]], strict=True))
                for fact in self._facts["only_targets"]
            ],
            "class_weights": list(self._weights.values())[:MOST_FACTS],
            "logarithms": list(self._logarithms.values())[:MOST_FACTS],
            "counted": list(self._counted.values())[:MOST_FACTS],
            "bare_numbers": self._bare_numbers[:MOST_FACTS],
            "modules": {"ran": len(self.ran.keys() - self.without_graph), "reached": len(self.reached)},
            "nonfinite_since": self._nonfinite_since,
            "unregistered": self._group_leaves(),
            "cut": self._cuts(with_gradient) if self._complete and not self._no_graph else [],
            "no_graph": self._no_graph,
            "unreached_calls": [
                {"layer": name, "calls": calls, "reached": reached}
                for name, (calls, reached) in self._calls.items()
                if 0 < reached <= calls // OFTEN and self._complete
            ][:MOST_FACTS],
            "normalisation": self._facts["normalisation"],
        }

    def _group_leaves(self) -> list[Facts]:
        taken, self._moved_leaves = self._moved_leaves, []
        for moved, differs in taken:
            leaf = self._leaves[moved]
            leaf["moves"] = leaf.get("moves", False) or bool(differs.tolist())
        groups: dict[str, Facts] = {}
        for leaf in self._leaves.values():
            key = {name: leaf[name] for name in ("parameter", "held_in", "in_optimizer", "between", "inside", "since")}
            group = groups.setdefault(repr(key), key | {"count": 0, "numel": 0, "shapes": [], "moves": False})
            group["count"] += 1
            group["moves"] |= leaf.get("moves", True)  # unknown after one pass
            size = 1
            for length in leaf["shape"]:
                size *= length
            group["numel"] += size
            if leaf["shape"] not in group["shapes"][:8]:
                group["shapes"].append(leaf["shape"])
        return list(groups.values())

    def _cuts(self, with_gradient: set[str]) -> list[Facts]:
        """Group neighbouring modules that the loss does not reach."""
        cuts: list[Facts] = []
        for name in self._order:
            is_cut = name in self.ran and name not in self.reached and name not in with_gradient
            how = "no_grad" if name in self.without_graph else "detached"
            if is_cut and cuts and cuts[-1]["next"] is None and cuts[-1]["how"] == how:
                cuts[-1]["layers"].append(name)
                cuts[-1]["last"] = name
            elif is_cut:
                cuts.append({"layers": [name], "last": name, "next": None, "how": how, "since": self.ran[name]})
            elif cuts and cuts[-1]["next"] is None and name in self.reached:
                cuts[-1]["next"] = name
        for cut in cuts:
            cut["returned_by"] = self.returned.left_over(cut["layers"], cut["last"], self.reached)
        return cuts
