"""The callback in Stable-Baselines3: PPO, DQN and SAC on tiny environments that are made here."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch

import gradlens
from tests.integrations.reference import Later, Reference, assert_equal, needs, references  # noqa: F401

pytestmark = needs("stable_baselines3", "gymnasium")
sb3, gymnasium, ours = Later("stable_baselines3"), Later("gymnasium"), Later("gradlens.integrations.stable_baselines3")


def line(*, discrete: bool = True) -> Any:
    """Return an environment: move to 0 on a line; eight steps an episode."""

    class Line(gymnasium.Env):  # type: ignore[name-defined, misc]
        observation_space = gymnasium.spaces.Box(-10, 10, (2,), np.float32)
        action_space = gymnasium.spaces.Discrete(2) if discrete else gymnasium.spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.at, self.time = self.np_random.uniform(-2, 2), 0
            return np.array([self.at, 0], np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.at += 2 * float(action) - 1 if discrete else float(action[0])
            self.time += 1
            return np.array([self.at, self.time], np.float32), -abs(self.at), self.time >= 8, False, {}

    return Line()


def small() -> dict[str, Any]:
    return {"policy_kwargs": {"net_arch": [8, 8]}, "seed": 1, "device": "cpu"}


def ppo(steps: int = 32, callback: Any = None) -> Any:
    model = sb3.PPO("MlpPolicy", line(), n_steps=16, batch_size=8, n_epochs=2, **small())
    return model.learn(steps, callback=callback)


def test_ppo(references: list[Reference]) -> None:  # noqa: F811
    ppo(callback=ours.GradlensCallback())
    run = assert_equal("runs/PPO-s1.h5", references[0])
    assert run.status == "complete"
    assert len(run.steps) == 8  # two rollouts, two epochs of two batches each
    logged = np.isfinite(run.scalars["loss"])
    assert logged.tolist() == [False, False, False, True] * 2
    assert np.isfinite(run.scalars["episode_reward"][logged]).all()
    assert run.config["algorithm"] == "PPO"
    assert run.config["n_steps"] == 16


def test_it_changes_nothing() -> None:
    alone, recorded = ppo(), ppo(callback=ours.GradlensCallback("a.h5"))
    pairs = zip(alone.policy.parameters(), recorded.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_dqn_without_its_target_network(references: list[Reference]) -> None:  # noqa: F811
    model = sb3.DQN(
        "MlpPolicy", line(), learning_starts=8, batch_size=8, train_freq=4, target_update_interval=8, **small()
    )
    model.learn(40, callback=ours.GradlensCallback("a.h5"))
    run = assert_equal("a.h5", references[0])
    assert all(layer.name.startswith("q_net.") for layer in run.layers)
    assert np.isfinite(run.scalars["loss"]).all()


def test_sac_has_a_row_when_actor_and_critic_have_stepped(references: list[Reference]) -> None:  # noqa: F811
    model = sb3.SAC("MlpPolicy", line(discrete=False), learning_starts=8, batch_size=8, **small())
    model.learn(20, callback=ours.GradlensCallback("a.h5"))
    halves = references[0].rows  # the critic's and the actor's, in the order in which they step
    together = [a | b for a, b in zip(halves[::2], halves[1::2], strict=True)]
    references[0].rows = together
    run = assert_equal("a.h5", references[0])
    assert {layer.name.split(".")[0] for layer in run.layers} == {"actor", "critic"}
    np.testing.assert_allclose(run.scalars["loss"], run.scalars["actor_loss"] + run.scalars["critic_loss"], rtol=1e-5)


def test_learning_goes_on_in_the_same_run() -> None:
    callback = ours.GradlensCallback("a.h5")
    model = ppo(callback=callback)
    model.learn(16, callback=callback, reset_num_timesteps=False)
    assert gradlens.read_run("a.h5").steps.tolist() == list(range(12))


def test_after_an_exception_the_file_is_closed_as_failed() -> None:
    class Breaks(sb3.common.callbacks.BaseCallback):  # type: ignore[name-defined, misc]
        def _on_step(self) -> bool:
            if self.num_timesteps == 20:
                raise ValueError("broken")
            return True

    message = ""
    try:
        ppo(callback=[ours.GradlensCallback("a.h5"), Breaks()])
    except ValueError as error:
        message = str(error)
    assert message == "broken"
    gc.collect()
    assert gradlens.read_run("a.h5").status == "failed"


def test_an_error_in_the_callback_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    callback = ours.GradlensCallback("a.h5")
    monkeypatch.setattr(callback.recording, "log", lambda *args, **more: 1 / 0)
    with pytest.warns(gradlens.GradlensWarning, match="training goes on without it: .*division by zero"):
        model = ppo(callback=callback)
    assert model.num_timesteps == 32
