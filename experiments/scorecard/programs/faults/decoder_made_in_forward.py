"""The decoder's convolutions are made inside forward, new and random at every call, so they are never trained.

gupta-abhay/setr-pytorch#4: layers initialised in decode(), "not trained at all"; the author moved them to __init__.
"""

import torch
from torch import nn


class SETR(nn.Module):
    """A transformer encoder over patches and a convolutional decoder."""

    def __init__(self, dim=32, classes=3, naive=True):
        super().__init__()
        self.embed = nn.Conv2d(1, dim, 2, stride=2)
        self.position = nn.Parameter(torch.zeros(1, 64, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.dim, self.classes = dim, classes
        self.decoder = None if naive else self.make_decoder()

    def make_decoder(self):
        return nn.Sequential(
            nn.Conv2d(self.dim, self.dim, 1),
            nn.BatchNorm2d(self.dim),
            nn.ReLU(),
            nn.Conv2d(self.dim, self.classes, 1),
            nn.Upsample(scale_factor=2, mode="bilinear"),
        )

    def decode(self, x):
        decoder = self.make_decoder() if self.decoder is None else self.decoder
        return decoder(x)

    def forward(self, image):
        x = self.embed(image).flatten(2).transpose(1, 2)
        x = self.encoder(x + self.position)
        return self.decode(x.transpose(1, 2).unflatten(2, (8, 8)))


def scenes(size):
    """Draw a bright and a dark square; label their pixels 1 and 2."""
    x, y = 0.5 * torch.randn(size, 1, 16, 16), torch.zeros(size, 16, 16, dtype=torch.long)
    for i in range(size):
        for label, sign in ((1, 1.0), (2, -1.0)):
            r, c = torch.randint(9, (2,)).tolist()
            x[i, 0, r : r + 8, c : c + 8] += sign
            y[i, r : r + 8, c : c + 8] = label
    return x, y


def train(faulty, record):
    """Segment squares."""
    torch.manual_seed(0)
    model = SETR(naive=faulty)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            x, y = scenes(16)
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    x, y = scenes(200)
    model.eval()
    with torch.no_grad():
        out = model(x)
    return {"loss": nn.functional.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
