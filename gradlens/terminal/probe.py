"""A probe in a terminal: the verdict, the facts behind it, and the profile beside theory; a sweep as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradlens.analysis.stats import median
from gradlens.diagnosis.findings import finding_row
from gradlens.format import plain, plural, say_share, say_signed
from gradlens.metrics import ACTIVATION_GRAD_NORM, ACTIVATION_RMS, PARAM_GRAD_NORM, ZERO_FRACTION
from gradlens.probe.judge import Judged, loss_scale, say_facts, say_next, say_verdict
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
    for text, is_finding in say_next(judged):
        console.print(Text(text, style if is_finding else ""))
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
        dead, units = judged.probe.samples[0].units.get(name, (0, 0))
        shown = name if len(name) <= label else "…" + name[1 - label :]
        table.add_row(shown, line, _say(measured[i]), _say(theory[i]), f"{dead}/{units}" if units else "-", *shares)
    table.caption = "dL/do, dL/dw: entries under fp16's normal range; dead: units of the first sample of weights" + (
        f"; {len(chosen)} of {len(measured)} layers" if len(chosen) < len(measured) else ""
    )
    table.caption_justify = "left"
    return table


def _entries(judged: Judged, kind: str, name: str) -> Entries:
    return add_up([found[name] for sample in judged.probe.samples if name in (found := getattr(sample, kind))])


def _line(measured: float, theory: float, low: float, high: float, cells: int, colour: bool) -> Text:
    """Draw a layer's measurement and theory at their places; where they meet the measurement is seen."""
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
    """Print a row per model, with the settings that the sweep changes."""
    every = [_settings(judged) for judged in found]
    columns = [key for key in every[0] if key != "model" and len({row[key] for row in every}) > 1]
    title = "At initialisation, in decades towards the input"
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
    sample = found[0].probe.samples[0]
    samples = f"{plural(len(found[0].probe.samples), 'sample of weights', 'samples of weights')} each"
    console.print(Text(f"ln({max(sample.scores, 2)}) = {sample.expected_loss:.2f}; {samples}, median", style="dim"))


def _settings(judged: Judged) -> dict[str, Any]:
    plan = judged.probe.plan
    spec = plan.spec
    if spec.source != "registry":
        return {"model": plan.model}
    settings = {"model": plan.model, "depth": spec.depth, "norm": "batch" if spec.norm else "none", "init": plan.init}
    return settings | ({"shortcut": plan.shortcut} if spec.family == "resnet" else {})


# --- rows -------------------------------------------------------------------------------------------------


def probe_row(judged: Judged) -> dict[str, Any]:
    """Return a model in a row of plain values, for JSON and CSV."""
    probe, sample, theory = judged.probe, judged.probe.samples[0], judged.theory
    plan = probe.plan
    dead, units = judged.units
    row: dict[str, Any] = {**_settings(judged), "input": str(plan.input), "batch_size": plan.batch_size}
    row |= {"data": plan.data or "noise", "draws": len(probe.samples), "kind": judged.kind}
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
    row |= {
        "loss": plain(judged.loss),
        "expected_loss": plain(sample.expected_loss),
        "dead_units": dead,
        "units": units,
    }
    for name, entries in (("output", judged.outputs), ("parameter", judged.parameters)):
        row |= _entry_columns(name, entries)
    row |= {"parameters": sample.numel, "unused": len(sample.unused), "frozen": len(sample.frozen)}
    return row | {"shared": len(sample.shared), "seconds": round(probe.seconds, 3)}


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
    """Return all that is known of a model, its layers, samples and findings too, for JSON."""
    samples = judged.probe.samples
    sample = samples[0]
    facts = probe_row(judged)
    facts |= {"unused": list(sample.unused), "frozen": list(sample.frozen), "shared": [list(g) for g in sample.shared]}
    facts["redrawn"] = sample.reinitialised or None
    facts["remarks"] = list(judged.remarks)
    facts["findings"] = [finding_row(judged.probe.plan.model, finding) for finding in judged.findings]
    seeds = judged.probe.plan.seeds
    facts["draws"] = [
        {"seed": seeds[i], "decades": plain(judged.decades[i]), "slope": plain(judged.slopes[i]), "loss": plain(d.loss),
         "scores_std": plain(d.spread), "seconds": round(d.seconds, 3)}
        for i, d in enumerate(samples)
    ]  # fmt: skip
    facts["source"] = judged.prediction.source if judged.prediction else None
    facts["layers"] = layer_rows(judged)
    return facts


def layer_rows(judged: Judged) -> list[dict[str, Any]]:
    """Return a row per recorded layer, in the order in which they ran; theory and decades of main layers only."""
    places = {layer.name: i for i, layer in enumerate(judged.layers)}
    run = judged.probe.samples[0].run
    return [_layer_row(judged, i, layer, places.get(layer.name)) for i, layer in enumerate(run.layers)]


def _layer_row(judged: Judged, i: int, layer: Layer, place: int | None) -> dict[str, Any]:
    samples, prediction, away = judged.probe.samples, judged.prediction, judged.deviations
    row: dict[str, Any] = {"model": judged.probe.plan.model, "layer": layer.name, "kind": layer.kind}
    row |= {"role": layer.role, "depth": layer.depth, "calls": layer.calls}
    for name in (ACTIVATION_GRAD_NORM, PARAM_GRAD_NORM, ACTIVATION_RMS, ZERO_FRACTION):
        row[name] = plain(float(median(np.array([sample.run.metric(name)[0, i] for sample in samples]))))
    row["decades"] = None if place is None else plain(float(median(judged.profile[:, place])))
    known = place is not None
    row["predicted_decades"] = plain(float(prediction.decades[place])) if known and prediction else None
    row["predicted_spread"] = plain(float(prediction.spread[place])) if known and prediction else None
    row["deviation"] = plain(float(median(away[:, place]))) if known and away is not None else None
    dead, units = samples[0].units.get(layer.name, (0, 0))
    row |= {"dead_units": dead if units else None, "units": units or None}
    for kind, name in (("outputs", "output"), ("parameters", "parameter")):
        row |= _entry_columns(name, _entries(judged, kind, layer.name))
    return row
