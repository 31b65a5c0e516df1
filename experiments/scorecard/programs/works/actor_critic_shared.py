"""Advantage actor-critic with a shared trunk and an entropy bonus on a balancing task; the loss changes sign."""

import torch
import torch.nn.functional as F
from torch import nn


class ActorCritic(nn.Module):
    """One trunk, an action head and a value head."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.action_head, self.value_head = nn.Linear(64, 3), nn.Linear(64, 1)

    def forward(self, state):
        hidden = self.trunk(state)
        return torch.distributions.Categorical(logits=self.action_head(hidden)), self.value_head(hidden).squeeze(-1)


def physics(state, action):
    """An unstable pole: angle and speed; pushes of -1, 0 or 1."""
    angle, speed = state.unbind(1)
    speed = speed + 0.15 * angle + 0.3 * (action - 1) + 0.05 * torch.randn_like(speed)
    angle = angle + 0.3 * speed
    return torch.stack([angle, speed], 1), (angle.abs() < 1).float()


def train(record):
    """Train with rollouts of 8 steps in 32 worlds; return the share of upright time before and after."""
    torch.manual_seed(1)
    model = ActorCritic()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, alpha=0.99, eps=1e-5)

    @torch.no_grad()
    def upright(steps=60):
        state, total = 0.2 * torch.randn(300, 2), 0.0
        alive = torch.ones(300)
        for _ in range(steps):
            state, fine = physics(state, model(state)[0].sample())
            alive = alive * fine
            total += alive.mean().item() / steps
        return total

    before = upright()
    state = 0.2 * torch.randn(32, 2)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            rows = []
            for _ in range(8):
                policy, value = model(state)
                action = policy.sample()
                state, reward = physics(state, action)
                rows.append((policy.log_prob(action), policy.entropy(), value, reward))
                state = torch.where(reward[:, None] > 0, state, 0.2 * torch.randn(32, 2)).detach()
            with torch.no_grad():
                ahead = model(state)[1]
            loss = 0.0
            for log_prob, entropy, value, reward in reversed(rows):
                ahead = reward + 0.95 * ahead * reward
                advantage = ahead - value
                loss = loss - (log_prob * advantage.detach() + 0.01 * entropy).mean()
                loss = loss + 0.5 * F.smooth_l1_loss(value, ahead)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            recorder.log(loss=loss, entropy=entropy.mean())
    return {"loss": loss.item(), "upright": upright(), "upright_before": before}
