"""Runs programs, each in a process forked from this one, which has imported what takes seconds.

Reads the name of a folder from each line of stdin, and runs ``program.py`` there, with its output in ``out.txt`` and
``err.txt``. Prints the id of the process, and when that has ended its exit code. The program ends as a script does:
with the interpreter's own end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import gradlens
from gradlens.errors import RunFileError
from tests.processes import PATIENCE

torch.set_num_threads(1)
X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def parts(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a small model and its optimizer."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def train(model, optimizer, steps: int, recorder=None, pause: float = 0.0) -> None:
    """Make so many steps, log the loss of each, and wait after each."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(X).pow(2).mean()
        loss.backward()
        optimizer.step()
        if recorder is not None:
            recorder.log(loss=loss)
        if pause:
            time.sleep(pause)


def wait_for_rows(count: int) -> None:
    """Wait until so many rows are in the file, however busy the machine is."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(RunFileError):
            if len(gradlens.read_run("run.h5").steps) >= count:
                return
        time.sleep(0.05)


def answer(number: int) -> None:
    """Send a number to the test."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def wait_for_folder() -> str:
    """Return the folder of the program that this process is to run; the first process goes on to the next."""
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if not child:
            return line.strip()
        answer(child)
        answer(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os._exit(0)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    train(*parts(), 2)  # imports more
    gradlens.record(*parts()[:1], "never.h5").close()
os.chdir(wait_for_folder())
for name, number in (("out.txt", 1), ("err.txt", 2)):
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, number)
    os.close(file)
signal.signal(signal.SIGINT, signal.default_int_handler)
exec(compile(Path("program.py").read_text(), "program.py", "exec"))
