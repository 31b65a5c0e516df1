"""The sections of the HTML page. Every text that comes from a run is escaped where it becomes markup."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from gradlens.analysis.compare import say_interval
from gradlens.analysis.stats import Interval
from gradlens.report.content import Facts, Row, Seen
from gradlens.report.sentences import say_seeds
from gradlens.report.translations import ENGLISH, words_of
from gradlens.studies import Control, Evidence, JudgedClaim, Judgement


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        key: Its anchor.
        title: Its heading.
        body: Its markup.
    """

    key: str
    title: str
    body: str


def sections(facts: Facts, figures: Mapping[str, Any]) -> list[Section]:
    """Return the page's sections in order; empty sections are left out."""
    found = [
        Section("claims", "Claims", claims_table(facts.claims) if facts.claims else ""),
        Section("findings", "Findings", findings_table(facts.seen)),
        Section("metrics", "Last epoch", finals_table(facts) if facts.has_epochs else ""),
        Section("heatmaps", "Gradients by layer and step", HEATMAPS if figures["runs"] else ""),
        Section("curves", "Curves", curves(figures) if figures["curves"] else ""),
        Section("settings", "Hyper-parameters", settings_table(facts.settings, facts.names)),
        Section("environment", "Environment", settings_table(facts.environment, facts.names, heading="environment")),
    ]
    return [section for section in found if section.body]


# --- tables ---------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[str], *, kind: str = "") -> str:
    """Return a table as markup that scrolls sideways in a narrow window.

    Args:
        head: Headings of the columns, not yet escaped.
        rows: Markup of the rows.
        kind: Layout in a narrow window: "cards" places the cells of a row below each other, "fit" breaks words so that
            all columns fit, "" scrolls.
    """
    heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    kind = f' class="{kind}"' if kind else ""
    body = "\n".join(rows)
    return f'<div class="wide"><table{kind}><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def _kind(kind: str) -> str:
    return f'<span class="kind {escape(kind.replace(" ", "-"))}">{escape(kind)}</span>'


def findings_table(seen: Sequence[Seen]) -> str:
    """Return the table of findings, one row per experiment and kind."""
    rows = []
    for item in seen:
        first, *others = item.each
        more = "".join(f"<li>{_evidence(each)}</li>" for each in others)
        rest = f"<details><summary>{len(others)} more</summary><ul class=evidence>{more}</ul></details>"
        why = f"{_evidence(first)}{rest if others else ''}"
        line = f"<p class=read>Threshold: {escape(item.threshold)}</p>" if item.threshold else ""
        rows.append(
            f'<tr><th scope="row">{escape(item.group)}</th><td>{_kind(item.kind)}<br>'
            f"<small>{escape(say_seeds(item, ENGLISH))}</small></td><td>{why}{line}</td>"
            f"<td data-head=next>{escape(item.remedy or '–')}</td></tr>"
        )
    read = (
        "Each seed is judged on its own, over the later half of its steps. Healthy means that no rule of the diagnosis "
        "finds a fault; a gradient that grows toward the input is not a fault."
    )
    return table(["experiment", "finding", "why", "next step"], rows, kind="cards") + f"<p class=read>{read}</p>"


def _evidence(each: tuple[str, str, str]) -> str:
    run, where, what = each
    place = f" ({escape(where)})" if where else ""
    return f"<b>{escape(run)}</b>{place}: {escape(what)}"


def finals_table(facts: Facts) -> str:
    """Return the table of the last epoch, with the study's own numbers next to the models that it trained."""
    columns = [key for key in facts.finals[0] if key not in ("quantity", "column")]
    extents = {group.label: group.say_extent() for group in facts.groups}
    heads = "".join(
        f'<th scope="col">{escape(name)}<br><small>{escape(extents.get(name, "one run"))}</small></th>'
        for name in columns
    )
    body = "\n".join(
        f'<tr><th scope="row">{escape(row["quantity"])}</th>{"".join(_number(row[name]) for name in columns)}</tr>'
        for row in facts.finals
    )
    published = f" {words_of('en')['published']}" if len(columns) > len(facts.groups) else ""
    return (
        f'<div class="wide"><table><thead><tr><th></th>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'
        f"<p class=read>{escape(ENGLISH['last epoch'] + published)}</p>"
    )


def _number(value: Interval | float) -> str:
    if not isinstance(value, Interval):
        return f'<td class="number">{value:.4g}</td>'
    interval = f"<small>{value.low:.3f} to {value.high:.3f}</small>" if math.isfinite(value.low) else ""
    return f'<td class="number">{escape(say_interval(value))}{interval}</td>'


def settings_table(rows: Sequence[Row], names: Sequence[str], heading: str = "setting") -> str:
    """Return a table with one column per experiment and the differing rows marked."""
    body = []
    for row in rows:
        mark = ' class="differs"' if row.differs else ""
        values = "".join(f"<td>{escape(value)}</td>" for value in row.values)
        body.append(f'<tr{mark}><th scope="row">{escape(row.name.replace("_", " "))}</th>{values}</tr>')
    marked = sum(row.differs for row in rows)
    note = "The experiments do not differ here."
    if marked:
        differ = "row differs" if marked == 1 else "rows differ"
        note = f"{marked} {differ} between the experiments and {'is' if marked == 1 else 'are'} marked."
    return table([heading, *names], body, kind="fit" if len(names) < 3 else "") + (
        f"<p class=read>{note}</p>" if len(names) > 1 else ""
    )


