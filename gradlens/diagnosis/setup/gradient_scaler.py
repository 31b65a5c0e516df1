"""A GradScaler that the recorder does not know."""

from __future__ import annotations

import numpy as np

from gradlens.diagnosis.findings import Finding
from gradlens.diagnosis.recorded_rows import Recording
from gradlens.diagnosis.setup.setup_findings import setup_finding


def scaled(rec: Recording) -> list[Finding]:
    """Find a GradScaler that steps the optimizer and was not given to the recorder."""
    scaling = rec.setup.entry("scaling")
    if not scaling.flag("scaler_seen") or scaling.flag("scaler_given") is not False:
        return []
    scale = f" of {scaling.number('scale'):,.0f}" if np.isfinite(scaling.number("scale")) else ""
    return [
        setup_finding(
            rec,
            scaling,
            f"a GradScaler steps the optimizer, and the recorder does not know it: activation gradients are recorded "
            f"multiplied by the loss scale{scale}, and skipped steps are not recognised",
            "Pass the scaler to the recorder: gradlens.record(model, path, optimizer=optimizer, scaler=scaler).",
            "the loss scale is not known to the recorder",
        )
    ]
