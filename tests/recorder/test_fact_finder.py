"""Facts of the set-up: each is found, the same program without it shows nothing, and the training stays the same."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

import gradlens.recorder.facts.fact_finder
from gradlens.recorder import Recorder
from gradlens.recorder.facts.fact_finder import is_look
from gradlens.sinks import ListSink
from tests.recorder.fact_programs import STEPS, Branches, classes, cross_entropy, follow, inputs, mlp

LOOKS = [0, 1, 2, 3, 4, 8]


def states(facts: dict) -> dict[str, tuple]:
    """Return each layer's gradient state, since when it is so, and what was seen."""
    return {
        layer: (each["gradient"], each["since"], each["seen"])
        for each in facts["parameters"]
        for layer in each["layers"]
    }


def test_looks_are_ever_rarer() -> None:
    assert [step for step in range(STEPS) if is_look(step)] == LOOKS
    assert sum(map(is_look, range(10_000))) == 16
    model = mlp()
    facts = follow(model, lambda step: cross_entropy(model, step))
    assert (facts["version"], facts["first_step"], facts["last_step"], facts["looks"]) == (1, 0, 8, 6)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize(
    ("where", "state"),
    [
        ("before backward", ("arriving", 0, ["arriving"])),
        ("never", ("kept", 1, ["arriving", "kept"])),
        ("before step", ("cleared", 0, ["cleared"])),
    ],
)
def test_where_gradients_are_cleared(where: str, state: tuple, *, set_to_none: bool) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def clear(place: str) -> None:
        if where == place:
            optimizer.zero_grad(set_to_none=set_to_none)

    def loss(step: int) -> torch.Tensor:
        clear("before backward")
        return cross_entropy(model, step)

    facts = follow(model, loss, optimizer=optimizer, clear=False, between=lambda step: clear("before step"))
    assert states(facts) == {"0": state, "2": state}


def test_gradients_cleared_past_the_version_counter_are_cleared() -> None:
    model = mlp()

    def loss(step: int) -> torch.Tensor:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.data.zero_()
        return cross_entropy(model, step)

    assert states(follow(model, loss, clear=False))["0"] == ("arriving", 0, ["arriving"])


def test_accumulated_gradients_are_not_kept_ones() -> None:
    model = mlp()

    def loss(step: int) -> torch.Tensor:
        model.zero_grad()
        cross_entropy(model, step).backward()
        return cross_entropy(model, step + 100)

    assert states(follow(model, loss, clear=False))["0"] == ("arriving", 0, ["arriving"])


def test_no_gradient_zero_gradient_and_a_stale_one() -> None:
    model = Branches(lambda h: h.detach())
    nn.init.zeros_(model.head.weight)
    model.head.weight.requires_grad_(requires_grad=False)
    facts = follow(model, lambda step: cross_entropy(model, step))
    found = {(layer, each["gradient"]) for each in facts["parameters"] for layer in each["layers"]}
    assert found == {
        ("encoder.0", "none"), ("encoder.2", "none"), ("other", "zero"), ("head", "none"), ("head", "arriving")
    }  # fmt: skip
    assert [each["names"] for each in facts["parameters"] if each["weights_zero"]] == [["weight"]]
    model = Branches(lambda h: h)

    def loss(step: int) -> torch.Tensor:
        model.encoder.requires_grad_(requires_grad=step < 2)
        for layer in (model.other, model.head) if step > 1 else model.children():
            layer.zero_grad()
        return cross_entropy(model, step)

    found = states(follow(model, loss, clear=False))
    assert found["encoder.0"] == ("stale", 2, ["arriving", "stale"])
    assert found["head"] == ("arriving", 0, ["arriving"])


def test_requires_grad_that_changes_later() -> None:
    model = mlp()

    def loss(step: int) -> torch.Tensor:
        model[0].requires_grad_(requires_grad=step < 3)
        return cross_entropy(model, step)

    first = next(each for each in follow(model, loss)["parameters"] if each["layers"] == ["0"])
    assert (first["requires_grad"], first["gradient"], first["since"]) == (False, "none", 3)


