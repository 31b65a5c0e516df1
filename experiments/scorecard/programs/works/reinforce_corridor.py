"""REINFORCE with a baseline of past returns in a corridor: the loss is no measure of progress, the return is."""

import torch
from torch import nn


class Policy(nn.Module):
    """Left or right from the position and the goal's side."""

    def __init__(self):
        super().__init__()
        self.affine1 = nn.Linear(4, 48)
        self.dropout = nn.Dropout(p=0.1)
        self.affine2 = nn.Linear(48, 2)

    def forward(self, x):
        return torch.softmax(self.affine2(self.dropout(torch.relu(self.affine1(x)))), 1)


def play(policy, episodes=24, length=10):
    """Walk in many corridors at once; return log-probabilities and rewards of shape (time, episode)."""
    place, goal = torch.zeros(episodes), torch.randint(2, (episodes,)) * 2.0 - 1
    log_probs, rewards = [], []
    for t in range(length):
        state = torch.stack([place / 5, goal, torch.full((episodes,), t / length), place * goal / 5], 1)
        choice = torch.distributions.Categorical(policy(state))
        action = choice.sample()
        place = (place + 2 * action - 1).clamp(-5, 5)
        log_probs.append(choice.log_prob(action))
        rewards.append((place * goal >= 4).float() - 0.05)
    return torch.stack(log_probs), torch.stack(rewards)


def train(record):
    """Train; return the last loss and the mean return before and after."""
    torch.manual_seed(543)
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
    policy.eval()
    before = play(policy, 500)[1].sum(0).mean().item()
    policy.train()
    baseline = 0.0
    with record(policy, optimizer=optimizer) as recorder:
        for _ in range(250):
            log_probs, rewards = play(policy)
            returns = rewards.flip(0).cumsum(0).flip(0)
            baseline = 0.95 * baseline + 0.05 * returns.mean().item()
            loss = -(log_probs * (returns - baseline)).sum(0).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss, episode_return=rewards.sum(0).mean())
    policy.eval()
    with torch.no_grad():
        after = play(policy, 500)[1].sum(0).mean().item()
    return {"loss": loss.item(), "return": after, "return_before": before}
