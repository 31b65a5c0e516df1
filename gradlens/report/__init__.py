"""What a study says, on one page: HTML, Markdown or PDF, from run files alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradlens.lazy import loader

_HOME = {
    "Facts": "gradlens.report.facts",
    "collect": "gradlens.report.facts",
    "write_report": "gradlens.report.files",
}

__all__ = ["Facts", "collect", "write_report"]

if TYPE_CHECKING:
    from gradlens.report.facts import Facts, collect
    from gradlens.report.files import write_report


__getattr__ = loader(__name__, _HOME)
