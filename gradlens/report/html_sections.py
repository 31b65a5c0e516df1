"""The sections of the HTML page. Every text that comes from a run is escaped where it becomes markup."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from gradlens.analysis.stats import Interval
from gradlens.diagnosis.kinds import HEALTHY
from gradlens.report.content import Facts, Row, Seen, split_settings
from gradlens.report.sentences import (
    Words,
    local,
    opening,
    outcome,
    say,
    say_extent,
    say_found,
    say_mean,
    say_name,
    say_reference,
    say_seeds,
    say_setting,
)
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


def sections(facts: Facts, figures: Mapping[str, Any], words: Words) -> list[Section]:
    """Return the page's sections in order; empty sections are left out."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in opening(facts, words))
    claims = Section("claims", words.get("Claims", ""), claims_table(facts.claims, words) if facts.claims else "")
    found = [
        *([claims] if facts.claims_first else []),
        Section("summary", words["summary"], f"<ul>{lines}</ul>"),
        Section("findings", words["Findings"], findings_table(facts, words)),
        Section("metrics", words["Last epoch"], finals_table(facts, words) if facts.has_epochs else ""),
        Section("heatmaps", words["Gradients"], heatmaps(words) if figures["runs"] else ""),
        Section("curves", words["Curves"], curves(figures, words) if figures["curves"] else ""),
        *([] if facts.claims_first else [claims]),
        Section("settings", words["Hyper-parameters"], folded_settings(facts, words)),
        Section("environment", words["Environment"], folded_environment(facts, words)),
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


def _kind(kind: str, shown: str = "") -> str:
    return f'<span class="kind {escape(kind.replace(" ", "-"))}">{escape(shown or kind)}</span>'


def findings_table(facts: Facts, words: Words) -> str:
    """Return the table of findings, one row per experiment and kind."""
    rows = []
    for item in facts.seen:
        first, *others = item.each
        more = "".join(f"<li>{_evidence(each, words)}</li>" for each in others)
        summary = escape(words["n more"].format(n=len(others)))
        rest = f"<details><summary>{summary}</summary><ul class=evidence>{more}</ul></details>" if others else ""
        why = f"{_evidence(first, words)}{rest}"
        if item.threshold:
            why += f"<p class=read>{escape(words['threshold'].format(text=say(item.threshold, words)))}</p>"
        learns = ""
        if item.kind == HEALTHY:
            group = next(group for group in facts.groups if group.label == item.group)
            learns = outcome(group, [item], words)[1]
        well, found = say_found(facts, item, words)
        kind = _kind(item.kind if well else "undecided", found)
        rows.append(
            f'<tr><th scope="row">{escape(item.group)}</th><td>{kind}<br>'
            f"<small>{escape(say_seeds(item, words))}</small>{'<br>' + escape(learns) if learns else ''}</td>"
            f'<td>{why}</td><td data-head="{escape(words["next step"])}">{escape(say_remedy(item, words))}</td></tr>'
        )
    head = [words[key] for key in ("group", "finding", "why it is so", "next step")]
    return table(head, rows, kind="cards") + f"<p class=read>{escape(words['judged alone'])}</p>"


def say_remedy(item: Seen, words: Words) -> str:
    """Return what to do next, or a dash."""
    return say(item.remedy, words) or "–"


def _evidence(each: tuple[str, str, str], words: Words) -> str:
    run, where, what = each
    place = f" ({escape(say(where, words))})" if where else ""
    return f"<b>{escape(run)}</b>{place}: {escape(say(what, words))}"


def finals_table(facts: Facts, words: Words) -> str:
    """Return the table of the last epoch, with the study's own numbers next to the models that it trained."""
    columns = [key for key in facts.finals[0] if key not in ("quantity", "column")]
    extents = {group.label: say_extent(group, words) for group in facts.groups}
    heads = "".join(
        f'<th scope="col">{escape(name if name in extents else words.get(f"reference {name}", name))}<br>'
        f"<small>{escape(extents.get(name, words['one run']))}</small></th>"
        for name in columns
    )
    body = "\n".join(
        f'<tr><th scope="row">{escape(words.get(row["quantity"], row["quantity"]))}</th>'
        f"{''.join(_number(row[name], words) for name in columns)}</tr>"
        for row in facts.finals
    )
    published = f" {words['published']}" if len(columns) > len(facts.groups) else ""
    return (
        f'<div class="wide"><table><thead><tr><th></th>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'
        f"<p class=read>{escape(words['last epoch'] + published)}</p>"
    )


def _number(value: Interval | float, words: Words) -> str:
    if not isinstance(value, Interval):
        return f'<td class="number">{say_reference(value, words)}</td>'
    interval = ""
    if math.isfinite(value.low):
        low, high = (local(f"{end:.3f}", words) for end in (value.low, value.high))
        interval = f"<small>{escape(words['range'].format(low=low, high=high))}</small>"
    return f'<td class="number">{escape(say_mean(value, words))}{interval}</td>'


def folded_settings(facts: Facts, words: Words) -> str:
    """Return the table of settings: at most twelve rows, the others folded."""
    first, rest = split_settings(facts.settings)
    marked = sum(row.differs for row in facts.settings)
    note = words["one differs" if marked == 1 else "some differ" if marked else "none differs"].format(n=marked)
    shown = settings_table(first, facts.names, words) + (f"<p class=read>{escape(note)}</p>" if facts.names[1:] else "")
    return shown + _folded(words["more settings"], settings_table(rest, facts.names, words) if rest else "")


def folded_environment(facts: Facts, words: Words) -> str:
    """Return the table of hardware, software and files, folded."""
    return _folded(words["environment rows"], settings_table(facts.environment, facts.names, words, numbers=False))


def _folded(title: str, body: str) -> str:
    return f'<details class="folded"><summary>{escape(title)}</summary>{body}</details>' if body else ""


def settings_table(rows: Sequence[Row], names: Sequence[str], words: Words, *, numbers: bool = True) -> str:
    """Return a table with one column per experiment and the differing rows marked."""
    body = []
    for row in rows:
        mark = ' class="differs"' if row.differs else ""
        values = "".join(f"<td>{escape(say_setting(value, words, numbers=numbers))}</td>" for value in row.values)
        body.append(f'<tr{mark}><th scope="row">{escape(say_name(row, words))}</th>{values}</tr>')
    return table([words["setting"], *names], body, kind="fit" if len(names) < 3 else "")


# --- claims ---------------------------------------------------------------------------------------------------


def claims_table(judgement: Judgement, words: Words | None = None) -> str:
    """Return the table of the study's claims with test, verdict under each condition, and evidence."""
    words = words or words_of("en")
    conditions = [say(condition, words) for condition in judgement.conditions]
    rows = []
    for judged in judgement.claims:
        cells = "".join(
            f'<td data-head="{escape(shown)}">{_verdict(judged, condition, words)}</td>'
            for condition, shown in zip(judgement.conditions, conditions, strict=True)
        )
        claim = judged.claim
        test = "".join(
            f"<p class=read>{escape(words[key].format(text=say(text, words)))}</p>"
            for key, text in (
                ("supported if", claim.supports),
                ("refuted if", claim.refutes),
                ("reason", claim.reason),
            )
        )
        said = f"<b>{escape(claim.key)}.</b> {escape(words.get(f'claim {claim.key}', claim.text))}"
        why = words.get(f"explain {claim.key}", "")
        command = words.get(f"next {claim.key}", "")
        told = f"<p class=read>{escape(why)} <code>{escape(command)}</code></p>" if why else ""
        test = f"<details><summary>{escape(words['the test'])}</summary>{test}</details>"
        rows.append(f"<tr><td>{said}{told}{test}</td>{cells}</tr>")
    controls = "".join(f"<li>{escape(say(say_control(control), words))}</li>" for control in judgement.controls)
    notes = "".join(f"<li>{escape(say(note, words))}</li>" for note in judgement.remarks)
    explanation = f"<p>{escape(say(judgement.explanation, words))}</p>" if judgement.explanation else ""
    return (
        f"{explanation}"
        f"{table([words['claim'], *conditions], rows, kind='cards')}<ul class=read>{controls}{notes}</ul>"
        f"{_next_steps(judgement, words)}"
    )


def _next_steps(judgement: Judgement, words: Words) -> str:
    steps = "".join(f"<li>{escape(say(step, words))}</li>" for step in judgement.next_steps)
    return f"<h3>{escape(words['next experiments'])}</h3><ul>{steps}</ul>" if steps else ""


def _verdict(judged: JudgedClaim, condition: str, words: Words) -> str:
    whole = judged.overall.get(condition)
    if whole is None:
        return _kind("not trained", words["not trained"])
    items = "".join(
        f"<li>{escape(say(verdict.setting, words))}: {escape(say(verdict.verdict, words))}; "
        f"{escape(say(verdict.why, words))}"
        f"<ul>{''.join(f'<li>{escape(say_evidence(one, words))}</li>' for one in verdict.evidence)}</ul></li>"
        for verdict in judged.verdicts
        if verdict.condition == condition
    )
    summary = escape(words["evidence"])
    evidence = f"<details><summary>{summary}</summary><ul class=evidence>{items}</ul></details>" if items else ""
    return f"{_kind(whole.verdict, say(whole.verdict, words))}<br>{escape(say(whole.why, words))}{evidence}"


def say_evidence(one: Evidence, words: Words = ENGLISH) -> str:
    """Write a number with its interval, its name and the number of seeds."""
    note = f"; {say(one.note, words)}" if one.note else ""
    return f"{say(one.name, words)}: {say(str(one), words)} {words['seeds of evidence'].format(n=one.n, note=note)}"


def say_control(control: Control) -> str:
    """Write the outcome of a control."""
    result = {True: "passed", False: "FAILED", None: "missing"}[control.passed]
    return f"{control.key} control {result}: {control.text}; {control.detail}"


# --- figures --------------------------------------------------------------------------------------------------

HEATMAPS = """<div class="controls">
<label>{Metric}<select id="metric"></select></label>
<label>{Left}<select id="run-left"></select></label>
<label>{Right}<select id="run-right"></select></label>
<label class="tick"><input type="checkbox" id="per-element"> {per element}</label>
<label>{From step}<input type="number" id="from" min="0" value="0" step="1"></label>
<label>{to step}<input type="number" id="to" min="0" step="1"></label>
<button type="button" id="all-steps">{All steps}</button>
</div>
<p class="faint" id="metric-title"></p>
<div class="panels">
<figure id="left-figure"><figcaption id="left-title"></figcaption>
<div class="chart" id="left" tabindex="0" role="application" aria-label="{left heatmap}"
 aria-describedby="readout"></div></figure>
<figure id="right-figure"><figcaption id="right-title"></figcaption>
<div class="chart" id="right" tabindex="0" role="application" aria-label="{right heatmap}"
 aria-describedby="readout"></div></figure>
<figure><figcaption>{profile at the cursor}</figcaption><div class="chart" id="profile" role="img"
 aria-label="{profile at the cursor}"></div></figure>
</div>
<div class="controls">
<label class="slide">{Step} <span id="step-value"></span><input type="range" id="step" min="0" value="0"></label>
<label class="slide">{Layer} <span id="layer-value"></span><input type="range" id="layer" min="0" value="0"></label>
</div>
<output id="readout" aria-live="polite"></output>
<p class="key"><span><i class="zero"></i>{exactly 0}</span><span><i class="missing"></i>{not recorded}</span>
<span><i class="broken"></i>{not finite}</span></p>
<p class="read">{heatmaps read} <span id="metric-reading"></span></p>
<p class="read use">{heatmaps use}</p>
"""


def heatmaps(words: Words) -> str:
    """Return the markup in which the page draws heatmaps, with its controls."""
    return re.sub(r"\{([^}]+)\}", lambda place: escape(words[place[1]]), HEATMAPS)


def curves(figures: Mapping[str, Any], words: Words) -> str:
    """Return the markup in which the page draws the curves over epochs or steps."""
    over = {"epoch": words["over epochs"], "step": words["over steps"]}
    drawn = "".join(
        f'<figure><figcaption>{escape(curve["title"])}</figcaption><div class="chart" id="curve-{i}" role="img" '
        f'aria-label="{escape(over[curve["unit"]].format(title=curve["title"]))}"></div></figure>\n'
        for i, curve in enumerate(figures["curves"])
    )
    return f'<div class="curves">{drawn}</div><p class="read">{escape(words["curves read"])}</p>'
