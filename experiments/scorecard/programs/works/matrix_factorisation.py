"""Matrix factorisation of ratings: only rows of users and items in the batch get a gradient."""

import torch
import torch.nn.functional as F
from torch import nn


class MF(nn.Module):
    """Global mean, biases, and a product of factors."""

    def __init__(self, users, items, factors=8, mean=3.0):
        super().__init__()
        self.user, self.item = nn.Embedding(users, factors), nn.Embedding(items, factors)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        self.mean = mean
        for table, std in ((self.user, 0.1), (self.item, 0.1), (self.user_bias, 0.0), (self.item_bias, 0.0)):
            nn.init.normal_(table.weight, std=std)

    def forward(self, user, item):
        product = (self.user(user) * self.item(item)).sum(1)
        return self.mean + product + self.user_bias(user)[:, 0] + self.item_bias(item)[:, 0]


def train(record):
    """Train on 12000 ratings, test on 3000; return the squared error, and that of always saying the mean."""
    torch.manual_seed(0)
    users, items = 200, 150
    taste = torch.randn(users, 3) @ torch.randn(3, items) * 0.5 + 0.5 * torch.randn(items) + 0.3 * torch.randn(users, 1)
    cell = torch.randperm(users * items)[:15000]
    rating = (3.2 + taste.flatten()[cell] + 0.2 * torch.randn(15000)).clamp(1, 5)
    user, item = cell // items, cell % items
    model = MF(users, items, mean=rating[:12000].mean().item())
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.15)
    with record(model, optimizer=optimizer) as recorder:
        for epoch in range(6):
            for index in torch.randperm(12000).split(128):
                loss = F.mse_loss(model(user[index], item[index]), rating[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.log(loss=loss)
            with torch.no_grad():
                test = F.mse_loss(model(user[12000:], item[12000:]), rating[12000:]).item()
            recorder.log_epoch(epoch=epoch, val_loss=test)
    return {"loss": test, "mean_rating": rating[12000:].var().item()}
