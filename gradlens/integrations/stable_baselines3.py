"""Stable-Baselines3: ``model.learn(10_000, callback=GradlensCallback())`` with PPO, A2C, DQN, SAC, TD3 and others."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn
from torch.optim import Optimizer

from gradlens.integrations.framework_recording import FrameworkRecording, guarded, parameters_of
from gradlens.recorder.layers import choose_layers

NO_SCALARS = ("learning_rate", "n_updates")
SETTINGS = ("gamma", "batch_size", "n_steps", "n_epochs", "ent_coef", "tau", "train_freq", "gradient_steps", "n_envs")


class GradlensCallback(BaseCallback):  # type: ignore[misc]
    """Records a policy while it learns.

    The file has a row per optimizer step; with several optimizers (actor and critic), a row when each has stepped.
    Target networks, which no optimizer changes, are left out. What the algorithm logs about an update, its loss among
    them, is in the row of the last step of that update, together with the mean reward of the last episodes.

    Args:
        path: The run file; by default ``runs/ALGORITHM-sSEED.h5``.
        tracker: See ``gradlens.integrations.trackers``.
        options: Arguments of ``gradlens.record``, such as ``every`` and ``metrics``.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, tracker: Any = None, **options: Any) -> None:
        super().__init__()
        self.recording = FrameworkRecording(path, options, tracker)
        self.recording.close_with(self)
        self._updates = 0

    @guarded
    def _on_training_start(self) -> None:
        """Start to record."""
        model = self.model
        policy: nn.Module = model.policy
        owners = [policy, *(getattr(policy, name, None) for name in ("critic", "actor"))]
        found = {id(o): o for one in owners if isinstance(o := getattr(one, "optimizer", None), Optimizer)}
        held = parameters_of(found.values())
        trained = {
            name
            for name, module in choose_layers(policy, None).items()
            if any(id(p) in held for p in module.parameters(recurse=False))
        }
        self._updates = int(getattr(model, "_n_updates", 0))
        algorithm = type(model).__name__
        config = {name: getattr(model, name) for name in SETTINGS if hasattr(model, name)}
        self.recording.begin(
            policy,
            list(found.values()),
            layers=lambda name, module: name in trained,
            seed=model.seed,
            config={"algorithm": algorithm, **config},
            resumed=self._updates > 0,
            name=algorithm,
        )

    @guarded
    def _on_rollout_start(self) -> None:
        """Add what was logged in the update before."""
        self._log_update()

    @guarded
    def _on_training_end(self) -> None:
        """Close the file."""
        self._log_update()
        self.recording.end()

    def _on_step(self) -> bool:
        """Let training go on."""
        return True

    def _log_update(self) -> None:
        updates = int(getattr(self.model, "_n_updates", 0))
        if updates == self._updates:
            return
        self._updates = updates
        logged = {name.removeprefix("train/"): value for name, value in self.logger.name_to_value.items()}
        values = {name: value for name, value in logged.items() if "/" not in name and name not in NO_SCALARS}
        if "loss" not in values and {"actor_loss", "critic_loss"} <= values.keys():
            values["loss"] = values["actor_loss"] + values["critic_loss"]
        rewards = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        if rewards:
            values["episode_reward"] = np.mean(rewards)
        self.recording.log(values)
