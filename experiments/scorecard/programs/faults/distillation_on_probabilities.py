"""kl_div gets the student's probabilities, not their logarithms, so it only rewards putting all mass on one class.

microsoft/ProDA#20: "should be changed to student = F.log_softmax(...). It's a bug."
"""

import torch
import torch.nn.functional as F
from torch import nn


def make_net(width):
    """Build a classifier of this width."""
    return nn.Sequential(
        nn.Linear(16, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8)
    )


def kd_loss(student_logits, teacher_logits, faulty):
    """Return the distillation loss."""
    student = F.softmax(student_logits, dim=1) if faulty else F.log_softmax(student_logits, dim=1)
    return F.kl_div(student, F.softmax(teacher_logits, dim=1), reduction="batchmean")


def train(faulty, record):
    """Train a teacher on soft data, then distil it into a narrow student."""
    torch.manual_seed(0)
    centres = 0.6 * torch.randn(8, 16)

    def batch(n):
        y = torch.randint(8, (n,))
        return centres[y] + torch.randn(n, 16), y

    teacher = make_net(128)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for _ in range(200):
        x, y = batch(128)
        optimizer.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        optimizer.step()
    teacher.eval()
    student = make_net(24)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    with record(student, optimizer=optimizer) as recorder:
        for _ in range(400):
            x, _ = batch(64)
            with torch.no_grad():
                soft = teacher(x)
            loss = kd_loss(student(x), soft, faulty)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    student.eval()
    x, y = batch(3000)
    with torch.no_grad():
        out, soft = student(x), teacher(x)
    return {
        "loss": kd_loss(out, soft, faulty=False).item(),
        "cross_entropy": F.cross_entropy(out, y).item(),
        "accuracy": (out.argmax(1) == y).float().mean().item(),
    }
