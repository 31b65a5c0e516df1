"""The report as one HTML file that holds its figures, their data and their code, and loads nothing from a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

from gradlens._version import __version__
from gradlens.report.content import Facts
from gradlens.report.html_data import payload, safe_json
from gradlens.report.html_sections import Section, sections
from gradlens.report.sentences import opening
from gradlens.report.translations import ENGLISH

ECHARTS = "6.0.0"
GENERATOR = "gradlens report"
"""The generator named in the head of the page. A file with this generator may be replaced by another report."""


def make_page(facts: Facts) -> str:
    """Return the page as text."""
    figures = payload(facts)
    found = sections(facts, figures)
    library, script = library_code(), _part("page.js")
    return fill(
        _part("page.html"),
        {
            "policy": escape(policy(library, script)),
            "generator": escape(f"{GENERATOR} {__version__}"),
            "title": escape(title_of(facts)),
            "style": _part("page.css"),
            "opening": escape(" ".join(opening(facts, ENGLISH))),
            "navigation": "".join(f'<a href="#{section.key}">{escape(section.title)}</a>' for section in found),
            "sections": "\n".join(_section(section) for section in found),
            "command": escape(facts.command),
            "made_with": escape(", ".join(f"{name} {version}" for name, version in facts.made_with.items())),
            "precision": escape(say_precision(figures)),
            "echarts": ECHARTS,
            "data": safe_json(figures),
            "library": library,
            "script": script,
        },
    )


def title_of(facts: Facts) -> str:
    """Return the report's title, which names its models."""
    models = list(dict.fromkeys(group.model for group in facts.groups))
    shown = ", ".join(models[:4]) + (f" and {len(models) - 4} more" if len(models) > 4 else "")
    return f"{ENGLISH['title']}: {shown}"


def say_precision(figures: Mapping[str, Any]) -> str:
    """State how exactly the page holds the numbers, and what it leaves out."""
    said = (
        f"The heatmaps hold up to {figures['columns']} columns of steps per run; where a run has more rows, neighbours "
        "are averaged (magnitudes geometrically). Values shown on hover are within 0.2 % of the values in the file (of "
        "the range for shares and cosines). A panel shows at most 160 columns: choose fewer steps to see more detail."
    )
    left_out = figures["left_out"]
    runs = "1 more run has" if left_out == 1 else f"{left_out} more runs have"
    more = f" {runs} no heatmap here: name fewer runs to see them." if left_out else ""
    return said + more


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace each ``{{name}}`` of a template by its value; the values themselves are not searched for names."""
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], template)


def policy(*scripts: str) -> str:
    """Return a content security policy that allows only these scripts and no network access."""
    sums = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {sums}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def library_code() -> str:
    """Return the published code of Apache ECharts."""
    packed = files(__package__).joinpath("vendor", "echarts", "echarts.min.js.gz").read_bytes()
    return gzip.decompress(packed).decode("utf-8")


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _section(section: Section) -> str:
    return (
        f'<section aria-labelledby="{section.key}"><h2 id="{section.key}">{escape(section.title)}</h2>\n'
        f"{section.body}</section>"
    )
