"""Trainings that are killed, resumed and starved of room, for test_resume.py; run as a module.

Each is forked from one process that has imported all they need.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import gradlens.terminal.summary  # noqa: F401 - imported once for all commands
import gradlens.train.saving as saving
from gradlens.cli import run_command
from gradlens.config import make_config
from gradlens.data import patterns
from gradlens.events import Event, StepDone, ignore
from gradlens.train import train_run
from tests.processes import PATIENCE, start

HERE = "tests.train.resume_cases"
SMALL: dict[str, Any] = {"image_size": 16, "batch_size": 10, "epochs": 3, "workers": 0, "seed": 0}
ALL = {"augment": ("flip", "crop", "rotation", "color"), "schedule": "step:2,0.5"}
DEEP: dict[str, Any] = {"image_size": 16, "batch_size": 8, "epochs": 4, "optimizer": "sgd", **ALL}
DEEP_MODELS = ("plain56", "resnet56")
"""Deeper than those with 34 layers, whose checkpoints of 250 MB cost most of the time."""
PEEK = 0.01


class Drawing(nn.Module):
    """Draws from every global random generator at each training step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        drawn = random.random() + random.gauss() + np.random.rand() + np.random.standard_normal()  # noqa: NPY002
        return nn.functional.dropout(self.layer(x.flatten(1)), 0.5, self.training) * (1 + 0.1 * drawn)


# --- kills ----------------------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait() -> None:
    """Wait to be killed: no training must end before that."""
    time.sleep(PATIENCE)


class Death:
    """Kill this process when it comes to a point for the n-th time, or let it wait for that.

    Points: step (one was made), flushed (an epoch's row is in the file, its checkpoint not begun), writing (half of a
    checkpoint is written; the first one of a run is that which says that nothing is done yet), written, done (the file
    is closed, the checkpoint not yet removed).
    """

    def __init__(self, point: str, count: int = 1, act: Callable[[], None] = die) -> None:
        self.point, self.left, self.act = point, count, act

    def reach(self, point: str) -> None:
        if point == self.point:
            self.left -= 1
            if self.left == 0:
                self.act()

    def listen(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.reach("step")

    def lie_in_wait(self) -> None:
        save, save_whole, unlink = torch.save, saving.save_checkpoint, Path.unlink

        def save_half(state: object, file: Any) -> None:
            whole = io.BytesIO()
            save(state, whole)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            self.reach("writing")
            file.seek(0)
            file.write(whole.getvalue())

        def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
            self.reach("flushed")
            save_whole(path, state)
            self.reach("written")

        def remove(path: Path, missing_ok: bool = False) -> None:
            if path.suffix == ".ckpt" and path.exists():
                self.reach("done")
            unlink(path, missing_ok=missing_ok)

        saving.save_checkpoint, Path.unlink = save_checkpoint, remove
        if self.point == "writing":
            torch.save = save_half


def few(count: int) -> None:
    patterns.TRAIN_IMAGES, patterns.VAL_IMAGES = count, 10


def train(folder: Path, name: str, death: Death | None = None, **options: Any) -> int:
    """Start a training, which goes on where one was before, in a session of its own, and return its process."""

    def work(_: int) -> None:
        os.setsid()
        if death is not None:
            death.lie_in_wait()
        config = make_config(options.pop("model"), **{**SMALL, **options})
        train_run(config, folder / f"{name}.h5", resume=True, listener=death.listen if death else ignore)

    folder.mkdir(parents=True, exist_ok=True)
    return start(folder, os.getpid(), work)


def ended(process: int) -> int:
    """Return the exit code: negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def orphans(session: int) -> list[int]:
    """List the processes that one which was killed has left, where the system says it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def cases(folder: Path, kind: str) -> dict[str, Any]:
    """Run this module, and return what its trainings came to."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", HERE, str(folder), kind]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3 * PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


# --- cases ----------------------------------------------------------------------------------------------------


def at_points(folder: Path, deaths: list[tuple[str, int]], **options: Any) -> dict[str, Any]:
    """Train unbroken, and then killed at one point after another."""
    codes = [ended(train(folder, "whole", **options))]
    for point in deaths:
        codes.append(ended(train(folder, "killed", Death(*point), **options)))
    codes.append(ended(train(folder, "killed", **options)))
    return {"codes": codes, "left": names_in(folder)}


def at_random(folder: Path, seed: int, points: list[str | None], **options: Any) -> dict[str, Any]:
    """Train, killed at points and (None) at random moments, in any order; say what was met.

    Until a random moment no more than one epoch is done: so many are left that every point is come to.
    """
    draw = random.Random(seed)
    deaths = [Death(point) if point else Death("flushed", 2, wait) for point in points]
    draw.shuffle(deaths)
    codes, met, sessions = [], 0, []
    for death in [*deaths, Death("done")]:
        process = train(folder, "killed", death, **options)
        if death.act is wait:
            time.sleep(draw.uniform(0.3, 2.0))
            os.kill(process, signal.SIGKILL)
        sessions.append(process)
        codes.append(ended(process))
        met += bool(orphans(process))
    codes.append(ended(train(folder, "killed", **options)))
    for orphan in [orphan for session in sessions for orphan in orphans(session)]:
        os.kill(orphan, signal.SIGKILL)
    return {"codes": codes, "met": met, "left": names_in(folder)}


def names_in(folder: Path) -> list[str]:
    """List what is there of runs; half a run file, which a kill may leave too, is not the checkpoint's to remove."""
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".h5" or ".ckpt" in path.name)


