"""Faults after public reports on sequences and agents: each fault, its twin without it, and what looks alike."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlens
from tests.diagnosis.test_battery_two import FEW, causes, classifier, fit, scarce
from tests.diagnosis.test_programs import INPUTS, batch, both, mlp, ways

# --- a loss of 0 that was not learnt ------------------------------------------------------------------------

EMPTY, GONE = "the loss is exactly 0 in every row", "the loss becomes 0 from one step to the next"


class Encoder(nn.Module):
    """An encoder with a head that no loss uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(INPUTS, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 8))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body[:-1](x)
        return functional.normalize(self.body[-1](hidden), dim=1), self.head(hidden)


@both
def test_a_hinge_that_is_off_from_the_start(tmp_path: Path, faulty: bool) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, _ = batch(step)
        one, other = (model(x + 0.3 * torch.randn_like(x))[0] for _ in range(2))
        similar = one @ other.T
        apart = similar.clone()
        apart.diagonal().fill_(-float("inf") if faulty else float("inf"))
        return functional.relu((1 - similar.diagonal()) - (1 - apart).amax(1) + 0.5).mean()

    found = fit(tmp_path / "run.h5", Encoder(), loss_of)
    assert (EMPTY in causes(found)) == faulty, str(found)
    if faulty:
        assert (found.kind, found.learning, causes(found)) == ("zero_gradient", "no", [EMPTY]), str(found)
        assert not any("is learnt" in note for note in found.notes), str(found)


def next_words(step: int) -> tuple[Tensor, Tensor]:
    """Return sequences that count up, and the next number."""
    generator = torch.Generator().manual_seed(step)
    x = (torch.randint(0, 12, (16, 1), generator=generator) + torch.arange(9)) % 12
    return x[:, :-1], x[:, 1:]


