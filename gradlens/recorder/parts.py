"""What a recorder is made of, and which part knows which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gradlens.errors import ConfigError
from gradlens.recorder.facts.fact_finder import FactFinder
from gradlens.recorder.hooks.compiled import is_compiled
from gradlens.recorder.hooks.grad_scaler import ScalerWatch
from gradlens.recorder.intervals import Intervals, make_intervals
from gradlens.recorder.layers import LayerChoice, Learned, choose_layers, refuse_uninitialised
from gradlens.recorder.notes import Notes
from gradlens.recorder.pending_rows import Table
from gradlens.recorder.ranks.distributed import Ranks, find_ranks
from gradlens.recorder.ranks.rank_agreement import RankAgreement
from gradlens.recorder.ranks.row_collective import RowCollective
from gradlens.recorder.run_writer import RunWriter
from gradlens.recorder.schedule import AutoEvery, Clock, Every
from gradlens.recorder.steps import Steps
from gradlens.recorder.unwrapping import Optimizers, find_optimizers
from gradlens.sinks import Sink


@dataclass(frozen=True)
class Callbacks:
    """What the parts call in the recorder.

    Args:
        guard: Calls a function and handles its errors.
        fail: Handles an error.
        write_facts: Writes facts as soon as they are found.
    """

    guard: Callable[[Callable[[], None]], None]
    fail: Callable[[Exception], None]
    write_facts: Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Parts:
    """The parts of a recorder; see the class of each."""

    optimizers: list[Optimizer]
    modules: Mapping[str, nn.Module]
    ranks: Ranks | None
    intervals: Intervals
    learned: Learned
    notes: Notes
    clock: Clock
    steps: Steps
    writer: RunWriter
    table: Table
    facts: FactFinder


def make_parts(
    model: nn.Module,
    sink: Sink,
    *,
    optimizer: Optimizers,
    metrics: Iterable[str],
    every: Every | Mapping[str, Every],
    layers: LayerChoice,
    scaler: torch.amp.GradScaler | None,
    info: Mapping[str, Any],
    begin: tuple[int, int, int],
    callbacks: Callbacks,
) -> Parts:
    """Make the parts of a recorder, each with those that it knows.

    Args:
        model: See ``Recorder``, as for all that is not named here.
        sink: Receives the rows.
        optimizer: See ``Recorder``.
        metrics: See ``Recorder``.
        every: See ``Recorder``.
        layers: See ``Recorder``.
        scaler: See ``Recorder``.
        info: See ``Recorder``.
        begin: Index of the next optimizer step; epochs and rows that are already in the file.
        callbacks: What the parts call in the recorder.

    Returns:
        The parts; no hook is placed and nothing is written yet.

    Raises:
        ConfigError: An argument of ``record`` is not allowed.
    """
    optimizers, wrappers, scaler = find_optimizers(optimizer, scaler)
    watched_scaler = ScalerWatch(scaler, optimizers)
    if watched_scaler.present and not optimizers:
        raise ConfigError(
            "scaler= without optimizer=: the recorder cannot tell whether gradients are still scaled",
            tip="pass the optimizer too, or leave scaler= out and call recorder.step() after scaler.unscale_()",
        )
    clock = Clock(lambda: float(getattr(sink, "seconds", 0.0)))
    refuse_uninitialised(model)
    ranks = find_ranks(model)
    several = ranks is not None
    scaled, number = watched_scaler.present, len(optimizers)
    intervals, wanted = make_intervals(metrics, every, clock, optimizers=number, scaled=scaled, several_ranks=several)
    modules = choose_layers(model, layers)
    learned = Learned(modules)
    learned.compiled = any(map(is_compiled, model.modules()))
    notes = Notes(model, layers, modules)
    steps = Steps(
        model=model,
        modules=modules,
        optimizers=optimizers,
        wrappers=wrappers,
        scaler=watched_scaler,
        intervals=intervals,
        learned=learned,
        wanted=wanted,
        clock=clock,
        ranks=ranks,
        notes=notes,
        guard=callbacks.guard,
        on_error=callbacks.fail,
        first_step=begin[0],
    )
    steps.rows.epoch = begin[1]
    agreement: RankAgreement | None = None
    collective: RowCollective | None = None
    gradients, sharded = steps.measuring.gradients, steps.measuring.sharded
    if ranks is not None:
        learned.note_layout = ranks.note_output
        agreement = RankAgreement(model, modules, ranks.rank, ranks.world)
        auto = wanted if isinstance(wanted, AutoEvery) else None
        collective = RowCollective(ranks, agreement, tuple(intervals), len(modules), gradients, sharded, auto)
    writer = RunWriter(model, info, steps=steps, notes=notes, clock=clock, ranks=ranks, agreement=agreement)
    table = Table(sink, learned, len(modules), writer.make_header, gradients, collective, begin[2])
    facts = FactFinder(model, optimizers, scaler, lambda: steps.index, callbacks.write_facts)
    writer.begin(table, facts)
    return Parts(optimizers, modules, ranks, intervals, learned, notes, clock, steps, writer, table, facts)
