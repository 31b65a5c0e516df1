"""Faults after public reports, third list: each fault, its twin without it, and working programs that look alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from tests.diagnosis.test_battery_two import causes, classifier, fit, scarce
from tests.diagnosis.test_programs import INPUTS, both, ways


def scorer(outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, outputs))


def two_classes(count: int = 64) -> tuple[Tensor, Tensor]:
    """Return examples of two classes, 0 and 1."""
    y = (torch.rand(count) < 0.5).float()
    return torch.randn(count, INPUTS) + 2 * y.unsqueeze(1), y


# --- a loss without a value ---------------------------------------------------------------------------------

LOGARITHM, EMPTY = "a logarithm of a number that is not above 0", "an average over no element"


@both
@ways("way", "score", "product")
def test_a_logarithm_of_what_is_not_above_0(tmp_path: Path, faulty: bool, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(32)
        if way == "score":
            scores = model(x).gather(1, y.unsqueeze(1))
            return -torch.log(scores if faulty else scores.sigmoid()).mean()
        density = torch.exp(-((model(x).repeat(1, 40) - 5) ** 2))
        return -torch.log(density.prod(1)).mean() if faulty else -torch.log(density + 1e-6).sum(1).mean()

    found = fit(tmp_path / "run.h5", classifier(), loss_of)
    assert causes(found) == ([LOGARITHM] if faulty else []), str(found)
    if faulty:
        assert found.kind == "nonfinite"
        assert ("a product of 120 numbers" in found.findings[0].evidence) == (way == "product"), str(found)


@both
@ways("way", "divided", "indexed", "cross entropy")
def test_an_average_over_no_element(tmp_path: Path, faulty: bool, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(16)
        known = torch.arange(16) < (step + 1) % 3 + (not faulty)  # none in step 2
        if way == "cross entropy":
            return functional.cross_entropy(model(x)[known], y[known])
        losses = functional.cross_entropy(model(x), y, reduction="none")
        return (losses * known).sum() / known.sum() if way == "divided" else losses[known].mean()

    found = fit(tmp_path / "run.h5", classifier(), loss_of)
    assert causes(found) == ([EMPTY] if faulty else []), str(found)
    if faulty:
        assert found.findings[0].steps[0] == 2


def test_an_average_over_no_element_in_a_later_step_is_what_to_look_at_first(tmp_path: Path) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(16)
        known = torch.arange(16) < (0 if step == 30 else 1 + step % 5)
        losses = functional.cross_entropy(model(x), y, reduction="none")
        return (losses * known).sum() / known.sum()

    found = fit(tmp_path / "run.h5", classifier(), loss_of)
    assert found.kind == "nonfinite"
    assert found.findings[0].remedy.startswith("The loss averages over as many elements as are selected (1, 2, 3"), (
        found
    )


@ways("way", "times a mask", "where", "masked_select", "masked_fill", "weight", "index")
def test_targets_that_a_mask_leaves_out_may_have_any_value(tmp_path: Path, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = two_classes()
        y[::3] = -1
        known, outputs = y != -1, model(x).squeeze(1)
        entropy = functional.binary_cross_entropy_with_logits
        if way == "weight":
            return entropy(outputs, y, weight=known.float())
        losses = entropy(outputs, y, reduction="none")
        chosen = {
            "times a mask": lambda: losses * known,
            "where": lambda: torch.where(known, losses, 0.0),
            "masked_select": lambda: losses.masked_select(known),
            "masked_fill": lambda: losses.masked_fill(~known, 0.0),
            "index": lambda: losses[known],
        }
        return chosen[way]().mean()

    assert not causes(fit(tmp_path / "run.h5", scorer(), loss_of))


def test_targets_outside_0_to_1_under_a_mask_that_keeps_them(tmp_path: Path) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = two_classes()
        losses = functional.binary_cross_entropy_with_logits(model(x).squeeze(1), 3 * y, reduction="none")
        return (losses * (torch.rand(64) < 0.9)).mean()

    assert "targets outside 0 to 1" in causes(fit(tmp_path / "run.h5", scorer(), loss_of))


# --- terms without a graph ----------------------------------------------------------------------------------

GRADLESS = "a term of the loss has no graph"


@ways("way", "detached", "alone", "constant", "sum", "frozen", "penalty on the weights")
def test_a_term_of_the_loss_that_was_cut_off(tmp_path: Path, way: str) -> None:
    model = classifier()
    if way == "frozen":
        model[0].requires_grad_(False)

    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(64)
        outputs = model(x)
        loss = 0.5 * functional.cross_entropy(outputs, y)
        other = functional.mse_loss(outputs.softmax(1), functional.one_hot(y, 3).float())
        if way == "constant":
            return loss + 0.25
        if way == "sum":
            return sum([loss, other], torch.tensor(0.0))
        if way == "penalty on the weights":
            return loss + 1e-3 * sum(weight.pow(2).sum() for weight in model.parameters())
        return loss + (other if way == "alone" else other.detach())

    found = causes(fit(tmp_path / "run.h5", model, loss_of))
    assert (GRADLESS in found) == (way == "detached"), way


@pytest.mark.slow
def test_a_teacher_that_is_compared_with_itself(tmp_path: Path) -> None:
    torch.manual_seed(5)
    teacher = nn.Linear(INPUTS, 3)

    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(64)
        with torch.no_grad():
            large = teacher(x)
        soft = functional.kl_div((large / 3).log_softmax(1), (3 * large).softmax(1), reduction="batchmean")
        return functional.cross_entropy(model(x), y) + soft

    assert causes(fit(tmp_path / "run.h5", classifier(), loss_of)) == [GRADLESS]


# --- labels -------------------------------------------------------------------------------------------------

ZEROS = "labels of 0 where the loss takes -1 and 1"


@both
@ways("way", "hinge", "margin_ranking_loss", "cosine_embedding_loss", "hinge_embedding_loss", "soft_margin_loss")
def test_labels_of_0_where_the_loss_takes_minus_1(tmp_path: Path, faulty: bool, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = two_classes()
        outputs, labels = model(x), y if faulty else 2 * y - 1
        if way == "hinge":
            return torch.clamp(1 - labels * outputs[:, 0], min=0).mean()
        if way == "margin_ranking_loss":
            return functional.margin_ranking_loss(outputs[:, 0], outputs[:, 1], labels, margin=0.5)
        if way == "soft_margin_loss":
            return functional.soft_margin_loss(outputs[:, 0], labels)
        if way == "cosine_embedding_loss":
            return functional.cosine_embedding_loss(outputs, outputs.roll(1, 0).detach(), labels)
        return functional.hinge_embedding_loss(outputs[:, 0].square(), labels)

    found = fit(tmp_path / "run.h5", scorer(3), loss_of)
    assert causes(found) == ([ZEROS] if faulty else []), str(found)


@ways("way", "contrastive", "masked triplets", "one margin", "weighted hinge")
def test_hinges_of_other_losses_are_none_of_labels(tmp_path: Path, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = two_classes()
        outputs = model(x)
        distances = (outputs - outputs.roll(1, 0)).pow(2).sum(1)
        same = (y == y.roll(1)).float()
        if way == "contrastive":
            return (same * distances + (1 - same) * (2 - distances).clamp(min=0)).mean()
        if way == "masked triplets":
            hinge = (distances - distances.roll(1) + 0.3).relu()
            return (hinge * same).sum() / same.sum().clamp(min=1)
        if way == "weighted hinge":
            return ((1 - (2 * y - 1) * outputs[:, 0]).clamp(min=0) * (1 + y)).mean()
        return functional.margin_ranking_loss(outputs[:, 0] + 2 * x.mean(1), outputs[:, 1], torch.ones(64), margin=1)

    assert ZEROS not in causes(fit(tmp_path / "run.h5", scorer(3), loss_of))


@both
def test_scores_for_a_loss_that_takes_distances(tmp_path: Path, faulty: bool) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = two_classes()
        scores = model(x)[:, 0]
        return functional.hinge_embedding_loss(scores if faulty else scores.square(), 2 * y - 1)

    found = fit(tmp_path / "run.h5", scorer(), loss_of)
    assert causes(found) == (["distances below 0"] if faulty else []), str(found)


# --- overlaps -----------------------------------------------------------------------------------------------


def overlap(outputs: Tensor, targets: Tensor) -> Tensor:
    both = (outputs * targets).sum(1)
    return ((2 * both + 1) / (outputs.sum(1) + targets.sum(1) + 1)).mean()


@ways("way", "plus", "minus", "from 1", "beside a cross entropy", "union", "products")
def test_an_overlap_that_the_loss_makes_small(tmp_path: Path, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, _ = two_classes()
        targets = (x[:, :3] > 0).float()
        logits = model(x)
        outputs = logits.sigmoid()
        dice = overlap(outputs, targets)
        if way == "union":
            both = (outputs * targets).sum()
            return both / (outputs.sum() + targets.sum() - both)
        if way == "products":
            return (outputs * (1 - targets)).mean() - (outputs * targets).mean()
        entropy = functional.binary_cross_entropy_with_logits(logits, targets)
        return {"plus": dice, "minus": -dice, "from 1": 1 - dice, "beside a cross entropy": entropy + 1 - dice}[way]

    found = causes(fit(tmp_path / "run.h5", scorer(3), loss_of))
    assert found == (["the sign of the loss is wrong"] if way in ("plus", "union") else []), way


# --- constants ----------------------------------------------------------------------------------------------


@both
def test_a_clamp_in_the_loss_that_lets_nothing_through(tmp_path: Path, faulty: bool) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, _ = two_classes()
        left = model(x).sigmoid() + (3 if faulty else 0)  # spans of length 1, beside those from 0.5 to 1.5
        shared = (torch.minimum(left + 1, torch.tensor(1.5)) - torch.maximum(left, torch.tensor(0.5))).clamp(min=0)
        return (1 - shared / (2 - shared)).mean()

    found = fit(tmp_path / "run.h5", scorer(), loss_of)
    assert causes(found) == (["a clamp in the loss lets nothing through"] if faulty else []), str(found)


class Chosen(nn.Module):
    """A router that chooses ``kept`` of four experts, whose weights are divided by their sum or not."""

    def __init__(self, kept: int, divides: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kept, self.divides = kept, divides
        self.router, self.out = nn.Linear(INPUTS, 4), nn.Linear(INPUTS, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(INPUTS, INPUTS), nn.ReLU()) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(self.kept, dim=-1)
        if self.divides:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        made = torch.stack([expert(x) for expert in self.experts], 1)
        picked = made.gather(1, chosen.unsqueeze(-1).expand(-1, -1, made.shape[-1]))
        return self.out((picked * weights.unsqueeze(-1)).sum(1))


@ways("way", (1, True), (1, False), (2, True))
def test_a_weight_that_is_divided_by_itself(tmp_path: Path, way: tuple[int, bool]) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(64)
        return functional.cross_entropy(model(x), y)

    found = fit(tmp_path / "run.h5", Chosen(*way), loss_of)
    assert causes(found) == (["divided by its own sum over one element"] if way == (1, True) else []), str(found)
    if way == (1, True):
        assert found.findings[0].layers == ("router",)


# --- what a backward pass or an optimizer does ----------------------------------------------------------------


class Halved(torch.autograd.Function):
    """A sigmoid whose backward pass leaves out the gradient that it gets."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        y = x.sigmoid()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return y * (1 - y)  # type: ignore[no-any-return]


