"""The advantage in the policy loss is not detached, so the policy loss also moves the critic, away from the rewards.

astariul/encode-attend-navigate-pytorch#2: critic values not detached; detaching them gave the original's results.
"""

import torch
from torch import nn


class Navigator(nn.Module):
    """An actor that picks the next city and a critic that foretells the gain."""

    def __init__(self, cities=6, dim=64):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2 * cities, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.actor = nn.Linear(dim, cities)
        self.critic = nn.Linear(dim, 1)

    def forward(self, coordinates):
        h = self.encoder(coordinates.flatten(1))
        return torch.distributions.Categorical(logits=self.actor(h)), self.critic(h).squeeze(1)


def gain(coordinates, city):
    """Pay for nearness of the chosen city to the depot (0, 0); the mean is far from zero."""
    chosen = coordinates[torch.arange(len(city)), city]
    return 10 - 3 * chosen.norm(dim=1)


def train(faulty, record):
    """Train actor and critic together."""
    torch.manual_seed(0)
    model = Navigator()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(600):
            coordinates = torch.randn(64, 6, 2)
            policy, value = model(coordinates)
            city = policy.sample()
            reward = gain(coordinates, city)
            advantage = reward - (value if faulty else value.detach())
            policy_loss = -(advantage * policy.log_prob(city)).mean()
            critic_loss = (reward - value).square().mean()
            optimizer.zero_grad()
            (policy_loss + 0.05 * critic_loss).backward()
            optimizer.step()
            recorder.log(policy_loss=policy_loss, critic_loss=critic_loss, reward=reward.mean())
    coordinates = torch.randn(2000, 6, 2)
    with torch.no_grad():
        policy, value = model(coordinates)
        reward = gain(coordinates, policy.probs.argmax(1))
    return {"loss": (reward - value).square().mean().item(), "reward": reward.mean().item()}
