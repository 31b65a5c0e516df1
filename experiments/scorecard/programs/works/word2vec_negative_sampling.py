"""Skip-gram with negative sampling: two sparse tables, one starts at zero, SGD at rate 25 that falls."""

import torch
import torch.nn.functional as F
from torch import nn


class SkipGram(nn.Module):
    """Word vectors and context vectors."""

    def __init__(self, vocab, width):
        super().__init__()
        self.u_embeddings = nn.Embedding(vocab, width, sparse=True)
        self.v_embeddings = nn.Embedding(vocab, width, sparse=True)
        nn.init.uniform_(self.u_embeddings.weight, -0.5 / width, 0.5 / width)
        nn.init.zeros_(self.v_embeddings.weight)

    def forward(self, word, context, negatives):
        u = self.u_embeddings(word)
        positive = F.logsigmoid((u * self.v_embeddings(context)).sum(1))
        negative = F.logsigmoid(-(self.v_embeddings(negatives) @ u[:, :, None])[..., 0]).sum(1)
        return -(positive + negative).mean()


def train(record):
    """Train on pairs from 10 topics; return the loss and how often the nearest word is of the same topic."""
    torch.manual_seed(0)
    vocab, topics = 300, 10
    frequency = 1.0 / (1 + torch.arange(vocab / topics))

    def words(topic, *shape):
        rank = torch.multinomial(frequency, int(torch.tensor(shape).prod()), replacement=True).view(shape)
        return rank * topics + topic

    def pairs(n):
        topic = torch.randint(topics, (n,))
        return words(topic, n), words(topic, n), words(torch.randint(topics, (n, 5)), n, 5)

    model = SkipGram(vocab, 24)
    optimizer = torch.optim.SGD(model.parameters(), lr=25.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=600)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(600):
            loss = model(*pairs(128))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            recorder.log(loss=loss, lr=schedule.get_last_lr()[0])
    with torch.no_grad():
        vectors = F.normalize(model.u_embeddings.weight, dim=1)
        near = (vectors @ vectors.T - 2 * torch.eye(vocab)).argmax(1)
        same = (near % topics == torch.arange(vocab) % topics).float().mean()
        loss = model(*pairs(5000))
    return {"loss": loss.item(), "accuracy": same.item()}
