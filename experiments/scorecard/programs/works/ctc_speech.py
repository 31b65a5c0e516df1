"""CTC on made-up speech: the model says only blanks for a while (the loss is flat) before it finds the symbols."""

import torch
from torch import nn


class Recogniser(nn.Module):
    """Convolution over time, a bidirectional GRU, and log-probabilities of 6 symbols and the blank."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(10, 32, 3, stride=2, padding=1), nn.BatchNorm1d(32), nn.ReLU())
        self.rnn = nn.GRU(32, 32, bidirectional=True)
        self.fc = nn.Linear(64, 7)

    def forward(self, x):
        x = self.conv(x).permute(2, 0, 1)
        return self.fc(self.rnn(x)[0]).log_softmax(-1)


def speech(n, sounds):
    """Return frames of 5 symbols of varying duration with silence between, and the symbols (1 to 6)."""
    labels = torch.randint(1, 7, (n, 5))
    frames = torch.zeros(n, 10, 50)
    for i in range(n):
        t = int(torch.randint(1, 4, ()))
        for symbol in labels[i]:
            long = int(torch.randint(4, 8, ()))
            frames[i, :, t : t + long] = sounds[symbol][:, None]
            t += long + int(torch.randint(0, 3, ()))
    return frames + 0.3 * torch.randn_like(frames), labels


def decode(log_probs):
    """Return the symbols of the best path of each sequence: repeats and blanks removed."""
    best = log_probs.argmax(-1).T
    return [[s for s in torch.unique_consecutive(path).tolist() if s] for path in best]


def train(record):
    """Train on 400 utterances; return the loss and the share of new utterances that are fully right."""
    torch.manual_seed(0)
    sounds = torch.randn(7, 10)
    frames, labels = speech(400, sounds)
    model = Recogniser()
    criterion = nn.CTCLoss(zero_infinity=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    lengths = (torch.full((20,), 25), torch.full((20,), 5))
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(15):
            for index in torch.randperm(400).split(20):
                loss = criterion(model(frames[index]), labels[index], *lengths)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                recorder.log(loss=loss)
    model.eval()
    frames, labels = speech(200, sounds)
    with torch.no_grad():
        out = model(frames)
        loss = criterion(out, labels, torch.full((200,), 25), torch.full((200,), 5))
    right = [a == b.tolist() for a, b in zip(decode(out), labels, strict=True)]
    return {"loss": loss.item(), "accuracy": sum(right) / 200}
