"""Cards of runs, summaries, diagnoses, comparisons and judgements for notebooks.

Each function returns the HTML of an object, whose ``_repr_html_`` calls it by name (``gradlens.lazy.shown_by``). Names
and sentences may come from files of unknown origin, so all text that is not markup of this module is escaped. If a part
cannot be drawn, a message takes its place and the rest is shown.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gradlens.analysis.compare import Comparison, columns_of, say_end, say_interval, say_unequal
from gradlens.analysis.groups import Group
from gradlens.analysis.highlights import notable
from gradlens.analysis.stats import Interval
from gradlens.diagnosis.diagnose import diagnose
from gradlens.diagnosis.findings import Diagnosis, Finding, say_confidence, say_layers, say_steps
from gradlens.diagnosis.kinds import HEALTHY, NOT_KNOWN, UNDECIDED
from gradlens.format import plural
from gradlens.metrics import GRADIENT_NORMS, METRICS
from gradlens.run import EPOCH_COLUMNS, Run
from gradlens.run_summary import Summary
from gradlens.studies import Control, JudgedClaim, Judgement

if TYPE_CHECKING:
    from gradlens.plots.figure import GradlensFigure

MOST_SENTENCES = 4
"""Most sentences of a kind."""
MOST_SCALARS = 7
MOST_NUMBERS = 200
"""Most rows of the table of all numbers of a judgement."""

GREEN, RED, ORANGE, OCHRE, BLUE, GREY = "#1a7f37", "#b3261e", "#a84b00", "#7a6000", "#0b62a8", "#5f6771"
COLOURS = {
    "complete": GREEN,
    "running": BLUE,
    "interrupted": OCHRE,
    "failed": RED,
    HEALTHY: GREEN,
    UNDECIDED: GREY,
    NOT_KNOWN: GREY,
    "supported": GREEN,
    "refuted": ORANGE,
    "mixed": OCHRE,
    "withheld": RED,
    "passed": GREEN,
    "FAILED": RED,
    "missing": GREY,
}
"""Background colours of badges: white text is readable on them, and they are visible on light and dark pages."""

CARD = "max-width:60em;border:1px solid rgba(128,128,128,.45);border-radius:6px;padding:.6em .9em;margin:.3em 0"
CELL = "text-align:left;vertical-align:top;padding:.2em .9em .2em 0;white-space:normal;overflow-wrap:break-word"
NUMBER = "text-align:right;vertical-align:top;padding:.2em .9em .2em 0;white-space:nowrap"
HEAD = ";font-weight:600;border-bottom:1px solid rgba(128,128,128,.45)"
FAINT = "opacity:.72;font-size:92%"


class Markup(str):
    """Text that is HTML already; any other text is escaped when it is put into an element."""

    __slots__ = ()


def element(name: str, *children: str, style: str = "", **attributes: str) -> Markup:
    """Return an HTML element; children that are no ``Markup``, and all attributes, are escaped.

    Args:
        name: The name of the element.
        children: Its content.
        style: Its CSS.
        attributes: Other attributes; an underscore at the end of a name is removed, as in ``class_``.

    Returns:
        The element.
    """
    inner = "".join(child if isinstance(child, Markup) else html.escape(str(child)) for child in children)
    attributes = {"style": style, **attributes} if style else attributes
    text = "".join(f' {key.rstrip("_")}="{html.escape(str(value))}"' for key, value in attributes.items())
    return Markup(f"<{name}{text}>{inner}</{name}>")


# --- runs ---------------------------------------------------------------------------------------------------


def run_card(run: Run) -> str:
    """Return the card of a run: its name and size, the last epoch, the main finding, and a small heatmap."""
    extent = f"{plural(len(run.steps), 'row')} × {plural(len(run.layers), 'layer')}"
    seed = [f"seed {run.seed}"] if run.seed >= 0 else []
    facts = [run.model or "no model name", *seed, extent, f"metrics: {', '.join(run.metrics) or 'none'}"]
    notes = [f"note: {note}" for note in list(run.info.get("notes", ()))[:MOST_SENTENCES]]
    return _card(
        _title(run.name, run.status),
        _line(" · ".join(facts), faint=True),
        _guarded(lambda: _last_epoch(run)),
        _guarded(lambda: _main_finding(diagnose(run))),
        _guarded(lambda: _lines(notable(run)[:MOST_SENTENCES])),
        _lines(notes, faint=True),
        _small_heatmap(run),
    )


def summary_card(summary: Summary) -> str:
    """Return the card of a summary: the run's, and a row per layer with the median of each metric."""
    columns = [name for name in summary.run.metrics if name in METRICS]
    rows = [[str(row["layer"]), *(_median(row[name]) for name in columns)] for row in summary.layers]
    head = ["layer", *(name.replace("_", " ") for name in columns)]
    return _card(
        Markup(run_card(summary.run)),
        _folded(f"median of each metric at {plural(len(rows), 'layer')}", _guarded(lambda: _table(head, rows))),
    )


