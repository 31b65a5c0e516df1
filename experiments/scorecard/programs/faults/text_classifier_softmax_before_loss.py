"""The model ends in a softmax and the loss applies another one (cause as in pytorch-DANN#7)."""

import torch
from torch import nn


class SentenceClassifier(nn.Module):
    """Mean of word vectors and two layers."""

    def __init__(self, vocab, classes, softmax):
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocab, 32, mode="mean")
        self.hidden = nn.Linear(32, 64)
        self.output = nn.Linear(64, classes)
        self.softmax = softmax

    def forward(self, ids):
        out = self.output(torch.tanh(self.hidden(self.embedding(ids))))
        return torch.softmax(out, dim=-1) if self.softmax else out


def train(faulty, record):
    """Train on made-up sentences of 16 subjects; return loss and accuracy on fresh ones."""
    torch.manual_seed(0)
    words = torch.randint(500, (16, 30))

    def sentences(n):
        y = torch.randint(16, (n,))
        own = words[y].gather(1, torch.randint(30, (n, 12)))
        return torch.where(torch.rand(n, 12) < 0.4, torch.randint(500, (n, 12)), own), y

    model = SentenceClassifier(500, 16, softmax=faulty)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(500):
            x, y = sentences(64)
            loss = criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        x, y = sentences(1000)
        out = model(x)
    return {"loss": criterion(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
