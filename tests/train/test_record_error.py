"""What becomes of a training whose rows or checkpoints cannot be written: it ends in a line, or goes on without."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradlens import read_run
from gradlens.errors import RecorderError, RunFileError
from gradlens.events import Ended, EpochDone, Note, StepDone
from gradlens.run import Row, Run
from gradlens.storage import FileSink
from gradlens.train import train_run
from gradlens.train.checkpoint import checkpoint_path, save_checkpoint
from tests.train.resume_cases import cases
from tests.train.test_resume import config
from tests.train.test_train import assert_equal_runs


@pytest.fixture(autouse=True)
def few_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    few(40, monkeypatch)


def few(count: int, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("gradlens.data.patterns.TRAIN_IMAGES", count)
    patch.setattr("gradlens.data.patterns.VAL_IMAGES", 10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run without errors."""
    path = tmp_path_factory.mktemp("whole") / "a.h5"
    with pytest.MonkeyPatch.context() as patch:
        few(40, patch)
        train_run(config(), path)
    return read_run(path)


def failing(after: int, error: Exception) -> type[FileSink]:
    """Return a sink that takes so many rows and then fails."""

    class Failing(FileSink):
        def write_row(self, row: Row | Callable[[], Row]) -> None:
            nonlocal after
            if after <= 0:
                raise error
            after -= 1
            super().write_row(row)

    return Failing


FULL = RunFileError("a.h5 cannot be written: No space left on device", tip="is there room?")


@pytest.mark.parametrize(
    ("choice", "rows"), [("stop", 6), pytest.param("continue", 2, marks=pytest.mark.slow), ("continue", 6)]
)
def test_an_error_of_recording_ends_the_training_or_not_and_the_run_goes_on(
    choice: str, rows: int, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = tmp_path / "a.h5", []
    settings = config(on_record_error=choice)
    with monkeypatch.context() as patch:
        patch.setattr("gradlens.train.resume.FileSink", failing(rows, FULL))
        if choice == "stop":
            with pytest.raises(RunFileError, match="cannot be written: No space left on device"):
                train_run(settings, path, listener=said.append)
        else:
            assert train_run(settings, path, listener=said.append) == "failed"
    epochs = [event.epoch for event in said if isinstance(event, EpochDone)]
    notes = [event for event in said if isinstance(event, Note)]
    if choice == "continue":
        assert len(notes) == 1
        assert notes[0].warning
        assert notes[0].text.startswith("recording ended at step ")
        assert notes[0].text.endswith(f"{FULL.message}; training continues without recording")
        assert isinstance(said[-1], Ended)
        step = said[-1].recorded_until
        assert step is not None
        assert rows <= step <= 8
        assert said[-1].reason == f"recording ended at step {step}; training continued to its end"
    assert epochs == ([1, 2, 3] if choice == "continue" else [1][: rows // 4])
    assert (read_run(path).status, len(read_run(path).steps)) == ("failed", rows)
    assert train_run(config(), path, resume=True, listener=said.append) == "complete"
    assert_equal_runs(read_run(path), whole)
    assert not checkpoint_path(path).exists()


def test_any_error_of_recording_ends_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlens.train.resume.FileSink", failing(5, ZeroDivisionError("by\nzero")))
    with pytest.raises(RecorderError, match=r"^recording ended at step \d+: ZeroDivisionError: by \(tip: "):
        train_run(config(), tmp_path / "a.h5")


@pytest.mark.parametrize("choice", ["stop", pytest.param("continue", marks=pytest.mark.slow)])
def test_a_checkpoint_that_cannot_be_written_ends_the_training_or_not(
    choice: str, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = tmp_path / "a.h5", []

    def full(place: Path, state: dict[str, Any]) -> None:
        if "model" in state:
            raise RunFileError(f"the checkpoint {place.name} cannot be written: No space left on device")
        save_checkpoint(place, state)

    def listen(event: object) -> None:
        said.append(event)
        if choice == "continue" and isinstance(event, StepDone) and event.epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gradlens.train.saving.save_checkpoint", full)
        with pytest.raises(RunFileError if choice == "stop" else KeyboardInterrupt):
            train_run(config(on_record_error=choice), path, listener=listen)
    notes = [event.text for event in said if isinstance(event, Note)]
    text = "a.ckpt cannot be written: No space left on device; training continues; after a kill --resume would start"
    assert notes == ([] if choice == "stop" else [f"the checkpoint {text} from the start"])
    assert len(read_run(path).epochs["epoch"]) == (1 if choice == "stop" else 2)
    assert train_run(config(), path, resume=True) == "complete"
    assert_equal_runs(read_run(path), whole)


# --- a disk without room --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def no_room(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What commands came to whose files could not grow any more."""
    folder = tmp_path_factory.mktemp("no_room")
    return folder, cases(folder, "no_room")


needs_limits = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork, no limits")


@needs_limits
@pytest.mark.slow
def test_no_room_for_a_checkpoint(no_room: tuple[Path, dict[str, Any]]) -> None:
    folder, found = no_room
    stop, goes_on = found["checkpoint-stop"], found["checkpoint-continue"]
    assert stop["code"] == 1
    text = "the checkpoint runs/plain8-s0.ckpt cannot be written: File too large"
    assert f"Error: {text}\n" in stop["said"]
    assert "Traceback" not in stop["said"]
    assert goes_on["code"] == 0
    assert " ".join(goes_on["said"].split()).count(f"warning: {text}; training continues; after a kill") == 1
    assert "complete after 2 epochs" in goes_on["said"]
    assert found["checkpoint-stop-resumed"]["code"] == 0
    runs = [folder / f"checkpoint-{choice}/runs" for choice in ("stop", "continue")]
    assert_equal_runs(*(read_run(place / "plain8-s0.h5") for place in runs))
    assert [path.name for place in runs for path in place.iterdir()] == ["plain8-s0.h5"] * 2


@needs_limits
@pytest.mark.slow
def test_no_room_for_rows_is_said(no_room: tuple[Path, dict[str, Any]]) -> None:
    stop, goes_on = (no_room[1][f"rows-{choice}"]["said"] for choice in ("stop", "continue"))
    assert "Error: " in stop
    assert "epoch   5" not in stop
    assert " ".join(goes_on.split()).count("warning: recording ended at step ") == 1
    assert "failed after 5 epochs" in goes_on
    assert "Error: runs/Drawing-s0.h5: recording ended at step " in goes_on
    assert "Tip: --resume continues from there and records what is missing" in goes_on
    assert "Traceback" not in stop + goes_on


@needs_limits
@pytest.mark.slow
def test_no_room_for_rows_ends_well_and_the_run_goes_on(no_room: tuple[Path, dict[str, Any]]) -> None:
    folder, found = no_room
    whole = read_run(folder / "rows-whole/runs/Drawing-s0.h5")
    for choice in ("stop", "continue"):
        assert found[f"rows-{choice}"]["code"] == 1
        assert found[f"rows-{choice}-resumed"]["code"] == 0
        assert "continuing after epoch 3" in found[f"rows-{choice}-resumed"]["said"]
        assert_equal_runs(read_run(folder / f"rows-{choice}/runs/Drawing-s0.h5"), whole)
