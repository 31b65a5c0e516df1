"""What collects the facts of a training, made in one place when the search for them begins.

``FactFinder`` knows when something happens and calls these; each of them knows one kind of fact, and reads no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from gradlens.recorder.facts.buffer_weights import find_weights_in_buffers
from gradlens.recorder.facts.copied_statistics import CopiedStatistics
from gradlens.recorder.facts.gradient_scaling import Clipping, Scaling
from gradlens.recorder.facts.layer_inputs import LayerInputs
from gradlens.recorder.facts.loss.loss_graph import LossGraph
from gradlens.recorder.facts.module_copies import Copies
from gradlens.recorder.facts.module_modes import BatchNorms, Modes
from gradlens.recorder.facts.optimizer_settings import OptimizerSettings
from gradlens.recorder.facts.output_spread import OutputSpread
from gradlens.recorder.facts.parameter_states import Facts, ParameterStates
from gradlens.recorder.facts.random_states import RandomStates
from gradlens.recorder.facts.rounding import Rounding
from gradlens.recorder.facts.token_sequences import TokenSequences


@dataclass(frozen=True)
class FactCollectors:
    """The collectors of one training, and what is known before its first step."""

    parameters: ParameterStates
    settings: OptimizerSettings
    modes: Modes
    norms: BatchNorms
    clipping: Clipping
    scaling: Scaling
    rounding: Rounding
    random: RandomStates
    spread: OutputSpread
    copies: Copies
    statistics: CopiedStatistics
    inputs: LayerInputs
    tokens: TokenSequences
    graph: LossGraph
    gains: list[Facts]
    buffers: list[Facts]

    def read_look(self, step: int) -> None:
        """Copy to the host what a look has measured.

        Args:
            step: The step that was looked at.
        """
        self.parameters.read()
        self.rounding.read(step)
        self.spread.read(step)
        self.copies.look(step, self.settings.groups)

    def facts(self) -> Facts:
        """Return the facts, by the keys of ``docs/facts.md``."""
        parameters, groups = self.parameters, self.settings.groups
        return {
            "totals": parameters.totals(groups),
            "parameters": parameters.facts(groups),
            "optimizers": self.settings.facts(parameters.states),
            "modes": self.modes.facts(),
            "batch_norm": self.norms.facts(),
            "clipping": self.clipping.facts(),
            "scaling": self.scaling.facts(),
            "changed_outside": parameters.changed_outside(groups),
            "gains": self.gains,
            "rounding": self.rounding.facts(),
            "random": self.random.facts(),
            "spread": self.spread.facts(),
            "written_between": parameters.written_between(),
            "copies": [each | self.statistics.describe(each["layer"], each["of"]) for each in self.copies.facts()],
            "inputs": self.inputs.facts(),
            "tokens": self.tokens.facts(),
            "buffers": self.buffers,
            "graph": self.graph.facts(parameters.with_gradient),
        }


def make_collectors(
    model: nn.Module, optimizers: Sequence[Optimizer], scaler: GradScaler | None, step: int
) -> FactCollectors:
    """Make the collectors, and read what is known before the first step.

    Args:
        model: The model.
        optimizers: Those whose steps end a round.
        scaler: The GradScaler that the recorder was given.
        step: Index of the first step.

    Returns:
        All of them.
    """
    parameters = ParameterStates(model, step)
    return FactCollectors(
        parameters=parameters,
        gains=parameters.gains(),
        rounding=Rounding(parameters.states),
        random=RandomStates(),
        spread=OutputSpread(),
        settings=OptimizerSettings(optimizers, step),
        modes=Modes(model, step),
        norms=BatchNorms(model),
        copies=Copies(model, parameters),
        statistics=CopiedStatistics(model),
        inputs=LayerInputs(),
        tokens=TokenSequences(),
        buffers=find_weights_in_buffers(model),
        graph=LossGraph(model, {key: state.layer for key, state in parameters.states.items()}),
        clipping=Clipping(),
        scaling=Scaling(scaler),
    )
