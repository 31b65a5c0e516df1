"""The policy's step clips the gradients of the value net, so the policy's own gradients are never clipped.

google-deepmind/open_spiel#827: "optimizing the policy but clipping the gradients for the value head"; mended.
"""

import torch
from torch import nn


def build(outputs):
    """Build a small MLP."""
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


class PolicyGradient(nn.Module):
    """A policy and a baseline."""

    def __init__(self):
        super().__init__()
        self.pi_network, self.q_network = build(4), build(1)


def payoff(state, action):
    """Pay 1 for the best of four actions; now and then a round is for very high stakes."""
    stakes = torch.distributions.Pareto(1.0, 1.1).sample((len(state),)).clamp(max=1e4)
    best = state[:, :4].argmax(1)
    return stakes * ((action == best).float() - 0.3)


def train(faulty, record):
    """Alternate critic and policy steps."""
    torch.manual_seed(0)
    agent = PolicyGradient()
    critic_optimizer = torch.optim.SGD(agent.q_network.parameters(), lr=0.01)
    pi_optimizer = torch.optim.SGD(agent.pi_network.parameters(), lr=0.05)
    with record(agent, optimizer=[critic_optimizer, pi_optimizer]) as recorder:
        for _ in range(600):
            state = torch.randn(128, 6)
            policy = torch.distributions.Categorical(logits=agent.pi_network(state))
            action = policy.sample()
            returns = payoff(state, action)

            baseline = agent.q_network(state).squeeze(1)
            critic_loss = nn.functional.smooth_l1_loss(baseline, returns)
            critic_optimizer.zero_grad()
            critic_loss.backward()
            nn.utils.clip_grad_norm_(agent.q_network.parameters(), 1.0)
            critic_optimizer.step()

            pi_loss = -(policy.log_prob(action) * (returns - baseline.detach())).mean() - 0.01 * policy.entropy().mean()
            pi_optimizer.zero_grad()
            pi_loss.backward()
            nn.utils.clip_grad_norm_((agent.q_network if faulty else agent.pi_network).parameters(), 1.0)
            pi_optimizer.step()
            recorder.log(critic_loss=critic_loss, pi_loss=pi_loss)
    state = torch.randn(2000, 6)
    with torch.no_grad():
        right = (agent.pi_network(state).argmax(1) == state[:, :4].argmax(1)).float().mean().item()
    return {"loss": 1 - right, "accuracy": right}
