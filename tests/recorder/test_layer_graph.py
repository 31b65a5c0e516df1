"""Roles, tags, paths and ends of models with today's layers; expectations were written down from the models' code."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torchvision import models

import gradlens
from gradlens.analysis.gradient_ratio import gradient_ratio, gradient_ratios
from gradlens.analysis.paths import ASIDE, find_paths, main_path
from gradlens.charts.curves import make_curves
from gradlens.charts.heatmap import View, make_panel
from gradlens.recorder.layer_tags import find_tags
from gradlens.recorder.layers import choose_layers
from gradlens.run import TAGS, Run
from tests.recorder.case import floats, rand
from tests.recorder.layer_zoo import (
    ActorCritic,
    Decoder,
    PackedLinear,
    Recurrent,
    RMSNorm,
    Siamese,
    UNet,
    adapted_decoder,
    stack,
)
from tests.recorder.torchvision_zoo import vit_tiny


def tokens() -> Tensor:
    return torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))


def squares(output: Any) -> Tensor:
    return sum(((tensor - 0.3) ** 2).mean() for tensor in floats(output))  # type: ignore[return-value]


def record(model: nn.Module, step: Callable[[], None], **options: Any) -> Run:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 1e-3)
    with gradlens.record(model, "run.h5", optimizer=optimizer, on_error="raise", **options):
        for _ in range(3):
            optimizer.zero_grad()
            step()
            optimizer.step()
    return gradlens.read_run("run.h5")


def train(model: nn.Module, x: Tensor, **options: Any) -> Run:
    return record(model, lambda: squares(model(x)).backward(), **options)


def names(run: Run, layers: Any) -> list[str]:
    return [run.layers[i].name for i in layers]


def heads(run: Run) -> list[int]:
    """Return the layers that others feed and from which no other leads on; those beside the path do not count."""
    edges = run.edges.tolist()
    counted = {i for i in run.main_layers().tolist() if not {*ASIDE, "block"} & {*run.layers[i].tags}}

    def leads_on(i: int) -> bool:
        return any(child in counted or leads_on(child) for parent, child in edges if parent == i)

    return [i for i in counted if any(child == i for _, child in edges) and not leads_on(i)]


def tagged(run: Run, tag: str) -> list[str]:
    return [layer.name for layer in run.layers if tag in layer.tags]


@dataclass(frozen=True)
class Expected:
    """What the main path looks like."""

    make: Callable[[], nn.Module]
    x: Callable[[], Tensor]
    first: str
    last_hidden: str
    heads: set[str]
    length: int
    paths: int = 1
    tags: dict[str, list[str]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def of_blocks(*parts: str) -> list[str]:
    return [f"blocks.{i}.{part}" for i in range(3) for part in parts]


ATTENTION = {
    "query": of_blocks("attn.q_proj"),
    "key": of_blocks("attn.k_proj"),
    "value": of_blocks("attn.v_proj"),
}
ZOO = {
    # embed, then per block: one of q, k, v; o; one of gate, up; down; then the head
    "decoder": Expected(
        Decoder,
        tokens,
        "embed",
        "blocks.2.mlp.down_proj",
        {"head"},
        1 + 3 * 4 + 1,
        tags={
            **ATTENTION,
            "gate": of_blocks("mlp.gate_proj"),
            "residual": of_blocks("attn.o_proj", "mlp.down_proj"),
            "expert": [],
            "router": [],
            "adapter": [],
        },
    ),
    # experts and routers are not compared: embed, then per block q and o; then the head
    "mixture of modules": Expected(
        lambda: Decoder(mixture="modules"),
        tokens,
        "embed",
        "blocks.2.attn.o_proj",
        {"head"},
        1 + 3 * 2 + 1,
        tags={
            "router": of_blocks("mlp.gate"),
            "expert": of_blocks(
                *(f"mlp.experts.{e}.{part}" for e in (0, 1) for part in ("gate_proj", "up_proj", "down_proj"))
            ),
        },
    ),
    "mixture in one tensor": Expected(
        lambda: Decoder(mixture="tensor"),
        tokens,
        "embed",
        "blocks.2.attn.o_proj",
        {"head"},
        1 + 3 * 2 + 1,
        tags={"router": of_blocks("mlp.gate"), "expert": of_blocks("mlp.experts"), "gate": []},
    ),
    # the adapters beside q and v are not compared
    "adapters": Expected(
        adapted_decoder,
        tokens,
        "embed",
        "blocks.2.mlp.down_proj",
        {"head"},
        1 + 3 * 4 + 1,
        tags={
            "adapter": of_blocks(*(f"attn.{p}_proj.lora_{m}.default" for p in "qv" for m in "AB")),
            "query": of_blocks("attn.q_proj.base_layer"),
            "key": of_blocks("attn.k_proj"),
        },
    ),
    "packed": Expected(
        lambda: nn.Sequential(nn.Linear(4, 4), PackedLinear(4), nn.ReLU(), PackedLinear(4), nn.Linear(4, 2)),
        lambda: rand(3, 4),
        "0",
        "3",
        {"4"},
        4,
        tags={"packed": ["1", "3"]},
    ),
    "actor and critic": Expected(
        ActorCritic, lambda: rand(4, 5), "body.0", "body.4", {"pi", "v"}, 4, tags={"residual": [], "value": []}
    ),
    "deep actor and critic": Expected(
        lambda: ActorCritic(deep=True), lambda: rand(4, 5), "body.0", "pi.2", {"pi.4", "v.4"}, 6, paths=2
    ),
    "U-Net": Expected(UNet, lambda: rand(2, 3, 8, 8), "down1", "join1", {"out"}, 8),
    "siamese, shared": Expected(lambda: Siamese(True), lambda: rand(4, 5), "left.0", "head.0", {"head.2"}, 5),
    "siamese, separate": Expected(
        lambda: Siamese(False), lambda: rand(4, 5), "left.0", "head.0", {"head.2"}, 5, paths=2
    ),
    "recurrent": Expected(Recurrent, lambda: rand(4, 3, 4), "embed", "second", {"head"}, 4),
    # the class token belongs to the model itself, and the positions to its encoder: neither is a head
    "vision transformer": Expected(
        lambda: vit_tiny(weights=None, num_classes=4),
        lambda: rand(2, 3, 16, 16),
        "conv_proj",
        "encoder.layers.encoder_layer_2.mlp.3",
        {"heads.head"},
        1 + 3 * 3 + 1,
        tags={"block": ["encoder", "(model)"]},
    ),
    "encoder of torch": Expected(
        lambda: nn.Sequential(
            nn.Linear(4, 8),
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1), 3),
            nn.Linear(8, 2),
        ),
        lambda: rand(2, 5, 4),
        "0",
        "1.layers.2.linear2",
        {"2"},
        1 + 3 * 3 + 1,
        tags={
            "residual": [f"1.layers.{i}.{part}" for i in range(3) for part in ("self_attn", "linear2")],
            "attention": [f"1.layers.{i}.self_attn" for i in range(3)],
        },
    ),
}


@pytest.mark.parametrize("expected", ZOO.values(), ids=ZOO)
def test_main_path_heads_and_tags(expected: Expected) -> None:
    torch.manual_seed(0)
    run = train(expected.make(), expected.x(), **expected.options)
    path = main_path(run)
    assert (run.layers[path[0]].name, run.layers[path[-2]].name) == (expected.first, expected.last_hidden)
    assert len(path) == expected.length
    assert set(names(run, heads(run))) == expected.heads
    assert len(find_paths(run)) == expected.paths
    for tag, layers in expected.tags.items():
        assert tagged(run, tag) == layers, tag
    assert {tag for layer in run.layers for tag in layer.tags} <= TAGS.keys()
    ratio = gradient_ratio(run)
    assert ratio is not None
    assert (ratio.first.name, ratio.last.name) == (expected.first, expected.last_hidden)
    assert ratio.path.startswith(f"the longest of {expected.paths} paths") == (expected.paths > 1)


@pytest.mark.parametrize("expected", ZOO.values(), ids=ZOO)
def test_an_edge_is_a_dependence_of_the_output(expected: Expected) -> None:
    """The obvious truth: a change of a layer's output changes the outputs of the layers after it, and of no other."""
    torch.manual_seed(0)
    model, x = expected.make().eval(), expected.x()
    run = train(model, x, **expected.options)
    modules = choose_layers(model)
    after = [set[int]() for _ in run.layers]
    for child, layer in reversed(list(enumerate(run.layers))):
        for parent in layer.parents:
            after[parent] |= {child} | after[child]
    if expected.make is Recurrent:  # in a cycle, each depends on each
        return
    for i, layer in enumerate(run.layers):
        if layer.calls == 0:
            assert not layer.parents
            assert not after[i]
            continue
        changed = {j for j in changed_outputs(model, modules, x, layer.name, run) if j != i}
        assert changed == after[i], layer.name


