"""The callback in Hugging Face's Trainer: a tiny Llama that is made here, nothing is downloaded."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradlens
from tests.integrations.reference import Later, Reference, assert_equal, needs, references  # noqa: F401

pytestmark = needs("transformers", "accelerate")
transformers, ours = Later("transformers"), Later("gradlens.integrations.transformers")


def make_trainer(callbacks: list[Any], kind: type | None = None, steps: int = 6, **given: Any) -> Any:
    transformers.utils.logging.set_verbosity_error()
    transformers.set_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    data = [{"input_ids": x, "labels": x} for x in torch.randint(0, 31, (16, 8))]
    settings = {
        "output_dir": "out", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5,
        "logging_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-2,
        "save_strategy": "no", "max_steps": steps, "seed": 7,
    }  # fmt: skip
    return (kind or transformers.Trainer)(
        model=transformers.LlamaForCausalLM(config),
        args=transformers.TrainingArguments(**{**settings, **given}),
        train_dataset=data,
        eval_dataset=data[:4],
        callbacks=callbacks,
    )


def digest(model: torch.nn.Module) -> list[float]:
    return [float(p.detach().double().sum()) for p in model.parameters()]


def test_rows_are_the_gradients_after_accumulation_and_clipping(references: list[Reference]) -> None:  # noqa: F811
    trainer = make_trainer([ours.GradlensCallback], eval_strategy="epoch")  # the class itself, without arguments
    trainer.train()
    run = assert_equal("runs/LlamaForCausalLM-s7.h5", references[0])
    assert run.status == "complete"
    assert run.steps.tolist() == list(range(6))
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    np.testing.assert_allclose(run.scalars["loss"], logged, rtol=1e-6)
    assert run.scalars["clip_coefficient"].max() < 1
    assert run.epochs["epoch"].tolist() == [1, 2]  # four steps each; the second is not whole
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    np.testing.assert_allclose(run.epochs["val_loss"], evaluated, rtol=1e-6)
    np.testing.assert_allclose(run.epochs["train_loss"], [np.mean(logged[:4]), np.mean(logged[4:])], rtol=1e-6)
    assert run.seed == 7
    assert run.config["max_grad_norm"] == 0.5
    assert run.model == "LlamaForCausalLM"
    alone = make_trainer([], eval_strategy="epoch")
    alone.train()
    assert digest(alone.model) == digest(trainer.model)


def test_bfloat16_evaluation_within_an_epoch_and_options(references: list[Reference]) -> None:  # noqa: F811
    callback = ours.GradlensCallback("a.h5", every=2, metrics="nonfinite_count")
    trainer = make_trainer([callback], bf16=True, eval_strategy="steps", eval_steps=3)
    trainer.train()
    run = assert_equal("a.h5", references[0], rows=[0, 2, 4])
    assert run.steps.tolist() == [0, 2, 4]
    assert "nonfinite_count" in run.metrics
    assert np.isfinite(run.scalars["val_loss"]).tolist() == [False, True, False]  # after the third step


def test_a_resumed_training_appends_to_its_run(references: list[Reference]) -> None:  # noqa: F811
    make_trainer([ours.GradlensCallback()], save_strategy="steps", save_steps=2).train()
    resumed = make_trainer([ours.GradlensCallback()], save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint="out/checkpoint-4")
    run = gradlens.read_run("runs/LlamaForCausalLM-s7.h5")
    assert run.steps.tolist() == list(range(6))
    references[0].rows[4:] = references[1].rows
    assert_equal("runs/LlamaForCausalLM-s7.h5", references[0])
    assert "resumed at step 4" in run.info["notes"]
    assert [path.name for path in Path("runs").iterdir()] == ["LlamaForCausalLM-s7.h5"]


def test_a_second_training_gets_a_new_name_and_a_second_call_goes_on() -> None:
    trainer = make_trainer([ours.GradlensCallback()], steps=2)
    trainer.train()
    trainer.train()  # the same model, which was trained already
    make_trainer([ours.GradlensCallback()], steps=2).train()
    assert len(gradlens.read_run("runs/LlamaForCausalLM-s7.h5").steps) == 4
    assert len(gradlens.read_run("runs/LlamaForCausalLM-s7-2.h5").steps) == 2


def test_after_an_exception_the_file_is_closed_as_failed() -> None:
    class Breaks(transformers.TrainerCallback):  # type: ignore[name-defined, misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == 3:
                raise ValueError("broken")

    trainer = make_trainer([ours.GradlensCallback("a.h5"), Breaks()])
    message = ""
    try:
        trainer.train()
    except ValueError as error:
        message = str(error)
    assert message == "broken"
    del trainer
    gc.collect()
    run = gradlens.read_run("a.h5")
    assert run.status == "failed"
    assert len(run.steps) == 3


def test_subclasses_with_their_own_loss_and_logs(references: list[Reference]) -> None:  # noqa: F811
    class OwnLoss(transformers.Trainer):  # type: ignore[name-defined, misc]
        """As TRL does: a loss of its own, and other things logged."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
            outputs = model(**inputs)
            loss = outputs.logits.square().mean()
            self.reward = float(-loss.detach())
            return (loss, outputs) if return_outputs else loss

        def log(self, logs: dict[str, float], *args: Any, **more: Any) -> None:
            super().log({**logs, "rewards/mean": self.reward}, *args, **more)

    make_trainer([ours.GradlensCallback("a.h5")], OwnLoss).train()
    run = assert_equal("a.h5", references[0])
    assert np.isfinite(run.scalars["rewards.mean"]).all()


@pytest.mark.parametrize("broken", ["begin", "log", "log_epoch", "end"])
def test_an_error_in_the_callback_ends_no_training(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    callback = ours.GradlensCallback("a.h5")

    def fail(*args: Any, **more: Any) -> None:
        raise RuntimeError("cannot record")

    monkeypatch.setattr(callback.recording, broken, fail)
    trainer = make_trainer([callback], steps=4)
    with pytest.warns(gradlens.GradlensWarning, match="training goes on without it: .*cannot record") as caught:
        trainer.train()
    assert len([each for each in caught if each.category is gradlens.GradlensWarning]) == 1
    assert trainer.state.global_step == 4
    assert broken == "begin" or gradlens.read_run("a.h5").status == "failed"


def test_a_file_that_exists_is_kept_and_the_training_goes_on() -> None:
    make_trainer([ours.GradlensCallback("a.h5")], steps=1).train()
    before = Path("a.h5").read_bytes()
    with pytest.warns(gradlens.GradlensWarning, match=r"a\.h5 already exists.*resume=True"):
        make_trainer([ours.GradlensCallback("a.h5")], steps=1).train()
    assert Path("a.h5").read_bytes() == before


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADLENS_DISABLED", "1")
    make_trainer([ours.GradlensCallback()], steps=1, eval_strategy="epoch").train()
    assert not Path("runs").exists()
