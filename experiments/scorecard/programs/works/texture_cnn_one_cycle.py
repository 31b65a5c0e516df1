"""A plain CNN on striped images under SGD with Nesterov momentum and a one-cycle learning rate."""

import torch
import torch.nn.functional as F
from torch import nn


def stripes(n):
    """Return images of four kinds of stripes, with noise and random phase, and their classes."""
    y = torch.randint(4, (n,))
    rows, cols = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = torch.stack([rows, cols, (rows + cols) / 1.4, (rows - cols) / 1.4])[y]
    phase = 6.3 * torch.rand(n, 1, 1)
    image = torch.sin(waves * 1.1 + phase) + 1.2 * torch.randn(n, 16, 16)
    return image[:, None], y


def train(record):
    """Train for 5 epochs over a fixed set; return loss and accuracy on fresh images."""
    torch.manual_seed(0)
    images, labels = stripes(3200)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(64, 4),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    epochs, batch = 5, 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=epochs * (3200 // batch))
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(epochs):
            model.train()
            total = 0.0
            for index in torch.randperm(3200).split(batch):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images[index]), labels[index])
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() / (3200 // batch)
                recorder.log(loss=loss, lr=schedule.get_last_lr()[0])
            recorder.log_epoch(epoch=epoch, train_loss=total)
    model.eval()
    with torch.no_grad():
        x, y = stripes(1000)
        out = model(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
