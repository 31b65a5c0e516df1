"""Targets in the inputs, and arguments that are repeated or swapped: each fault, its twin, and what looks like it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from tests.diagnosis.recordings import check
from tests.diagnosis.small_trainings import train_on
from tests.diagnosis.test_programs import both, ways

WORDS, LENGTH, WIDTH, BATCH, STEPS = 12, 9, 16, 8, 40
SEEN = "the model sees what it is to predict"
INPUTS = "the targets are the inputs"
ITSELF = "a tensor is compared with itself"
Mix = Callable[[nn.Module, Tensor], Tensor]


def expect(found: gradlens.Diagnosis, cause: str) -> None:
    """Check that the first finding has this cause; without one, that there is no finding."""
    if cause:
        check(found, "setup")
        assert found.findings[0].cause == cause, str(found)
    else:
        assert not found.findings, str(found)


class Attention(nn.Module):
    """Attention written by hand, or by torch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.qkv, self.out = how, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.how == "by hand":
            scores = q @ k.transpose(-2, -1) / WIDTH**0.5
            scores = scores if hidden is None else scores.masked_fill(hidden, -torch.inf)
            return x + self.out(scores.softmax(-1) @ v)
        q, k, v = (each.unsqueeze(1) for each in (q, k, v))
        mask = None if hidden is None else ~hidden.unsqueeze(1) if hidden.dim() == 3 else ~hidden
        return x + self.out(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).squeeze(1))


class Words(nn.Module):
    """A model of words: attention with a mask of what is hidden, or a recurrent layer."""

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(WORDS, WIDTH), mix
        width = 2 * WIDTH if isinstance(mix, nn.RNNBase) and mix.bidirectional else WIDTH
        self.head = nn.Linear(width, WORDS)

    def forward(self, ids: Tensor, hidden: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        x = self.mix(x)[0] if isinstance(self.mix, nn.RNNBase) else self.mix(x, hidden)
        logits: Tensor = self.head(x)
        return logits


def words(step: int) -> Tensor:
    """Return (B, L + 1) words, each of which follows from the one before in most places."""
    drawn = torch.Generator().manual_seed(step)
    ids = [torch.randint(1, WORDS, (BATCH,), generator=drawn)]
    for _ in range(LENGTH):
        other = torch.randint(1, WORDS, (BATCH,), generator=drawn)
        ids.append(torch.where(torch.rand(BATCH, generator=drawn) < 0.8, ids[-1] % (WORDS - 1) + 1, other))
    return torch.stack(ids, 1)


def fit(path: Path, model: nn.Module, loss_of: Callable[[int], Tensor], **options: object) -> gradlens.Diagnosis:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, **options)  # type: ignore[arg-type]
    return train_on(path, model, loss_of, optimizer=optimizer, steps=STEPS)


def next_word(path: Path, mix: nn.Module, hidden: Tensor | None = None, *, shift: int = 1) -> gradlens.Diagnosis:
    """Train a model on the next word (or on the same one, for a shift of 0)."""
    torch.manual_seed(0)
    model = Words(mix)

    def loss(step: int) -> Tensor:
        ids = words(step)
        logits = model(ids[:, :-1], hidden)
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, shift : LENGTH + shift].flatten())

    return fit(path, model, loss)


LATER = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)


@ways("how", "by hand", "by torch")
@both
def test_attention_that_sees_the_next_word(tmp_path: Path, how: str, faulty: bool) -> None:
    found = next_word(tmp_path / "run.h5", Attention(how), None if faulty else LATER)
    expect(found, SEEN if faulty else "")


@pytest.mark.slow
def test_attention_with_nothing_but_a_padding_mask_sees_the_next_word(tmp_path: Path) -> None:
    hidden = (torch.arange(LENGTH) >= LENGTH - 2).expand(BATCH, LENGTH, LENGTH)
    expect(next_word(tmp_path / "run.h5", Attention("by hand"), hidden), SEEN)


@ways("how", "by torch", "by hand")
def test_a_prefix_that_is_seen_whole_is_meant(tmp_path: Path, how: str) -> None:
    hidden = LATER.clone()
    hidden[:, : LENGTH - 3] = False
    expect(next_word(tmp_path / "run.h5", Attention(how), hidden), "")


@both
def test_a_recurrent_layer_in_both_directions_sees_the_next_word(tmp_path: Path, faulty: bool) -> None:
    found = next_word(tmp_path / "run.h5", nn.GRU(WIDTH, WIDTH, batch_first=True, bidirectional=faulty))
    expect(found, SEEN if faulty else "")


