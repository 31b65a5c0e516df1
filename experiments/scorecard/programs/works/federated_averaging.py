"""Federated averaging: four clients train copies on skewed data, the server's weights are their mean."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """A small perceptron."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(28, 64), nn.Linear(64, 32), nn.Linear(32, 8)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def average(states, sizes):
    """Return the mean of the clients' weights, by the size of their data."""
    total = sum(sizes)
    return {key: sum(s[key] * (n / total) for s, n in zip(states, sizes, strict=True)) for key in states[0]}


def train(record):
    """Record client 0, whose weights are replaced at each round; return loss and accuracy of the server."""
    torch.manual_seed(0)
    centres = torch.randn(8, 28)
    shares = torch.full((4, 8), 0.4) + torch.eye(4).repeat_interleave(2, 1) * 4
    data = []
    for share, size in zip(shares, (400, 300, 200, 300), strict=True):
        y = torch.multinomial(share, size, replacement=True)
        data.append((centres[y] + 0.9 * torch.randn(size, 28), y))
    server = Net()
    clients = [copy.deepcopy(server) for _ in data]
    optimizers = [torch.optim.SGD(client.parameters(), lr=0.05) for client in clients]
    with record(clients[0], optimizer=optimizers[0]) as recorder:
        for _ in range(25):
            for number, (client, optimizer, (x, y)) in enumerate(zip(clients, optimizers, data, strict=True)):
                client.load_state_dict(server.state_dict())
                for index in torch.randperm(len(y)).split(32):
                    optimizer.zero_grad()
                    loss = F.cross_entropy(client(x[index]), y[index])
                    loss.backward()
                    optimizer.step()
                    if number == 0:
                        recorder.log(loss=loss)
            server.load_state_dict(average([c.state_dict() for c in clients], [len(y) for _, y in data]))
    y = torch.randint(8, (2000,))
    with torch.no_grad():
        out = server(centres[y] + 0.9 * torch.randn(2000, 28))
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
