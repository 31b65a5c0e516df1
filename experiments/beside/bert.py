"""DEFault++'s callback and gradlens's in Hugging Face's Trainer, on one healthy tiny BERT.

    python experiments/beside/bert.py -o bert.json    # half a minute; pip install defaultplusplus

The reference is ``p.grad`` right before the optimizer's step, in float64. DEFault++'s learned diagnosis needs a model
that is downloaded and is not run here; what is compared are the numbers that it would judge.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from defaultplusplus.hf_callback import DEFaultPlusCallback

import gradlens
from gradlens.integrations.transformers import GradlensCallback


class Reference(transformers.TrainerCallback):  # type: ignore[misc]
    """Reads the norms of the gradients of each module's own parameters as the optimizer gets them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Read them."""
        row = {}
        for name, module in model.named_modules():
            grads = [p.grad.double() for p in module.parameters(recurse=False) if p.grad is not None]
            if grads:
                row[name] = float(torch.sqrt(sum(grad.square().sum() for grad in grads)))
        self.rows.append(row)

    @property
    def totals(self) -> list[float]:
        """The norm of all gradients together, for each step."""
        return [float(np.sqrt(sum(value**2 for value in row.values()))) for row in self.rows]


def train(folder: Path) -> dict[str, Any]:
    """Train and return what each of the two says beside the reference."""
    transformers.utils.logging.set_verbosity_error()
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    symbols = torch.randint(0, 50, (128, 12))
    labels = ((symbols == 7).any(1) | (symbols[:, 0] > 25)).long()
    reference, theirs = Reference(), DEFaultPlusCallback()
    settings = {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": 16, "num_train_epochs": 15, "report_to": [],
        "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-3, "save_strategy": "no", "max_grad_norm": 0,
        "logging_steps": 1,
    }  # fmt: skip
    trainer = transformers.Trainer(
        model=transformers.BertForSequenceClassification(config),
        args=transformers.TrainingArguments(**settings),
        train_dataset=[{"input_ids": x, "labels": y} for x, y in zip(symbols, labels, strict=True)],
        callbacks=[reference, theirs, GradlensCallback(folder / "bert.h5")],
    )
    failures: list[logging.LogRecord] = []
    counter = logging.Handler()
    counter.emit = failures.append  # type: ignore[method-assign]
    logging.getLogger("defaultplusplus.hf_callback").addHandler(counter)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    run = gradlens.read_run(folder / "bert.h5")
    layers = [layer.name for layer in run.layers]
    truth = np.array([[row[name] for name in layers] for row in reference.rows])
    ours = run.metric("param_grad_norm")
    features = {name: value for name, value in theirs.feature_vector.items() if "grad_norm" in name or "vanish" in name}
    found = gradlens.diagnose(run)
    return {
        "loss": [losses[0], float(np.mean(losses[-8:]))],
        "steps": len(reference.rows),
        "norm_of_all_gradients": [min(reference.totals), max(reference.totals)],
        "gradlens": {
            "rows": len(ours),
            "layers": len(layers),
            "largest_error": float(np.abs(ours / truth - 1).max()),
            "findings": [each.kind for each in found.findings],
        },
        "defaultplusplus": {
            "steps_that_it_could_not_read": sum("step capture failed" in each.getMessage() for each in failures),
            "gradient_norms": sum("grad_norm" in name for name in features),
            "of_them_not_zero": sum("grad_norm" in name and value != 0 for name, value in features.items()),
            "vanish": {name: value for name, value in features.items() if "vanish" in name},
        },
        "versions": {name: version(name) for name in ("torch", "transformers", "defaultplusplus")},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        text = json.dumps(train(Path(scratch)), indent=2)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)
