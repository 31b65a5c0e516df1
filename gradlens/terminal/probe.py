"""A probe in a terminal: the verdict, the facts, and the profile compared with theory; a sweep as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradlens.analysis.gradient_ratio import say_power
from gradlens.analysis.stats import median
from gradlens.diagnosis.findings import finding_row, quoted
from gradlens.format import plain, plural, say_share, say_signed
from gradlens.probe.judge import LIFTED, Judged, loss_scale, say_parameters, say_verdict
from gradlens.probe.plan import BF16_NORMAL, FP16_LOST, FP16_NORMAL, Entries, add_up
from gradlens.run import Layer
from gradlens.terminal.console import has_colour

MOST_LAYERS = 16
MOST_LABEL = 24
MEASURED, THEORY = "o", "|"
KIND_STYLE = {"trainable": "bold green", "undecided": "bold yellow", "unused": "bold yellow"}
WORDS = {
    "vanishing": "vanishes",
    "exploding": "explodes",
    "nonfinite": "not finite",
    "unused": "unused",
}


# --- one model --------------------------------------------------------------------------------------------


def print_probe(console: Console, judged: Judged, *, every_layer: bool = False) -> None:
    """Print the verdict, the facts, and the profile, input first."""
    plan = judged.probe.plan
    style = KIND_STYLE.get(judged.kind, "bold red")
    console.print(Text(f"{plan.model}: ", style="bold").append(say_verdict(judged), style))
    for finding in judged.findings:
        if finding is not judged.findings[0] and finding.evidence not in say_verdict(judged):
            console.print(Text(f"also {finding.kind}: {finding.evidence}", style))
        console.print(Text(f"next  {finding.remedy}  (confidence {finding.confidence:.2f}; {finding.threshold})"))
    for remark in judged.remarks:
        console.print(Text(f"note  {remark}", style="yellow"))
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column(overflow="fold")
    for name, text in say_facts(judged):
        facts.add_row(name, text)
    console.print(facts)
    if judged.layers:
        console.print(_profile(console, judged, every_layer))


def say_facts(judged: Judged) -> list[tuple[str, str]]:
    """Return the facts about a model, as pairs of a name and a line."""
    probe, draw = judged.probe, judged.probe.draws[0]
    plan, rows = probe.plan, list[tuple[str, str]]()
    init = f", {plan.init} initialisation" if plan.spec.source == "registry" else ""
    source = f"of {plan.data}" if plan.data else "of random tokens" if plan.input and plan.input.tokens else "of noise"
    rows.append(("model", f"{plural(draw.numel, 'parameter')} in {plural(draw.tensors, 'tensor')}{init}"))
    seeds = f"{'seed' if len(plan.seeds) == 1 else 'seeds'} {','.join(map(str, plan.seeds))}"
    samples = f"{plural(len(probe.draws), 'initialisation')}, {seeds}"
    rows.append(("probed", f"{plan.batch_size} x {plan.input} {source}, {samples}, {probe.seconds:.1f} s"))
    if judged.ends:
        first, last = map(quoted, judged.ends)
        text = f"{first} / {last}: {say_power(judged.ratio)}{_range(judged)}"
        text += "" if math.isnan(judged.slope) else f", {say_signed(judged.slope, 3)} decades per layer"
        rows.append(("gradient", text))
    rows.append(("theory", say_theory(judged)))
    logits = f"; scores' standard deviation {float(median(np.array([d.spread for d in probe.draws]))):.2g}"
    logits = logits if draw.scores > 1 else ""
    rows.append(("loss", f"{judged.loss:.3f}, ln({max(draw.scores, 2)}) = {draw.expected_loss:.3f}{logits}"))
    dead, units = judged.units
    text = f"{dead:.0f} of {units:,} behind activation functions that can be 0" if units else "no such activation seen"
    rows.append(("dead units", text))
    for name, entries in (("dL/d output", judged.outputs), ("dL/d weights", judged.parameters)):
        rows.append((name, say_entries(entries)))
    for name, names in (("unused", draw.unused), ("frozen", draw.frozen)):
        if names:
            rows.append((name, f"{plural(len(names), 'parameter')} without a gradient: {say_parameters(names)}"))
    if draw.shared:
        rows.append(("shared", "; ".join(" = ".join(group) for group in draw.shared)))
    return rows


def say_theory(judged: Judged) -> str:
    """Return what theory predicts and how far the model is from it."""
    theory, prediction = judged.theory, judged.prediction
    if theory is None or prediction is None:
        return "none for this model (there is one for plain and resnet, torchvision:resnet18 and 34, Sequential stacks)"
    text = f"{quoted(theory.layer)} {say_power(theory.predicted)}, measured {say_power(theory.measured)}"
    if math.isfinite(theory.away):
        side = "above" if theory.away > 0 else "below"
        text += f", {abs(theory.away):.1f} standard deviations {side} theory"
    slope, measured = say_signed(theory.slope, 3), say_signed(theory.measured_slope, 3)
    return f"{text}; {slope} per layer, measured {measured} ({prediction.source})"


def say_entries(entries: Entries) -> str:
    """Return which share of a gradient's entries low precision cannot represent."""
    if not entries.known:
        return f"all {entries.total:,} entries are 0"
    low = say_share(entries.share_below(FP16_NORMAL))
    text = f"below fp16's normal range {low}, rounded to 0 {say_share(entries.share_below(FP16_LOST))}"
    scale, lifted = loss_scale(entries)
    text += f"; loss scale 2^{scale}" if scale and lifted >= LIFTED else ""
    zeros = f"; exactly 0: {say_share(entries.zeros / entries.total)}" if entries.zeros else ""
    return f"{text}; below bf16's {say_share(entries.share_below(BF16_NORMAL))}{zeros}"


