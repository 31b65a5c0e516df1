"""PPO with a Gaussian policy: each batch is used eight times, the policy's loss stays near zero."""

import torch
from torch import nn


class Agent(nn.Module):
    """Separate actor and critic; the actor's last layer starts at a hundredth of its usual size."""

    def __init__(self):
        super().__init__()
        self.critic = self.stack(1, 1.0)
        self.actor = self.stack(2, 0.01)
        self.log_std = nn.Parameter(torch.zeros(2))

    @staticmethod
    def stack(outside, gain):
        layers = [nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outside)]
        for layer, size in zip(layers[::2], (2**0.5, 2**0.5, gain), strict=True):
            nn.init.orthogonal_(layer.weight, size)
        return nn.Sequential(*layers)

    def policy(self, state):
        return torch.distributions.Normal(self.actor(state), self.log_std.exp())


def rollout(agent, worlds, length=16):
    """Move points toward their goals; return states, actions, rewards of shape (time, world, ...)."""
    place, goal = torch.rand(worlds, 2) * 2 - 1, torch.rand(worlds, 2) * 2 - 1
    rows = []
    for _ in range(length):
        state = torch.cat([place, goal], 1)
        action = agent.policy(state).sample()
        place = place + 0.2 * action.clamp(-1, 1)
        rows.append((state, action, -(place - goal).norm(dim=1)))
    return [torch.stack(part) for part in zip(*rows, strict=True)]


def train(record):
    """Train for 45 iterations of 4 epochs of 2 minibatches; return the mean distance to the goal."""
    torch.manual_seed(0)
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3, eps=1e-5)
    with record(agent, optimizer=optimizer) as recorder:
        for _ in range(45):
            with torch.no_grad():
                states, actions, rewards = rollout(agent, 32)
                returns, running = torch.zeros_like(rewards), torch.zeros(32)
                for t in reversed(range(16)):
                    running = returns[t] = rewards[t] + 0.8 * running
                old = agent.policy(states).log_prob(actions).sum(-1)
                advantage = returns - agent.critic(states)[..., 0]
            data = [part.flatten(0, 1) for part in (states, actions, old, returns, advantage)]
            for _ in range(4):
                for index in torch.randperm(512).split(256):
                    s, a, o, r, adv = (part[index] for part in data)
                    adv = (adv - adv.mean()) / (adv.std() + 1e-8)
                    policy = agent.policy(s)
                    ratio = (policy.log_prob(a).sum(-1) - o).exp()
                    gain = torch.min(ratio * adv, ratio.clamp(0.8, 1.2) * adv).mean()
                    value = (agent.critic(s)[:, 0] - r).square().mean()
                    loss = 0.5 * value - gain - 0.001 * policy.entropy().sum(-1).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                    optimizer.step()
                    recorder.log(loss=loss, value_loss=value, distance=-rewards.mean())
    with torch.no_grad():
        first, last = (-rollout(a, 300)[2][-4:].mean().item() for a in (Agent(), agent))
    return {"loss": loss.item(), "distance": last, "distance_untrained": first}
