"""The report as Markdown, in English or Indonesian, with its pictures beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gradlens.analysis.compare import FINAL_ROWS, say_interval
from gradlens.analysis.profile import ACTIVATION_GRAD
from gradlens.analysis.stats import Interval
from gradlens.format import brackets
from gradlens.report.content import Facts, Row
from gradlens.report.html_sections import say_control
from gradlens.report.sentences import Words, analysis, opening, say_kind, say_seeds
from gradlens.report.translations import words_of
from gradlens.run import Run
from gradlens.studies import Judgement

PICTURES = ("curves", "heatmap", "profile")
MOST_PANELS = 6
"""Heatmaps in one picture: the first run of each group."""


def make_markdown(facts: Facts, pictures: Mapping[str, Path], language: str) -> str:
    """Return the report as Markdown.

    Args:
        facts: What it says.
        pictures: Kind to file, as ``draw_pictures`` returns them; they lie beside the report.
        language: "en" or "id".
    """
    words = words_of(language)
    models = ", ".join(dict.fromkeys(group.model for group in facts.groups))
    parts = [f"# {plain(words['title'])}: {plain(models)}", plain(" ".join(opening(facts, words)))]
    if facts.claims:
        parts += [f"## {words['Claims']}{words['in English']}", claims(facts.claims, words)]
    if facts.has_epochs:
        parts += [f"## {words['Metric comparison']}", finals(facts, words)]
    parts += [f"## {words['Simple graph']}", *figures(pictures, words)]
    parts += [f"## {words['Brief analysis']}", listing(plain(sentence) for sentence in analysis(facts, words))]
    parts += [f"### {words['Findings']}{words['of evidence']}", findings(facts, words)]
    parts += [f"## {words['Hyper-parameters']}", side_by_side(facts.settings, facts.names, words), words["differs"]]
    parts += [f"### {words['Environment']}", side_by_side(facts.environment, facts.names, words)]
    made = ", ".join(f"{name} {version}" for name, version in facts.made_with.items())
    parts.append(f"{words['made by']} {code(facts.command)} ({plain(made)}).")
    return "\n\n".join(parts) + "\n"


def draw_pictures(facts: Facts, path: Path) -> dict[str, Path]:
    """Draw the report's pictures beside it, and beside each the facts that made it.

    Returns:
        Kind to file, only of those that these runs allow.

    Raises:
        RunExistsError: A picture that gradlens did not draw is in the way.
        RunFileError: It cannot be written.
    """
    from gradlens.plots import save_figure

    written = {}
    for kind, figure, caption, runs in report_figures(facts):
        place = path.with_name(f"{path.stem}-{kind}.png")
        told = caption.replace("\n", " ")
        save_figure(figure, place, command=facts.command, runs=runs, caption=told, asked=False)
        written[kind] = place
    return written


def report_figures(facts: Facts) -> Iterator[tuple[str, Any, str, list[Run]]]:
    """Draw the report's figures one by one: yield kind, figure, caption and the runs that it shows."""
    from gradlens.charts.curves import make_curves
    from gradlens.plots import draw_compare, draw_heatmap, draw_profile
    from gradlens.plots.compare import caption as compare_caption
    from gradlens.plots.heatmap import caption as heatmap_caption
    from gradlens.plots.profile import caption as profile_caption

    if facts.has_epochs:
        trained = [group for group in facts.groups if any(len(run.epochs.get("epoch", ())) for run in group.runs)]
        yield "curves", draw_compare(facts.runs), compare_caption(trained), list(facts.runs)
    measured = [run for run in facts.runs if len(run.steps) and ACTIVATION_GRAD in run.metrics]
    firsts = [group.runs[0] for group in facts.groups if any(run is group.runs[0] for run in measured)][:MOST_PANELS]
    if firsts:
        yield "heatmap", draw_heatmap(firsts), heatmap_caption(firsts), firsts
    if measured:
        lines = make_curves(measured, ACTIVATION_GRAD)
        yield "profile", draw_profile(lines, ACTIVATION_GRAD), profile_caption(lines, ACTIVATION_GRAD), measured