def changed_outputs(model: nn.Module, modules: dict[str, nn.Module], x: Tensor, changed: str, run: Run) -> set[int]:
    """Return the layers with other outputs when noise is added to the output of one."""
    before, after = outputs_of(model, modules, x), outputs_of(model, modules, x, changed)
    return {
        i
        for i, layer in enumerate(run.layers)
        if not all(map(torch.equal, before.get(layer.name, []), after.get(layer.name, [])))
    }


def outputs_of(
    model: nn.Module, modules: dict[str, nn.Module], x: Tensor, changed: str = ""
) -> dict[str, list[Tensor]]:
    outputs: dict[str, list[Tensor]] = {}

    def see(name: str, output: Any) -> Any:
        outputs.setdefault(name, []).append(floats(output)[0].detach())
        if name != changed:
            return output
        # not a constant, which a layer norm takes away
        return (
            (output[0] + rand(*output[0].shape), *output[1:])
            if isinstance(output, tuple)
            else output + rand(*output.shape)
        )

    handles = [m.register_forward_hook(lambda _, __, out, name=n: see(name, out)) for n, m in modules.items()]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return outputs


# --- two models in one recorder ---------------------------------------------------------------------------------


def test_generator_and_discriminator_are_two_paths() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"G": stack(3, 5), "D": stack(5, 1)})

    def step() -> None:
        fake = model["G"](rand(4, 3))
        softplus = functional.softplus
        (softplus(model["D"](fake.detach())).mean() + softplus(-model["D"](rand(4, 5, seed=1))).mean()).backward()
        softplus(-model["D"](fake)).mean().backward()

    run = record(model, step)
    assert [names(run, path) for path in find_paths(run)] == [["G.0", "G.2", "G.4"], ["D.0", "D.2", "D.4"]]
    ratios = gradient_ratios(run)
    assert [(ratio.first.name, ratio.last.name) for ratio in ratios] == [("G.0", "G.2"), ("D.0", "D.2")]
    assert [ratio.path for ratio in ratios] == [
        "the longest of 2 paths, from G.0 to G.4",
        "number 2 of 2 paths, from D.0 to D.4",
    ]