def _median(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, float) else "-" if value is None else str(value)


def _last_epoch(run: Run) -> Markup:
    if not len(run.epochs.get("epoch", ())):
        return _last_row(run)
    columns = [*EPOCH_COLUMNS, *(name for name in run.epochs if name not in EPOCH_COLUMNS)]
    columns = [name for name in columns if name in run.epochs and math.isfinite(run.epochs[name][-1])]
    values = [_say_number(name, float(run.epochs[name][-1])) for name in columns]
    return _table([("last " if name == "epoch" else "") + name.replace("_", " ") for name in columns], [values])


def _last_row(run: Run) -> Markup:
    if not len(run.steps) or not run.scalars:
        return _line("no epoch is finished", faint=True)
    names = list(run.scalars)[:MOST_SCALARS]
    last = [f"{run.scalars[name][-1]:.4g}" for name in names]
    return _table(["last step", *(name.replace("_", " ") for name in names)], [[str(run.steps[-1]), *last]])


def _say_number(name: str, value: float) -> str:
    if name == "epoch":
        return f"{value:.0f}"
    return f"{value:.1e}" if name == "lr" else f"{value:.1f}" if name == "seconds" else f"{value:.4f}"


def _main_finding(diagnosis: Diagnosis) -> Markup:
    why = diagnosis.findings[0].evidence if diagnosis.findings else diagnosis.reason
    also = f"also {', '.join(diagnosis.kinds[1:])}; " if len(diagnosis.kinds) > 1 else ""
    return element("div", _badge(diagnosis.verdict, RED), f" {also}{why}", style="margin:.3em 0")


def _small_heatmap(run: Run) -> Markup:
    named = [name for name in GRADIENT_NORMS if name in run.metrics] or list(run.metrics)
    if not named or not len(run.steps):
        return Markup()

    def draw() -> GradlensFigure:
        from gradlens.plots import draw_small_heatmap

        return draw_small_heatmap(run, named[0])

    return _image(draw, f"Heatmap of {named[0]} of {run.name}: layers, input first, by optimizer steps")


# --- diagnoses ----------------------------------------------------------------------------------------------


def diagnosis_card(diagnosis: Diagnosis) -> str:
    """Return the card of a diagnosis: the verdict, the reason, the next step, and the evidence."""
    main = diagnosis.findings[0] if diagnosis.findings else None
    also = [f"also {', '.join(diagnosis.kinds[1:])}"] if len(diagnosis.kinds) > 1 else []
    facts = [*also, f"{plural(diagnosis.rows, 'row')}", *([say_confidence(main)] if main else [])]
    learns = f"{diagnosis.learning}: {diagnosis.learning_evidence}" if diagnosis.learning_evidence else ""
    answers = [("why", main.evidence), ("next", main.remedy)] if main else [("why", diagnosis.reason)]
    answers.append(("learns", learns))
    return _card(
        _title(diagnosis.run, diagnosis.verdict, RED),
        _line(" · ".join(facts), faint=True),
        *(element("div", element("b", name), f" {text}", style="margin:.3em 0") for name, text in answers if text),
        _evidence(diagnosis.findings),
        _lines([f"note: {note}" for note in diagnosis.notes], faint=True),
    )


