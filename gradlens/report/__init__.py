"""Reports about runs as HTML, Markdown or PDF, made from run files alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradlens.lazy import loader

_HOME = {
    "Facts": "gradlens.report.content",
    "collect": "gradlens.report.content",
    "write_report": "gradlens.report.files",
}

__all__ = ["Facts", "collect", "write_report"]

if TYPE_CHECKING:
    from gradlens.report.content import Facts, collect
    from gradlens.report.files import write_report


__getattr__ = loader(__name__, _HOME)