def test_a_target_network_is_on_no_path() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"target": stack(4, 2), "online": stack(4, 2)})

    def step() -> None:
        with torch.no_grad():
            wanted = model["target"](rand(4, 4, seed=1)).amax(1, keepdim=True)
        ((model["online"](rand(4, 4)) - wanted) ** 2).mean().backward()

    run = record(model, step)
    assert [names(run, path) for path in find_paths(run)] == [["online.0", "online.2", "online.4"]]


# --- where the graph has gaps, and where it is not followed -------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.before, self.inside, self.after = nn.Linear(4, 4), stack(4, 4), nn.Linear(4, 2)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.after(checkpoint(self.inside, self.before(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant: bool) -> None:
    run = train(Checkpointed(reentrant), rand(3, 4))
    assert len(run.edges) == (0 if reentrant else 4)
    ratio = gradient_ratio(run)
    assert ratio is not None
    assert (ratio.first.name, ratio.last.name) == ("before", "inside.4")


def test_nothing_of_the_graph_is_kept(one_thread: None) -> None:
    model, seen = stack(4, 2), []
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with gradlens.record(model, "run.h5", optimizer=optimizer, on_error="raise"):
        hidden = model[0](rand(3, 4))
        seen.append(weakref.ref(hidden))
        loss = model[1:](hidden).sum()
        del hidden, loss
        gc.collect()
        assert seen[0]() is None  # a pass that is dropped before the backward pass holds no memory
        model(rand(3, 4)).sum().backward()
        optimizer.step()
    assert len(gradlens.read_run("run.h5").edges) == 2