def test_membership_in_optimizers() -> None:
    model = mlp()
    stranger = nn.Linear(2, 2)
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": stranger.parameters(), "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9))
    facts = follow(model, lambda step: cross_entropy(model, step), optimizer=optimizer)
    assert {each["layers"][0]: (each["optimizer"], each["group"]) for each in facts["parameters"]} == {
        "0": (0, 0),
        "2": (None, None),
    }
    (adam,) = facts["optimizers"]
    assert (adam["class"], adam["steps"], adam["foreign"]) == ("AdamW", STEPS, {"count": 2, "numel": 6})
    assert [(group["layers"], group["lr"]["last"]) for group in adam["groups"]] == [(["0"], 0.5), ([], 0.1)]
    assert adam["groups"][1]["settings"]["weight_decay"] == 0.1
    assert adam["groups"][0]["settings"]["betas"] == [0.8, 0.9]
    assert facts["totals"] == {
        "count": 4, "numel": 67, "trainable": 67, "in_optimizer": 40, "without_optimizer": 27
    }  # fmt: skip


def test_a_schedule_that_brings_the_rate_to_nothing() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
    facts = follow(
        model, lambda step: cross_entropy(model, step), optimizer=optimizer, after=lambda step: schedule.step()
    )
    (group,) = facts["optimizers"][0]["groups"]
    rate = group["lr"]
    assert (rate["first"], rate["largest"], rate["largest_step"]) == (0.1, 0.1, 0)
    assert (rate["changes"], rate["every"], rate["since"], rate["near_zero_since"]) == (5, 2, 10, 8)
    assert facts["optimizers"][0]["schedulers"] == [
        {"class": "StepLR", "calls": STEPS, "settings": {"step_size": 2, "gamma": 0.1}}
    ]


def test_a_constant_rate_and_one_that_returns_are_not_near_zero() -> None:
    for rates in ([0.1] * STEPS, [1e-9, *[0.1] * (STEPS - 1)], [0.1, 1e-9, *[0.1] * (STEPS - 2)]):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def loss(step: int, model=model, optimizer=optimizer, rates=rates) -> torch.Tensor:
            optimizer.param_groups[0]["lr"] = rates[step]
            return cross_entropy(model, step)

        facts = follow(model, loss, optimizer=optimizer)
        assert facts["optimizers"][0]["groups"][0]["lr"]["near_zero_since"] is None
        assert facts["optimizers"][0]["schedulers"] == []


def test_evaluation_mode_that_stays_on() -> None:
    model = mlp(nn.BatchNorm1d(3), nn.Dropout(0.5))

    def loss(step: int) -> torch.Tensor:
        if step == 6:
            model.eval()
        return cross_entropy(model, step)

    (mode,) = follow(model, loss)["modes"]
    assert mode == {
        "mode": "eval", "layers": ["3", "4"], "kinds": ["BatchNorm1d", "Dropout"], "count": 2, "since": 6,
        "seen": ["eval", "train"], "dropped": 0.5,
    }  # fmt: skip
    model.train()
    (mode,) = follow(model, lambda step: cross_entropy(model, step))["modes"]
    assert (mode["mode"], mode["since"], mode["seen"]) == ("train", 0, ["train"])


@pytest.mark.parametrize(("momentum", "first", "last"), [(0.0, 3.0, 3.0), (1.0, 0.0, 0.0), (0.5, 1.5, 3 / 2**9)])
def test_how_far_running_statistics_are_from_the_batch(momentum: float, first: float, last: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(2, momentum=momentum), nn.Linear(2, 3))
    x = torch.tensor([-1.0, 1.0]).repeat(8)[:, None].expand(16, 2) + 3  # mean 3, standard deviation 1
    (norm,) = follow(model, lambda step: functional.cross_entropy(model(x), classes(0)))["batch_norm"]
    assert norm["momentum"] == momentum
    assert norm["first_mean_distance"] == pytest.approx(first, abs=1e-4)
    assert norm["mean_distance"] == pytest.approx(last, abs=1e-4)
    assert norm["step"] == 8