class Straight(torch.autograd.Function):
    """A sigmoid with the right backward pass."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        y = x.sigmoid()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * y * (1 - y)  # type: ignore[no-any-return]


class ByHand(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out, self.function = nn.Linear(INPUTS, 24), nn.Linear(24, 3), function

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(self.function.apply(self.hidden(x)))
        return made


@both
def test_a_backward_pass_that_was_written_by_hand_is_to_be_checked_first(tmp_path: Path, faulty: bool) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = torch.randn(64, INPUTS), torch.randint(3, (64,))
        return functional.cross_entropy(model(x + 2 * functional.one_hot(y, INPUTS)), y)

    found = fit(tmp_path / "run.h5", ByHand(Halved if faulty else Straight), loss_of, steps=150, rate=0.3)
    assert found.kind == ("plateau" if faulty else "healthy"), str(found)
    if faulty:
        assert found.findings[0].remedy.startswith("Check the backward pass of Halved first"), str(found)


@both
def test_weight_decay_with_the_wrong_sign(tmp_path: Path, faulty: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))
    with gradlens.record(model, tmp_path / "run.h5", every={"param_norm": 5}) as recorder:
        for step in range(150):
            torch.manual_seed(step)
            x, y = scarce(64)
            loss = functional.cross_entropy(model(x), y)
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for weight in model.parameters():
                    decay = 0.6 * weight
                    weight -= 0.1 * (weight.grad - decay if faulty else weight.grad + 0.01 * decay)  # type: ignore[operator]
            recorder.step(loss=loss)
    found = gradlens.diagnose(tmp_path / "run.h5")
    said = " ".join(finding.evidence for finding in found.findings)
    assert ("all by the same factor" in said) == faulty, str(found)


@ways("rate", 3.0, 30.0)
def test_a_large_learning_rate_is_no_decay_of_the_wrong_sign(tmp_path: Path, rate: float) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = scarce(64)
        return functional.cross_entropy(model(x), y)

    found = fit(tmp_path / "run.h5", classifier(), loss_of, steps=150, rate=rate)
    assert "all by the same factor" not in str(found)


# --- numbers --------------------------------------------------------------------------------------------------


class Variational(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = (
            nn.Linear(INPUTS, 8),
            nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, INPUTS)),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        made = self.decoder(mean + (0.5 * log_variance).exp() * torch.randn_like(mean))
        return made, -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum()


@both
def test_a_divergence_that_is_summed_over_the_batch(tmp_path: Path, faulty: bool) -> None:
    model = Variational()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    directions = torch.randn(2, INPUTS, generator=torch.Generator().manual_seed(1))
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(200):
            torch.manual_seed(step)
            x = torch.randn(64, 2) @ directions
            made, divergence = model(x)
            error = functional.mse_loss(made, x)
            kl = divergence if faulty else divergence / x.numel()
            optimizer.zero_grad()
            (error + kl).backward()
            optimizer.step()
            recorder.log(loss=error + kl, recon=error, kl=kl)
    found = gradlens.diagnose(tmp_path / "run.h5")
    assert causes(found) == (["the KL term dominates (posterior collapse)"] if faulty else []), str(found)


@ways("way", "single", "sequences", "no padding")
def test_a_padding_index_that_stands_for_something_is_noted(tmp_path: Path, way: str) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(4, 8, padding_idx=None if way == "no padding" else 0)
    model = nn.Sequential(table, nn.Flatten(), nn.LazyLinear(4))

    def loss_of(model: nn.Module, step: int) -> Tensor:
        index = torch.randint(4, (32, 3) if way == "sequences" else (32,))
        return functional.cross_entropy(model(index), index if index.dim() == 1 else index[:, 0])

    model(torch.randint(4, (32, 3) if way == "sequences" else (32,)))
    found = fit(tmp_path / "run.h5", model, loss_of)
    assert any("its padding_idx" in note for note in found.notes) == (way == "single"), str(found)


def test_a_flow_subtracts_a_term_and_compares_no_outputs(tmp_path: Path) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x = 0.01 * torch.randn(64, INPUTS)
        shift, scale = model(x).chunk(2, 1)
        return (0.5 * ((x - shift) * scale.exp()).pow(2).sum(1) - scale.sum(1)).mean()

    fit(tmp_path / "run.h5", scorer(2 * INPUTS), loss_of)
    assert not gradlens.read_run(tmp_path / "run.h5").facts["graph"]["compared"]