def _evidence(findings: Sequence[Finding]) -> Markup:
    if not findings:
        return Markup()
    rows = [
        [
            element("span", _badge(one.kind, RED), _faint(f"{one.confidence:.2f}")),
            element("span", say_layers(one.layers), _faint(say_steps(one.steps))),
            one.evidence,
            element("span", one.threshold, _faint(one.source)),
        ]
        for one in findings
    ]
    return _table(["finding", "where", "evidence", "threshold and its source"], rows, numbers=False)


# --- comparisons --------------------------------------------------------------------------------------------


def group_card(group: Group) -> str:
    """Return the card of runs that differ only in the seed: the last epoch, and curves over epochs."""
    return _card(_title(group.label), *_compared([group]))


def comparison_card(comparison: Comparison) -> str:
    """Return the card of a comparison of models: the last epoch, and curves over epochs."""
    labels = [group.label for group in comparison.groups]
    return _card(_title(" and ".join(labels) if len(labels) < 4 else f"{len(labels)} models"),
                 *_compared(comparison.groups), _lines(comparison.left_out(), faint=True))  # fmt: skip


def _compared(groups: Sequence[Group]) -> list[Markup]:
    titles = columns_of(groups)
    rows = [[element("span", group.label, _faint(group.say_extent())),
             *(_interval(group.final(column)) for column in titles)] for group in groups]  # fmt: skip
    unequal = say_unequal(groups)
    what = "Accuracy and loss over epochs" if groups[0].window is None else "Logged scalars over steps"
    how = "mean ± standard deviation between seeds; second line: 95 % interval of the mean"

    def draw() -> GradlensFigure:
        from gradlens.plots import draw_small_curves

        return draw_small_curves(groups)

    return [
        _line(f"not equal: {'; '.join(unequal)}") if unequal else Markup(),
        _guarded(lambda: _table([say_end(groups), *titles.values()], rows)),
        _line(how, faint=True) if any(len(group.runs) > 1 for group in groups) else Markup(),
        _image(draw, f"{what}: {', '.join(group.label for group in groups)}"),
    ]


def _interval(interval: Interval) -> Markup:
    low_high = _faint(f"{interval.low:.2f} to {interval.high:.2f}") if interval.n > 1 else Markup()
    return element("span", say_interval(interval), low_high)


# --- claims -------------------------------------------------------------------------------------------------


def judgement_card(judgement: Judgement) -> str:
    """Return the card of a judgement: verdicts with their reasons, the explanation, controls, and all numbers."""
    rows = [row for judged in judgement.claims for row in _claim_rows(judged, judgement.conditions)]
    return _card(
        _title(f"{judgement.title}, by {plural(judgement.runs, 'run')}"),
        element("p", judgement.explanation, style="margin:.4em 0") if judgement.explanation else "",
        _table(["", "claim", "models", "verdict", "why"], rows, numbers=False),
        _lines([f"next: {text}" for text in judgement.next_steps]),
        *(_control(control) for control in judgement.controls),
        _lines([f"note: {note}" for note in judgement.remarks], faint=True),
        _folded("criteria for and against each claim", _criteria(judgement.claims)),
        _folded("all numbers", _guarded(lambda: _numbers(judgement))),
    )


def _claim_rows(judged: JudgedClaim, conditions: Sequence[str]) -> list[list[str]]:
    rows: list[list[str]] = []
    for condition in conditions:
        first = [judged.claim.key, judged.claim.text] if not rows else ["", ""]
        verdict = judged.overall.get(condition)
        rows.append(
            [*first, condition, _badge(verdict.verdict), _sentence(verdict.why)]
            if verdict
            else [*first, condition, "not trained", ""]
        )
    return rows