def side_by_side(folder: Path, **options: Any) -> dict[str, Any]:
    """Train two seeds in one folder at once, and each alone."""
    alone = [ended(train(folder / f"alone{seed}", f"s{seed}", seed=seed, **options)) for seed in (0, 1)]
    both = [train(folder / "both", f"s{seed}", seed=seed, **options) for seed in (0, 1)]
    return {"codes": [*alone, *map(ended, both)], "left": names_in(folder / "both")}


def command(folder: Path, name: str, limit: Callable[[], None], arguments: list[str]) -> dict[str, Any]:
    """Run a command in a process that ends as an interpreter does, and return its exit code and what it said."""
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / f"{name}.txt"
    process = os.fork()
    if process == 0:
        handle = os.open(said, os.O_CREAT | os.O_WRONLY)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.chdir(folder)
        limit()
        sys.exit(run_command(arguments))
    deadline = time.time() + PATIENCE
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.time() > deadline:
            os.kill(process, signal.SIGKILL)
        time.sleep(PEEK)
    return {"code": ended(process), "said": said.read_text()}


def no_larger_files(size: int) -> None:
    """Let no file of this process grow beyond a size: what a full disk does, without one."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def no_room_for_checkpoints() -> None:
    no_larger_files(400_000)  # a run file has 85,000 bytes, plain8's checkpoint 940,000


def no_room_for_rows() -> None:
    """Let the run file grow no further after 50 rows."""
    save, found = saving.save_checkpoint, Path("runs/Drawing-s0.h5")

    def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        if state["rows"] >= 50:
            no_larger_files(found.stat().st_size)

    saving.save_checkpoint = save_checkpoint


def no_room(folder: Path) -> dict[str, Any]:
    """Let checkpoints, and then rows, meet a full disk; go on when there is room again."""
    few(40)
    found: dict[str, Any] = {}
    tiny = ["--image-size", "16", "--device", "cpu"]
    runs = {
        "checkpoint": (no_room_for_checkpoints, ["run", "plain8", *tiny, "--epochs", "2", "--batch-size", "10"]),
        "rows": (no_room_for_rows, ["run", f"{HERE}:Drawing", *tiny, "--epochs", "5", "--batch-size", "2"]),
    }
    found["rows-whole"] = command(folder / "rows-whole", "whole", no_limit, runs["rows"][1])
    for name, (limit, arguments) in runs.items():
        for choice in ("stop", "continue"):
            place, asked = folder / f"{name}-{choice}", ["--on-record-error", choice]
            found[place.name] = command(place, "full", limit, [*arguments, *asked])
            if name == "rows" or choice == "stop":
                found[f"{place.name}-resumed"] = command(place, "resumed", no_limit, [*arguments, "--resume"])
    return found


def no_limit() -> None:
    pass


def points(folder: Path) -> dict[str, Any]:
    few(40)
    deaths = [("step", 2), ("writing", 1), ("flushed", 2), ("writing", 2), ("step", 6), ("written", 1), ("done", 1)]
    return at_points(folder, deaths, model=f"{HERE}:Drawing")


def deep(folder: Path) -> dict[str, Any]:
    """Train both deep models, without workers and with some; workers change nothing in an unbroken run."""
    few(40)
    found = {"pair": side_by_side(folder / "pair", model="resnet8", **ALL)}
    few(16)
    points = {0: ["flushed", "writing", "written", None, None], 2: ["step", "flushed", "writing", None]}
    for seed, (model, workers) in enumerate((m, w) for m in DEEP_MODELS for w in points):
        place, options = folder / f"{model}-{workers}", {"model": model, **DEEP}
        if workers == 0:
            found[f"{model}-whole"] = {"codes": [ended(train(folder / model, "whole", **options))]}
        found[place.name] = at_random(place, seed, points[workers], workers=workers, **options)
    return found


def main(folder: Path, kind: str) -> None:
    torch.set_num_threads(1)
    found = {"points": points, "deep": deep, "no_room": no_room}[kind](folder)
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