class Translator(nn.Module):
    """An encoder that reads in both directions, and a decoder of next words."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(WORDS, WIDTH), nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)
        self.decoder, self.head = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, WORDS)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        state = self.encoder(self.source(source))[1].transpose(0, 1).flatten(1)
        logits: Tensor = self.head(self.decoder(self.target(target), state.unsqueeze(0).contiguous())[0])
        return logits


def test_an_encoder_may_read_its_source_in_both_directions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Translator()

    def loss(step: int) -> Tensor:
        ids = words(step)
        return functional.cross_entropy(model(ids[:, :-1].flip(1), ids[:, :-1]).transpose(1, 2), ids[:, 1:])

    expect(fit(tmp_path / "run.h5", model, loss), "")


@ways("mix", lambda: Attention("by torch"), lambda: nn.LSTM(WIDTH, WIDTH, batch_first=True))
@both
def test_targets_that_are_the_inputs(tmp_path: Path, mix: Callable[[], nn.Module], faulty: bool) -> None:
    torch.manual_seed(0)
    found = next_word(tmp_path / "run.h5", mix(), LATER, shift=0 if faulty else 1)
    expect(found, INPUTS if faulty else "")


class Autoencoder(nn.Module):
    """Two recurrent layers with one state between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.encoder, self.decoder = (nn.GRU(WIDTH, WIDTH, batch_first=True) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        state = self.encoder(self.embed(ids))[1]
        logits: Tensor = self.head(self.decoder(state.transpose(0, 1).expand(-1, ids.shape[1], -1))[0])
        return logits


def test_an_autoencoder_of_words_may_repeat_its_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Autoencoder()

    def loss(step: int) -> Tensor:
        ids = words(step)
        return functional.cross_entropy(model(ids).transpose(1, 2), ids)

    expect(fit(tmp_path / "run.h5", model, loss), "")


def blobs(step: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(step)
    labels = torch.randint(0, 4, (32,), generator=drawn)
    return torch.eye(4, 10)[labels] * 3 + torch.randn(32, 10, generator=drawn), labels


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


@both
def test_a_triplet_whose_positive_is_its_anchor(tmp_path: Path, faulty: bool) -> None:
    model = mlp()

    def loss(step: int) -> Tensor:
        x, labels = blobs(step)
        x = x[labels.argsort()]
        anchor = model(x)
        return nn.TripletMarginLoss()(anchor, anchor if faulty else model(x.roll(1, 0)), model(x.roll(16, 0)))

    found = fit(tmp_path / "run.h5", model, loss)
    expect(found, ITSELF if faulty else "")


@both
def test_an_error_of_an_output_against_itself(tmp_path: Path, faulty: bool) -> None:
    model = mlp()

    def loss(step: int) -> Tensor:
        x, labels = blobs(step)
        output = model(x)
        target = output.detach() if faulty else functional.one_hot(labels, 4).float()
        return functional.mse_loss(output, target)

    expect(fit(tmp_path / "run.h5", model, loss), ITSELF if faulty else "")


@both
def test_the_arguments_of_a_divergence_that_are_swapped(tmp_path: Path, faulty: bool) -> None:
    model, teacher = mlp(), nn.Linear(10, 4)

    def loss(step: int) -> Tensor:
        x, _ = blobs(step)
        wanted = teacher(x).softmax(1).detach()
        ours = model(x).log_softmax(1)
        given = (wanted.log(), ours) if faulty else (ours, wanted)
        return functional.kl_div(*given, reduction="batchmean")

    cause = "the arguments of the KL divergence are swapped"
    expect(fit(tmp_path / "run.h5", model, loss), cause if faulty else "")


@both
def test_betas_that_are_swapped(tmp_path: Path, faulty: bool) -> None:
    model = mlp()

    def loss(step: int) -> Tensor:
        x, labels = blobs(step)
        return functional.cross_entropy(model(x), labels)

    found = fit(tmp_path / "run.h5", model, loss, betas=(0.999, 0.9) if faulty else (0.9, 0.95))
    expect(found, "the betas are swapped" if faulty else "")


@ways("wanted", "several", "one", "shares")
def test_several_labels_under_a_softmax_are_noted(tmp_path: Path, wanted: str) -> None:
    model = mlp()

    def loss(step: int) -> Tensor:
        x, labels = blobs(step)
        one = functional.one_hot(labels, 4).float()
        many = torch.maximum(one, (x[:, :4] > 1).float())
        targets = {"several": many, "one": one, "shares": many / many.sum(1, keepdim=True)}[wanted]
        return functional.cross_entropy(model(x), targets)

    found = fit(tmp_path / "run.h5", model, loss)
    assert not found.findings
    assert any("several labels at once" in note for note in found.notes) == (wanted == "several")


class Decoder(Translator):
    """An encoder, and a decoder that gets its targets, or those of one position earlier."""

    def __init__(self, moved: bool) -> None:
        super().__init__()
        self.moved = moved

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return super().forward(
            source, torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], 1) if self.moved else target
        )


@both
def test_a_decoder_that_gets_its_targets(tmp_path: Path, faulty: bool) -> None:
    torch.manual_seed(0)
    model = Decoder(moved=not faulty)

    def loss(step: int) -> Tensor:
        ids = words(step)
        return functional.cross_entropy(model(ids.flip(1), ids).transpose(1, 2), ids)

    expect(fit(tmp_path / "run.h5", model, loss), INPUTS if faulty else "")


