"""What the graph of a loss shows: each fault is found, and the same program without it shows nothing."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradlens.recorder import Recorder
from gradlens.sinks import ListSink
from tests.recorder.fact_programs import Branches, Hidden, classes, cross_entropy, follow, inputs, mlp
from tests.torch_versions import needs_saved_tensors, needs_single_edges


def graph_of(model: nn.Module, loss: Callable[[Tensor, int], Tensor], *, steps: int = 4) -> dict:
    return follow(model, lambda step: loss(model(inputs(step, 16, 4)), step), steps=steps)["graph"]


def entropy(out: Tensor, step: int) -> Tensor:
    return functional.cross_entropy(out, classes(step))


def test_a_plain_classifier_shows_its_loss_and_nothing_else() -> None:
    graph = graph_of(mlp(), entropy)
    assert graph["losses"] == [
        {
            "op": "NllLoss",
            "reduction": "mean",
            "classes": 3,
            "shape": [16, 3],
            "negated": False,
            "alone": True,
            "scaled": False,
            "passes": 3,
            "since": 0,
        }
    ]
    assert [(out["op"], out["layer"], out["loss"]) for out in graph["outputs"]] == [("Addmm", "2", "NllLoss")]
    assert (graph["source"], graph["passes"], graph["complete"], graph["no_graph"]) == ("backward", 3, True, None)
    faults = ("softmax_twice", "probabilities_as_logs", "softmax_dims", "broadcast", "unregistered", "cut")
    assert {name: graph[name] for name in faults} == {name: [] for name in faults}


@pytest.mark.parametrize(
    ("model", "loss", "found"),
    [
        pytest.param(mlp(nn.Softmax(1)), entropy, ("LogSoftmax", "Softmax", "3"), id="module"),
        pytest.param(mlp(), lambda out, s: entropy(out.softmax(-1) / 0.5, s), ("LogSoftmax", "Softmax", None), id="op"),
        pytest.param(mlp(nn.Sigmoid()), entropy, ("LogSoftmax", "Sigmoid", "3"), id="sigmoid"),
        pytest.param(
            mlp(nn.Sigmoid()),
            lambda out, s: functional.binary_cross_entropy_with_logits(out, (out > 0.5).float()),
            ("BinaryCrossEntropyWithLogits", "Sigmoid", "3"),
            id="binary",
        ),
        pytest.param(mlp(), entropy, None, id="logits"),
        pytest.param(mlp(nn.Tanh()), entropy, None, id="tanh"),
        pytest.param(
            mlp(nn.LogSoftmax(1)), lambda out, s: functional.nll_loss(out, classes(s)), None, id="log-softmax and nll"
        ),
        pytest.param(
            mlp(nn.Sigmoid()),
            lambda out, s: functional.binary_cross_entropy(out, (out > 0.5).float()),
            None,
            id="sigmoid and bce",
        ),
    ],
)
def test_an_activation_before_a_loss_that_applies_its_own(
    model: nn.Module, loss: Callable[[Tensor, int], Tensor], found: tuple | None
) -> None:
    twice = [(fact["loss"], fact["op"], fact["layer"]) for fact in graph_of(model, loss)["softmax_twice"]]
    assert twice == ([] if found is None else [found])


def test_probabilities_where_logarithms_are_expected() -> None:
    graph = graph_of(mlp(nn.Softmax(1)), lambda out, step: functional.nll_loss(out, classes(step)))
    assert graph["probabilities_as_logs"] == [{"loss": "NllLoss", "op": "Softmax", "layer": "3", "since": 0}]


@pytest.mark.parametrize(
    ("model", "loss", "found"),
    [
        pytest.param(mlp(nn.ReLU()), lambda out: functional.mse_loss(out, out.detach() + 1), ("3", "2"), id="module"),
        pytest.param(mlp(nn.ReLU(), nn.Flatten()), lambda out: (out - 1).abs().mean(), ("3", "2"), id="flattened"),
        pytest.param(mlp(), lambda out: (functional.relu(out) - 1).square().sum(), (None, "2"), id="op"),
        pytest.param(mlp(), lambda out: functional.relu(1 - out).mean(), (None, None), id="hinge loss"),
    ],
)
def test_relu_as_the_last_operation(
    model: nn.Module, loss: Callable[[Tensor], Tensor], found: tuple[str | None, str | None]
) -> None:
    outputs = graph_of(model, lambda out, step: loss(out))["outputs"]
    assert [(out["op"], out["layer"], out["behind"]) for out in outputs] == [("Relu", *found)]
    assert [out["op"] for out in graph_of(mlp(), lambda out, step: loss(out) * 0 + out.sum())["outputs"]] != ["Relu"]


@pytest.mark.parametrize(
    ("shape", "dim", "found"),
    [((16, 1), 1, [(1, 1)]), ((16, 3), 0, [(0, 16)]), ((16, 3), 1, []), ((16, 3), -1, []), ((48,), 0, [])],
)
def test_softmax_over_one_element_or_over_the_batch(shape: tuple[int, ...], dim: int, found: list) -> None:
    model = nn.Sequential(nn.Linear(4, 1 if shape[-1] == 1 else 3))
    graph = graph_of(model, lambda out, step: (out.reshape(shape).softmax(dim) * inputs(step, *shape)).sum())
    assert [(fact["dim"], fact["elements"]) for fact in graph["softmax_dims"]] == found


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("loss", "found"),
    [
        pytest.param(lambda out, y: functional.mse_loss(out, y), ([16, 1], [16, 16]), id="mse"),
        pytest.param(lambda out, y: ((out - y) ** 2).mean(), ([16, 1], [16, 16]), id="by hand"),
        pytest.param(lambda out, y: (y - out).abs().mean(), ([16, 1], [16, 16]), id="the other way round"),
        pytest.param(lambda out, y: ((out[:, 0] - y[:, None]) ** 2).mean(), ([16], [16, 16]), id="target (N, 1)"),
        pytest.param(lambda out, y: functional.mse_loss(out[:, 0], y), None, id="equal shapes"),
        pytest.param(lambda out, y: ((out - y[:, None]) ** 2).mean(), None, id="equal shapes by hand"),
        pytest.param(lambda out, y: (out[:, 0][:, None] - y[None]).square().mean(), None, id="all pairs, meant"),
        pytest.param(lambda out, y: (out - 1).square().mean(), None, id="a number"),
        pytest.param(lambda out, y: ((out - torch.ones(16, 5)) ** 2).mean(), None, id="one output for five targets"),
    ],
)
def test_broadcasting_in_the_loss(loss: Callable[[Tensor, Tensor], Tensor], found: tuple | None) -> None:
    graph = graph_of(nn.Sequential(nn.Linear(4, 1)), lambda out, step: loss(out, inputs(step, 16)))
    shapes = [(fact["output"], fact["result"]) for fact in graph["broadcast"]]
    assert shapes == ([] if found is None else [found])


@pytest.mark.parametrize(
    ("cut", "how"),
    [
        pytest.param(lambda h: h.detach(), "detached", id="detach"),
        pytest.param(lambda h: h.data, "detached", id="data"),
        pytest.param(lambda h: torch.tensor(h.tolist()), "detached", id="rebuilt"),
        pytest.param(lambda h: h, None, id="whole"),
        pytest.param(lambda h: h.clone(), None, id="cloned"),
    ],
)
def test_modules_that_the_loss_does_not_reach(cut: Callable[[Tensor], Tensor], how: str | None) -> None:
    model = Branches(cut)
    found = follow(model, lambda step: cross_entropy(model, step))["graph"]["cut"]
    if how is None:
        assert found == []
    else:
        assert found == [
            {
                "layers": ["encoder.0", "encoder.2"], "last": "encoder.2", "next": "other", "how": how, "since": 0,
                "returned_by": None,
            }
        ]  # fmt: skip


def test_modules_that_run_without_a_graph() -> None:
    model = Branches(lambda h: h)
    forward = model.encoder.forward
    model.encoder.forward = torch.no_grad()(forward)
    (cut,) = follow(model, lambda step: cross_entropy(model, step))["graph"]["cut"]
    assert (cut["last"], cut["how"]) == ("encoder.2", "no_grad")


def test_a_frozen_encoder_is_not_cut() -> None:
    model = Branches(lambda h: h)
    model.encoder.requires_grad_(requires_grad=False)
    facts = follow(model, lambda step: cross_entropy(model, step))
    assert facts["graph"]["cut"] == []


def test_two_optimizers_in_turn_cut_nothing() -> None:
    torch.manual_seed(0)
    maker, judge = nn.Linear(4, 4), nn.Linear(4, 1)
    optimizers = [torch.optim.SGD(judge.parameters(), 0.1), torch.optim.SGD(maker.parameters(), 0.1)]
    sink = ListSink()
    with Recorder(nn.ModuleDict({"maker": maker, "judge": judge}), sink, optimizer=optimizers):
        for step in range(8):
            made = maker(inputs(step, 16, 4))
            optimizers[0].zero_grad()
            (judge(made.detach()).mean() - judge(inputs(step + 99, 16, 4)).mean()).backward()
            optimizers[0].step()
            optimizers[1].zero_grad()
            (-judge(made).mean()).backward()
            optimizers[1].step()
    assert sink.facts["graph"]["cut"] == []
    assert {each["gradient"] for each in sink.facts["parameters"]} == {"arriving", "zero"}  # of the judge's bias


def test_layers_in_a_plain_list() -> None:
    model = Hidden(registered=False)
    (found,) = follow(model, lambda step: cross_entropy(model, step))["graph"]["unregistered"]
    assert found == {
        "count": 4, "numel": 2 * (64 + 8), "shapes": [[8], [8, 8]], "parameter": True, "held_in": "middle",
        "in_optimizer": False, "between": True, "inside": True, "moves": False, "since": 0,
    }  # fmt: skip
    model = Hidden(registered=True)
    assert follow(model, lambda step: cross_entropy(model, step))["graph"]["unregistered"] == []


def test_a_model_behind_the_recorded_one_is_not_between() -> None:
    model, other = mlp(), nn.Linear(3, 1)
    facts = follow(model, lambda step: other(model(inputs(step, 16, 4))).mean())
    (found,) = facts["graph"]["unregistered"]
    assert (found["between"], found["held_in"], found["numel"]) == (False, None, 4)


def test_an_input_that_requires_a_gradient_is_no_parameter() -> None:
    model = mlp()
    facts = follow(model, lambda step: model(inputs(step, 16, 4).requires_grad_()).mean())
    assert [leaf["parameter"] for leaf in facts["graph"]["unregistered"]] == [False]


@pytest.mark.skipif(
    "GradientEdge" not in str(inspect.signature(torch.autograd.backward)), reason="this torch takes no edges"
)
@pytest.mark.parametrize("listed", [pytest.param(False, marks=needs_single_edges), True])
def test_a_pass_that_begins_at_an_edge_of_the_graph_reaches_what_a_tensor_would(*, listed: bool) -> None:
    """As in a pipeline that has released the outputs of its stage."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sink = ListSink()
    with Recorder(model, sink, optimizer=optimizer):
        for step in range(3):
            optimizer.zero_grad()
            edge = torch.autograd.graph.get_gradient_edge(model(inputs(step, 16, 4)).sum())
            torch.autograd.backward([edge] if listed else edge)
            optimizer.step()
    found = sink.facts["graph"]
    assert found["modules"] == graph_of(mlp(), lambda out, step: out.sum())["modules"]
    assert found["cut"] == []