class Counter(nn.Module):
    """A small language model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.head = nn.Embedding(12, 16), nn.GRU(16, 24, batch_first=True), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(x))[0])


@both
def test_a_mask_that_collects_zeros(tmp_path: Path, faulty: bool) -> None:
    kept = torch.ones(8)

    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = next_words(step)
        mask = kept if faulty else kept.clone()
        mask[step // 4 % 8] = 0
        losses = functional.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none")
        return (losses.view(16, 8) * mask).sum() / (16 * mask.sum()).clamp(min=1)

    found = fit(tmp_path / "run.h5", Counter(), loss_of, rate=3e-3)
    assert causes(found) == ([GONE] if faulty else []), str(found)
    if faulty:
        assert found.learning == "no"
        assert found.findings[0].steps[0] == 28
        assert "exactly 0 from step 28 on" in found.findings[0].evidence


@pytest.mark.slow
def test_a_hinge_that_is_learnt_is_no_fault(tmp_path: Path) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = batch(0)
        return functional.multi_margin_loss(model(x), y, margin=0.2)

    found = fit(tmp_path / "run.h5", mlp(), loss_of, rate=3e-2)
    losses = gradlens.read_run(tmp_path / "run.h5").scalars["loss"]
    assert (losses[-10:] == 0).all()
    assert not found.findings, str(found)


@pytest.mark.slow
def test_a_loss_that_is_0_now_and_then_is_no_fault(tmp_path: Path) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = batch(step)
        return functional.cross_entropy(model(x), y) * (step % 3 > 0)

    assert not set(causes(fit(tmp_path / "run.h5", mlp(), loss_of))) & {EMPTY, GONE}


# --- padding between the last word and the state that is read -----------------------------------------------


class Reader(nn.Module):
    """A classifier that reads the state after the last step, or after each sequence's own last step."""

    def __init__(self, *, packed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.packed = packed
        self.embed = nn.Embedding(40, 12, padding_idx=0)
        self.lstm, self.head = nn.LSTM(12, 16, batch_first=True), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        words = self.embed(x)
        if self.packed:
            lengths = (x > 0).sum(1)
            packed = nn.utils.rnn.pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
            return self.head(self.lstm(packed)[1][0][-1]).squeeze(1)
        return self.head(self.lstm(words)[1][0][-1]).squeeze(1)


def reviews(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    y = torch.randint(0, 2, (24,), generator=generator)
    x = torch.zeros(24, 90, dtype=torch.long)
    x[:, :8] = torch.randint(3, 40, (24, 8), generator=generator)
    x[:, 6] = 1 + y
    return x, y.float()


@pytest.mark.slow
@pytest.mark.parametrize("faulty", [True, False])
def test_a_state_behind_padding_is_no_frozen_embedding(tmp_path: Path, faulty: bool) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = reviews(step)
        return functional.binary_cross_entropy_with_logits(model(x), y)

    found = fit(tmp_path / "run.h5", Reader(packed=not faulty), loss_of, steps=120, rate=3e-3)
    if not faulty:
        assert not found.findings, str(found)
        return
    assert (found.kind, len(found.findings)) == ("vanishing", 1), str(found)
    assert found.findings[0].layers == ("lstm", "embed")
    assert found.findings[0].remedy.startswith("If the output of the last time step is used")
    assert any("frozen at embed" in note and "far below eps" in note for note in found.notes), str(found)


# --- weights that are written between steps -----------------------------------------------------------------


@both
def test_an_average_of_clients_that_is_added_to_the_last_one(tmp_path: Path, faulty: bool) -> None:
    torch.manual_seed(0)
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    current = copy.deepcopy(model.state_dict())
    data = [(x, torch.where(torch.rand(100) < 0.5, y, torch.randint(0, 3, (100,)))) for x, y in map(scarce, [100] * 3)]
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for _ in range(9):
            total = {name: weights * faulty for name, weights in current.items()}
            for x, y in data:
                model.load_state_dict(current)
                for rows in torch.arange(100).split(20):
                    optimizer.zero_grad()
                    loss = functional.cross_entropy(model(x[rows]), y[rows])
                    loss.backward()
                    optimizer.step()
                    recorder.log(loss=loss)
                total = {name: total[name] + weights / 3 for name, weights in model.state_dict().items()}
            current = total
    found = gradlens.diagnose(tmp_path / "run.h5")
    if not faulty:
        assert not found.findings, str(found)
        return
    assert found.kind in ("plateau", "exploding"), str(found)
    assert "it rises where something besides the optimizer writes the weights" in found.findings[0].evidence
    assert found.findings[0].remedy.startswith("Look at what is written there"), str(found)
    assert "overshoot" not in str(found)


def test_a_rise_by_steps_that_are_too_large_is_still_called_so(tmp_path: Path) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        if step % 5 == 0:  # an average that is copied back, which is not what makes the loss rise
            with torch.no_grad():
                for weights in model.parameters():
                    weights.mul_(0.999)
        x, y = batch(step)
        return functional.cross_entropy(model(x), y)

    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 30.0)
    with gradlens.record(model, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(120):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    assert "it rises where" not in str(gradlens.diagnose(tmp_path / "run.h5"))


class Agent(nn.Module):
    """An actor and a critic."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.actor = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2), nn.Tanh())
        self.critic = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))


UNDONE = "the optimizer's steps are undone"


@both
@ways("way", "soft", "clipped")
def test_a_soft_update_that_writes_the_learner(tmp_path: Path, faulty: bool, way: str) -> None:
    agent = Agent()
    old = copy.deepcopy(agent).requires_grad_(False)
    optimizer = torch.optim.Adam(agent.parameters(), 3e-3)
    goal = torch.tensor([0.7, -0.4])
    with gradlens.record(agent, tmp_path / "run.h5", optimizer=optimizer) as recorder:
        for step in range(FEW):
            torch.manual_seed(step)
            s = torch.rand(32, 2) * 2 - 1
            with torch.no_grad():
                a = (agent.actor(s) + 0.3 * torch.randn(32, 2)).clamp(-1, 1)
                reward = -(s + a - goal).pow(2).sum(1, keepdim=True)
                y = reward + 0.5 * old.critic(torch.cat([s, old.actor(s)], 1))
            error = functional.mse_loss(agent.critic(torch.cat([s, a], 1)), y)
            optimizer.zero_grad()
            (error - 0.1 * agent.critic(torch.cat([s, agent.actor(s)], 1)).mean()).backward()
            optimizer.step()
            for mine, target in zip(agent.parameters(), old.parameters(), strict=True):
                if way == "clipped" and not faulty:  # weights in a small range, as of a critic of a Wasserstein GAN
                    mine.data.clamp_(-0.2, 0.2)
                into, other = (mine, target) if faulty else (target, mine)
                into.data.copy_(0.02 * mine.data + 0.98 * target.data if faulty else 0.02 * other + 0.98 * into)
            recorder.log(critic_loss=error, reward=reward.mean())
    found = gradlens.diagnose(tmp_path / "run.h5")
    assert (UNDONE in causes(found)) == faulty, str(found)
    left = gradlens.read_run(tmp_path / "run.h5").facts["written_between"]["left"]
    assert len(left) == 4
    assert (max(left) < 0.1) == faulty
    if faulty:
        assert found.findings[0].cause == UNDONE, str(found)


# --- shapes in the losses of agents -------------------------------------------------------------------------

BROADCAST = "shapes are broadcast in the loss"


@both
@ways("way", "ratio", "reinforce", "critic")
def test_shapes_of_an_agent_that_are_broadcast(tmp_path: Path, faulty: bool, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = batch(step)
        if way == "critic":
            target = torch.randn(32, 3)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch tells of it, too
                return functional.mse_loss(model(x)[:, :1], target if faulty else target.sum(1, keepdim=True))
        policy = torch.distributions.Categorical(logits=model(x))
        action = policy.sample()
        reward = (action == y).float().unsqueeze(1)
        advantage = (reward - reward.mean()) / (reward.std() + 1e-6)
        advantage = advantage if faulty else advantage.squeeze(1)
        if way == "reinforce":
            return -(policy.log_prob(action) * advantage).mean()
        ratio = torch.exp(policy.log_prob(action) - policy.log_prob(action).detach())
        return -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()

    found = fit(tmp_path / "run.h5", mlp(), loss_of)
    assert (BROADCAST in causes(found)) == faulty, str(found)
    if faulty and way != "critic":
        assert "multiplied by weights of shape 32 x 1, which makes 32 x 32 of them" in found.findings[0].evidence


@pytest.mark.slow
def test_products_that_are_meant_to_grow_are_no_fault(tmp_path: Path) -> None:
    """Quantiles of values are compared with all others, and each logit is weighted in several ways."""

    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = batch(step)
        out = model(x)
        quantiles, others = out[:, :1].unsqueeze(2), torch.randn(32, 1, 5)
        error = functional.smooth_l1_loss(quantiles.expand(32, 1, 5), others)
        log_p = functional.log_softmax(out, 1).gather(1, y.unsqueeze(1))[:, 0]
        weights = torch.rand(32, 32)
        return error - (log_p.unsqueeze(1) * weights).mean()

    assert BROADCAST not in causes(fit(tmp_path / "run.h5", mlp(), loss_of))


WRONG_SIDE = "the prediction is detached in place of the target"


@both
@ways("way", "mse", "by hand")
def test_a_value_that_is_detached_on_the_wrong_side(tmp_path: Path, faulty: bool, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = batch(step)
        value = model(x).gather(1, y.unsqueeze(1)).squeeze(1)
        target = torch.rand(32) + 0.9 * model(x.flip(0)).max(1)[0] * (torch.rand(32) < 0.9)
        value, target = (value.detach(), target) if faulty else (value, target.detach())
        return functional.mse_loss(value, target) if way == "mse" else ((target - value) ** 2).mean()

    found = fit(tmp_path / "run.h5", mlp(), loss_of)
    assert (WRONG_SIDE in causes(found)) == faulty, str(found)


@pytest.mark.slow
def test_the_largest_of_scaled_outputs_may_be_a_prediction(tmp_path: Path) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = batch(step)
        return functional.mse_loss(1.5 + 0.8 * model(x).max(1)[0], y.float())

    found = fit(tmp_path / "run.h5", mlp(), loss_of)
    assert not found.findings, str(found)


# --- places that a model cannot tell apart ------------------------------------------------------------------

PLACES, EVEN = "all places get the same output", "attention weighs all places alike"


class Decoder(nn.Module):
    """A decoder that gets zeros, or what came before."""

    def __init__(self, *, places: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.source, self.target = nn.Linear(2, 16), nn.Linear(2, 16)
        self.code = nn.Parameter(torch.randn(1, 6, 16)) if places else None
        self.mix = nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(6)
        words = self.target(target) if self.code is None else self.target(target) + self.code
        return self.head(self.mix(words, self.source(source), tgt_mask=mask))


@pytest.mark.parametrize("way", ["zeros", "moved", pytest.param("codes", marks=pytest.mark.slow)])
def test_a_decoder_that_gets_zeros_at_all_places(tmp_path: Path, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        wave = torch.sin(torch.arange(12) * (0.3 + torch.rand(16, 1)) + 6 * torch.rand(16, 1))
        pair = torch.stack([wave, wave.cumsum(1) / 6], 2)
        before = pair[:, 5:11] if way == "moved" else torch.zeros(16, 6, 2)
        return functional.mse_loss(model(pair[:, :6], before), pair[:, 6:])

    found = fit(tmp_path / "run.h5", Decoder(places=way == "codes"), loss_of, rate=3e-3)
    assert causes(found) == ([PLACES] if way == "zeros" else []), str(found)
    if way == "zeros":
        assert "the data that target gets are 0 everywhere" in found.findings[0].evidence


class Channel(nn.Module):
    """An autoencoder of signals of one channel, whose codes are rounded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.decode = nn.Conv1d(1, 8, 4, stride=4), nn.ConvTranspose1d(8, 1, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        self.codes = self.encode(x)
        return self.decode(self.codes + (self.codes.round(decimals=1) - self.codes).detach())


@pytest.mark.slow
def test_one_channel_is_no_sequence_of_places(tmp_path: Path) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x = torch.sin(torch.arange(32) * (0.2 + torch.rand(16, 1, 1)) + 6 * torch.rand(16, 1, 1))
        made = model(x)
        return functional.mse_loss(made, x) + functional.mse_loss(model.codes, model.codes.detach().round(decimals=1))

    found = fit(tmp_path / "run.h5", Channel(), loss_of, rate=3e-3)
    assert not found.findings, str(found)
    spread = next(item for item in gradlens.read_run(tmp_path / "run.h5").facts["spread"] if item["layer"] == "(model)")
    assert "along" not in spread


class Attention(nn.Module):
    """A language model with attention of its own, and a causal mask that is added or multiplied."""

    def __init__(self, mask: Callable[[Tensor], Tensor], *, zeros: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(12, 16), nn.Embedding(8, 16)
        self.query, self.key, self.value, self.head = (nn.Linear(16, 16) for _ in range(4))
        self.mask = mask
        if zeros:
            nn.init.zeros_(self.query.weight)
            nn.init.zeros_(self.query.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.places(torch.arange(8))
        scores = self.query(h) @ self.key(h).transpose(1, 2) / 4
        return self.head(h + self.mask(scores).softmax(-1) @ self.value(h))


def as_zeros_and_ones(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda scores: scores + (1 - mask) * -1e9


MASKS = {
    "wrong": as_zeros_and_ones(torch.full((8, 8), -torch.inf).triu(1)),
    "right": as_zeros_and_ones(torch.ones(8, 8).tril()),
    "zero queries": as_zeros_and_ones(torch.ones(8, 8).tril()),
}


@pytest.mark.parametrize("way", ["wrong", "right", pytest.param("zero queries", marks=pytest.mark.slow)])
def test_a_mask_that_leaves_no_decimals_for_the_scores(tmp_path: Path, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = next_words(step)
        return functional.cross_entropy(model(x).flatten(0, 1), y.flatten())

    found = fit(tmp_path / "run.h5", Attention(MASKS[way], zeros=way == "zero queries"), loss_of)
    assert causes(found) == ([EVEN] if way == "wrong" else []), str(found)


# --- a penalty on other weights -----------------------------------------------------------------------------

OTHERS = "a penalty on weights that are not used"


class Noisy(nn.Module):
    """A layer with a mean and a deviation of each weight, and a second set of them."""

    def __init__(self, ins: int, outs: int, used: str) -> None:
        super().__init__()
        self.used = used
        self.mean, self.prior = (nn.Parameter(0.2 * torch.randn(outs, ins)) for _ in range(2))
        self.log, self.prior_log = (nn.Parameter(torch.full((outs, ins), -5.0)) for _ in range(2))
        if used == "mean":
            del self.prior, self.prior_log

    def forward(self, x: Tensor) -> Tensor:
        out = functional.linear(x, self.mean)
        out = out + functional.linear(x * x, self.log.exp()).sqrt() * torch.randn_like(out)
        return out + functional.linear(x, self.prior) if self.used == "both" else out

    def divergence(self) -> Tensor:
        mean, log = (self.mean, self.log) if self.used == "mean" else (self.prior, self.prior_log)
        return 0.5 * (log.exp() + mean**2 - 1 - log).sum()


class Bayesian(nn.Sequential):
    """A classifier of such layers."""

    def __init__(self, used: str) -> None:
        torch.manual_seed(0)
        super().__init__(Noisy(INPUTS, 24, used), nn.Softplus(), Noisy(24, 24, used), nn.Softplus(), nn.Linear(24, 4))

    def layers(self) -> Iterator[Noisy]:
        return (layer for layer in self if isinstance(layer, Noisy))


@pytest.mark.parametrize("used", ["neither", "mean", pytest.param("both", marks=pytest.mark.slow)])
def test_a_divergence_of_weights_that_the_model_does_not_use(tmp_path: Path, used: str) -> None:
    def loss_of(model: Bayesian, step: int) -> Tensor:
        x, y = batch(step)
        return functional.cross_entropy(model(x), y) + 1e-4 * sum(layer.divergence() for layer in model.layers())

    found = fit(tmp_path / "run.h5", Bayesian(used), loss_of)
    assert OTHERS not in causes(found) or used == "neither", str(found)
    assert "all units of a layer are the same" not in causes(found), str(found)
    if used == "neither":
        assert found.findings[0].cause == OTHERS, str(found)


@pytest.mark.slow
def test_vectors_that_are_chosen_and_compared_are_no_penalty(tmp_path: Path) -> None:
    """The codes of a quantiser learn from a term of their own, and the model's output depends on their scales."""

    class Quantiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encode, self.decode = nn.Linear(INPUTS, 4), nn.Linear(4, INPUTS)
            self.codes, self.scales = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.ones(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            z = self.encode(x)
            chosen = torch.cdist(z, self.codes).argmin(1)
            code = self.codes[chosen]
            self.term = (code - z.detach()).square().mean() + 0.2 * (z - code.detach()).square().mean()
            return self.decode((z + (code - z).detach()) * self.scales[chosen])

    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, _ = batch(step)
        return functional.mse_loss(model(x), x) + model.term

    assert OTHERS not in causes(fit(tmp_path / "run.h5", Quantiser(), loss_of))


@pytest.mark.slow
def test_a_penalty_on_all_weights_is_no_fault(tmp_path: Path) -> None:
    """One of two branches is not used in these steps, and decays."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = (nn.Parameter(0.3 * torch.randn(24, INPUTS)) for _ in range(2))
            self.head = nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(functional.linear(x, self.one).relu())

    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = batch(step)
        return functional.cross_entropy(model(x), y) + 1e-4 * sum((p**2).sum() for p in model.parameters())

    assert OTHERS not in causes(fit(tmp_path / "run.h5", Branches(), loss_of))


# --- outputs that are far too large at the start ------------------------------------------------------------


@both
def test_a_sum_over_neighbours_that_is_not_normalised(tmp_path: Path, faulty: bool) -> None:
    torch.manual_seed(0)
    count = 200
    y = torch.randint(0, 4, (count,))
    near = (torch.rand(count, count) < 0.5).float()  # the neighbours tell nothing of the class
    near = near if faulty else near / near.sum(1, keepdim=True)
    x = torch.randn(count, INPUTS)

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(INPUTS, 24), nn.Linear(24, 24), nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            return near @ self.three((near @ self.two((near @ self.one(x)).relu())).relu())

    found = fit(
        tmp_path / "run.h5", Graph(), lambda model, _: functional.cross_entropy(model(x), y), steps=120, rate=1e-3
    )
    said = " ".join(str(found).split())
    assert ("times that of guessing, and is still above it: print the size of each layer's" in said) == faulty, said


# --- logarithms of scales -----------------------------------------------------------------------------------

SIGN, LEFT_OUT = "a logarithm of a scale has the wrong sign", "log-determinants of some layers are left out"


class Flow(nn.Module):
    """Three affine couplings; what passes is scaled by exp(s), or by exp(-s)."""

    def __init__(self, *, divides: bool = False, split: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sign, self.split = -1 if divides else 1, split
        self.scales, self.shifts = (
            nn.ModuleList(
                nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 2 if split else 1)) for _ in range(3)
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        logs = []
        for scale, shift in zip(self.scales, self.shifts, strict=True):
            kept, other = x[:, 1:], x[:, :1]
            s, t = scale(kept).chunk(2, 1) if self.split else (torch.tanh(scale(kept)), shift(kept))
            x = torch.cat([kept, other * (self.sign * s).exp() + t], 1)
            logs.append(self.sign * s.sum(1))
        return x, logs


FLOWS = ("wrong sign", "right", "overwritten", "divides", "divides wrongly", "split", "split wrongly")


@ways("way", *FLOWS)
def test_log_determinants_of_a_flow(tmp_path: Path, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x = torch.randn(64, 2) * torch.tensor([0.5, 2.0]) + 1
        z, logs = model(x)
        log_det = logs[-1] if way == "overwritten" else torch.stack(logs).sum(0)
        square = z.pow(2).sum(1) / 2
        return (square + log_det if "wrong" in way else square - log_det).mean()

    found = fit(tmp_path / "run.h5", Flow(divides="divides" in way, split="split" in way), loss_of)
    expected = [SIGN] if "wrong" in way else [LEFT_OUT] if way == "overwritten" else []
    assert [cause for cause in causes(found) if cause in (SIGN, LEFT_OUT)] == expected, str(found)
    if way == "overwritten":
        assert found.findings[0].layers == ("scales.0.2", "scales.1.2")


class Spread(nn.Module):
    """A model of a mean and of the logarithm of a variance, in two layers or in one that is split."""

    def __init__(self, *, split: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.split = nn.Sequential(nn.Linear(INPUTS, 24), nn.ReLU()), split
        self.one, self.two = nn.Linear(24, 2 if split else 1), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        mean, log = self.one(h).chunk(2, 1) if self.split else (self.one(h), self.two(h))
        return mean, log


@ways("way", "wrong", "variance", "split", "counts", "autoencoder")
def test_the_sign_of_a_log_variance(tmp_path: Path, way: str) -> None:
    def loss_of(model: nn.Module, step: int) -> Tensor:
        x, y = batch(step)
        target = y.float().unsqueeze(1)
        mean, log = model(x)
        if way == "counts":
            return (log.exp() - target * log).mean() + mean.square().mean()
        if way == "autoencoder":
            sample = mean + (log / 2).exp() * torch.randn_like(mean)
            return (sample - target).square().mean() - 0.5 * (1 + log - mean**2 - log.exp()).mean()
        error = (target - mean).square() * torch.exp(-log)
        return (error - log).mean() if way == "wrong" else (error + log).mean()

    found = fit(tmp_path / "run.h5", Spread(split=way == "split"), loss_of)
    assert (SIGN in causes(found)) == (way == "wrong"), str(found)
