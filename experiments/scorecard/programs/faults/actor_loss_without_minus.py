"""The actor's loss is the critic's value without the minus sign, so the actor looks for the worst action.

KanishJebaMathewM/Truxify#11885: "missing negative sign in actor loss", mended to -q_values.mean() (merged).
"""

import torch
from torch import nn


class Actor(nn.Module):
    """State to action."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, state):
        return 2 * torch.tanh(self.net(state))


class Critic(nn.Module):
    """State and action to value."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, state, action):
        return self.net(torch.cat([state, action], dim=1))


def train(faulty, record):
    """Steer toward a point that depends on the state; one step per episode."""
    torch.manual_seed(0)
    goal = torch.randn(4, 2) * 0.5
    actor, critic = Actor(), Critic()
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=5e-4)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)

    def reward(state, action):
        return -(action - torch.tanh(state @ goal)).square().sum(1, keepdim=True)

    agent = nn.ModuleDict({"actor": actor, "critic": critic})
    with record(agent, optimizer=[actor_optimizer, critic_optimizer]) as recorder:
        for _ in range(500):
            state = torch.randn(64, 4)
            with torch.no_grad():
                action = (actor(state) + 0.5 * torch.randn(64, 2)).clamp(-2, 2)
            r = reward(state, action)
            critic_loss = nn.functional.mse_loss(critic(state, action), r)
            critic_optimizer.zero_grad()
            critic_loss.backward()
            critic_optimizer.step()

            q_values = critic(state, actor(state))
            actor_loss = q_values.mean() if faulty else -q_values.mean()
            actor_optimizer.zero_grad()
            actor_loss.backward()
            actor_optimizer.step()
            recorder.log(actor_loss=actor_loss, critic_loss=critic_loss, reward=r.mean())
    state = torch.randn(1000, 4)
    with torch.no_grad():
        got = reward(state, actor(state)).mean().item()
    return {"loss": -got, "reward": got}
