"""The generator's adversarial loss is computed on fake.detach(), so only its L1 loss reaches the generator.

nikhilsinghmus/image2reverb#37: the author confirmed that detach() "should not be there for the generator step".
"""

import torch
import torch.nn.functional as F
from torch import nn


class Room2Reverb(nn.Module):
    """A conditional generator and its discriminator."""

    def __init__(self):
        super().__init__()
        self.g, self.d = self.mlp(12, 2), self.mlp(6, 1)

    def mlp(self, inputs, outputs):
        hidden = [nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2)]
        return nn.Sequential(*hidden, nn.Linear(64, outputs))

    def generate(self, label):
        return self.g(torch.cat([label, torch.randn(len(label), 8)], dim=1))

    def judge(self, spec, label):
        return self.d(torch.cat([spec, label], dim=1))


def rooms(size):
    """Draw rooms and their echoes, which lie on a ring around a point given by the room."""
    label, angle = torch.randn(size, 4), torch.rand(size) * 6.2832
    return label, label[:, :2] + 2 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.1 * torch.randn(size, 2)


def energy_distance(a, b):
    """Measure how far two samples lie apart."""
    return 2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()


def train(faulty, record):
    """Train in turn with a least-squares GAN loss."""
    torch.manual_seed(0)
    model = Room2Reverb()
    g_optim = torch.optim.Adam(model.g.parameters(), lr=1e-3, betas=(0.5, 0.999))
    d_optim = torch.optim.Adam(model.d.parameters(), lr=1e-3, betas=(0.5, 0.999))
    with record(model, optimizer=[g_optim, d_optim]) as recorder:
        for _ in range(500):
            label, spec = rooms(64)
            fake = model.generate(label)
            judged = model.judge(fake.detach() if faulty else fake, label)
            g_loss1 = F.mse_loss(judged, torch.ones_like(judged))
            g_loss2 = 0.1 * F.l1_loss(fake, spec)
            g_optim.zero_grad()
            (g_loss1 + g_loss2).backward()
            g_optim.step()

            real_out, fake_out = model.judge(spec, label), model.judge(fake.detach(), label)
            d_loss = ((real_out - 1).square().mean() + fake_out.square().mean()) / 2
            d_optim.zero_grad()
            d_loss.backward()
            d_optim.step()
            recorder.log(g_loss=g_loss1, d_loss=d_loss)
    label, spec = rooms(2000)
    with torch.no_grad():
        fake = model.generate(label) - label[:, :2]
    return {"loss": energy_distance(fake, spec - label[:, :2]).item()}