@ways("best", lambda q: q.max(1)[0], lambda q: q.amax(1), lambda q: q.gather(1, q.argmax(1, keepdim=True)).squeeze(1))
@both
def test_the_target_of_a_value_that_has_a_gradient(
    tmp_path: Path, best: Callable[[Tensor], Tensor], faulty: bool
) -> None:
    model = mlp()

    def loss(step: int) -> Tensor:
        x, actions = blobs(step)
        target = x[:, 0].clamp(-1, 1) + 0.9 * best(model(x.roll(1, 0))) * (x[:, 1] > 0)
        value = model(x).gather(1, actions[:, None]).squeeze(1)
        return functional.smooth_l1_loss(value, target if faulty else target.detach())

    expect(fit(tmp_path / "run.h5", model, loss), "the target has a gradient" if faulty else "")


@pytest.mark.slow
def test_two_views_that_are_drawn_together_are_no_target(tmp_path: Path) -> None:
    model = mlp()

    def loss(step: int) -> Tensor:
        x, labels = blobs(step)
        first, second = model(x), model(x + 0.1)
        return functional.cross_entropy(first, labels) + functional.mse_loss(first, second)

    expect(fit(tmp_path / "run.h5", model, loss), "")


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.policy, self.value = nn.Linear(10, 16), nn.Linear(16, 4), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.body(x))
        return self.policy(hidden), self.value(hidden).squeeze(1)


@ways("normalised", False, True)
@both
def test_an_advantage_that_has_a_gradient(tmp_path: Path, normalised: bool, faulty: bool) -> None:
    torch.manual_seed(0)
    model = ActorCritic()

    def loss(step: int) -> Tensor:
        x, labels = blobs(step)
        logits, value = model(x)
        chosen = torch.distributions.Categorical(logits=logits)
        actions = chosen.sample()
        reward = (actions == labels).float()
        advantage = reward - value if faulty else (reward - value).detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6) if normalised else advantage
        error = functional.mse_loss(value, reward)
        return -(chosen.log_prob(actions) * advantage).mean() + 0.5 * error - 0.01 * chosen.entropy().mean()

    expect(fit(tmp_path / "run.h5", model, loss), "the advantage is not detached" if faulty else "")


class Variational(nn.Module):
    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty = faulty
        self.body, self.mean, self.log_variance = nn.Linear(10, 16), nn.Linear(16, 3), nn.Linear(16, 3)
        self.back, self.out = nn.Linear(3, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.relu(self.body(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        deviation = log_variance if self.faulty else (0.5 * log_variance).exp()
        drawn = mean + deviation * torch.randn_like(mean)
        return self.out(torch.relu(self.back(drawn))), mean, log_variance


@both
def test_a_log_variance_that_is_used_as_a_deviation(tmp_path: Path, faulty: bool) -> None:
    torch.manual_seed(0)
    model = Variational(faulty)

    def loss(step: int) -> Tensor:
        x, _ = blobs(step)
        made, mean, log_variance = model(x)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        return (made - x).square().sum(1).mean() + 0.1 * divergence

    expect(fit(tmp_path / "run.h5", model, loss), "a log variance is used as a deviation" if faulty else "")


@both
def test_label_smoothing_that_takes_most_of_the_target(tmp_path: Path, faulty: bool) -> None:
    model = mlp()

    def loss(step: int) -> Tensor:
        x, labels = blobs(step)
        return functional.cross_entropy(model(x), labels, label_smoothing=0.9 if faulty else 0.1)

    expect(fit(tmp_path / "run.h5", model, loss), "label smoothing takes most of the target away" if faulty else "")


class Pooled(nn.Module):
    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.faulty, self.body, self.head = faulty, nn.Linear(10, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.body(x))
        mean = hidden.mean(0, keepdim=True)
        logits: Tensor = self.head(mean.expand_as(hidden) if self.faulty else hidden - mean)
        return logits


@both
def test_a_mean_over_the_batch_in_the_model(tmp_path: Path, faulty: bool) -> None:
    torch.manual_seed(0)
    model = Pooled(faulty)

    def loss(step: int) -> Tensor:
        x, labels = blobs(step)
        return functional.cross_entropy(model(x), labels)

    expect(fit(tmp_path / "run.h5", model, loss), "all examples get the same output" if faulty else "")


def test_a_last_layer_that_begins_at_0_gives_all_examples_the_same_output_only_then(tmp_path: Path) -> None:
    model = mlp()
    nn.init.zeros_(model[-1].weight)  # type: ignore[arg-type]

    def loss(step: int) -> Tensor:
        x, labels = blobs(step)
        return functional.cross_entropy(model(x), labels)

    expect(fit(tmp_path / "run.h5", model, loss), "")


@both
def test_a_relu_in_front_of_a_loss_that_takes_logits(tmp_path: Path, faulty: bool) -> None:
    model = mlp()
    whole = nn.Sequential(*model, nn.ReLU()) if faulty else model

    def loss(step: int) -> Tensor:
        x, labels = blobs(step)
        return functional.cross_entropy(whole(x), labels)

    expect(fit(tmp_path / "run.h5", whole, loss), "an activation function behind the output layer" if faulty else "")
