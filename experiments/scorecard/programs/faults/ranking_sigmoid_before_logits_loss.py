"""The ranking model ends in a sigmoid and BCEWithLogitsLoss applies another, so the score cannot leave 0.5 to 0.73.

yudi-mars/daisyRec#15: removing the sigmoid was merged, "otherwise loss does not converge".
"""

import torch
from torch import nn


class NeuMF(nn.Module):
    """Neural matrix factorisation: a product of embeddings beside a small MLP."""

    def __init__(self, users, items, factors, faulty):
        super().__init__()
        self.user_gmf, self.item_gmf = nn.Embedding(users, factors), nn.Embedding(items, factors)
        self.user_mlp, self.item_mlp = nn.Embedding(users, factors), nn.Embedding(items, factors)
        self.mlp = nn.Sequential(nn.Linear(2 * factors, 32), nn.ReLU(), nn.Linear(32, factors), nn.ReLU())
        self.predict_layer = nn.Linear(2 * factors, 1)
        self.faulty = faulty
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.1)

    def forward(self, user, item):
        gmf = self.user_gmf(user) * self.item_gmf(item)
        mlp = self.mlp(torch.cat([self.user_mlp(user), self.item_mlp(item)], dim=-1))
        out = self.predict_layer(torch.cat([gmf, mlp], dim=-1)).view(-1)
        return torch.sigmoid(out) if self.faulty else out


def train(faulty, record):
    """Train on made-up clicks; return how well unseen clicks are predicted."""
    torch.manual_seed(0)
    taste, style = torch.randn(60, 4), torch.randn(40, 4)
    clicks = (taste @ style.T > 1.5).float()  # about a fifth of the pairs
    model = NeuMF(60, 40, 16, faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    criterion = nn.BCEWithLogitsLoss()
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(500):
            user, item = torch.randint(60, (128,)), torch.randint(40, (128,))
            loss = criterion(model(user, item), clicks[user, item])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    with torch.no_grad():
        user, item = torch.arange(60).repeat_interleave(40), torch.arange(40).repeat(60)
        score, label = model(user, item), clicks.view(-1)
        return {
            "loss": criterion(score, label).item(),
            "accuracy": ((torch.sigmoid(score) > 0.5).float() == label).float().mean().item(),
        }
