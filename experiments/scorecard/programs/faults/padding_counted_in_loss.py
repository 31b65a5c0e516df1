"""The reconstruction loss counts the padding, most of every sequence, so the decoder is taught to write <pad>.

DaoyuanLi2816/Molecule-Generator#20: ignore_index=pad_idx in the reconstruction loss (merged).
"""

import torch
import torch.nn.functional as F
from torch import nn

PAD, START = 0, 1


class MoleculeVAE(nn.Module):
    """GRU encoder and decoder around a latent vector."""

    def __init__(self, vocab=20, dim=48, latent=16):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim, padding_idx=PAD)
        self.encoder = nn.GRU(dim, dim, batch_first=True)
        self.mu, self.logvar = nn.Linear(dim, latent), nn.Linear(dim, latent)
        self.to_hidden = nn.Linear(latent, dim)
        self.decoder = nn.GRU(dim + latent, dim, batch_first=True)
        self.out = nn.Linear(dim, vocab)

    def forward(self, tokens):
        lengths = (tokens != PAD).sum(1)
        states, _ = self.encoder(self.embedding(tokens))
        h = states[torch.arange(len(tokens)), lengths - 1]
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * (logvar / 2).exp() if self.training else mu
        x = torch.cat([self.embedding(tokens[:, :-1]), z.unsqueeze(1).expand(-1, tokens.shape[1] - 1, -1)], dim=2)
        return self.out(self.decoder(x, self.to_hidden(z).unsqueeze(0))[0]), mu, logvar


def molecules(grammar, size, length=30):
    """Draw strings of 4 to 8 symbols, padded to the longest of the data set."""
    tokens = torch.full((size, length), PAD)
    tokens[:, 0] = START
    tokens[:, 1] = torch.randint(2, 20, (size,))
    for t in range(2, 9):
        tokens[:, t] = grammar[tokens[:, t - 1], torch.randint(2, (size,))]
    long = torch.arange(length) < torch.randint(5, 10, (size, 1))
    return torch.where(long, tokens, PAD)


def loss_function(logits, target, mu, logvar, beta, pad_idx):
    """Return reconstruction loss plus KL divergence."""
    reconstruction = F.cross_entropy(logits.transpose(1, 2), target, ignore_index=pad_idx)
    return reconstruction - beta * 0.5 * (1 + logvar - mu**2 - logvar.exp()).mean()


def train(faulty, record):
    """Train the autoencoder; measure it on symbols only."""
    torch.manual_seed(0)
    grammar = torch.randint(2, 20, (20, 2))
    model = MoleculeVAE()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(300):
            tokens = molecules(grammar, 32)
            logits, mu, logvar = model(tokens)
            loss = loss_function(logits, tokens[:, 1:], mu, logvar, 0.01, -100 if faulty else PAD)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            recorder.log(loss=loss)
    model.eval()
    tokens = molecules(grammar, 500)
    with torch.no_grad():
        logits = model(tokens)[0]
    target, real = tokens[:, 1:], tokens[:, 1:] != PAD
    hit = (logits.argmax(-1) == target)[real].float().mean().item()
    return {"loss": F.cross_entropy(logits[real], target[real]).item(), "accuracy": hit}
