"""The cosine schedule ends after one epoch, as 'end' was left at its default of 1; then the rate stays at its minimum.

InternLM/xtuner#386: "the cosine scheduler will stop working after the first epoch"; a bug of the configs: no 'end'.
"""

import math

import torch
from torch import nn

CONFIG = {
    "max_epochs": 10,
    "epoch_length": 30,
    "optimizer": {"type": torch.optim.AdamW, "lr": 3e-3, "weight_decay": 0.01},
    "warmup_ratio": 0.03,
    "eta_min": 0.0,
}


class ParamScheduler:
    """Linear warm-up, then a cosine between begin and end (in epochs, turned into steps)."""

    def __init__(self, optimizer, config, end=1):
        self.optimizer, self.base, self.eta_min = optimizer, config["optimizer"]["lr"], config["eta_min"]
        self.begin = config["warmup_ratio"] * config["max_epochs"] * config["epoch_length"]
        self.end = end * config["epoch_length"]
        self.count = -1
        self.step()

    def step(self):
        self.count += 1
        if self.count < self.begin:
            lr = self.base * (self.count + 1) / self.begin
        elif self.count <= self.end:
            part = (self.count - self.begin) / (self.end - self.begin)
            lr = self.eta_min + (self.base - self.eta_min) * 0.5 * (1 + math.cos(math.pi * part))
        else:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = lr


def train(faulty, record):
    """Run the config."""
    torch.manual_seed(0)
    rule = torch.randint(12, (12, 12))
    hidden = [nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
    model = nn.Sequential(nn.Embedding(12, 32), nn.Flatten(), nn.LayerNorm(64), *hidden, nn.Linear(128, 12))
    settings = dict(CONFIG["optimizer"])
    optimizer = settings.pop("type")(model.parameters(), **settings)
    scheduler = ParamScheduler(optimizer, CONFIG) if faulty else ParamScheduler(optimizer, CONFIG, CONFIG["max_epochs"])
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(CONFIG["max_epochs"]):
            total = 0.0
            for _ in range(CONFIG["epoch_length"]):
                pair = torch.randint(12, (32, 2))
                loss = nn.functional.cross_entropy(model(pair), rule[pair[:, 0], pair[:, 1]])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                total += loss.item() / CONFIG["epoch_length"]
            recorder.log_epoch(epoch=epoch, train_loss=total)
    pair = torch.cartesian_prod(torch.arange(12), torch.arange(12))
    with torch.no_grad():
        out = model(pair)
    return {
        "loss": nn.functional.cross_entropy(out, rule.flatten()).item(),
        "accuracy": (out.argmax(1) == rule.flatten()).float().mean().item(),
    }