def test_inner_edges_skip_norms_and_activations() -> None:
    run = train(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(inplace=True), nn.Linear(4, 2)), rand(3, 4))
    assert run.edges.tolist() == [[0, 1]]
    with_norms = train(Decoder(), tokens(), layers=gradlens.with_norms, overwrite=True)
    roles = {layer.name: layer.role for layer in with_norms.layers}
    assert {name for name, role in roles.items() if role == "norm"} == {"norm", *of_blocks("norm1", "norm2")}
    assert len(main_path(with_norms)) == ZOO["decoder"].length


# --- what is a layer ----------------------------------------------------------------------------------------------


class T5LayerNorm(RMSNorm):
    pass


class NormalizedLinear(nn.Linear):
    """No norm layer, although its name has "norm": its weight is a matrix."""


def test_norms_are_recognised_by_what_they_are() -> None:
    model = nn.Sequential(nn.Linear(4, 4), RMSNorm(4), T5LayerNorm(4), NormalizedLinear(4, 2))
    assert list(choose_layers(model)) == ["0", "3"]


def test_containers_are_no_layers() -> None:
    chosen = choose_layers(adapted_decoder(), "lora_")
    kinds = {type(module).__name__ for module in chosen.values()}
    assert kinds == {"Linear", "Identity"}
    assert sum(isinstance(module, nn.Linear) for module in chosen.values()) == 12


def test_the_output_projection_of_fused_attention_is_in_no_figure_of_activations() -> None:
    run = train(ZOO["encoder of torch"].make(), rand(2, 5, 4))
    inside = [layer.name for layer in run.layers if layer.calls == 0]
    assert inside == [f"1.layers.{i}.self_attn.out_proj" for i in range(3)]
    for metric, shown in (("activation_grad_norm", False), ("param_grad_norm", True)):
        panel = make_panel(run, View(metric), columns=10)
        assert {layer.name for layer in panel.layers if layer.calls == 0} == (set(inside) if shown else set())
        ratio = gradient_ratio(run, metric)
        assert ratio is not None
        assert ratio.last.name == "1.layers.2.linear2"
    assert not np.isnan(run.metric("param_grad_norm")).any()


# --- profiles -----------------------------------------------------------------------------------------------------


def test_a_transformer_has_a_curve_for_each_kind_of_layer() -> None:
    torch.manual_seed(0)
    curves = make_curves([train(Decoder(), tokens())], "activation_grad_norm")
    labels = [curve.label.rpartition(", ")[2] for curve in curves]
    assert labels[1:] == ["residual", "query", "key", "value", "gate"]
    assert [len(curve.layers) for curve in curves] == [14, 6, 3, 3, 3, 3]
    assert all("query" in layer.tags for layer in curves[2].layers)


