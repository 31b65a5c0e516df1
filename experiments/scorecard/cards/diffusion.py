"""A diffusion model that works: its loss ends far above 0, because noise cannot be predicted fully."""

import sys

import torch
from torch import nn

import gradlens

torch.manual_seed(0)
torch.set_num_threads(1)


class Denoiser(nn.Module):
    """Residual blocks that are given a noisy point and the time."""

    def __init__(self):
        super().__init__()
        self.time = nn.Linear(8, 64)
        self.first = nn.Linear(2, 64)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64)) for _ in range(3)
        )
        self.last = nn.Linear(64, 2)

    def forward(self, x, t):
        waves = (t * torch.tensor([1.0, 2.0, 4.0, 8.0])) * torch.pi / 2
        h = self.first(x) + self.time(torch.cat([waves.sin(), waves.cos()], dim=1))
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


model = Denoiser()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
with gradlens.record(model, sys.argv[1], optimizer=optimizer) as recorder:
    for _ in range(250):
        angle = 6.283 * torch.rand(128, 1)
        data = torch.cat([angle.cos(), angle.sin()], dim=1)
        t, noise = torch.rand(128, 1), torch.randn(128, 2)
        mixed = (torch.pi / 2 * t).cos() * data + (torch.pi / 2 * t).sin() * noise
        loss = nn.functional.mse_loss(model(mixed, t), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.log(loss=loss)

print(gradlens.diagnose(gradlens.read_run(sys.argv[1])))
