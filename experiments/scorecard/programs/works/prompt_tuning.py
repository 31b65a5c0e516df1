"""Prompt tuning: the whole language model is frozen, only five vectors in front of the input are trained."""

import torch
import torch.nn.functional as F
from torch import nn


class Model(nn.Module):
    """A causal transformer whose prompt may be learnt."""

    def __init__(self, vocab=16, width=48):
        super().__init__()
        self.embed, self.pos = nn.Embedding(vocab, width), nn.Embedding(24, width)
        layer = nn.TransformerEncoderLayer(width, 4, 96, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocab)
        self.prompt = nn.Parameter(0.5 * torch.randn(5, width))

    def forward(self, ids, soft):
        x = self.embed(ids)
        if soft:
            x = torch.cat([self.prompt.expand(len(x), -1, -1), x[:, 5:]], 1)
        x = x + self.pos.weight[: x.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.blocks(x, mask, is_causal=True))


def texts(n, rule):
    """Return rows of 5 rule tokens (8 + rule) and 9 counting tokens: the rule is the step modulo 8."""
    start = torch.randint(8, (n, 1))
    return torch.cat([(8 + rule).expand(n, 5), (start + rule * torch.arange(9)) % 8], 1)


def train(record):
    """Pretrain on all rules but shown; then find a prompt for rule 3 from examples only; return loss and accuracy."""
    torch.manual_seed(0)
    model = Model()

    def run(rule, n, soft):
        ids = texts(n, rule)
        out = model(ids, soft)[:, 5:-1]
        return F.cross_entropy(out.flatten(0, 1), ids[:, 6:].flatten()), (out.argmax(-1) == ids[:, 6:]).float().mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(250):
        loss, _ = run(torch.randint(8, (32, 1)), 32, False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, p in model.named_parameters():
        p.requires_grad = name == "prompt"
    only = torch.tensor([[3]])
    with torch.no_grad():
        before = run(only, 500, True)[1].item()
    optimizer = torch.optim.AdamW([model.prompt], lr=0.03, weight_decay=0.0)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(200):
            loss, _ = run(only, 32, True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        loss, accuracy = run(only, 500, True)
    return {"loss": loss.item(), "accuracy": accuracy.item(), "accuracy_before": before}
