"""A two-layer graph convolution on a dense adjacency: full batch, few labels, strong dropout and decay."""

import torch
import torch.nn.functional as F
from torch import nn


class GCN(nn.Module):
    """Features times weights, then the mean over neighbours."""

    def __init__(self, inside, hidden, classes):
        super().__init__()
        self.gc1 = nn.Linear(inside, hidden, bias=False)
        self.gc2 = nn.Linear(hidden, classes, bias=False)

    def forward(self, x, adjacency):
        x = F.relu(adjacency @ self.gc1(F.dropout(x, 0.5, self.training)))
        x = F.dropout(x, 0.5, self.training)
        return F.log_softmax(adjacency @ self.gc2(x), dim=1)


def make_graph(nodes=400, classes=5):
    """A block model: nodes of one class are linked more often; features are weak words."""
    label = torch.arange(nodes) % classes
    same = label[:, None] == label
    links = torch.rand(nodes, nodes) < torch.where(same, 0.06, 0.01)
    links = (links | links.T | torch.eye(nodes, dtype=torch.bool)).float()
    degree = links.sum(1).rsqrt()
    words = torch.rand(classes, 200) < 0.08
    features = (torch.rand(nodes, 200) < torch.where(words[label], 0.12, 0.04)).float()
    return F.normalize(features, p=1, dim=1), degree[:, None] * links * degree, label


def train(record):
    """Train on 60 labelled nodes; return loss and accuracy of the others."""
    torch.manual_seed(42)
    x, adjacency, y = make_graph()
    known, rest = torch.arange(60), torch.arange(60, 400)
    model = GCN(200, 16, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(300):
            model.train()
            optimizer.zero_grad()
            out = model(x, adjacency)
            loss = F.nll_loss(out[known], y[known])
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
            if epoch % 20 == 19:
                model.eval()
                with torch.no_grad():
                    out = model(x, adjacency)
                accuracy = (out[rest].argmax(1) == y[rest]).float().mean().item()
                recorder.log_epoch(epoch=epoch, train_loss=loss.item(), val_accuracy=accuracy)
    return {"loss": F.nll_loss(out[rest], y[rest]).item(), "accuracy": accuracy}
