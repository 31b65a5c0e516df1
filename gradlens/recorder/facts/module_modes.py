"""The training modes of modules, and the running statistics of batch norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gradlens.recorder.facts.parameter_states import Facts
from gradlens.recorder.layers import clean_name

MOST_NORMS = 6
KEYS = ("mean_distance", "variance_ratio")


class Modes:
    """The training modes of modules that behave otherwise in evaluation.

    Args:
        model: The model.
        step: The step in progress.
    """

    def __init__(self, model: nn.Module, step: int) -> None:
        self._modules = {
            clean_name(name) or "(model)": module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p > 0)
        }
        modules = list(self._modules.values())
        self._few = modules[:: max(len(modules) // 4, 1)]
        self._last: list[bool] = []
        self._since: dict[str, tuple[bool, int]] = {}
        self._seen: dict[str, set[str]] = {name: set() for name in self._modules}
        self._first_step = step

    def at_step(self, step: int, *, thorough: bool = False) -> None:
        """Compare the modes of a few modules with those of the step before; of all of them if one has changed."""
        modes = [module.training for module in self._few]
        if modes == self._last and not thorough:
            return
        self._last = modes
        for name, module in self._modules.items():
            mode = module.training
            if self._since.get(name, (not mode,))[0] is not mode:
                self._since[name] = mode, step
                self._seen[name].add("train" if mode else "eval")

    def facts(self) -> list[Facts]:
        """Return the modules by their mode."""
        found: dict[tuple[Any, ...], list[str]] = {}
        for name, (mode, since) in self._since.items():
            traits = ("train" if mode else "eval", since, tuple(sorted(self._seen[name])))
            found.setdefault(traits, []).append(name)
        return [
            {
                "mode": mode,
                "layers": names,
                "kinds": list(dict.fromkeys(type(self._modules[name]).__name__ for name in names)),
                "count": len(names),
                "since": since,
                "seen": list(seen),
                "dropped": max((float(getattr(self._modules[name], "p", 0.0)) for name in names), default=0.0),
            }
            for (mode, since, seen), names in found.items()
        ]


class BatchNorms:
    """How far the running statistics of a few batch norms are from those of the batch.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = [(clean_name(n) or "(model)", m) for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
        places = {round(i * (len(norms) - 1) / (MOST_NORMS - 1)) for i in range(MOST_NORMS)} if norms else set()
        self.modules = {norms[i][0]: norms[i][1] for i in sorted(places)}
        self._facts: dict[str, Facts] = {}
        self._unread: dict[str, list[tuple[Facts, Tensor | None]]] = {}
        """The first and the last call since the facts were read, each with its numbers."""

    @torch.no_grad()
    def note_call(self, name: str, inputs: Tensor, step: int) -> None:
        """Compare the running statistics after a call with its input."""
        module = self.modules.get(name)
        if module is None or inputs.dim() < 2 or inputs.shape[0] * inputs[0, 0].numel() < 2:
            return
        fact: Facts = {
            "layer": name,
            "kind": type(module).__name__,
            "momentum": module.momentum,
            "tracks": module.running_mean is not None,
            "mode": "train" if module.training else "eval",
            "values": inputs.shape[0] * inputs[0, 0].numel(),
            "mean_distance": None,
            "variance_ratio": None,
            "step": step,
        }
        measured: Tensor | None = None
        if module.running_mean is not None and module.running_var is not None:
            values = inputs.detach().float()
            variance, mean = torch.var_mean(values, [0, *range(2, values.dim())], correction=0)
            distance = (module.running_mean - mean) / (variance + module.eps).sqrt()
            ratio = (module.running_var + module.eps) / (variance + module.eps)
            measured = torch.stack([distance.square().mean().sqrt(), ratio.median()])
        self._unread[name] = [*self._unread.get(name, [])[:1], (fact, measured)]

    def facts(self) -> list[Facts]:
        """Return what is stored, in the order of the model; this waits for an accelerator where calls were noted."""
        for name, calls in self._unread.items():
            for fact, measured in calls:
                numbers = (None, None) if measured is None else measured.tolist()
                fact |= dict(zip(KEYS, numbers, strict=True))
                before = self._facts.get(name, fact)
                fact |= {f"first_{key}": before.get(f"first_{key}", fact[key]) for key in KEYS}
                self._facts[name] = fact
        self._unread.clear()
        return [self._facts[name] for name in self.modules if name in self._facts]
