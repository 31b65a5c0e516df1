"""The alphabet keeps its last class for the blank, but the CTC loss takes class 0, a letter, as the blank.

liuhu-bigeye/enctc.crnn#9: the blank argument had no effect, 0 was assumed; mended by the author.
"""

import torch
import torch.nn.functional as F
from torch import nn

LETTERS, BLANK = 8, 8


class CRNN(nn.Module):
    """Convolutions along the line of text, a bidirectional GRU, class scores per column."""

    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv1d(10, 48, 5, padding=2), nn.BatchNorm1d(48), nn.ReLU())
        self.rnn = nn.GRU(48, 48, batch_first=True, bidirectional=True)
        self.out = nn.Linear(96, LETTERS + 1)

    def forward(self, lines):
        x = self.cnn(lines).transpose(1, 2)
        return self.out(self.rnn(x)[0]).log_softmax(2)


def lines(glyphs, size, letters=5):
    """Draw lines of text: each letter is five columns wide."""
    y = torch.randint(LETTERS, (size, letters))
    x = glyphs[y].permute(0, 2, 1, 3).flatten(2)
    return x + 0.3 * torch.randn_like(x), y


def decode(log_probs):
    """Take the best class per column, merge repeats, drop blanks."""
    texts = []
    for row in log_probs.argmax(2).tolist():
        merged = [c for c, before in zip(row, [None, *row], strict=False) if c != before]
        texts.append([c for c in merged if c != BLANK])
    return texts


def train(faulty, record):
    """Read lines of five letters."""
    torch.manual_seed(0)
    glyphs = torch.randn(LETTERS, 10, 5)
    model = CRNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    blank = {} if faulty else {"blank": BLANK}
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            x, y = lines(glyphs, 32)
            columns, letters = torch.full((32,), x.shape[2]), torch.full((32,), y.shape[1])
            loss = F.ctc_loss(model(x).transpose(0, 1), y, columns, letters, zero_infinity=True, **blank)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            recorder.log(loss=loss)
    model.eval()
    x, y = lines(glyphs, 300)
    with torch.no_grad():
        texts = decode(model(x))
    right = sum(a == b for a, b in zip(texts, y.tolist(), strict=True)) / 300
    return {"accuracy": right, "length": sum(map(len, texts)) / 300}
