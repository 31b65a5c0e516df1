"""The encoder's output is read by .data, so it gets no gradient (cause as in CoCa-pytorch#6)."""

import torch
import torch.nn.functional as F
from torch import nn


class GraphEncoder(nn.Module):
    """Two rounds of averaging over neighbours."""

    def __init__(self, inside, width):
        super().__init__()
        self.conv1, self.conv2 = nn.Linear(2 * inside, width), nn.Linear(2 * width, width)

    def forward(self, x, a):
        x = F.relu(self.conv1(torch.cat([x, a @ x], -1)))
        return self.conv2(torch.cat([x, a @ x], -1))


class LinkClassifier(nn.Module):
    """Embed nodes, then classify the graph by pooled node embeddings."""

    def __init__(self, faulty):
        super().__init__()
        self.encoder = GraphEncoder(6, 5)
        self.classifier = nn.Linear(5, 6)
        self.faulty = faulty

    def forward(self, x, a):
        nodes = self.encoder(x, a)
        if self.faulty:
            nodes = nodes.data
        return self.classifier(nodes.amax(1))


def graphs(n, nodes=12):
    """Return node features, normalised adjacency and the kind of motif that one neighbourhood carries."""
    a = (torch.rand(n, nodes, nodes) < 0.2).float()
    a = ((a + a.transpose(1, 2)) > 0).float() * (1 - torch.eye(nodes))
    x, y = 0.7 * torch.randn(n, nodes, 6), torch.randint(6, (n,))
    rows = torch.arange(n)
    centre = a.sum(2).argmax(1)
    x[rows, :, y] += 1.5 * a[rows, centre]
    return x, a / a.sum(2, keepdim=True).clamp(min=1), y


def train(faulty, record):
    """Train; return loss and accuracy on fresh graphs."""
    torch.manual_seed(0)
    model = LinkClassifier(faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            x, a, y = graphs(64)
            loss = F.cross_entropy(model(x, a), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        x, a, y = graphs(1000)
        out = model(x, a)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