def _sentence(text: str) -> Markup:
    return element("span", text[:1].upper() + text[1:], style=FAINT)


def _control(control: Control) -> Markup:
    outcome = {True: "passed", False: "FAILED", None: "missing"}[control.passed]
    text = f" {control.key} control: {control.text}; {control.detail}"
    return element("div", _badge(outcome), text, style="margin:.3em 0")


def _criteria(claims: Sequence[JudgedClaim]) -> Markup:
    rows = [[one.claim.key, one.claim.supports, one.claim.refutes, one.claim.reason] for one in claims]
    return _table(["", "for", "against", "reason for the criteria"], rows, numbers=False)


def _numbers(judgement: Judgement) -> Markup:
    rows = [
        [
            judged.claim.key,
            f"{verdict.condition}, {verdict.setting}",
            one.name,
            str(one),
            one.unit,
            str(one.n),
            one.note,
        ]
        for judged in judgement.claims
        for verdict in judged.verdicts
        for one in verdict.evidence
    ]  # fmt: skip
    table = _table(["", "setting", "what", "value [95 %]", "unit", "n", "note"], rows[:MOST_NUMBERS], numbers=False)
    if len(rows) <= MOST_NUMBERS:
        return table
    return element("div", table, _line(f"{MOST_NUMBERS} of {len(rows)}; .rows() returns them all", faint=True))


# --- parts --------------------------------------------------------------------------------------------------


def _card(*parts: str) -> str:
    """Put parts into a frame; its classes keep a notebook from reading dollar signs in names as formulas."""
    return element("div", *parts, style=CARD, class_="gradlens tex2jax_ignore mathjax_ignore")


def _title(text: str, badge: str = "", colour: str = GREY) -> Markup:
    name = element("b", text, style="font-size:110%;overflow-wrap:anywhere")
    return element("div", name, " ", _badge(badge, colour) if badge else "")


def _badge(text: str, colour: str = GREY) -> Markup:
    shown = f"background:{COLOURS.get(text, colour)};color:#fff;border-radius:3px;padding:.05em .5em;white-space:nowrap"
    return element("span", text, style=shown)


def _line(text: str, *, faint: bool = False) -> Markup:
    return element("div", text, style=f"margin:.2em 0;{FAINT if faint else ''}")


def _faint(text: str) -> Markup:
    return element("span", Markup("<br>"), text, style=FAINT)


def _lines(texts: Iterable[str], *, faint: bool = False) -> Markup:
    return Markup("".join(_line(text, faint=faint) for text in texts))


def _folded(title: str, content: Markup) -> Markup:
    return element("details", element("summary", title, style="cursor:pointer"), content)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> Markup:
    """Return a table; in a table of numbers all columns but the first are aligned to the right."""
    styles = [NUMBER if numbers and i else CELL for i in range(len(head))]
    top = [element("th", name, style=style + HEAD) for name, style in zip(head, styles, strict=True)]
    body = [
        element("tr", *(element("td", cell, style=style) for cell, style in zip(row, styles, strict=True)),
                style="background:transparent") for row in rows
    ]  # fmt: skip
    whole = "border-collapse:collapse;margin:.4em 0;width:auto"
    table = element("table", element("thead", element("tr", *top)), element("tbody", *body), style=whole)
    return element("div", table, style="overflow-x:auto")


def _image(draw: Callable[[], GradlensFigure], alternative: str) -> Markup:
    def shown() -> Markup:
        from gradlens.plots import png

        data = base64.b64encode(png(draw())).decode("ascii")
        return element("img", src=f"data:image/png;base64,{data}", alt=alternative, style="max-width:100%;height:auto")

    return _guarded(shown, "the figure")


def _guarded(show: Callable[[], Markup], what: str = "this") -> Markup:
    """Return a part of a card, or a line that says why it cannot be shown, so that the rest is shown."""
    try:
        return show()
    except Exception as error:  # whatever it is, the other parts are still useful
        return _line(f"{what} cannot be shown: {error or type(error).__name__}", faint=True)