# --- claims ---------------------------------------------------------------------------------------------------


def claims_table(judgement: Judgement) -> str:
    """Return the table of the study's claims with test, verdict under each condition, and evidence."""
    rows = []
    for judged in judgement.claims:
        cells = "".join(
            f'<td data-head="{escape(condition)}">{_verdict(judged, condition)}</td>'
            for condition in judgement.conditions
        )
        claim = judged.claim
        test = "".join(
            f"<p class=read>{name}: {escape(text)}</p>"
            for name, text in (
                ("Supported if", claim.supports),
                ("Refuted if", claim.refutes),
                ("Reason", claim.reason),
            )
        )
        said = f"<b>{escape(claim.key)}.</b> {escape(claim.text)}"
        rows.append(f"<tr><td>{said}<details><summary>the test</summary>{test}</details></td>{cells}</tr>")
    controls = "".join(f"<li>{escape(say_control(control))}</li>" for control in judgement.controls)
    notes = "".join(f"<li>{escape(note)}</li>" for note in judgement.notes)
    return (
        f"<p>{escape(judgement.explanation)}</p>{table(['claim', *judgement.conditions], rows, kind='cards')}"
        f"<ul class=read>{controls}{notes}</ul>"
    )


def _verdict(judged: JudgedClaim, condition: str) -> str:
    whole = judged.overall.get(condition)
    if whole is None:
        return _kind("not trained")
    items = "".join(
        f"<li>{escape(verdict.setting)}: {escape(verdict.verdict)}; {escape(verdict.why)}"
        f"<ul>{''.join(f'<li>{escape(say_evidence(one))}</li>' for one in verdict.evidence)}</ul></li>"
        for verdict in judged.verdicts
        if verdict.condition == condition
    )
    evidence = f"<details><summary>evidence</summary><ul class=evidence>{items}</ul></details>" if items else ""
    return f"{_kind(whole.verdict)}<br>{escape(whole.why)}{evidence}"


def say_evidence(one: Evidence) -> str:
    """Write a number with its interval, its name and the number of seeds."""
    note = f"; {one.note}" if one.note else ""
    return f"{one.name}: {one} (n = {one.n}{note})"


def say_control(control: Control) -> str:
    """Write the outcome of a control."""
    outcome = {True: "passed", False: "FAILED", None: "missing"}[control.passed]
    return f"{control.key} control {outcome}: {control.text}; {control.detail}"


# --- figures --------------------------------------------------------------------------------------------------

HEATMAPS = """<div class="controls">
<label>Metric<select id="metric"></select></label>
<label>Left<select id="run-left"></select></label>
<label>Right<select id="run-right"></select></label>
<label class="tick"><input type="checkbox" id="per-element"> per element (RMS)</label>
<label>From step<input type="number" id="from" min="0" value="0" step="1"></label>
<label>to step<input type="number" id="to" min="0" step="1"></label>
<button type="button" id="all-steps">All steps</button>
</div>
<p class="faint" id="metric-title"></p>
<div class="panels">
<figure id="left-figure"><figcaption id="left-title"></figcaption>
<div class="chart" id="left" tabindex="0" role="application" aria-label="Heatmap of the left run"
 aria-describedby="readout"></div></figure>
<figure id="right-figure"><figcaption id="right-title"></figcaption>
<div class="chart" id="right" tabindex="0" role="application" aria-label="Heatmap of the right run"
 aria-describedby="readout"></div></figure>
<figure><figcaption>Depth profile at the cursor</figcaption><div class="chart" id="profile" role="img"
 aria-label="Depth profile at the cursor"></div></figure>
</div>
<div class="controls">
<label class="slide">Step <span id="step-value"></span><input type="range" id="step" min="0" value="0"></label>
<label class="slide">Layer <span id="layer-value"></span><input type="range" id="layer" min="0" value="0"></label>
</div>
<output id="readout" aria-live="polite"></output>
<p class="key"><span><i class="zero"></i>exactly 0</span><span><i class="missing"></i>not recorded</span>
<span><i class="broken"></i>not finite</span></p>
<p class="read">Each row is a layer, with the input at the top. Each column is an optimizer step. Both runs share one
colour scale. A vanishing gradient gets darker toward the top, an exploding one gets brighter.
<span id="metric-reading"></span></p>
<p class="read">Point at a cell to see its layer, step and value. Drag across a heatmap to choose a range of steps;
double-click to show all steps. Keyboard: the arrow keys move the cursor (with Shift by ten), Home and End go to the
first and last step, Escape shows all steps. The profile shows the column at the cursor (solid) and the median of the
steps shown (dashed).</p>
"""


def curves(figures: Mapping[str, Any]) -> str:
    """Return the markup in which the page draws the curves over epochs."""
    drawn = "".join(
        f'<figure><figcaption>{escape(curve["title"])}</figcaption><div class="chart" id="curve-{i}" role="img" '
        f'aria-label="{escape(curve["title"])} over epochs"></div></figure>\n'
        for i, curve in enumerate(figures["curves"])
    )
    return f'<div class="curves">{drawn}</div><p class="read">{escape(ENGLISH["curves read"])}</p>'
