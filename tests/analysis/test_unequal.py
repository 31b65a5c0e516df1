"""Runs that are not equal are compared where all are, and the first line says in what they differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradlens import compare, read_run
from gradlens.analysis.compare import find_lead, say_interval
from gradlens.analysis.groups import group_runs, repeated_runs
from gradlens.analysis.highlights import notable
from gradlens.analysis.step_curves import StepWindow, logged_scalars
from gradlens.errors import ConfigError
from gradlens.run import Run
from gradlens.terminal.compare import compare_card


def with_scalars(run: Run, **scalars: np.ndarray) -> Run:
    return replace(run, scalars=scalars)


def own_runs(make_run, *steps: int) -> list[Run]:
    """Return runs as an own loop makes them: no seed, no epochs; names a, b, ..."""
    return [read_run(make_run(name, seed=-1, steps=n, epochs=0)) for name, n in zip("abc", steps, strict=False)]


def test_scalars_are_compared_over_steps_where_no_epoch_was_logged(make_run) -> None:
    a, b = own_runs(make_run, 40, 60)
    found = compare([a, b])
    assert (found.unit, found.groups[0].end, found.groups[0].window) == ("step", 39, StepWindow(39, 59, 2))
    assert list(found.columns) == ["loss"]  # the learning rate never changes
    # by hand: the loss is 1 / (step + 1), and the window of two steps ends at step 39
    assert found.table()[0]["a"].mean == pytest.approx((1 / 39 + 1 / 40) / 2)
    assert found.table()[0]["b"].mean == found.table()[0]["a"].mean
    assert found.groups[1].final("loss", own=True).mean == pytest.approx((1 / 59 + 1 / 60) / 2)
    grid, (curve,) = found.groups[0].positions, found.groups[0].curve("loss")
    truth = [np.mean([1 / (s + 1) for s in range(max(int(at) - 1, 0), int(at) + 1)]) for at in grid if at < 40]
    np.testing.assert_allclose(curve[grid < 40], truth)
    assert np.isnan(curve[grid >= 40]).all()
    assert str(found).startswith("not equal: a has 40 steps, b has 60 steps; the comparison is at step 39, ")
    assert [group.label for group in found.groups] == ["a", "b"]


def test_an_accuracy_decides_before_a_loss_and_a_lost_number_is_no_number(make_run) -> None:
    a, b = own_runs(make_run, 20, 20)
    rising, falling = np.linspace(0, 1, 20), np.linspace(1, 0, 20)
    runs = [with_scalars(a, loss=falling, val_acc=falling, lr=rising), with_scalars(b, loss=rising, val_acc=rising)]
    assert list(logged_scalars(runs)) == ["loss", "val_acc", "lr"]
    lead = find_lead(list(compare(runs).groups))
    assert (lead.column, lead.best.label) == ("val_acc", "b")
    broken = with_scalars(a, loss=np.where(np.arange(20) < 15, falling, np.nan))
    found = compare([broken, with_scalars(b, accuracy=rising)])
    assert [say_interval(group.final("loss")) for group in found.groups] == ["not finite", "-"]
    assert compare_card(list(found.groups)).verdict == "loss of a is not finite"
    same = compare_card(list(compare([a, b]).groups))
    assert (same.verdict, find_lead(list(compare([a, b]).groups)).difference.mean) == ("a and b are equal in loss", 0)


def test_epochs_are_compared_at_the_last_that_all_have(make_run) -> None:
    a = read_run(make_run("a", model="a", epochs=2))
    b = read_run(make_run("b", model="b", epochs=4, config={"data": "other"}, status="running"))
    found = compare([a, b])
    assert found.table()[2]["b"].mean == 1 / 2  # the training loss is 1 / epoch; b's own last is 1 / 4
    assert found.groups[1].final("train_loss", own=True).mean == 1 / 4
    first, head, *_ = str(found).splitlines()
    assert first == (
        "not equal: a, seed 0 has 2 epochs, b, seed 0 has 4 epochs; the comparison is at epoch 2, the last that all "
        "have; b, seed 0 is still running; different settings: data unknown | other"
    )
    assert head.startswith("epoch 2 ")
    equal = compare([a, read_run(make_run("c", model="c", epochs=2))])
    assert equal.unequal == []
    assert str(equal).startswith("last epoch ")


def test_runs_with_and_without_epochs_are_told_apart(make_run) -> None:
    (own,) = own_runs(make_run, 20)
    one, two = (read_run(make_run(name, model=name)) for name in ("x", "y"))
    assert compare([own, one]).unit == "step"
    assert "a logged no epochs, so that all are compared over steps" in compare([own, one]).unequal
    both = compare([own, one, two])
    assert (both.unit, both.unequal[-1]) == ("epoch", "a has not finished an epoch: it is left out")
    assert len(compare([own, one, two], by="step").groups) == 3
    with pytest.raises(ConfigError, match="no run has finished an epoch"):
        compare([own], by="epoch")


def test_columns_that_were_never_logged_are_a_dash(make_run) -> None:
    run = read_run(make_run())
    nothing = np.full(2, np.nan)
    (group,) = group_runs([replace(run, epochs=dict(run.epochs) | {"val_loss": nothing})])
    assert say_interval(group.final("val_loss")) == "-"
    trained = replace(run, info=dict(run.info) | {"config": {"recipe": "quick"}}, epochs=group.runs[0].epochs)
    assert say_interval(group_runs([trained])[0].final("val_loss")) == "not finite"  # gradlens run logs every column


def test_files_of_one_name_in_two_folders_are_two_runs(make_run) -> None:
    runs = [read_run(make_run("a", folder=folder, seed=-1)) for folder in ("runs/x", "runs/y")]
    assert [group.label for group in group_runs(runs)] == ["x/a", "y/a"]
    assert repeated_runs([*runs, read_run(runs[0].path)])[0].path == runs[0].path
    assert "seed" not in repr(runs[0])
    assert runs[0].path != Path("a.h5")


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_nothing_overfits_after_few_epochs(epochs: int, make_run) -> None:
    run = read_run(make_run(accuracy=0.9, epochs=5))
    assert any("overfits" in sentence for sentence in notable(run))
    last = replace(run, epochs={name: values[-epochs:] for name, values in run.epochs.items()})
    assert not any("overfits" in sentence for sentence in notable(last))


@pytest.mark.parametrize(("images", "overfits"), [(8, False), (40, False), (400, True)])
@pytest.mark.parametrize("is_noted", [True, False])
def test_nothing_overfits_on_few_images(images: int, overfits: bool, is_noted: bool, make_run) -> None:
    """A gap of 0.125 with 8 or 40 images is one or five of them: less than two standard errors."""
    run = read_run(make_run(epochs=6))
    val = np.array([0.25, 0.5, 0.625, 0.625, 0.625, 0.625])
    val[0] += 1 / images  # in the file of another program, the accuracies alone tell the number of images
    facts = {"data_facts": {"val_images": images}} if is_noted else {}
    epochs = dict(run.epochs) | {"train_accuracy": np.full(6, 0.75), "val_accuracy": val}
    one = replace(run, epochs=epochs, info=dict(run.info) | {"config": facts})
    assert any("overfits" in sentence for sentence in notable(one)) == overfits


def test_a_gap_that_comes_and_goes_is_no_overfitting(make_run) -> None:
    run = read_run(make_run(epochs=6))
    epochs = dict(run.epochs) | {"train_accuracy": np.full(6, 0.9001), "val_accuracy": np.array([0.7, 0.9] * 3)[::-1]}
    assert not any("overfits" in sentence for sentence in notable(replace(run, epochs=epochs)))


def test_all_models_of_the_best_mean_are_called_equal(make_run) -> None:
    tied = [make_run(f"{model}-s0", model=model, accuracy=0.5) for model in ("a", "b", "c")]
    card = compare_card(list(compare(tied).groups))
    assert card.verdict == "a, b and c are equal in validation accuracy"
    assert "best of" not in str(card.lines)
    card = compare_card(list(compare([*tied, make_run("d-s0", model="d", accuracy=0.3)]).groups))
    assert "these are the 3 best of 4 groups" in str(card.lines)


def test_a_lead_over_a_single_run_names_the_numbers_of_runs(make_run) -> None:
    runs = [make_run(f"a-s{seed}", model="a", seed=seed, accuracy=0.6 + 0.01 * seed) for seed in range(2)]
    card = compare_card(list(compare([*runs, make_run("b-s0", model="b")]).groups))
    assert card.verdict == "a is ahead of b in validation accuracy, by 2 runs against 1 run"