def test_a_loss_without_a_graph() -> None:
    model = mlp()
    facts = follow(model, lambda step: torch.tensor(cross_entropy(model, step).item(), requires_grad=True))
    assert facts["graph"]["no_graph"] == {"since": 0, "passes": 3}
    assert [each["gradient"] for each in facts["parameters"]] == ["none"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_reduction_is_read(reduction: str) -> None:
    graph = graph_of(mlp(), lambda out, step: functional.mse_loss(out, inputs(step, 16, 3), reduction=reduction))
    assert [(loss["op"], loss["reduction"]) for loss in graph["losses"]] == [("MseLoss", reduction)]
    graph = graph_of(mlp(), lambda out, step: getattr(torch, reduction)(out.square()))
    assert [(loss["op"], loss["reduction"]) for loss in graph["losses"]] == [(reduction.title(), reduction)]


def test_classes_of_images_and_of_sequences() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 5, 1))
    y = torch.zeros(2, 3, 3, dtype=torch.long)
    facts = follow(model, lambda step: functional.cross_entropy(model(inputs(step, 2, 4, 3, 3)), y), steps=2)
    assert [loss["classes"] for loss in facts["graph"]["losses"]] == [5]


def test_batch_norm_in_the_graph_says_whether_it_trains() -> None:
    for training in (True, False):
        model = mlp(nn.BatchNorm1d(3)).train(training)
        graph = graph_of(model, entropy)
        assert graph["normalisation"] == [{"op": "NativeBatchNorm", "training": training, "count": 1, "since": 0}]


