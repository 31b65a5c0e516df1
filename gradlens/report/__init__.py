"""Reports about runs as HTML, Markdown, PDF or for Word, made from run files alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradlens.lazy import loader

_HOME = {
    "Facts": "gradlens.report.content",
    "collect": "gradlens.report.content",
    "write_report": "gradlens.report.files",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from gradlens.report.content import Facts as Facts
    from gradlens.report.content import collect as collect
    from gradlens.report.files import write_report as write_report


__getattr__ = loader(__name__, _HOME)
