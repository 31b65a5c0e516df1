"""The report as Markdown, in English or Indonesian, with its figures in files next to it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gradlens.analysis.stats import Interval
from gradlens.diagnosis.kinds import HEALTHY
from gradlens.report.content import Facts, Row, Seen, split_settings
from gradlens.report.figures import FIGURES, report_figures
from gradlens.report.html import title_of
from gradlens.report.html_sections import say_control, say_remedy
from gradlens.report.sentences import (
    Words,
    analysis,
    answers,
    local,
    opening,
    outcome,
    say,
    say_found,
    say_mean,
    say_name,
    say_reference,
    say_seeds,
    say_setting,
)
from gradlens.report.translations import words_of
from gradlens.studies import Judgement


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
    parts = [f"# {plain(title_of(facts, words))}", listing(plain(sentence) for sentence in answers(facts, words))]
    parts += figures(written, words, only=first_kind(facts))
    parts.append(plain(" ".join(opening(facts, words)[:2])))
    judged = [f"## {words['Claims']}", claims(facts.claims, words)] if facts.claims else []
    parts += judged if facts.claims_first else []
    if facts.has_epochs:
        parts += [f"## {words['Metric comparison']}", finals(facts, words)]
    parts += [f"## {words['Simple graph']}", *figures(written, words, but=first_kind(facts))]
    parts += [f"## {words['Brief analysis']}", listing(plain(sentence) for sentence in analysis(facts, words))]
    parts += [f"### {words['Findings']}", findings(facts, words), words["judged alone"]]
    parts += [] if facts.claims_first else judged
    first, rest = split_settings(facts.settings)
    parts += [f"## {words['Hyper-parameters']}", side_by_side(first, facts.names, words), words["differs"]]
    parts += folded(words["more settings"], side_by_side(rest, facts.names, words) if rest else "")
    parts += folded(words["environment rows"], side_by_side(facts.environment, facts.names, words, numbers=False))
    made = ", ".join(f"{name} {version}" for name, version in facts.made_with.items())
    parts.append(f"{words['made by']} {code(facts.command)} ({plain(made)}).")
    return "\n\n".join(parts) + "\n"


def first_kind(facts: Facts) -> str:
    """Return the kind of the figure that comes first: the heatmap of one run, or the profiles of several."""
    return "heatmap" if len(facts.runs) == 1 else "profile"


def folded(title: str, body: str) -> list[str]:
    """Return a part that a reader opens."""
    return [f"<details><summary>{plain(title)}</summary>", body, "</details>"] if body else []


def save_figures(facts: Facts, path: Path, language: str = "en") -> dict[str, Path]:
    """Save the report's figures next to it, each with a JSON file that says how it was made.

    Args:
        facts: What the report says.
        path: The report's file.
        language: "en" or "id".

    Returns:
        Kind to file, for the figures that these runs allow.

    Raises:
        RunExistsError: A file that gradlens did not write has the name of a figure.
        RunFileError: A figure cannot be written.
    """
    from gradlens.plots import save_figure

    written = {}
    for kind, figure, caption, runs in report_figures(facts.runs, facts.groups, words_of(language)):
        file = path.with_name(f"{path.stem}-{kind}.png")
        one_line = caption.replace("\n", " ")
        save_figure(figure, file, command=facts.command, runs=runs, caption=one_line, asked=False)
        written[kind] = file
    return written


# --- parts ----------------------------------------------------------------------------------------------------


def figures(written: Mapping[str, Path], words: Words, *, only: str = "", but: str = "") -> list[str]:
    """Return the figures, each with a text that says how to read it."""
    parts = []
    for kind in (figure.kind for figure in FIGURES if figure.kind != but and (not only or figure.kind == only)):
        if kind in written:
            name = quote(written[kind].name)
            parts += [f"### {words[kind]}", f"![{words[kind]}]({name})", words[f"{kind} read"]]
    return parts or ([] if only else [words["none"]])


def finals(facts: Facts, words: Words) -> str:
    """Return the table of the last epoch."""
    columns = [key for key in facts.finals[0] if key not in ("quantity", "column")]
    labels = set(facts.names)
    heads = [name if name in labels else words.get(f"reference {name}", name) for name in columns]
    rows = [
        [words.get(row["quantity"], row["quantity"]), *[say_number(row[name], words) for name in columns]]
        for row in facts.finals
    ]
    note = words["last epoch"] + (f" {words['published']}" if len(columns) > len(labels) else "")
    return f"{table([words['quantity'], *heads], rows)}\n\n{note}"


def say_number(value: Interval | float, words: Words) -> str:
    """Write a mean with its spread and interval, or a single number, "-" where there is none."""
    if not isinstance(value, Interval):
        return say_reference(value, words)
    mean = say_mean(value, words)
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return mean
    low, high = local(f"{value.low:.3f}", words), local(f"{value.high:.3f}", words)
    return f"{mean} {words['interval'].format(low=low, high=high)}"


def findings(facts: Facts, words: Words) -> str:
    """Return the table of findings, one row per experiment and kind."""
    return table([words[key] for key in ("group", "finding", "evidence", "next")], list(finding_rows(facts, words)))


def finding_rows(facts: Facts, words: Words) -> list[list[str]]:
    """Return the rows of the table of findings."""
    return [
        [
            item.group,
            f"{say_found(facts, item, words)[1]}, {say_seeds(item, words)}{_learns(facts, item, words)}",
            say(item.each[0][2], words),
            say_remedy(item, words),
        ]
        for item in facts.seen
    ]


def _learns(facts: Facts, item: Seen, words: Words) -> str:
    """Return whether a group with healthy gradients learns, after a semicolon; "" for a finding."""
    group = next(group for group in facts.groups if group.label == item.group)
    said = outcome(group, [item], words)[1] if item.kind == HEALTHY else ""
    return f"; {said}" if said else ""


def side_by_side(rows: Sequence[Row], names: Sequence[str], words: Words, *, numbers: bool = True) -> str:
    """Return a table with one column per experiment and the differing values in bold."""
    body = []
    for row in rows:
        mark = "**" if row.differs else ""
        cells = [f"{mark}{cell(say_setting(value, words, numbers=numbers))}{mark}" for value in row.values]
        body.append(f"| {cell(say_name(row, words))} | {' | '.join(cells)} |")
    head = [words["setting"], *names]
    return "\n".join([f"| {' | '.join(map(cell, head))} |", "|---" * len(head) + "|", *body])


def claims(judgement: Judgement, words: Words) -> str:
    """Return the study's claims with their verdicts, what they mean, and what to run next."""
    head = [words[key] for key in ("claim", "condition", "verdict", "why")]
    explanation = [plain(say(judgement.explanation, words))] if judgement.explanation else []
    parts = [*explanation, table(head, claim_rows(judgement, words))]
    for judged in judgement.claims:
        key = judged.claim.key
        if why := words.get(f"explain {key}", ""):
            parts.append(f"**{key}.** {plain(why)} {code(words[f'next {key}'])}")
    notes = (*map(say_control, judgement.controls), *judgement.remarks)
    parts.append(listing(plain(say(text, words)) for text in notes))
    if judgement.next_steps:
        parts += [f"### {words['next experiments']}", listing(plain(say(text, words)) for text in judgement.next_steps)]
    return "\n\n".join(parts)


def claim_rows(judgement: Judgement, words: Words) -> list[list[str]]:
    """Return the rows of the table of claims."""
    return [
        [
            f"{judged.claim.key}. {words.get(f'claim {judged.claim.key}', judged.claim.text)}",
            say(condition, words),
            say(found.verdict, words),
            say(found.why, words),
        ]
        for judged in judgement.claims
        for condition, found in judged.overall.items()
    ]


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
