"""The instrument that shows where a network's gradient goes.

Two wings share one file. The torch wing measures and writes::

    with gradlens.record(model, "run.h5", optimizer=optimizer) as recorder:
        ...

The view wing reads, judges and draws, and never imports torch::

    run = gradlens.read_run("run.h5")
    run.metric("param_grad_norm")          # (T, L) float32
    print(gradlens.diagnose(run))          # what is wrong, with evidence, threshold, source and remedy
    gradlens.heatmap(run)                  # a figure; also profile(runs)
    gradlens.compare(runs)                 # accuracy and loss, seeds grouped; also claims(runs)

Runs and what is said of them show themselves in a notebook. Names are loaded on first use, so ``import gradlens`` costs
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradlens._version import __version__ as __version__
from gradlens.lazy import loader

_HOME = {
    "record": "gradlens.recorder",
    "Recorder": "gradlens.recorder",
    "log_spaced": "gradlens.recorder",
    "with_norms": "gradlens.recorder",
    "all_leaves": "gradlens.recorder",
    "diagnose": "gradlens.diagnosis.diagnose",
    "diagnose_arrays": "gradlens.diagnosis.diagnose",
    "Diagnosis": "gradlens.diagnosis.findings",
    "Finding": "gradlens.diagnosis.findings",
    "heatmap": "gradlens.api",
    "profile": "gradlens.api",
    "compare": "gradlens.api",
    "claims": "gradlens.api",
    "read_run": "gradlens.storage",
    "read_runs": "gradlens.storage",
    "follow_run": "gradlens.storage",
    "Run": "gradlens.run",
    "Layer": "gradlens.run",
    "GradlensError": "gradlens.errors",
    "GradlensWarning": "gradlens.errors",
}

__all__ = [
    "Diagnosis",
    "Finding",
    "GradlensError",
    "GradlensWarning",
    "Layer",
    "Recorder",
    "Run",
    "__version__",
    "all_leaves",
    "claims",
    "compare",
    "diagnose",
    "diagnose_arrays",
    "follow_run",
    "heatmap",
    "log_spaced",
    "profile",
    "read_run",
    "read_runs",
    "record",
    "with_norms",
]

if TYPE_CHECKING:
    from gradlens.api import claims, compare, heatmap, profile
    from gradlens.diagnosis.diagnose import diagnose, diagnose_arrays
    from gradlens.diagnosis.findings import Diagnosis, Finding
    from gradlens.errors import GradlensError, GradlensWarning
    from gradlens.recorder import Recorder, all_leaves, log_spaced, record, with_norms
    from gradlens.run import Layer, Run
    from gradlens.storage import follow_run, read_run, read_runs


__getattr__ = loader(__name__, _HOME)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
