"""The soft update goes into a copy of the target's weights, so the target network itself stays as it was initialised.

AgileRL/AgileRL#464: "soft update wasn't being applied to target network after parameter sharing through TensorDict".
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

CORRIDOR = 8


class Agent(nn.Module):
    """Double networks for Q-learning in a corridor with a prize at its end."""

    def __init__(self, faulty):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(CORRIDOR, 64), nn.ReLU(), nn.Linear(64, 2))
        self.target = copy.deepcopy(self.actor).requires_grad_(False)
        weights = self.target.state_dict()
        self.shared = {name: w.clone() for name, w in weights.items()} if faulty else weights

    def soft_update(self, tau=0.05):
        with torch.no_grad():
            for name, weight in self.actor.named_parameters():
                self.shared[name].lerp_(weight, tau)


def transitions(size):
    """Draw states, random actions and what follows; action 1 goes toward the prize."""
    state, action = torch.randint(CORRIDOR - 1, (size,)), torch.randint(2, (size,))
    after = (state + 2 * action - 1).clamp(min=0)
    done = (after == CORRIDOR - 1).float()
    return F.one_hot(state, CORRIDOR).float(), action, done, F.one_hot(after, CORRIDOR).float(), done


def train(faulty, record):
    """Learn the value of walking; compare with the true values."""
    torch.manual_seed(0)
    agent = Agent(faulty)
    optimizer = torch.optim.Adam(agent.actor.parameters(), lr=2e-3)
    with record(agent, optimizer=optimizer) as recorder:
        for _ in range(600):
            state, action, reward, after, done = transitions(64)
            with torch.no_grad():
                wanted = reward + 0.9 * (1 - done) * agent.target(after).max(1).values
            value = agent.actor(state).gather(1, action.unsqueeze(1)).squeeze(1)
            loss = F.mse_loss(value, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            agent.soft_update()
            recorder.log(loss=loss)
    true = 0.9 ** torch.arange(CORRIDOR - 2, -1, -1.0)
    with torch.no_grad():
        value = agent.actor(torch.eye(CORRIDOR)[: CORRIDOR - 1])
    right = (value.argmax(1) == 1).float().mean().item()
    return {"loss": F.mse_loss(value[:, 1], true).item(), "accuracy": right}