def test_clipping_before_and_after_the_step() -> None:
    model = mlp()

    def loss(step: int) -> torch.Tensor:
        return cross_entropy(model, step)

    def clip(step: int) -> None:
        norms.append(float(clip_grad_norm_(model.parameters(), 0.01)))

    norms: list[float] = []
    (found,) = follow(model, loss, between=clip)["clipping"]
    assert (found["when"], found["max_norm"], found["count"], found["of"]) == ("before_step", 0.01, 4, 4)
    assert (found["first_step"], found["last_step"], found["looks"]) == (0, 8, 6)
    seen = [norms[step] for step in LOOKS]
    assert found["total_norm"][::2] == pytest.approx([min(seen), max(seen)])
    assert found["coefficient"][::2] == pytest.approx([0.01 / max(seen), 0.01 / min(seen)], rel=1e-3)
    assert [each["when"] for each in follow(model, loss, after=clip)["clipping"]] == ["after_step"]
    assert follow(model, loss)["clipping"] == []


@pytest.mark.parametrize("given", [True, False])
def test_a_gradient_scaler_that_was_given_or_not(*, given: bool) -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    with Recorder(model, sink, optimizer=optimizer, scaler=scaler if given else None):
        for step in range(STEPS):
            optimizer.zero_grad()
            scaler.scale(cross_entropy(model, step)).backward()
            clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    assert sink.facts["scaling"] == {
        "scaler_given": given, "scaler_seen": True, "scale": 512.0, "root_factor": 512.0, "unscaled": True, "since": 0
    }  # fmt: skip
    assert {each["when"] for each in sink.facts["clipping"]} == ({"scaled"} if given else {"before_step", "scaled"})


def test_a_loss_scaled_by_a_constant() -> None:
    model = mlp()
    scaling = follow(model, lambda step: cross_entropy(model, step) * 1024)["scaling"]
    assert (scaling["scaler_seen"], scaling["root_factor"], scaling["since"]) == (False, 1024.0, 0)
    scaling = follow(model, lambda step: cross_entropy(model, step))["scaling"]
    assert (scaling["root_factor"], scaling["since"]) == (None, None)


def clamp(model: nn.Module) -> None:
    for parameter in model[0].parameters():
        parameter.data.clamp_(-0.01, 0.01)  # past the version counter


@pytest.mark.parametrize(("act", "layers"), [(clamp, [["0"]]), (lambda model: None, [])])
def test_parameters_that_change_outside_the_optimizer(act: Callable[[nn.Module], None], layers: list) -> None:
    model = mlp()
    facts = follow(model, lambda step: cross_entropy(model, step), after=lambda step: act(model))
    assert [each["layers"] for each in facts["changed_outside"]] == layers
    for each in facts["changed_outside"]:
        assert (each["in_optimizer"], each["first_step"], each["last_step"], each["looks"]) == (True, 1, 8, 5)


def test_weights_that_are_not_a_number_do_not_change() -> None:
    model = mlp()
    nn.init.constant_(model[0].weight, torch.nan)
    assert follow(model, lambda step: cross_entropy(model, step))["changed_outside"] == []


@pytest.mark.parametrize("kind", ["follows", "equal at first", "another"])
def test_copies_of_other_layers(kind: str) -> None:
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    other = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    target = (other if kind == "another" else copy.deepcopy(online)).requires_grad_(requires_grad=False)
    model = nn.ModuleDict({"online": online, "target": target})

    def average(step: int) -> None:
        for mine, theirs in zip(target.parameters(), online.parameters(), strict=True):
            mine.data.lerp_(theirs.data, 0.1 if kind == "follows" else 0.0)

    facts = follow(model, lambda step: cross_entropy(online, step), after=average, parameters=online.parameters())
    if kind == "another":
        assert facts["copies"] == []
        return
    (found,) = facts["copies"]
    assert (found["layer"], found["of"], found["count"], found["numel"]) == ("target", "online", 4, 67)
    assert (found["moves"], found["in_optimizer"], found["step"]) == (kind == "follows", False, 8)
    assert 0 < found["distance"] < 0.5


def test_dtypes_are_told_apart() -> None:
    model = mlp()
    model[0].double()
    facts = follow(model, lambda step: model[2](torch.tanh(model[0](inputs(step, 16, 4).double())).float()).sum())
    assert {each["layers"][0]: each["dtype"] for each in facts["parameters"]} == {"0": "float64", "2": "float32"}


