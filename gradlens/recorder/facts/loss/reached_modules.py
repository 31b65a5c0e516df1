"""Which modules run, of which of them losses reach an output, and where a graph is cut."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from torch import Tensor

from gradlens.recorder.facts.loss.graph_reading import MOST_FACTS, Facts, label
from gradlens.recorder.facts.loss.returned_outputs import ReturnedOutputs

OFTEN = 4
"""A module is said to have calls that no loss reaches if it ran so many times as often as it is reached."""


class ReachedModules:
    """Follows the modules of a model from their calls to the losses that reach their outputs."""

    def __init__(self) -> None:
        self.order: list[str] = []
        """Modules in the order in which they ran first."""
        self.ran: dict[str, int] = {}
        """Those with parameters that require a gradient, and the step in which they ran first."""
        self._reached: set[str] = set()
        self._without_graph: set[str] = set()
        """Those that ran without a graph, and never with one."""
        self._calls: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        """Name of a module to its calls with a graph, and how many outputs of theirs losses reached."""
        self._returned = ReturnedOutputs()
        self.fed: set[str] = set()
        """Modules that got something with a graph."""

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
        if name not in self._calls:
            self.order.append(name)
        self._calls[name][0] += bool(graphs)
        if trains and tensors:
            if graphs:
                self._without_graph.discard(name)
            elif name not in self.ran:
                self._without_graph.add(name)
            self.ran.setdefault(name, step)

    def note_container(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Note what a module that contains others returned.

        Args:
            name: Its name.
            tensors: What it returned.
        """
        self._returned.note(name, tensors, self.ran)

    def reach(self, modules: Counter[str]) -> None:
        """Note the modules that a loss reaches.

        Args:
            modules: Their names, and how many outputs of theirs.
        """
        self._reached.update(modules)
        for name, count in modules.items():
            self._calls[name][1] += count

    def counts(self) -> Facts:
        """Return how many modules ran with a graph, and how many were reached."""
        return {"ran": len(self.ran.keys() - self._without_graph), "reached": len(self._reached)}

    def calls_of(self, name: str) -> Facts:
        """Return how often a module ran with a graph, and how many of its outputs losses reached."""
        calls, reached = self._calls.get(name, (0, 0))
        return {"calls": calls, "reached": reached}

    def unreached_calls(self) -> list[Facts]:
        """Return modules that ran far more often than losses reached them."""
        return [
            {"layer": name, "calls": calls, "reached": reached}
            for name, (calls, reached) in self._calls.items()
            if 0 < reached <= calls // OFTEN
        ][:MOST_FACTS]

    def cuts(self, with_gradient: set[str]) -> list[Facts]:
        """Group neighbouring modules that losses do not reach.

        Args:
            with_gradient: Modules of whose parameters one had a gradient at some look; they are not cut.

        Returns:
            A fact for each group, in the order in which the modules ran.
        """
        cuts: list[Facts] = []
        for name in self.order:
            is_cut = name in self.ran and name not in self._reached and name not in with_gradient
            how = "no_grad" if name in self._without_graph else "detached"
            if is_cut and cuts and cuts[-1]["next"] is None and cuts[-1]["how"] == how:
                cuts[-1]["layers"].append(name)
                cuts[-1]["last"] = name
            elif is_cut:
                cuts.append({"layers": [name], "last": name, "next": None, "how": how, "since": self.ran[name]})
            elif cuts and cuts[-1]["next"] is None and name in self._reached:
                cuts[-1]["next"] = name
        for cut in cuts:
            cut["returned_by"] = self._returned.left_over(cut["layers"], cut["last"], self._reached)
            if cut["next"] in self.fed:
                cut["passed_by"] = True
        return cuts
