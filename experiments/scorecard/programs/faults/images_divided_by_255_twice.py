"""The images are in 0..1 already and are divided by 255 again: inputs so small that the net cannot be trained.

anishmadan23/deep3d-pytorch#1: the asker found "the problem was data initialization that divided each image by 255".
"""

import torch
from torch import nn


def to_tensor(image):
    """Do as torchvision's transform: bytes to floats in 0..1."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


class Deep3d(nn.Module):
    """Predicts for each pixel weights of shifted copies of the left view."""

    def __init__(self, shifts=5):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1)
        self.disparity = nn.Conv2d(16, shifts, 1)
        self.shifts = shifts

    def forward(self, left):
        x = torch.relu(self.conv1(left))
        x = torch.relu(self.conv2(x))
        x = torch.relu(self.conv3(x))
        weights = self.disparity(x).softmax(1)
        copies = torch.cat([torch.roll(left, s, 3) for s in range(self.shifts)], dim=1)
        return (weights * copies).sum(1, keepdim=True)


def stereo(size):
    """Draw left views, and right views in which the bright things are shifted by three pixels."""
    coarse = torch.rand(size, 1, 8, 8)
    left = (nn.functional.interpolate(coarse, size=24, mode="bilinear") * 255).byte()
    near = left > 140
    right = torch.where(torch.roll(near, 3, 3), torch.roll(left, 3, 3), left)
    return left, right


def train(faulty, record):
    """Learn to make the right view."""
    torch.manual_seed(0)
    model = Deep3d()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    divisor = 255 if faulty else 1
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            left, right = (to_tensor(view) / divisor for view in stereo(16))
            loss = nn.functional.mse_loss(model(left), right)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    left, right = (to_tensor(view) / divisor for view in stereo(200))
    with torch.no_grad():
        error = nn.functional.mse_loss(model(left), right) * divisor**2
    return {"loss": error.item(), "without_model": (nn.functional.mse_loss(left, right) * divisor**2).item()}
