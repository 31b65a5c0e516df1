"""The actor's loss runs back into the critics too, and one optimizer applies it: they praise whatever the actor does.

ray-project/ray#65125: the critics grow without bound while the return collapses; frozen in the actor's pass (merged).
"""

import torch
import torch.nn.functional as F
from torch import nn


def mlp(inputs, outputs):
    """Build two hidden layers."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


class TQC(nn.Module):
    """An actor and two critics with several quantiles each."""

    def __init__(self):
        super().__init__()
        self.pi = mlp(3, 2)
        self.qf = nn.ModuleList([mlp(5, 5), mlp(5, 5)])

    def act(self, obs):
        return torch.tanh(self.pi(obs))

    def quantiles(self, obs, action):
        return torch.cat([q(torch.cat([obs, action], dim=1)) for q in self.qf], dim=1)


def quantile_huber(predicted, target):
    """Return the quantile regression loss."""
    tau = (torch.arange(5) + 0.5).repeat(2) / 5
    error = target - predicted
    return (
        torch.abs(tau - (error.detach() < 0).float()) * F.smooth_l1_loss(predicted, target, reduction="none")
    ).mean()


def train(faulty, record):
    """Learn from a fixed buffer of random actions: hold the hand at a place that the state tells."""
    torch.manual_seed(0)
    place = torch.randn(3, 2) * 0.5
    obs, action = torch.randn(4000, 3), torch.rand(4000, 2) * 2 - 1

    def reward(o, a):
        return -(a - torch.tanh(o @ place)).square().sum(1, keepdim=True)

    r = reward(obs, action)
    module = TQC()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    with record(module, optimizer=optimizer) as recorder:
        for _ in range(400):
            i = torch.randint(4000, (128,))
            qf_loss = quantile_huber(module.quantiles(obs[i], action[i]), r[i].expand(-1, 10))
            module.qf.requires_grad_(faulty)
            qf_curr = module.quantiles(obs[i], module.act(obs[i]))
            module.qf.requires_grad_(True)
            policy_loss = -qf_curr.mean()
            optimizer.zero_grad()
            (qf_loss + policy_loss).backward()
            optimizer.step()
            recorder.log(qf_loss=qf_loss, policy_loss=policy_loss, qf_mean=qf_curr.mean())
    o = torch.randn(2000, 3)
    with torch.no_grad():
        a = module.act(o)
        got = reward(o, a)
        return {"loss": F.mse_loss(module.quantiles(o, a).mean(1, True), got).item(), "reward": got.mean().item()}