def _range(judged: Judged) -> str:
    known = judged.decades[~np.isnan(judged.decades)]
    return f" ({say_power(known.min())} to {say_power(known.max())})" if len(known) > 1 else ""


def _profile(console: Console, judged: Judged, every_layer: bool) -> Table:
    table = Table(
        title=f"log10 of the gradient norm over the last hidden layer's: {MEASURED} measured, {THEORY} theory",
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    label = max(min(max(len(layer.name) for layer in judged.layers), MOST_LABEL, console.width // 4), 5)
    table.add_column("layer", no_wrap=True, width=label)
    cells = max(console.width - label - 45, 8)
    table.add_column("", no_wrap=True, width=cells)
    for name in ("log10", "theory", "dead", "dL/do", "dL/dw"):
        table.add_column(name, justify="right", no_wrap=True)
    measured = median(judged.profile, axis=0)
    theory = np.full(len(measured), np.nan) if judged.prediction is None else judged.prediction.decades
    known = np.concatenate([values[np.isfinite(values)] for values in (measured, theory)])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    most = len(measured) if every_layer else MOST_LAYERS
    chosen = sorted({round(i) for i in np.linspace(0, len(measured) - 1, min(len(measured), most))})
    for i in chosen:
        name = judged.layers[i].name
        line = _line(float(measured[i]), float(theory[i]), low, high, cells, has_colour(console))
        shares = [
            say_share(_entries(judged, kind, name).share_below(FP16_NORMAL), 0) for kind in ("outputs", "parameters")
        ]
        dead, units = judged.probe.draws[0].units.get(name, (0, 0))
        shown = name if len(name) <= label else "…" + name[1 - label :]
        table.add_row(shown, line, _say(measured[i]), _say(theory[i]), f"{dead}/{units}" if units else "-", *shares)
    table.caption = "dL/do, dL/dw: entries below fp16's normal range; dead: units of the first initialisation" + (
        f"; {len(chosen)} of {len(measured)} layers" if len(chosen) < len(measured) else ""
    )
    table.caption_justify = "left"
    return table


def _entries(judged: Judged, kind: str, name: str) -> Entries:
    return add_up([found[name] for draw in judged.probe.draws if name in (found := getattr(draw, kind))])


def _line(measured: float, theory: float, low: float, high: float, cells: int, colour: bool) -> Text:
    """Draw the measured and the predicted value of a layer; in the same cell the measured one is shown."""
    text = [" "] * cells
    span = high - low if high > low else 1.0
    for value, mark in ((theory, THEORY), (measured, MEASURED)):
        if value == -math.inf:
            text[0] = "0"
        elif math.isfinite(value):
            text[round((value - low) / span * (cells - 1))] = mark
    line = Text()
    for mark in text:
        line.append(mark, ("bold dark_orange3" if mark != THEORY else "deep_sky_blue4") if colour else "")
    return line


def _say(value: float) -> str:
    return "0" if value == -math.inf else say_signed(value)


# --- sweeps -----------------------------------------------------------------------------------------------


def print_sweep(console: Console, found: Sequence[Judged]) -> None:
    """Print a row per model, with the settings that differ between the models."""
    every = [_settings(judged) for judged in found]
    columns = [key for key in every[0] if key != "model" and len({row[key] for row in every}) > 1]
    title = "At initialisation, in decades toward the input"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, no_wrap=True)
    for name in ("first/last", "theory", "per layer", "theory", "loss", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for judged in found:
        settings = _settings(judged)
        verdict = Text(WORDS.get(judged.kind, judged.kind), KIND_STYLE.get(judged.kind, "bold red"))
        theory, first = judged.theory, judged.ends[0] if judged.ends else ""
        predicted = theory is not None and (theory.layer == first)
        numbers = (
            _say(judged.ratio),
            _say(theory.predicted) if theory is not None and predicted else "-",
            say_signed(judged.slope, 3),
            say_signed(theory.slope, 3) if theory is not None else "-",
            f"{judged.loss:.2f}",
            f"{judged.probe.seconds:.1f}s",
        )
        table.add_row(*(str(settings[name]) for name in columns), *numbers, verdict)
    console.print(table)
    draw = found[0].probe.draws[0]
    count = len(found[0].probe.draws)
    samples = f"{plural(count, 'initialisation')} each" + (", median" if count > 1 else "")
    console.print(Text(f"ln({max(draw.scores, 2)}) = {draw.expected_loss:.2f}; {samples}", style="dim"))


def _settings(judged: Judged) -> dict[str, Any]:
    plan = judged.probe.plan
    spec = plan.spec
    if spec.source != "registry":
        return {"model": plan.model}
    settings = {"model": plan.model, "depth": spec.depth, "norm": "batch" if spec.norm else "none", "init": plan.init}
    return settings | ({"shortcut": plan.shortcut} if spec.family == "resnet" else {})


# --- rows -------------------------------------------------------------------------------------------------


def probe_row(judged: Judged) -> dict[str, Any]:
    """Return the facts about a model in one row of plain values, for JSON and CSV."""
    probe, draw, theory = judged.probe, judged.probe.draws[0], judged.theory
    plan = probe.plan
    dead, units = judged.units
    row: dict[str, Any] = {**_settings(judged), "input": str(plan.input), "batch_size": plan.batch_size}
    row |= {"data": plan.data or "noise", "draws": len(probe.draws), "kind": judged.kind}
    row |= {"verdict": say_verdict(judged), "confidence": judged.findings[0].confidence if judged.findings else None}
    row |= {"decades": plain(judged.ratio), "slope": plain(judged.slope)}
    row |= {
        "first_layer": judged.ends[0] if judged.ends else None,
        "last_layer": judged.ends[1] if judged.ends else None,
    }
    row |= {
        "theory_layer": theory.layer if theory else None,
        "theory_decades": plain(theory.predicted) if theory else None,
        "theory_measured": plain(theory.measured) if theory else None,
        "theory_deviation": plain(theory.away) if theory else None,
        "theory_slope": plain(theory.slope) if theory else None,
    }
    row |= {"loss": plain(judged.loss), "expected_loss": draw.expected_loss, "dead_units": dead, "units": units}
    for name, entries in (("output", judged.outputs), ("parameter", judged.parameters)):
        row |= _entry_columns(name, entries)
    row |= {"parameters": draw.numel, "unused": len(draw.unused), "frozen": len(draw.frozen)}
    return row | {"shared": len(draw.shared), "seconds": round(probe.seconds, 3)}


def _entry_columns(name: str, entries: Entries) -> dict[str, Any]:
    return {
        f"{name}_entries": entries.total,
        f"{name}_zeros": entries.zeros,
        f"{name}_nonfinite": entries.nonfinite,
        f"{name}_under_fp16": entries.below(FP16_NORMAL),
        f"{name}_lost_in_fp16": entries.below(FP16_LOST),
        f"{name}_under_bf16": entries.below(BF16_NORMAL),
        f"{name}_loss_scale": 2 ** loss_scale(entries)[0],
    }


def probe_facts(judged: Judged) -> dict[str, Any]:
    """Return all facts about a model, with its layers, initialisations and findings, for JSON."""
    draws = judged.probe.draws
    draw = draws[0]
    facts = probe_row(judged)
    facts |= {"unused": list(draw.unused), "frozen": list(draw.frozen), "shared": [list(g) for g in draw.shared]}
    facts["redrawn"] = draw.redrawn or None
    facts["remarks"] = list(judged.remarks)
    facts["findings"] = [finding_row(judged.probe.plan.model, finding) for finding in judged.findings]
    seeds = judged.probe.plan.seeds
    facts["draws"] = [
        {"seed": seeds[i], "decades": plain(judged.decades[i]), "slope": plain(judged.slopes[i]), "loss": plain(d.loss),
         "scores_std": plain(d.spread), "seconds": round(d.seconds, 3)}
        for i, d in enumerate(draws)
    ]  # fmt: skip
    facts["source"] = judged.prediction.source if judged.prediction else None
    facts["layers"] = layer_rows(judged)
    return facts


def layer_rows(judged: Judged) -> list[dict[str, Any]]:
    """Return a row per recorded layer, in the order of the forward pass; only main layers have decades and theory."""
    places = {layer.name: i for i, layer in enumerate(judged.layers)}
    run = judged.probe.draws[0].run
    return [_layer_row(judged, i, layer, places.get(layer.name)) for i, layer in enumerate(run.layers)]


def _layer_row(judged: Judged, i: int, layer: Layer, place: int | None) -> dict[str, Any]:
    draws, prediction, away = judged.probe.draws, judged.prediction, judged.deviations
    row: dict[str, Any] = {"model": judged.probe.plan.model, "layer": layer.name, "kind": layer.kind}
    row |= {"role": layer.role, "depth": layer.depth, "calls": layer.calls}
    for name in ("activation_grad_norm", "param_grad_norm", "activation_rms", "zero_fraction"):
        row[name] = plain(float(median(np.array([draw.run.metric(name)[0, i] for draw in draws]))))
    row["decades"] = None if place is None else plain(float(median(judged.profile[:, place])))
    known = place is not None
    row["predicted_decades"] = plain(float(prediction.decades[place])) if known and prediction else None
    row["predicted_spread"] = plain(float(prediction.spread[place])) if known and prediction else None
    row["deviation"] = plain(float(median(away[:, place]))) if known and away is not None else None
    dead, units = draws[0].units.get(layer.name, (0, 0))
    row |= {"dead_units": dead if units else None, "units": units or None}
    for kind, name in (("outputs", "output"), ("parameters", "parameter")):
        row |= _entry_columns(name, _entries(judged, kind, layer.name))
    return row
