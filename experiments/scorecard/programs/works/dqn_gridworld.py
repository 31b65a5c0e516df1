"""Deep Q-learning with replay and a target network copied every 25 steps: the loss does not just fall."""

import copy
import random

import torch
import torch.nn.functional as F
from torch import nn

SIZE, MOVES = 5, torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])


def observe(place, goal):
    """One-hot position and goal."""
    cells = [F.one_hot(p[:, 0] * SIZE + p[:, 1], SIZE * SIZE) for p in (place, goal)]
    return torch.cat(cells, 1).float()


def move(place, goal, action):
    """Return the new place, the reward and whether the goal is reached."""
    place = (place + MOVES[action]).clamp(0, SIZE - 1)
    done = (place == goal).all(1)
    return place, done.float() - 0.02, done


def success(network, n=500):
    """Share of greedy walks that reach the goal within ten moves."""
    place, goal = torch.randint(SIZE, (n, 2)), torch.randint(SIZE, (n, 2))
    reached = (place == goal).all(1)
    for _ in range(10):
        place, _, done = move(place, goal, network(observe(place, goal)).argmax(1))
        reached |= done
    return reached.float().mean().item()


def train(record):
    """Act epsilon-greedily in 16 worlds at once; return the loss and the share of walks that succeed."""
    torch.manual_seed(0)
    rng = random.Random(0)
    online = nn.Sequential(nn.Linear(2 * SIZE * SIZE, 128), nn.ReLU(), nn.Linear(128, 4))
    target = copy.deepcopy(online).eval()
    optimizer = torch.optim.Adam(online.parameters(), lr=3e-3)
    memory, before = [], success(online)
    place, goal = torch.randint(SIZE, (16, 2)), torch.randint(SIZE, (16, 2))
    with record(online, optimizer=optimizer) as recorder:
        for step in range(600):
            with torch.no_grad():
                greedy = online(observe(place, goal)).argmax(1)
            random_one = torch.rand(16) < max(0.1, 1 - step / 300)
            action = torch.where(random_one, torch.randint(4, (16,)), greedy)
            after, reward, done = move(place, goal, action)
            memory = [*memory[-200:], (place, goal, action, reward, after, done)]
            fresh = torch.randint(SIZE, (16, 2))
            place = torch.where(done[:, None], fresh, after)
            goal = torch.where(done[:, None], torch.randint(SIZE, (16, 2)), goal)
            p, g, a, r, n, d = (torch.cat(part) for part in zip(*rng.choices(memory, k=12), strict=True))
            with torch.no_grad():
                wanted = r + 0.9 * target(observe(n, g)).amax(1) * ~d
            loss = F.smooth_l1_loss(online(observe(p, g)).gather(1, a[:, None])[:, 0], wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_value_(online.parameters(), 1.0)
            optimizer.step()
            if step % 25 == 24:
                target.load_state_dict(online.state_dict())
            recorder.log(loss=loss)
    return {"loss": loss.item(), "accuracy": success(online), "before": before}
