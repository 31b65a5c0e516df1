"""The actor's loss leaves gradients in the critic, which its own step then uses (a kind of wandb#1639)."""

import torch
import torch.nn.functional as F
from torch import nn


def mlp(inside, outside, last=None):
    """Two hidden layers of 48."""
    layers = [nn.Linear(inside, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, outside)]
    return nn.Sequential(*layers, *([last] if last else []))


def reward(state, action):
    """Best is the action tanh(state summed by halves)."""
    wish = torch.stack([state[:, :2].sum(1), state[:, 2:].sum(1)], 1).tanh()
    return 1 - (action - wish).square().sum(1, keepdim=True)


def train(faulty, record):
    """Train actor and critic of a one-step task; return the mean loss of reward (0 is best)."""
    torch.manual_seed(0)
    actor, critic = mlp(4, 2, nn.Tanh()), mlp(6, 1)
    opt_a, opt_c = torch.optim.Adam(actor.parameters(), lr=1e-3), torch.optim.SGD(critic.parameters(), lr=0.05)
    model = nn.ModuleDict({"actor": actor, "critic": critic})
    with record(model, optimizer=[opt_c, opt_a]) as recorder:
        for _ in range(600):
            state = torch.randn(64, 4)
            with torch.no_grad():
                action = (actor(state) + 0.4 * torch.randn(64, 2)).clamp(-1, 1)
            if not faulty:
                opt_c.zero_grad()
            critic_loss = F.mse_loss(critic(torch.cat([state, action], 1)), reward(state, action))
            critic_loss.backward()
            opt_c.step()
            if faulty:
                opt_c.zero_grad()
            actor_loss = -critic(torch.cat([state, actor(state)], 1)).mean()
            opt_a.zero_grad()
            actor_loss.backward()
            opt_a.step()
            recorder.log(loss=critic_loss, actor_loss=actor_loss)
    with torch.no_grad():
        state = torch.randn(2000, 4)
        lost = (1 - reward(state, actor(state))).mean()
    return {"loss": lost.item()}
