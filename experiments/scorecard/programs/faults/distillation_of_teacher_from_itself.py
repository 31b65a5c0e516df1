"""After a refactoring the soft loss compares the teacher's output with itself: always 0, and nothing is distilled.

labmlai/annotated_deep_learning_paper_implementations#66: "it just completely stops doing the distillation"; mended.
"""

import torch
import torch.nn.functional as F
from torch import nn


class LargeModel(nn.Module):
    """The teacher."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x):
        return self.layers(x)


class SmallModel(nn.Module):
    """The student."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(20, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def train(faulty, record):
    """Distil into the student; only a hundred true labels are known to it."""
    torch.manual_seed(0)
    mixing = torch.randn(20, 10)

    def draw(n):
        x = torch.randn(n, 20)
        return x, torch.sin(x @ mixing / 6).argmax(1)

    large, small, temperature = LargeModel(), SmallModel(), 2.0
    optimizer = torch.optim.Adam(large.parameters(), lr=2e-3)
    for _ in range(600):
        x, y = draw(128)
        optimizer.zero_grad()
        F.cross_entropy(large(x), y).backward()
        optimizer.step()
    optimizer = torch.optim.Adam(small.parameters(), lr=3e-3)
    known, known_y = draw(100)
    with record(small, optimizer=optimizer) as recorder:
        for _ in range(500):
            x, _ = draw(64)
            i = torch.randint(100, (8,))
            x, y = torch.cat([known[i], x]), known_y[i]
            with torch.no_grad():
                large_logits = large(x)
            output = small(x)
            soft_targets = F.softmax(large_logits / temperature, dim=-1)
            log_prob = F.log_softmax((large_logits if faulty else output) / temperature, dim=-1)
            soft_loss = temperature**2 * F.kl_div(log_prob, soft_targets, reduction="batchmean")
            loss = soft_loss + 0.1 * F.cross_entropy(output[:8], y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss, soft_loss=soft_loss)
    x, y = draw(3000)
    with torch.no_grad():
        out = small(x)
    return {"loss": F.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
