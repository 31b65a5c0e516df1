"""The convolution's (batch, channel, time, frequency) output goes to the LSTM by view() without permute(): axes mix.

vitrioil/Speech-Separation#4: view() "is mixing the data", permute(0, 2, 1, 3) first; mended when merged to asteroid.
"""

import torch
from torch import nn


class MaskNet(nn.Module):
    """Convolutions, a bidirectional LSTM over time and a mask for each frame."""

    def __init__(self, bins, faulty):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.lstm = nn.LSTM(8 * bins, 48, batch_first=True, bidirectional=True)
        self.mask = nn.Linear(96, bins)
        self.faulty = faulty

    def forward(self, spectrogram):
        size, time, _ = spectrogram.shape
        x = self.conv(spectrogram.unsqueeze(1))
        if not self.faulty:
            x = x.permute(0, 2, 1, 3).contiguous()
        x, _ = self.lstm(x.view(size, time, -1))
        return self.mask(x)


def mixtures(size, time=40, bins=16):
    """Draw a voice (a tone that glides) in noise bursts; the target mask is where the voice is."""
    start, slope = torch.rand(size, 1) * bins, torch.randn(size, 1) * 0.2
    pitch = (start + slope * torch.arange(time)) % bins
    voice = (torch.exp(-0.5 * (torch.arange(bins) - pitch.unsqueeze(-1)) ** 2) > 0.3).float()
    return 1.5 * voice + torch.randn(size, time, bins) * 0.7, voice


def train(faulty, record):
    """Learn to mask a voice."""
    torch.manual_seed(0)
    model = MaskNet(16, faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    criterion = nn.BCEWithLogitsLoss()
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            x, voice = mixtures(16)
            loss = criterion(model(x), voice)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss.item())
    x, voice = mixtures(200)
    with torch.no_grad():
        out = model(x)
    both = ((out > 0) & (voice > 0)).sum().item()
    return {"loss": criterion(out, voice).item(), "overlap": both / ((out > 0) | (voice > 0)).sum().item()}