def test_the_logged_loss_is_read_where_backward_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp(nn.Softmax(1))
    optimizer, sink = torch.optim.SGD(model.parameters(), 0.1), ListSink()
    backward = torch.autograd.backward
    with Recorder(model, sink, optimizer=optimizer) as recorder:
        for step in range(4):
            optimizer.zero_grad()
            loss = cross_entropy(model, step)
            backward(loss)  # imported by name, before the recorder
            optimizer.step()
            recorder.log(loss=loss)
    graph = sink.facts["graph"]
    assert (graph["source"], graph["step"], len(graph["softmax_twice"])) == ("log", 0, 1)
    assert [each["gradient"] for each in sink.facts["parameters"]] == ["arriving"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_model_is_not_cut_and_runs_no_more_often(*, reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    model, calls = Branches(lambda h: h), []
    encoder = model.encoder.forward

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return encoder(x)

    model.encoder.forward = lambda x: checkpoint(counted, x, use_reentrant=reentrant)

    def loss(step: int) -> Tensor:
        x = inputs(step, 16, 4).requires_grad_()
        return functional.cross_entropy(model(x), classes(step))

    facts = follow(model, loss)
    assert (facts["graph"]["cut"], facts["graph"]["passes"], len(calls)) == ([], 3, 24)


def test_no_graph_and_no_tensor_stays_alive() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, ListSink(), optimizer=optimizer) as recorder:
        for step in range(6):
            optimizer.zero_grad()
            out = model(inputs(step, 16, 4))
            loss = functional.cross_entropy(out, classes(step))
            kept = [weakref.ref(out), weakref.ref(loss)]
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
            del out, loss
            gc.collect()
            assert [ref() for ref in kept] == [None, None]


@needs_saved_tensors
def test_the_targets_of_a_loss_are_read_unless_a_hook_would_have_to_run() -> None:
    y = torch.tensor([0, 0, 0, 2] * 4)
    found = graph_of(mlp(), lambda out, step: functional.cross_entropy(out, y))["targets"]
    assert [(each["op"], each["count"], each["distinct"], each["common"], each["passes"]) for each in found] == [
        ("NllLoss", 16, 2, 0.75, 3)
    ]
    target = torch.linspace(-3, 5, 48).view(16, 3)
    (number,) = graph_of(mlp(), lambda out, step: functional.mse_loss(out, target))["targets"]
    assert (number["least"], number["largest"], number["distinct"]) == (-3, 5, None)
    assert number["rms"] == pytest.approx(float(target.square().mean().sqrt()))
    unpacked: list[Tensor] = []

    def hooked(out: Tensor, step: int) -> Tensor:
        def unpack(tensor: Tensor) -> Tensor:
            unpacked.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
            return functional.mse_loss(out, target)

    assert graph_of(mlp(), hooked, steps=1)["targets"] == []
    assert len(unpacked) == 2  # by the backward pass alone: output and target