def test_fused_attention_is_a_transformer_too() -> None:
    curves = make_curves([train(ZOO["encoder of torch"].make(), rand(2, 5, 4))], "activation_grad_norm")
    assert [curve.label.rpartition(", ")[2] for curve in curves[1:]] == ["residual", "attention"]


@pytest.mark.parametrize(
    ("names_of_layers", "expected"),
    [
        (["h.0.attn.c_attn", "h.0.attn.c_proj"], {"h.0.attn.c_attn": ["attention"]}),
        (["a.to_q", "a.to_k", "a.to_v"], {"a.to_q": ["query"], "a.to_k": ["key"], "a.to_v": ["value"]}),
        (["a.query", "a.key", "a.value"], {"a.query": ["query"], "a.key": ["key"], "a.value": ["value"]}),
        (["a.Wq", "a.Wk", "a.Wv"], {"a.Wq": ["query"], "a.Wk": ["key"], "a.Wv": ["value"]}),
        (["policy", "value"], {}),  # of an actor and a critic
        (["q", "v"], {}),
        (["mlp.gate", "mlp.experts.0.w1"], {"mlp.gate": ["router"], "mlp.experts.0.w1": ["expert"]}),
        (["mlp.router", "mlp.shared_expert.up"], {}),
        (["expertise", "gated", "salora"], {}),
        (["x.lora_B.default", "x.adapter_down"], {"x.lora_B.default": ["adapter"], "x.adapter_down": ["adapter"]}),
    ],
)
def test_tags_by_names(names_of_layers: list[str], expected: dict[str, list[str]]) -> None:
    modules = {name: nn.Linear(2, 2) for name in names_of_layers}
    assert find_tags(modules, modules, ()) == expected


def test_other_paths_have_curves() -> None:
    torch.manual_seed(0)
    curves = make_curves([train(ActorCritic(deep=True), rand(4, 5))], "param_norm")
    assert [curve.label.rpartition(", ")[2] for curve in curves[1:]] == ["from body.0 to v.4"]
    assert [curve.layers[-1].name for curve in curves] == ["pi.4", "v.4"]


# --- torchvision, and cost ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "last_hidden", "head"),
    [
        (models.efficientnet_b0, "features.8.0", "classifier.1"),
        (models.convnext_tiny, "features.7.2", "classifier.2"),
        (models.resnet50, "layer4.2.conv3", "fc"),
    ],
    ids=["efficientnet_b0", "convnext_tiny", "resnet50"],
)
def test_torchvision(make: Callable[..., nn.Module], last_hidden: str, head: str) -> None:
    torch.manual_seed(0)
    run = train(make(weights=None, num_classes=4), rand(2, 3, 32, 32), metrics=["activation_grad_norm"])
    path = names(run, main_path(run))
    assert path[0] in ("features.0.0", "conv1")
    assert path[-2:] == [last_hidden, head]
    assert len(find_paths(run)) == 1
    assert set(path) <= {layer.name for layer in run.layers if layer.role == "main"}  # a block may own a LayerScale


@pytest.mark.slow
def test_a_model_of_2500_layers_is_set_up_in_half_a_second(one_thread: None) -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(2500)))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    recorder = gradlens.record(model, "run.h5", optimizer=optimizer, metrics=["activation_grad_norm"])
    layers = recorder._learned
    hook_seconds = min(_seconds(lambda: _walk(model, type(layers.graph)())) for _ in range(3))
    with recorder:
        model(rand(2, 4)).sum().backward()
        optimizer.step()
        describing = min(_seconds(layers.describe) for _ in range(3))
    assert hook_seconds + describing < 0.5


def _seconds(act: Callable[[], object]) -> float:
    started = time.process_time()
    act()
    return time.process_time() - started


def _walk(model: nn.Sequential, graph: Any) -> None:
    x = rand(2, 4)
    for layer, module in enumerate(model):
        x = module(x)
        graph.note_call(layer, [x])
    graph.parents()
