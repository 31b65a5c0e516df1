"""What each kind of finding means, how it is measured, and what to do, for ``gradlens diagnose --explain KIND``.

This file imports nothing heavy, so that the command line loads it fast.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from gradlens.diagnosis.kinds import KINDS, REGISTRY

WIDTH = 100


@dataclass(frozen=True)
class Explanation:
    """The page of a kind.

    Args:
        measured: How it is measured, and what does not count.
        source: Where the threshold is from.
        remedies: Pairs of a cause and what to do about it.
    """

    measured: str
    source: str
    remedies: tuple[tuple[str, str], ...]


FACTS = "Exact: the recorder's facts (docs/facts.md); no threshold."
EXPLANATIONS: dict[str, Explanation] = {
    "cut": Explanation(
        "The graph of the loss is read in the first steps. It has no leaf of the model, it does not reach modules "
        "whose parameters the optimizer has, or it reaches parameters that the model does not list. Modules in no "
        "optimizer may be cut off on purpose, which is a note.",
        FACTS,
        (
            ("the loss is made from numbers", "compute it from tensors, without .item(), float() or torch.tensor(...)"),
            ("a module's output is detached", "remove detach(), .data, .numpy() or no_grad behind it"),
            ("layers in a plain list or dictionary", "use nn.ModuleList or nn.ModuleDict"),
            ("a sample that passes no gradient", "use rsample(), or mean + std * noise"),
        ),
    ),
    "setup": Explanation(
        "Read from the graph of the loss, from its targets and the data in the first steps, from the state of each "
        "gradient at the optimizer's step, and from the mode of each module. A log-softmax applied twice, a softmax "
        "over the first of two dimensions, and single batch norms in eval mode change nothing or may be meant, and do "
        "not count.",
        FACTS,
        (
            ("softmax or sigmoid before a loss that applies its own", "remove it from the model"),
            ("shapes are broadcast in the loss", "give output and target the same shape"),
            ("gradients are cleared before the step, or never", "call zero_grad() once, before backward()"),
            ("batch norm never updates its statistics", "set momentum to 0.1"),
            ("batch norm over two values", "use larger batches, or group norm"),
            ("dropout after the last layer", "put it between hidden layers"),
            ("targets outside the range of a tanh or sigmoid at the end", "remove it, or scale the targets"),
            ("a recurrent or attention layer takes the batch for time", "set batch_first"),
            ("logits in a narrow range", "divide cosine similarities by a temperature, do not multiply by it"),
            ("class weights favour the frequent classes", "turn them round: total / count of each class"),
            ("weights of examples multiply their average", "multiply element by element, then average"),
            ("a term of the loss has no graph", "pass create_graph=True to torch.autograd.grad, or remove detach()"),
            ("labels of 0 where the loss takes -1 and 1", "turn them into -1 and 1: 2 * label - 1"),
            ("a weight is divided by its own sum over one element", "leave out the division"),
            ("targets are moved by more than one position", "move them once: in the batch or in the loss"),
            ("the padding mask is turned round", "True hides a position in key_padding_mask"),
            ("the sign of the loss is wrong", "put a minus before a mean of log-probabilities, none before an error"),
            ("all weights start as one constant", "initialise them at random"),
            ("weights are overwritten between steps", "initialise them once, before the training"),
            ("every batch has one class, or every step the same data", "shuffle, and iterate over the loader"),
            ("the model trains in eval mode", "call model.train() after each validation"),
            ("a GradScaler that the recorder does not know", "pass scaler= to gradlens.record"),
        ),
    ),
    "out_of_sync": Explanation(
        "After each recorded step, all ranks compare a moving sample of every layer's weights, where these should be "
        "equal (DistributedDataParallel, whole parameters of tensor parallelism). More than 1e-5 of the norm counts, "
        "a hundred roundings of float32; and a rank that does not come to a row in time. Buffers and sharded "
        "parameters are not compared.",
        "Measured: ranks that agree differ by less than 1e-7; one step with another gradient by about 1e-3.",
        (
            ("the model inside the wrapper is called (.module)", "call the wrapped model"),
            ("a rank skips optimizer.step()", "decide on all ranks together, for example by an all_reduce of a flag"),
            ("ranks begin with different weights", "wrap the model, or use the same seed before it is made"),
            ("learning rates or other settings differ by rank", "read them on rank 0 and broadcast them"),
        ),
    ),
    "clipping": Explanation(
        "Calls of clip_grad_norm_ are observed. A coefficient that is always below 0.1 counts if the loss has not "
        "halved and the optimizer does not divide gradients by their size; clipping after the step counts if the "
        "model does not learn. Clipping by value shows in entries of one size in all layers and rows.",
        "Pascanu et al. 2013, sec. 3.2: the threshold is 0.5 to 10 times the average norm.",
        (
            ("the limit is far below the usual norm", "raise max_norm to the usual norm"),
            ("the value of clip_grad_value_ is far below the usual entry", "raise it"),
            ("clipping after the step", "clip between backward() and step()"),
            ("clipping before unscaling", "call scaler.unscale_(optimizer) first"),
        ),
    ),
    "exploding": Explanation(
        "Over depth: the first layer's gradient norm is more than 70 times what batch norm explains; behind a norm, "
        "|W| |dL/dW| must show it, too. Over steps: 1,000 times the first rows while the loss rises and does not fall "
        "again, or 100 times within 20 rows before a non-finite one. Outputs: 100 times the first row's.",
        "Zhang et al. 2021, AutoTrainer; Yang et al. 2019; measured on healthy runs.",
        (
            ("the learning rate is too high", "lower it or warm it up"),
            ("the loss has no lower bound", "look at the sign of each of its terms"),
            ("the loss is a sum over elements", "average it, or divide the learning rate"),
            ("a recurrent layer multiplies over time", "clip the gradient's norm"),
            ("weights are too large for their number of inputs", "use He initialisation, or normalise"),
        ),
    ),
    "nonfinite": Explanation(
        "NaN or Inf in a gradient, an output or the loss, in a step that a GradScaler did not skip; the first layer "
        "and step, and whether the forward or the backward pass broke.",
        "IEEE 754: arithmetic with NaN stays NaN.",
        (
            ("log(0), 0 / 0, or an infinite input", "check the data and the loss; clamp before log and division"),
            ("an average over no element (an empty mask)", "divide by at least 1"),
            ("an infinite slope (sqrt or norm at 0)", "add a small number inside"),
            ("the range of 16 bits", "use bfloat16 or a GradScaler"),
        ),
    ),
    "dead": Explanation(
        "All outputs after an activation function are exactly 0 at the end (more than 99 % beside a loss that does "
        "not fall), or the weights after it get a gradient of exactly 0 and the bias does not.",
        "smdebug, DeadRelu: a unit active less than 1 % of the time; exact for a gradient of 0.",
        (
            ("updates were too large", "lower the learning rate, or warm it up"),
            ("biases far below 0", "initialise them with 0, or use LeakyReLU or GELU"),
        ),
    ),
    "saturated": Explanation(
        "The input of a tanh or sigmoid has a root mean square above 5 at the end (needs activation_rms), or in the "
        "first step where it is a layer's that gets data, and the loss does not halve.",
        "Wardat et al. 2022, DeepDiagnosis.",
        (("weights or inputs are too large", "use Glorot initialisation, or normalise before the function"),),
    ),
    "zero_gradient": Explanation(
        "The gradient of a layer is exactly 0 in every row of the last fifth, and not by underflow. Where it is so at "
        "all layers, only a loss that does not fall counts: a hinge that is satisfied has no gradient, either.",
        "Exact: a product with a factor of 0.",
        (
            ("the loss is exactly 0 in every row", "look at what it selects: pairs, triplets, targets, margins"),
            ("weights of exactly 0 in front of a slope of 0", "initialise them with small random numbers"),
            ("a ReLU is the last operation", "remove it"),
            ("underflow in float16", "use a GradScaler or bfloat16"),
            ("all units are off, or every output is the same", "lower the learning rate, check the biases"),
        ),
    ),
    "vanishing": Explanation(
        "The first layer's gradient norm is less than 1/1,000 of the last hidden layer's to the end, and the first "
        "layers hardly learn. Behind a norm, |W| |dL/dW| must show it, too. An exact zero is a zero_gradient. In a "
        "recurrent layer of a model that does not learn, the same holds from the last time step to the first "
        "(gradient_through_time).",
        "Zhang et al. 2021, AutoTrainer; Pascanu, Mikolov & Bengio 2013 for the gradient through time.",
        (
            ("bounded activation functions, or weights that are too small", "use ReLU with He initialisation"),
            ("depth without shortcuts or norms", "add them, or use fewer layers"),
            ("a recurrent layer that forgets", "an LSTM with a forget gate's bias of 1, shorter sequences, attention"),
        ),
    ),
    "frozen": Explanation(
        "Weights that do not change at all in the last fifth of the rows, or by less than 1e-4 per step while halves "
        "of the batch agree or the loss of an untrained model falls along a straight line. Layers that are frozen from "
        "the start and in no optimizer are a note, and so are fixed tables.",
        "Exact, from facts or from update_ratio; Ben Braiek & Khomh 2023, TheDeepChecker, for the size of steps.",
        (
            ("parameters are not in the optimizer", "add them to a group"),
            ("layers were replaced after the optimizer was made", "make it afterwards"),
            ("a mean loss is divided again", "do not divide it, and raise the learning rate"),
            ("requires_grad is off", "set it to True, or leave the parameters out of the optimizer"),
            ("a schedule ends too early", "step it once per epoch, or set its length to that of the training"),
            ("the optimizer holds another model's parameters", "make it from this model's parameters()"),
        ),
    ),
    "unused": Explanation(
        "Parameters without a gradient in any row, while others have one. Experts and layers that were used before "
        "are a note.",
        "Exact: autograd leaves .grad at None.",
        (("the output is not used in the loss", "use it, or remove the layer"),),
    ),
    "incoherent": Explanation(
        "Gradients of parts of the batch have a cosine below 0.005 from the first rows on, the norms are healthy, and "
        "the loss is stuck; from 8 layers on (needs grad_coherence). Behind batch norm the cosine is that between "
        "batches in succession (batch_coherence), or between micro-batches.",
        "Balduzzi et al. 2017; measured at initialisation.",
        (("depth without shortcuts", "add them, enlarge the batch, or remove layers"),),
    ),
    "plateau": Explanation(
        "No other rule finds anything, and the model does not learn: in at least 100 rows the loss does not fall, "
        "rises in classification, or is no better than guessing (ln C for C classes). Or: the first update was above "
        "a tenth of the weights' norm, and the loss has not fallen since the first fifth of the rows; or the error of "
        "a squared loss is more than 1,000 times what Adam can move a weight in all steps. A resumed or mostly frozen "
        "model, a warm-up, moving targets and several models in one loss are no evidence.",
        "ln C: the cross entropy of equal probabilities; 3 standard errors; TheDeepChecker for the size of steps.",
        (
            ("inputs and targets do not belong together", "train on ten examples: it works, so check the data"),
            ("the loss compares the wrong things", "check shapes, activation functions and the order of arguments"),
            ("targets far from the outputs", "scale them to mean 0 and standard deviation 1"),
            ("the output layer is frozen", "set requires_grad to True on it"),
            ("steps of the wrong size", "try a learning rate ten times larger and smaller"),
        ),
    ),
}
"""A page for every kind of ``gradlens.diagnosis.kinds``."""


def explain(kind: str) -> str:
    """Return the page of a kind as text.

    Args:
        kind: One of ``KINDS``.
    """
    page, meaning = EXPLANATIONS[kind], REGISTRY[KINDS.index(kind)].meaning
    lines = [f"{kind}: {meaning}", ""]
    for label, text in (("measured", page.measured), ("source", page.source)):
        lines += textwrap.wrap(f"{label}: {text}", WIDTH, subsequent_indent="  ")
    lines += ["", "causes and remedies:", *(f"  {cause}: {remedy}." for cause, remedy in page.remedies)]
    return "\n".join(lines)
