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

Commands that read runs have a function of the same name; ``docs/public.md`` lists all public names.
A notebook displays runs, figures and results. Names are loaded on first use, so ``import gradlens`` costs nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gradlens.lazy import Face, loader

PUBLIC = {
    "__version__": "gradlens._version",
    "record": "gradlens.recorder",
    "read_run": "gradlens.storage",
    "read_runs": "gradlens.storage",
    "follow_run": "gradlens.storage",
    "summary": "gradlens.api",
    "heatmap": "gradlens.api",
    "profile": "gradlens.api",
    "compare": "gradlens.api",
    "diagnose": "gradlens.diagnosis.diagnose",
    "diagnose_arrays": "gradlens.diagnosis.diagnose",
    "claims": "gradlens.api",
    "report": "gradlens.api",
    "probe": "gradlens.api",
    "verify": "gradlens.api",
    "recover": "gradlens.api",
    "export": "gradlens.api",
    "all_leaves": "gradlens.recorder",
    "log_spaced": "gradlens.recorder",
    "with_norms": "gradlens.recorder",
    "Check": "gradlens.theory.laws",
    "Claim": "gradlens.studies",
    "Comparison": "gradlens.analysis.compare",
    "Control": "gradlens.studies",
    "Diagnosis": "gradlens.diagnosis.findings",
    "Evidence": "gradlens.studies",
    "Finding": "gradlens.diagnosis.findings",
    "GradlensFigure": "gradlens.plots.figure",
    "Group": "gradlens.analysis.groups",
    "JudgedClaim": "gradlens.studies",
    "Judged": "gradlens.probe.judge",
    "Judgement": "gradlens.studies",
    "Layer": "gradlens.run",
    "NewRows": "gradlens.storage",
    "Recorder": "gradlens.recorder",
    "Recovery": "gradlens.storage",
    "Run": "gradlens.run",
    "Summary": "gradlens.run_summary",
    "Verdict": "gradlens.studies",
    "GradlensError": "gradlens.errors",
    "GradlensWarning": "gradlens.errors",
}
"""Every public name and the module it is loaded from, on first use. ``docs/public.md`` lists the same names."""

__all__ = sorted(PUBLIC)

if TYPE_CHECKING:
    from gradlens._version import __version__ as __version__
    from gradlens.analysis.compare import Comparison as Comparison
    from gradlens.analysis.groups import Group as Group
    from gradlens.api import claims as claims
    from gradlens.api import compare as compare
    from gradlens.api import export as export
    from gradlens.api import heatmap as heatmap
    from gradlens.api import probe as probe
    from gradlens.api import profile as profile
    from gradlens.api import recover as recover
    from gradlens.api import report as report
    from gradlens.api import summary as summary
    from gradlens.api import verify as verify
    from gradlens.diagnosis.diagnose import diagnose as diagnose
    from gradlens.diagnosis.diagnose import diagnose_arrays as diagnose_arrays
    from gradlens.diagnosis.findings import Diagnosis as Diagnosis
    from gradlens.diagnosis.findings import Finding as Finding
    from gradlens.errors import GradlensError as GradlensError
    from gradlens.errors import GradlensWarning as GradlensWarning
    from gradlens.plots.figure import GradlensFigure as GradlensFigure
    from gradlens.probe.judge import Judged as Judged
    from gradlens.recorder import Recorder as Recorder
    from gradlens.recorder import all_leaves as all_leaves
    from gradlens.recorder import log_spaced as log_spaced
    from gradlens.recorder import record as record
    from gradlens.recorder import with_norms as with_norms
    from gradlens.run import Layer as Layer
    from gradlens.run import Run as Run
    from gradlens.run_summary import Summary as Summary
    from gradlens.storage import NewRows as NewRows
    from gradlens.storage import Recovery as Recovery
    from gradlens.storage import follow_run as follow_run
    from gradlens.storage import read_run as read_run
    from gradlens.storage import read_runs as read_runs
    from gradlens.studies import Claim as Claim
    from gradlens.studies import Control as Control
    from gradlens.studies import Evidence as Evidence
    from gradlens.studies import JudgedClaim as JudgedClaim
    from gradlens.studies import Judgement as Judgement
    from gradlens.studies import Verdict as Verdict
    from gradlens.theory.laws import Check as Check


__getattr__ = loader(__name__, PUBLIC)
sys.modules[__name__].__class__ = Face


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
