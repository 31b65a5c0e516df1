"""Distillation: teacher and student are in one module, the teacher was trained before and is frozen, temperature 4."""

import torch
import torch.nn.functional as F
from torch import nn


class Distiller(nn.Module):
    """A wide teacher and a narrow student."""

    def __init__(self, teacher, student):
        super().__init__()
        self.teacher, self.student = teacher, student
        self.teacher.requires_grad_(False)

    def forward(self, x, y, temperature=4.0, alpha=0.9):
        with torch.no_grad():
            soft = F.softmax(self.teacher(x) / temperature, 1)
        logits = self.student(x)
        imitate = F.kl_div(F.log_softmax(logits / temperature, 1), soft, reduction="batchmean") * temperature**2
        return alpha * imitate + (1 - alpha) * F.cross_entropy(logits, y), logits


def net(width, classes=8):
    """A multi-layer perceptron with layer norm."""
    return nn.Sequential(
        nn.Linear(24, width),
        nn.LayerNorm(width),
        nn.GELU(),
        nn.Linear(width, width),
        nn.GELU(),
        nn.Linear(width, classes),
    )


def train(record):
    """Train the teacher first, unrecorded; then the student. Return the student's loss and accuracy."""
    torch.manual_seed(0)
    rule = nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 8))
    for p in rule.parameters():
        nn.init.normal_(p, std=0.5)

    def batch(n):
        x = torch.randn(n, 24)
        return x, (3 * rule(x)).argmax(1)

    teacher = net(192)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for _ in range(300):
        x, y = batch(128)
        optimizer.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        optimizer.step()
    model = Distiller(teacher.eval(), net(40))
    optimizer = torch.optim.Adam(model.student.parameters(), lr=3e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(400):
            loss, _ = model(*batch(64))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        x, y = batch(2000)
        logits = model.student(x)
    return {"loss": F.cross_entropy(logits, y).item(), "accuracy": (logits.argmax(1) == y).float().mean().item()}
