"""Stochastic weight averaging: a high constant rate at the end, the mean of the weights is what counts."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn


def train(record):
    """Train 12 epochs, average from the sixth on, refresh batch norm; return the averaged model's loss and accuracy."""
    torch.manual_seed(0)
    centres = torch.randn(10, 24)

    def data(n):
        y = torch.randint(10, (n,))
        return centres[y] + 1.1 * torch.randn(n, 24), y

    (x, y), (fresh, truth) = data(1600), data(2000)
    model = nn.Sequential(
        nn.Linear(24, 96), nn.BatchNorm1d(96), nn.ReLU(),
        nn.Linear(96, 96), nn.BatchNorm1d(96), nn.ReLU(),
        nn.Linear(96, 10),
    )  # fmt: skip
    swa_model = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    swa_scheduler = SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(12):
            model.train()
            for index in torch.randperm(1600).split(50):
                loss = F.cross_entropy(model(x[index]), y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.log(loss=loss, lr=optimizer.param_groups[0]["lr"])
            if epoch > 5:
                swa_model.update_parameters(model)
                swa_scheduler.step()
            else:
                scheduler.step()
    update_bn([(x,)], swa_model)
    swa_model.eval()
    with torch.no_grad():
        out = swa_model(fresh)
    return {"loss": F.cross_entropy(out, truth).item(), "accuracy": (out.argmax(1) == truth).float().mean().item()}
