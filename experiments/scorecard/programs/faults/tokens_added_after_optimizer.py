"""Tokens are added after the optimizer was made, so the optimizer holds the old embedding and never moves the new.

huggingface/transformers#3532: the embedding is resized before the optimizer is made (merged).
"""

import torch
import torch.nn.functional as F
from torch import nn


class SmallLM(nn.Module):
    """A language model whose output weights are tied to its embedding."""

    def __init__(self, vocab, dim):
        super().__init__()
        self.wte = nn.Embedding(vocab, dim)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.ln_f = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        nn.init.normal_(self.wte.weight, std=0.02)
        self.lm_head.weight = self.wte.weight

    def resize_token_embeddings(self, vocab):
        old = self.wte.weight.data
        self.wte = nn.Embedding(vocab, old.shape[1])
        nn.init.normal_(self.wte.weight, std=0.02)
        self.wte.weight.data[: len(old)] = old
        self.lm_head = nn.Linear(old.shape[1], vocab, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        return self.lm_head(self.ln_f(self.gru(self.wte(ids))[0]))


def sample(follows, size, length=17):
    """Draw sequences in which nine of ten tokens follow from the one before."""
    ids = torch.randint(len(follows), (size, length))
    for t in range(1, length):
        keep = torch.rand(size) < 0.9
        ids[keep, t] = follows[ids[keep, t - 1]]
    return ids


def train(faulty, record):
    """Fine-tune the language model after its vocabulary grew."""
    torch.manual_seed(0)
    follows = torch.randperm(80)
    model = SmallLM(60, 48)
    if not faulty:
        model.resize_token_embeddings(80)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    if faulty:
        model.resize_token_embeddings(80)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(250):
            ids = sample(follows, 32)
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            model.zero_grad()
            recorder.log(loss=loss)
    with torch.no_grad():
        ids = sample(follows, 256)
        logits = model(ids[:, :-1]).flatten(0, 1)
        hit = (logits.argmax(-1) == ids[:, 1:].flatten()).float().mean()
        return {"loss": F.cross_entropy(logits, ids[:, 1:].flatten()).item(), "accuracy": hit.item()}
