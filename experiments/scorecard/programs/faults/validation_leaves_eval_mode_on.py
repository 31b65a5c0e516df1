"""Validation sets eval mode and nobody sets it back (cause as in pytorch-fcn#57)."""

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """A wide network for few examples, with strong dropout."""

    def __init__(self):
        super().__init__()
        self.drop1, self.fc1, self.bn1 = nn.Dropout(0.2), nn.Linear(120, 256), nn.BatchNorm1d(256)
        self.drop2, self.fc2, self.bn2 = nn.Dropout(0.6), nn.Linear(256, 128), nn.BatchNorm1d(128)
        self.drop3, self.fc3 = nn.Dropout(0.6), nn.Linear(128, 6)

    def forward(self, x):
        x = F.relu(self.bn1(self.fc1(self.drop1(x))))
        x = F.relu(self.bn2(self.fc2(self.drop2(x))))
        return self.fc3(self.drop3(x))


def validate(model, x, y):
    """Return loss and accuracy in eval mode."""
    model.eval()
    with torch.no_grad():
        out = model(x)
    return F.cross_entropy(out, y).item(), (out.argmax(1) == y).float().mean().item()


def train(faulty, record):
    """Train 25 epochs, validate after each; return what the last validation says."""
    torch.manual_seed(0)
    centres = 12 * torch.randn(6, 120)

    def data(n):
        y = torch.randint(6, (n,))
        return centres[y] + 40 * torch.randn(n, 120), y

    (x, y), (x_val, y_val) = data(256), data(1500)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(25):
            if not faulty:
                model.train()
            for index in torch.randperm(256).split(16):
                loss = F.cross_entropy(model(x[index]), y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.log(loss=loss)
            val, accuracy = validate(model, x_val, y_val)
            recorder.log_epoch(epoch=epoch, val_loss=val, val_accuracy=accuracy)
    return {"loss": val, "accuracy": accuracy}
