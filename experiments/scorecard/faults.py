"""Faulty trainings: each differs from a healthy one by its fault only, and says beforehand which answers are right.

This table was written before any of the tools had seen a recording of them. Kinds are those of ``gradlens.diagnose``. A
first layer is asked for where the fault has a place; where it is the optimizer's, no layer is the right one.
"""

from __future__ import annotations

import healthy
from healthy import BOOK, SGD_RATE
from nets import glorot
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from training import Training

fault = BOOK.fault


# --- initialisation and depth -----------------------------------------------------------------------------


@fault(
    "init-x0.1",
    kinds="vanishing",
    first="0",
    twin="mlp10-he-sgd",
    why="each of ten layers passes a tenth: signal and gradient fall by 10^-9 (He et al. 2015)",
)
def init_small(seed: int) -> Training:
    """Weights a tenth of He's."""
    return healthy.mlp_sgd(seed, scale=0.1)


@fault(
    "init-x10",
    kinds="exploding nonfinite",
    first="0",
    twin="mlp10-he-sgd",
    why="each layer passes ten times as much; the gradient is largest at the input, and the first steps overflow",
)
def init_large(seed: int) -> Training:
    """Weights ten times He's."""
    return healthy.mlp_sgd(seed, scale=10.0)


@fault(
    "tanh-init-x10",
    kinds="saturated exploding",
    first="0",
    twin="tanh6-glorot",
    why="all tanh units lie on their flat ends, the first layer's already; and in this chaotic phase the gradient "
    "grows towards the input (Schoenholz et al. 2017)",
)
def tanh_large(seed: int) -> Training:
    """A tanh model with weights ten times Glorot's."""
    return healthy.tanh_net(seed, gain=10.0)


@fault(
    "plain18-no-bn",
    kinds="vanishing",
    first="stem",
    twin="plain18-bn",
    why="with PyTorch's default initialisation each ReLU layer passes 0.41 (Glorot & Bengio 2010)",
)
def plain_no_norm(seed: int) -> Training:
    """A plain model without batch norm."""
    return healthy.plain(seed, norm=False)


@fault(
    "resnet26-no-bn",
    kinds="exploding nonfinite",
    first="stem blocks.0.layer1 blocks.0.layer2",
    twin="resnet26-bn",
    why="each He block doubles the variance, forward and backward, and the first steps overflow "
    "(Zhang et al. 2019, Fixup)",
)
def residual_no_norm(seed: int) -> Training:
    """A residual model without batch norm whose branches are not scaled down."""
    return healthy.residual(seed, norm=False)


@fault(
    "sigmoid12",
    kinds="vanishing",
    first="0",
    twin="sigmoid12-bn",
    why="a sigmoid's slope is at most 0.25: over twelve layers the gradient falls by more than 10^-7",
)
def sigmoid(seed: int) -> Training:
    """A stack of sigmoid layers."""
    return healthy.sigmoid_net(seed, norm=False)


@fault(
    "tanh30",
    kinds="vanishing",
    first="0",
    twin="tanh30-glorot",
    why="with PyTorch's default initialisation each layer passes 0.58: 10^-7 over thirty (Glorot & Bengio 2010)",
)
def tanh(seed: int) -> Training:
    """A deep stack of tanh layers with the default initialisation, biases left at 0."""
    return healthy.deep_tanh(seed, init=glorot(3**-0.5))


@fault(
    "plain-bn42",
    kinds="incoherent exploding",
    twin="resmlp42-bn",
    why="without shortcuts gradients of examples have no common direction (Balduzzi et al. 2017), and batch norm "
    "lets them grow by 1.21 a layer (Yang et al. 2019)",
)
def plain_deep(seed: int) -> Training:
    """A deep model with batch norm and without shortcuts."""
    return healthy.deep_bn(seed, shortcut=False)


# --- the optimizer ----------------------------------------------------------------------------------------


@fault(
    "lr-x100-sgd",
    kinds="exploding nonfinite dead",
    twin="mlp10-he-sgd",
    why="the first steps overshoot: the loss and the gradients rise until they overflow or all units are off",
)
def fast_sgd(seed: int) -> Training:
    """A learning rate a hundred times too large."""
    return healthy.mlp_sgd(seed, lr=100 * SGD_RATE)


@fault(
    "lr-x100-adam",
    kinds="exploding nonfinite dead",
    twin="mlp10-he-adam",
    why="every weight moves by 0.1 in each step, more than its size: activations and loss rise by orders of "
    "magnitude, or the units go off",
)
def fast_adam(seed: int) -> Training:
    """The same under Adam."""
    return healthy.mlp_adam(seed, lr=100 * healthy.ADAM)


@fault(
    "lr-x0.001",
    kinds="frozen",
    twin="mlp10-he-sgd",
    why="weights change by a millionth of their size in a step and the loss stays where it is: of the kinds, that "
    "they stand still is what is seen",
)
def slow(seed: int) -> Training:
    """A learning rate a thousand times too small."""
    return healthy.mlp_sgd(seed, lr=1e-3 * SGD_RATE)


@fault(
    "schedule-to-zero",
    kinds="frozen",
    twin="mlp10-he-sgd",
    why="a schedule counted in epochs is stepped in batches: after 30 steps the rate is 0",
)
def stopped(seed: int) -> Training:
    """A learning rate that is 0 too early."""
    training = healthy.mlp_sgd(seed)
    training.schedule = LambdaLR(training.optimizer, lambda step: max(0.0, 1 - step / 30))
    return training


