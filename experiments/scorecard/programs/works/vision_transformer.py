"""A small vision transformer whose class token starts at zero; a shape lies in one of four quadrants."""

import torch
import torch.nn.functional as F
from torch import nn


class ViT(nn.Module):
    """Patches, a class token, learnt positions, an encoder and a head."""

    def __init__(self, size=16, patch=4, width=48, depth=3, classes=6):
        super().__init__()
        self.embed = nn.Conv2d(1, width, patch, stride=patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.pos = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, width))
        layer = nn.TransformerEncoderLayer(width, 4, 96, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, image):
        tokens = self.embed(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(image), -1, -1), tokens], 1) + self.pos
        return self.head(self.encoder(tokens)[:, 0])


def make_data(n, shapes):
    """Put one of the shapes in a random quadrant of a noisy image."""
    y = torch.randint(len(shapes), (n,))
    x = 0.4 * torch.randn(n, 1, 16, 16)
    for i in range(n):
        r, c = (8 * torch.randint(2, (2,))).tolist()
        x[i, 0, r : r + 8, c : c + 8] += shapes[y[i]]
    return x, y


def train(record):
    """Train on a fixed set; return loss and accuracy on fresh images."""
    torch.manual_seed(3)
    shapes = torch.sign(torch.randn(6, 8, 8))
    images, labels = make_data(2048, shapes)
    model = ViT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = 8 * (2048 // 64)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=30)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - 30)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [30])
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(8):
            for index in torch.randperm(2048).split(64):
                logits = model(images[index])
                loss = F.cross_entropy(logits, labels[index])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                recorder.log(loss=loss)
    model.eval()
    x, y = make_data(600, shapes)
    with torch.no_grad():
        logits = model(x)
    return {"loss": F.cross_entropy(logits, y).item(), "accuracy": (logits.argmax(1) == y).float().mean().item()}
