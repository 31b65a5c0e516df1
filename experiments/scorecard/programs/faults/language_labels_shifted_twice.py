"""The data set shifts the labels by one token and the model does so again: it is taught the token after the next.

huggingface/transformers#562: the shift in the preprocessing was removed (merged), as the model shifts inside.
"""

import torch
import torch.nn.functional as F
from torch import nn


class CausalLM(nn.Module):
    """An LSTM language model that computes its own loss."""

    def __init__(self, vocab=50, dim=64):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.head = nn.Linear(dim, vocab)

    def forward(self, input_ids, labels=None):
        logits = self.head(self.lstm(self.embed(input_ids))[0])
        if labels is None:
            return logits
        shift_logits, shift_labels = logits[:, :-1], labels[:, 1:]
        return F.cross_entropy(shift_logits.flatten(0, 1), shift_labels.flatten(), ignore_index=-100)


def stories(answer, size):
    """Draw question, answer, question, answer, ..."""
    questions = torch.randint(25, (size, 10))
    return torch.stack([questions, 25 + answer[questions]], dim=2).flatten(1)


def train(faulty, record):
    """Train on made-up dialogues; test the next token."""
    torch.manual_seed(0)
    answer = torch.randperm(25)
    model = CausalLM()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 300)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            input_ids = stories(answer, 32)
            labels = input_ids.clone()
            if faulty:
                labels = torch.cat([labels[:, 1:], torch.full((32, 1), -100)], dim=1)
            loss = model(input_ids, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            recorder.log(loss=loss, lr=scheduler.get_last_lr()[0])
    with torch.no_grad():
        ids = stories(answer, 200)
        logits = model(ids)[:, 0:-1:2]  # after each question
        return {
            "loss": F.cross_entropy(logits.flatten(0, 1), ids[:, 1::2].flatten()).item(),
            "accuracy": (logits.argmax(-1) == ids[:, 1::2]).float().mean().item(),
        }