def test_a_step_with_a_closure_and_steps_by_hand() -> None:
    model, sink = mlp(), ListSink()
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=2)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model, 0)
        loss.backward()
        return loss

    with Recorder(model, sink, optimizer=optimizer):
        for _ in range(3):
            optimizer.step(closure)
    assert states(sink.facts)["0"] == ("arriving", 0, ["arriving"])
    sink = ListSink()
    with Recorder(model, sink) as recorder:
        for step in range(3):
            model.zero_grad()
            cross_entropy(model, step).backward()
            recorder.step()
    assert states(sink.facts)["0"] == ("arriving", 0, ["arriving"])
    assert (sink.facts["optimizers"], sink.facts["last_step"]) == ([], 2)


# --- harmless -------------------------------------------------------------------------------------------------


def trained(model: nn.Module, *, recorded: bool) -> list[torch.Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with Recorder(model, ListSink(), optimizer=optimizer) if recorded else contextlib.nullcontext():
        torch.manual_seed(1)
        for step in range(20):
            optimizer.zero_grad()
            cross_entropy(model, step).backward()
            clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    return [*model.parameters(), *model.buffers(), torch.get_rng_state()]


def test_training_is_bit_equal() -> None:
    model = mlp(nn.BatchNorm1d(3), nn.Dropout(0.2))
    other = copy.deepcopy(model)
    pairs = zip(trained(model, recorded=True), trained(other, recorded=False), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "broken", ["loss_graph.read_graph", "unregistered_leaves.find_holders", "loss_graph.read_loss"]
)
def test_an_error_leaves_no_facts_and_does_no_harm(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(f"gradlens.recorder.facts.loss.{broken}", fail)
    model, other = mlp(), nn.Linear(3, 1)
    backward, clip = torch.autograd.backward, torch.nn.utils.clip_grad._clip_grads_with_norm_
    facts = follow(model, lambda step: other(model(inputs(step, 16, 4))).mean())
    assert facts == {}
    assert (torch.autograd.backward, torch.nn.utils.clip_grad._clip_grads_with_norm_) == (backward, clip)
    assert not torch.nn.modules.module._global_forward_hooks


def test_what_is_put_in_place_is_removed_between_looks_and_at_the_end() -> None:
    backward, placed = torch.autograd.backward, []

    def note(step: int) -> None:
        placed.append((torch.autograd.backward is not backward, bool(torch.nn.modules.module._global_forward_hooks)))

    model = mlp()
    follow(model, lambda step: cross_entropy(model, step), between=note)
    assert placed == [(step in LOOKS, step in LOOKS) for step in range(STEPS)]
    assert torch.autograd.backward is backward


def test_a_wrapper_by_others_stays_and_works() -> None:
    model, calls, original = mlp(), [], torch.autograd.backward

    def loss(step: int) -> torch.Tensor:
        if step == 1:
            inner = torch.autograd.backward

            def counted(*args: object, **kwargs: object) -> None:
                calls.append(1)
                inner(*args, **kwargs)

            torch.autograd.backward = counted
        return cross_entropy(model, step)

    try:
        facts = follow(model, loss)
        assert len(calls) == STEPS - 1
        assert states(facts)["0"] == ("arriving", 0, ["arriving"])
    finally:
        torch.autograd.backward = original


@pytest.mark.slow
def test_a_model_that_is_compiled_later_is_neither_warned_of_nor_compiled_more_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def train() -> tuple[int, dict, list[str]]:
        compiled: list[int] = []

        def backend(graph: torch.fx.GraphModule, example: object) -> Callable[..., object]:
            compiled.append(1)
            return graph.forward

        torch.compiler.reset()
        model, sink = mlp(nn.BatchNorm1d(3)), ListSink()  # batch norms are looked at in later steps too
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with warnings.catch_warnings(record=True) as caught, Recorder(model, sink, optimizer=optimizer):
            warnings.simplefilter("always")
            wrapped = torch.compile(model, backend=backend, fullgraph=True)
            for step in range(STEPS):
                optimizer.zero_grad()
                functional.cross_entropy(wrapped(inputs(step, 16, 4)), classes(step)).backward()
                optimizer.step()
        return len(compiled), sink.facts, [str(warning.message) for warning in caught]

    count, facts, said = train()
    assert states(facts)["0"] == ("arriving", 0, ["arriving"])
    assert facts["graph"]["cut"] == []
    monkeypatch.setattr(gradlens.recorder.facts.fact_finder.FactFinder, "start", lambda self: None)
    assert train() == (count, {}, said)


def test_what_layers_get_in_the_first_steps() -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.cells, self.head = nn.Linear(4, 5), nn.GRU(5, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.cells(self.first(x).view(4, 4, 5))[0][-1])
            return out

    torch.manual_seed(0)
    model = Cells()
    one, same = 50 * inputs(0, 16, 4), 3 * torch.ones(16, 4)
    facts = follow(model, lambda step: model(one + step).square().mean())["inputs"]
    first, cells = facts
    assert [(each["layer"], each["data"], each["batch_first"]) for each in facts] == [
        ("first", True, None), ("cells", False, False)
    ]  # fmt: skip
    assert (first["shape"], cells["shape"], first["same"], first["calls"]) == ([16, 4], [4, 4, 5], False, 3)
    for key, value in (("least", one.min()), ("largest", one.max()), ("mean", one.mean()), ("rms", one.norm() / 8)):
        assert first[key] == pytest.approx(float(value), rel=1e-5), key
    assert "least" not in cells
    assert follow(model, lambda step: model(same).square().mean())["inputs"][0]["same"] is True
    same[0, 0] = float("nan")
    assert follow(model, lambda step: model(same).square().mean())["inputs"][0]["finite"] is False


def test_weights_whose_rows_are_all_the_same() -> None:
    model = mlp()
    nn.init.constant_(model[0].weight, 0.1)
    alike = [each["rows_alike"] for each in follow(model, lambda step: cross_entropy(model, step))["parameters"]]
    assert alike == [False]  # random weights behind them tell the units apart
    nn.init.constant_(model[0].weight, 0.1)
    nn.init.constant_(model[2].weight, 0.1)
    found = follow(model, lambda step: 0 * cross_entropy(model, step))["parameters"]
    assert sorted((each["rows_alike"], each["count"]) for each in found) == [(False, 2), (True, 2)]


def test_initial_weights_and_padding_are_measured() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(40, 3))
    words = torch.tensor([[1, 2, 0, 0, 0], [3, 4, 5, 6, 7], [0, 1, 2, 3, 0], [1, 0, 0, 0, 0]]).repeat(4, 1)
    found = follow(model, lambda step: functional.cross_entropy(model(words), classes(0)), steps=2)
    (data,) = found["inputs"]
    assert data["padded"] == 0.5
    gains = {item["layer"]: item["gain"] for item in found["gains"]}
    assert gains["2"] == pytest.approx(3**-0.5, rel=0.1)  # uniform in +-1/sqrt(40)


def test_a_look_asks_the_host_only_when_the_optimizer_has_stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def count(name: str) -> None:
        usual = getattr(torch.Tensor, name)

        def counted(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
            asked.append(name)
            return usual(tensor, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)

    for name in ("tolist", "item", "cpu", "numpy", "__float__", "__bool__"):
        count(name)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before: list[int] = []
    after: list[int] = []
    with Recorder(model, ListSink(), optimizer=optimizer, metrics=("param_norm",)):
        for step in range(5):
            asked.clear()
            optimizer.zero_grad(set_to_none=False)
            cross_entropy(model, step).backward()
            clip_grad_norm_(model.parameters(), 1.0)
            before.append(len(asked))
            optimizer.step()
            after.append(len(asked) - before[-1])
    assert before[3:] == [0, 0]
    assert 0 < max(after[3:]) <= 6


def test_recordings_that_do_not_end_in_turn_leave_no_wrapper(tmp_path: Path) -> None:
    before = torch.autograd.backward, torch.autograd.grad
    for turn in range(3):
        recorders = []
        for k in range(3):
            model = nn.Linear(2, 2)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            recorders.append(gradlens.record(model, tmp_path / f"{turn}-{k}.h5", optimizer=optimizer).start())
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        assert torch.autograd.backward is not before[0]  # they look at their next steps
        for k in ((0, 1, 2), (0, 2, 1), (1, 0, 2))[turn]:
            recorders[k].close()
        assert (torch.autograd.backward, torch.autograd.grad) == before
