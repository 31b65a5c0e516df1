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
from gradlens.report.figures import translate_figure
from gradlens.report.html_data import payload, safe_json
from gradlens.report.html_sections import Section, sections
from gradlens.report.sentences import Words, answers
from gradlens.report.translations import words_of

ECHARTS = "6.0.0"
GENERATOR = "gradlens report"
"""The generator named in the head of the page. A file with this generator may be replaced by another report."""


def make_page(facts: Facts, language: str = "en") -> str:
    """Return the page as text.

    Args:
        facts: What the report says.
        language: "en" or "id".
    """
    words = words_of(language)
    figures = payload(facts, words)
    found = sections(facts, figures, words)
    library, script = library_code(), _part("page.js")
    texts = {
        "language": language,
        "generator": f"{GENERATOR} {__version__}",
        "title": title_of(facts, words),
        "to_content": words["to title"],
        "section_names": words["sections"],
        "light_or_dark": words["light or dark"],
        "no_scripts": words["no scripts"],
        "made_by": words["made by"],
        "command": facts.command,
        "made_with": ", ".join(f"{name} {version}" for name, version in facts.made_with.items()),
        "precision": say_precision(figures, words),
        "about_charts": words["about charts"].format(version=ECHARTS),
        "policy": policy(library, script),
    }
    return fill(
        _part("page.html"),
        {name: escape(text) for name, text in texts.items()}
        | {
            "style": _part("page.css"),
            "answers": "".join(f"<li>{_bold(answer, facts)}</li>" for answer in answers(facts, words)),
            "figure": first_figure(facts, words),
            "navigation": "".join(f'<a href="#{section.key}">{escape(section.title)}</a>' for section in found),
            "sections": "\n".join(_section(section) for section in found),
            "data": safe_json(figures),
            "library": library,
            "script": script,
        },
    )


def _bold(answer: str, facts: Facts) -> str:
    """Return a sentence with the name of its group in bold."""
    name = next((name for name in sorted(facts.names, key=len, reverse=True) if answer.startswith(f"{name}: ")), "")
    return f"<b>{escape(name)}</b>{escape(answer.removeprefix(name))}"


def title_of(facts: Facts, words: Words) -> str:
    """Return the report's title, which names its models."""
    models = list(dict.fromkeys(group.model for group in facts.groups))
    shown = ", ".join(models[:4])
    if len(models) > 4:
        shown = words["and more"].format(names=shown, n=len(models) - 4)
    return f"{words['title']}: {shown}"


def first_figure(facts: Facts, words: Words) -> str:
    """Return the figure of the first screen as SVG in the colours of the page; "" where nothing is recorded.

    A heatmap is there twice, as its names and numbers cannot be read where a telephone makes the wide one smaller.
    """
    from gradlens.plots.small_figures import PROFILES_IN, WIDTH_IN, draw_answer, svg

    alternative, markup = escape(" ".join(answers(facts, words))), ""
    for kind, width in (("", WIDTH_IN), (" narrow", PROFILES_IN)):
        figure = draw_answer(facts.runs, width)
        if figure is None:
            return ""
        translate_figure(figure, words)
        both = figure.get_figwidth() > PROFILES_IN or kind
        shown = f"answer{kind or ' wide'}" if both else "answer"
        markup += f'<figure class="{shown}" role="img" aria-label="{alternative}">{svg(figure, facts.runs)}</figure>'
        if not both:
            break
    return markup


def say_precision(figures: Mapping[str, Any], words: Words) -> str:
    """State how exactly the page holds the numbers, and what it leaves out."""
    left_out = figures["left_out"]
    more = words["one left out" if left_out == 1 else "left out"].format(n=left_out) if left_out else ""
    return words["precision"].format(columns=figures["columns"]) + more


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
