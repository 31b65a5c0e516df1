"""A plain MLP on flattened images with mixup: targets are mixed, so the train loss stays far above zero."""

import torch
import torch.nn.functional as F
from torch import nn


def digits(shapes, n):
    """Return shifted noisy shapes, flattened, and their class."""
    y = torch.randint(len(shapes), (n,))
    images = torch.stack([torch.roll(shapes[c], tuple(torch.randint(-1, 2, (2,)).tolist()), (0, 1)) for c in y])
    return (images + 0.3 * torch.randn_like(images)).flatten(1), y


def train(record):
    """Train with mixup; return loss and accuracy on unmixed images."""
    torch.manual_seed(0)
    shapes = (F.avg_pool2d(torch.randn(10, 1, 14, 14), 3, 1) > 0.1).float()[:, 0]
    x_all, y_all = digits(shapes, 3000)
    mixing = torch.distributions.Beta(0.4, 0.4)
    model = nn.Sequential(
        nn.Linear(144, 128), nn.PReLU(), nn.Linear(128, 128), nn.PReLU(),
        nn.Linear(128, 64), nn.PReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.02)
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(8):
            total = 0.0
            for index in torch.randperm(3000).split(60):
                x, y = x_all[index], F.one_hot(y_all[index], 10).float()
                other, share = torch.randperm(60), mixing.sample()
                x, y = share * x + (1 - share) * x[other], share * y + (1 - share) * y[other]
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() / 50
                recorder.log(loss=loss)
            recorder.log_epoch(epoch=epoch, train_loss=total)
    with torch.no_grad():
        x, y = digits(shapes, 1000)
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
