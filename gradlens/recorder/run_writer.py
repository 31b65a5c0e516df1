"""What belongs to a recorded run as a whole and is written next to its rows: header, notes, facts and epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from gradlens.errors import ConfigError
from gradlens.recorder.closing_notes import note_missing
from gradlens.recorder.environment import describe_environment
from gradlens.recorder.facts.fact_finder import FactFinder
from gradlens.recorder.notes import Notes
from gradlens.recorder.pending_rows import Table
from gradlens.recorder.ranks.distributed import Ranks
from gradlens.recorder.ranks.rank_agreement import RankAgreement
from gradlens.recorder.schedule import Clock
from gradlens.recorder.steps import Steps
from gradlens.run import Header, Layer, Status


class RunWriter:
    """Writes what belongs to the run as a whole.

    Args:
        model: The model.
        info: What the user gave: "model", "seed", "config" and anything else.
        steps: What is seen of the training.
        notes: Collects the notes of the run.
        clock: Measures the recorder's own time.
        ranks: The processes that record together.
        agreement: Compares them.

    Raises:
        ConfigError: "config" in ``info`` is no mapping.
    """

    def __init__(
        self,
        model: nn.Module,
        info: Mapping[str, Any],
        *,
        steps: Steps,
        notes: Notes,
        clock: Clock,
        ranks: Ranks | None,
        agreement: RankAgreement | None,
    ) -> None:
        if not isinstance(info.get("config", {}), Mapping):
            raise ConfigError(f"info['config'] must be a mapping, got {info['config']!r}")
        self._model, self._info, self._steps = model, info, steps
        self._notes, self._clock, self._ranks, self._agreement = notes, clock, ranks, agreement
        self._epochs: list[Mapping[str, float]] = []
        """Epochs that wait for the first row."""

    def begin(self, table: Table, facts: FactFinder) -> None:
        """Take what the rows and the facts are in."""
        self._table, self._facts = table, facts

    def make_header(self, layers: tuple[Layer, ...]) -> Header:
        """Return the header of the file.

        Args:
            layers: What the first row has shown.
        """
        info = self._info
        extra = {key: value for key, value in info.items() if key not in ("model", "seed", "config")}
        world = {} if self._ranks is None else {"world_size": self._ranks.world}
        return Header(
            layers=layers,
            metrics={**self._steps.measuring.intervals, **dict.fromkeys(self._steps.rows.spread_metrics, 1)},
            model=str(info.get("model", _unwrapped_name(self._model))),
            seed=-1 if info.get("seed") is None else int(info["seed"]),
            config={**info.get("config", {}), **extra},
            environment={**describe_environment(self._model), **world},
        )

    def write_epoch(self, numbers: Mapping[str, float]) -> None:
        """Write an epoch and everything recorded so far; before the first row it waits.

        Args:
            numbers: Column to value.
        """
        self._epochs.append(numbers)
        if self._table.n_rows:  # before it the layers are not known
            self._table.open()
            self._table.hand_over()
            self.write_state()
            self._write_epochs()

    def _write_epochs(self) -> None:
        for numbers in self._epochs:
            self._table.sink.write_epoch(numbers)
        self._epochs.clear()

    def write_state(self) -> None:
        """Write notes, overhead and facts as they are now."""
        self._notes.look_for_changes()
        self._table.sink.write_state(self._clock.overhead, self._notes.texts)
        self._table.sink.write_facts(self.find_facts())

    def find_facts(self) -> dict[str, Any]:
        """Return the facts as they are now, with what is known of the rows and the ranks."""
        found = self._facts.facts
        if found:
            found["rows_changed"] = self._table.totals.changed_otherwise
        if self._ranks is not None and self._agreement is not None:
            found["ranks"] = self._agreement.facts(self._ranks.world, self._ranks.silent, self._steps.index)
        return found

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write facts as soon as they are found.

        Args:
            facts: See ``gradlens.Run.facts``.
        """
        self._table.sink.write_facts({**facts, **self.find_facts()})

    def end(self, status: Status) -> None:
        """Write what is still to be written, and close the file.

        Args:
            status: How the run ended.

        Raises:
            Exception: An error of this rank or of another one, or of the file.
        """
        table = self._table
        if self._ranks is not None:
            self._steps.rows.end_with_others(status)
        if table.n_rows or self._epochs:
            table.open()  # in a resumed run without a new row it is not open yet
        if table.layers:
            self._notes.look_for_changes()
            table.hand_over()
            table.sink.flush()
            note_missing(table, self._steps, self._notes, self._steps.measuring.intervals, self._ranks)
            table.sink.write_state(self._clock.overhead, self._notes.texts)
            table.sink.write_facts(self.find_facts())
            self._write_epochs()
        table.sink.close(status)


def _unwrapped_name(model: nn.Module) -> str:
    wrappers = ("DistributedDataParallel", "DataParallel", "OptimizedModule")
    while type(model).__name__ in wrappers:
        model = next(model.children())
    return type(model).__name__.removeprefix("FSDP")