@fault(
    "weight-decay-x1000",
    kinds="vanishing",
    first="0",
    twin="mlp10-he-sgd",
    why="a decay of 1 shrinks all weights to nothing, and with them signal and gradient",
)
def decay(seed: int) -> Training:
    """Weight decay of 1 in place of 0.001."""
    return healthy.mlp_sgd(seed, decay=1.0)


@fault(
    "no-zero-grad",
    kinds="exploding nonfinite",
    twin="mlp3-he-sgd-plain",
    why="gradients add up over all steps: their norm grows and the weights are thrown about ever further",
)
def accumulated(seed: int) -> Training:
    """Gradients are never cleared."""
    return healthy.mlp_plain_sgd(seed, zero_grad=False)


# --- units and inputs -------------------------------------------------------------------------------------


@fault(
    "dead-bias",
    kinds="dead",
    first="8",
    twin="mlp10-he-sgd",
    why="a bias of -30 turns all units of the fifth layer off; no gradient passes it",
)
def dead(seed: int) -> Training:
    """Dead ReLU by bias."""
    training = healthy.mlp_sgd(seed)
    layer = training.model[8]
    assert isinstance(layer, nn.Linear)
    nn.init.constant_(layer.bias, -30.0)
    return training


@fault(
    "inputs-x1000",
    kinds="exploding nonfinite dead",
    first="",
    twin="mlp4-inputs",
    why="three inputs in metres among kilometres: the first layer's step is a million times too large for them; "
    "the loss overflows or the units go off",
)
def inputs(seed: int) -> Training:
    """One mislabelled scale of inputs."""
    return healthy.scaled_inputs(seed, factor=1000.0)


@fault(
    "tanh-inputs-255",
    kinds="saturated",
    first="0",
    twin="tanh6-glorot",
    why="raw values of 0 to 255 in place of unit variance: the first layer's tanh lies on its flat ends",
)
def raw_inputs(seed: int) -> Training:
    """Inputs that were not normalised, in a tanh model."""
    return healthy.tanh_net(seed, inputs=50.0, shift=127.0)


# --- layers that get nothing ------------------------------------------------------------------------------


@fault(
    "frozen-stem",
    kinds="frozen",
    first="stem.0",
    twin="stem",
    why="requires_grad is off in the stem, at its random initialisation",
)
def frozen_stem(seed: int) -> Training:
    """A frozen stage."""
    return healthy.stem(seed, "frozen")


@fault(
    "forgotten-stem",
    kinds="frozen",
    first="stem.0",
    twin="stem",
    why="the optimizer was given the trunk's parameters only: gradients arrive, and nothing moves",
)
def forgotten_stem(seed: int) -> Training:
    """A stage that the optimizer does not know."""
    return healthy.stem(seed, "forgotten")


@fault(
    "detached-stem",
    kinds="unused frozen",
    first="stem.0",
    twin="stem",
    why="detach() behind the stem: its parameters never get a gradient and never change; both are literally so",
)
def detached_stem(seed: int) -> Training:
    """A graph that is cut."""
    return healthy.stem(seed, "detached")


@fault(
    "detached-branch",
    kinds="unused frozen",
    first="b.0",
    twin="branches",
    why="one of two branches is detached where they join: as above",
)
def detached_branch(seed: int) -> Training:
    """A detached branch."""
    return healthy.branches(seed, "detached")


@fault(
    "unused-branch",
    kinds="unused",
    first="b.0",
    twin="branches",
    why="forward forgets one of two branches, and half of the inputs with it",
)
def unused_branch(seed: int) -> Training:
    """An unused branch."""
    return healthy.branches(seed, "unused")


# --- numbers ----------------------------------------------------------------------------------------------


@fault(
    "fp16-underflow",
    kinds="vanishing",
    first="0",
    twin="pixels-fp32",
    why="gradients below 6e-8 are 0 in float16: the early layers get exactly nothing",
)
def underflow(seed: int) -> Training:
    """Mixed precision without a loss scale, simulated by rounding each gradient to float16."""
    return healthy.small_gradients(seed, half=True)


@fault(
    "nan-sample",
    kinds="nonfinite",
    first="0",
    twin="mlp4-dataset",
    why="one sample of 2,560 holds a NaN; it enters by the first layer, in the forward pass",
)
def nan(seed: int) -> Training:
    """NaN in one sample."""
    return healthy.dataset(seed, nan=True)


@fault(
    "sqrt-at-0",
    kinds="nonfinite",
    first="body.4",
    twin="length-eps",
    why="the root's slope at 0 is infinite: the backward pass breaks behind the body's last layer",
)
def root(seed: int) -> Training:
    """A root without an epsilon; step 45 has a sample of zeros."""
    return healthy.length(seed, eps=0.0)


# --- over time --------------------------------------------------------------------------------------------


@fault(
    "rnn-exploding",
    kinds="exploding nonfinite",
    first="embed rnn",
    twin="rnn-orthogonal-clip",
    why="a recurrent matrix of norm 2.5, half of it through ReLU, over 40 places, not clipped: 10^10 "
    "(Pascanu et al. 2013)",
)
def rnn_explodes(seed: int) -> Training:
    """An exploding recurrent model."""
    return healthy.recurrent(seed, gain=2.5, clip=None)


@fault(
    "rnn-forgets",
    kinds="vanishing",
    first="embed rnn",
    twin="lstm-memory",
    why="a recurrent matrix of norm 0.3 over 20 places: of the first symbol's gradient 10^-10 is left "
    "(Bengio et al. 1994)",
)
def rnn_forgets(seed: int) -> Training:
    """A recurrent model that cannot remember."""
    return healthy.memory(seed, cell="rnn")
