"""Dropout of 0.6 before wide layers with max-norm weights: the train loss stays high, the test loss not."""

import torch
import torch.nn.functional as F
from torch import nn


@torch.no_grad()
def max_norm(model, limit=3.0):
    """Scale down rows of weights that have grown too long."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            norm = module.weight.norm(dim=1, keepdim=True).clamp(min=limit / 2)
            module.weight.mul_(norm.clamp(max=limit) / norm)


def train(record):
    """Train on bags of words with few examples; return loss and accuracy without dropout."""
    torch.manual_seed(0)
    topics = torch.softmax(1.6 * torch.randn(6, 300), 1)

    def documents(n):
        y = torch.randint(6, (n,))
        words = torch.multinomial(topics[y], 40, replacement=True)
        return torch.zeros(n, 300).scatter_add_(1, words, torch.ones(n, 40)).log1p(), y

    (x, y), (fresh, truth) = documents(600), documents(1000)
    model = nn.Sequential(
        nn.Dropout(0.2), nn.Linear(300, 256), nn.ReLU(),
        nn.Dropout(0.6), nn.Linear(256, 256), nn.ReLU(),
        nn.Dropout(0.6), nn.Linear(256, 6),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(20):
            model.train()
            total = 0.0
            for index in torch.randperm(600).split(30):
                loss = F.cross_entropy(model(x[index]), y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                max_norm(model)
                total += loss.item() / 20
                recorder.log(loss=loss)
            model.eval()
            with torch.no_grad():
                out = model(fresh)
            accuracy = (out.argmax(1) == truth).float().mean().item()
            recorder.log_epoch(epoch=epoch, train_loss=total, val_accuracy=accuracy)
    return {"loss": F.cross_entropy(out, truth).item(), "accuracy": accuracy}
