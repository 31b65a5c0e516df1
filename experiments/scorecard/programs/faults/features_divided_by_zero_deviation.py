"""Each clip is divided by its standard deviation, which is 0 for a silent clip: inputs and then all weights are NaN.

philipperemy/deep-speaker#8: "changes to avoid NaN error when standard deviation is zero" (merged).
"""

import numpy as np
import torch
from torch import nn


def normalize_frames(frames, epsilon):
    """Centre a clip and scale it to deviation 1."""
    return (frames - frames.mean()) / (frames.std() + epsilon)


def next_batch(voices, rng, size, epsilon):
    """Return clips of speakers; about one in three hundred is silent."""
    speakers = rng.integers(len(voices), size=size)
    clips = []
    for speaker in speakers:
        clip = voices[speaker] + 0.8 * rng.standard_normal((20, 24))
        if rng.random() < 1 / 300:
            clip = np.zeros((20, 24))
        with np.errstate(invalid="ignore"):
            clips.append(normalize_frames(clip, epsilon))
    return torch.tensor(np.stack(clips), dtype=torch.float32), torch.tensor(speakers)


def train(faulty, record):
    """Train a speaker classifier on log-mel clips."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    voices = rng.standard_normal((12, 20, 24)) * 0.5
    epsilon = 0.0 if faulty else 1e-8
    model = nn.Sequential(
        nn.Conv1d(20, 48, 5, stride=2, bias=False),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Conv1d(48, 64, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(64, 12),
    )
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    with record(model, optimizer=optimizer) as recorder:
        for _ in range(200):
            x, y = next_batch(voices, rng, 32, epsilon)
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)
    model.eval()
    x, y = next_batch(voices, rng, 500, 1e-8)
    with torch.no_grad():
        out = model(x)
    return {"loss": nn.functional.cross_entropy(out, y).item(), "accuracy": (out.argmax(1) == y).float().mean().item()}