# --- parts ----------------------------------------------------------------------------------------------------


def figures(pictures: Mapping[str, Path], words: Words) -> list[str]:
    """Return the pictures, each with how it is read."""
    parts = []
    for kind in PICTURES:
        if kind in pictures:
            name = quote(pictures[kind].name)
            parts += [f"### {words[kind]}", f"![{words[kind]}]({name})", words[f"{kind} read"]]
    return parts or [words["none"]]


def finals(facts: Facts, words: Words) -> str:
    """Return the table of the last epoch."""
    columns = [key for key in facts.finals[0] if key not in ("quantity", "column")]
    labels = set(facts.names)
    heads = [name if name in labels else words.get(f"reference {name}", name) for name in columns]
    rows = [[words[FINAL_ROWS[row["column"]]], *[say_number(row[name]) for name in columns]] for row in facts.finals]
    told = words["last epoch"] + (f" {words['published']}" if len(columns) > len(labels) else "")
    return f"{table([words['quantity'], *heads], rows)}\n\n{told}"


def say_number(value: Interval | float) -> str:
    """Write a mean with its spread and interval, or a single number."""
    if not isinstance(value, Interval):
        return f"{value:.4g}"
    return say_interval(value) + brackets(value.low, value.high)


def findings(facts: Facts, words: Words) -> str:
    """Return what the diagnosis says, a row per experiment and kind."""
    rows = [
        [item.group, f"{say_kind(item.kind, words)}, {say_seeds(item, words)}", item.each[0][2], item.remedy or "–"]
        for item in facts.seen
    ]
    return table([words[key] for key in ("group", "finding", "evidence", "next")], rows)


def side_by_side(rows: Sequence[Row], names: Sequence[str], words: Words) -> str:
    """Return rows with a column per experiment; what differs is bold."""
    body = []
    for row in rows:
        mark = "**" if row.differs else ""
        cells = [f"{mark}{cell(value)}{mark}" for value in row.values]
        name = words.get(f"row {row.name}", row.name.replace("_", " "))
        body.append(f"| {cell(name)} | {' | '.join(cells)} |")
    head = [words["setting"], *names]
    return "\n".join([f"| {' | '.join(map(cell, head))} |", "|---" * len(head) + "|", *body])


def claims(judgement: Judgement, words: Words) -> str:
    """Return the study's claims with their verdicts."""
    rows = [
        [
            f"{judged.claim.key}. {judged.claim.text}",
            condition,
            words.get(f"verdict {found.verdict}", found.verdict),
            found.why,
        ]
        for judged in judgement.claims
        for condition, found in judged.overall.items()
    ]
    head = [words[key] for key in ("claim", "condition", "verdict", "why")]
    notes = listing(plain(text) for text in (*map(say_control, judgement.controls), *judgement.notes))
    return f"{plain(judgement.explanation)}\n\n{table(head, rows)}\n\n{notes}"


# --- Markdown -------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of texts."""
    lines = [head, *rows]
    written = [f"| {' | '.join(map(cell, line))} |" for line in lines]
    return "\n".join([written[0], "|---" * len(head) + "|", *written[1:]])


def listing(items: Any) -> str:
    """Return a list."""
    return "\n".join(f"- {item}" for item in items)


def plain(text: str) -> str:
    """Return a text so that Markdown shows it as it is: no markup, no HTML, no line of its own."""
    text = re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("\\<", "&lt;").replace("\\>", "&gt;")


def cell(text: str) -> str:
    """Return a text for a cell of a table."""
    return plain(text) or " "


def code(text: str) -> str:
    """Return a text as code, whatever backticks it holds."""
    text = " ".join(text.split())
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"
