"""Images go in as 0..255 with only the mean subtracted; the network was made for inputs of size 1 and diverges.

keras-team/keras#2711: "the problem seems to come from the scaling", rescaling with 1/255 mended it.
"""

import torch
from torch import nn

MEAN = torch.tensor([93.594, 104.7624, 129.1863]).view(3, 1, 1)


def preprocess_input(images, scale):
    """Subtract the mean colour; rescale."""
    return (images - MEAN) * scale


def vgg(widths, classes):
    """Build a plain VGG without normalisation."""
    layers, before = [], 3
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        before = width
    layers += [nn.Flatten(), nn.Linear(4 * before, 64), nn.ReLU(inplace=True), nn.Linear(64, classes)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def faces(looks, size):
    """Draw colour images of five persons."""
    y = torch.randint(5, (size,))
    return (looks[y] + 35 * torch.randn(size, 3, 16, 16)).clamp(0, 255).round(), y


def train(faulty, record):
    """Fine-tune on five persons."""
    torch.manual_seed(0)
    looks = nn.functional.interpolate(torch.rand(5, 3, 4, 4) * 255, size=16, mode="bilinear")
    model = vgg([16, 32, 32], 5)
    scale = 1.0 if faulty else 1 / 255
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            images, y = faces(looks, 32)
            loss = nn.functional.cross_entropy(model(preprocess_input(images, scale)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    images, y = faces(looks, 500)
    with torch.no_grad():
        out = model(preprocess_input(images, scale))
    return {"loss": nn.functional.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
