"""The report as Markdown, in English or Indonesian, with its figures in files next to it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gradlens.analysis.compare import FINAL_ROWS
from gradlens.analysis.stats import Interval
from gradlens.report.content import Facts, Row
from gradlens.report.figures import FIGURES, report_figures
from gradlens.report.html_sections import say_control
from gradlens.report.sentences import Words, analysis, local, opening, say_kind, say_mean, say_seeds
from gradlens.report.translations import words_of
from gradlens.studies import Judgement

"""Heatmaps in one figure: the first run of each group."""
RANGE = re.compile(r"(\d+) to (\d+)( epochs)?")
EPOCHS = re.compile(r"(\d+) epochs?")


def make_markdown(facts: Facts, written: Mapping[str, Path], language: str) -> str:
    """Return the report as Markdown.

    Args:
        facts: What the report says.
        written: Kind to file of the figures, as ``save_figures`` returns them; they are in the report's folder.
        language: "en" or "id".

    Raises:
        ConfigError: The language is unknown.
    """
    words = words_of(language)
    models = ", ".join(dict.fromkeys(group.model for group in facts.groups))
    parts = [f"# {plain(words['title'])}: {plain(models)}", plain(" ".join(opening(facts, words)))]
    if facts.claims:
        parts += [f"## {words['Claims']}{words['language of claims']}", claims(facts.claims, words)]
    if facts.has_epochs:
        parts += [f"## {words['Metric comparison']}", finals(facts, words)]
    parts += [f"## {words['Simple graph']}", *figures(written, words)]
    parts += [f"## {words['Brief analysis']}", listing(plain(sentence) for sentence in analysis(facts, words))]
    parts += [f"### {words['Findings']}{words['language of evidence']}", findings(facts, words)]
    parts += [f"## {words['Hyper-parameters']}", side_by_side(facts.settings, facts.names, words), words["differs"]]
    parts += [f"### {words['Environment']}", side_by_side(facts.environment, facts.names, words)]
    made = ", ".join(f"{name} {version}" for name, version in facts.made_with.items())
    parts.append(f"{words['made by']} {code(facts.command)} ({plain(made)}).")
    return "\n\n".join(parts) + "\n"


def save_figures(facts: Facts, path: Path) -> dict[str, Path]:
    """Save the report's figures next to it, each with a JSON file that says how it was made.

    Args:
        facts: What the report says.
        path: The report's file.

    Returns:
        Kind to file, for the figures that these runs allow.

    Raises:
        RunExistsError: A file that gradlens did not write has the name of a figure.
        RunFileError: A figure cannot be written.
    """
    from gradlens.plots import save_figure

    written = {}
    for kind, figure, caption, runs in report_figures(facts.runs, facts.groups):
        file = path.with_name(f"{path.stem}-{kind}.png")
        one_line = caption.replace("\n", " ")
        save_figure(figure, file, command=facts.command, runs=runs, caption=one_line, asked=False)
        written[kind] = file
    return written


# --- parts ----------------------------------------------------------------------------------------------------


def figures(written: Mapping[str, Path], words: Words) -> list[str]:
    """Return the figures, each with a text that says how to read it."""
    parts = []
    for kind in (figure.kind for figure in FIGURES):
        if kind in written:
            name = quote(written[kind].name)
            parts += [f"### {words[kind]}", f"![{words[kind]}]({name})", words[f"{kind} read"]]
    return parts or [words["none"]]


def finals(facts: Facts, words: Words) -> str:
    """Return the table of the last epoch."""
    columns = [key for key in facts.finals[0] if key not in ("quantity", "column")]
    labels = set(facts.names)
    heads = [name if name in labels else words.get(f"reference {name}", name) for name in columns]
    rows = [
        [words[FINAL_ROWS[row["column"]]], *[say_number(row[name], words) for name in columns]] for row in facts.finals
    ]
    note = words["last epoch"] + (f" {words['published']}" if len(columns) > len(labels) else "")
    return f"{table([words['quantity'], *heads], rows)}\n\n{note}"


def say_number(value: Interval | float, words: Words) -> str:
    """Write a mean with its spread and interval, or a single number."""
    if not isinstance(value, Interval):
        return local(f"{value:.4g}", words)
    mean = say_mean(value, words)
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return mean
    low, high = local(f"{value.low:.3f}", words), local(f"{value.high:.3f}", words)
    return f"{mean} {words['interval'].format(low=low, high=high)}"


def findings(facts: Facts, words: Words) -> str:
    """Return the table of findings, one row per experiment and kind."""
    rows = [
        [item.group, f"{say_kind(item.kind, words)}, {say_seeds(item, words)}", item.each[0][2], item.remedy or "–"]
        for item in facts.seen
    ]
    return table([words[key] for key in ("group", "finding", "evidence", "next")], rows)


def side_by_side(rows: Sequence[Row], names: Sequence[str], words: Words) -> str:
    """Return a table with one column per experiment and the differing values in bold."""
    body = []
    for row in rows:
        mark = "**" if row.differs else ""
        cells = [f"{mark}{cell(say_setting(value, words))}{mark}" for value in row.values]
        name = words.get(f"row {row.name}", row.name.replace("_", " "))
        body.append(f"| {cell(name)} | {' | '.join(cells)} |")
    head = [words["setting"], *names]
    return "\n".join([f"| {' | '.join(map(cell, head))} |", "|---" * len(head) + "|", *body])


def say_setting(value: str, words: Words) -> str:
    """Write a value of the tables of settings and environment in the language; names and numbers stay as they are."""
    if found := RANGE.fullmatch(value):
        text = words["range"].format(low=found[1], high=found[2])
        return words["epochs"].format(n=text) if found[3] else text
    if found := EPOCHS.fullmatch(value):
        return words["one epoch"] if found[1] == "1" else words["epochs"].format(n=found[1])
    return words.get(f"value {value}", value)


def claims(judgement: Judgement, words: Words) -> str:
    """Return the study's claims with their verdicts."""
    rows = [
        [
            f"{judged.claim.key}. {words.get(f'claim {judged.claim.key}', judged.claim.text)}",
            words.get(f"condition {condition}", condition),
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
    """Escape a text so that Markdown shows it as it is, on one line."""
    text = re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("\\<", "&lt;").replace("\\>", "&gt;")


def cell(text: str) -> str:
    """Escape a text for a cell of a table."""
    return plain(text) or " "


def code(text: str) -> str:
    """Return a text as inline code, even if it contains backticks."""
    text = " ".join(text.split())
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"
