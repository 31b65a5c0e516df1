"""The names of the operations from which losses are computed."""

from __future__ import annotations

from gradlens.recorder.facts.loss.graph_reading import VIEWS

CTC = {"CtcLoss", "CudnnCtcLoss"}
LOSSES = {
    "NllLoss", "NllLoss2D", "MseLoss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy", "SoftMarginLoss",
    "BinaryCrossEntropyWithLogits", "MultiMarginLoss", "MultilabelMarginLoss", *CTC,
}  # fmt: skip
REDUCTIONS = {"Mean": "mean", "Sum": "sum"}
SCALINGS = {"Mul", "Div"}
ARITHMETIC = VIEWS | LOSSES | SCALINGS | set(REDUCTIONS) | {
    "Add", "Sub", "Rsub", "Neg", "Pow", "Abs", "Sqrt", "Rsqrt", "Log", "Log1P", "Log2", "Exp", "Expm1", "Clamp",
    "ClampMin", "ClampMax", "Where", "MaskedFill", "MaskedSelect", "Index", "IndexSelect", "Gather", "Stack", "Cat",
    "Maximum", "Minimum", "Max", "Min", "Amax", "Amin", "Norm", "LinalgVectorNorm", "LogSigmoid", "Logsumexp", "Var",
    "Std", "StdMean", "VarMean", "Square", "LogSoftmax", "Reciprocal", "Xlogy", "Addcmul", "Addcdiv", "Lerp",
}  # fmt: skip
"""Operations from which a loss is computed; what is not among them, or is a module's output, is the model's."""
COMPARISONS = {"Sub", "Rsub", "MseLoss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy"} | {
    "BinaryCrossEntropyWithLogits",
    "SoftMarginLoss",
}
ACTIVATIONS = {
    "Relu", "Softmax", "LogSoftmax", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Gelu", "Silu", "Softplus", "Hardtanh",
    "Threshold", "PreluKernel", "Hardsigmoid", "Hardswish", "Clamp", "ClampMin",
}  # fmt: skip
LOGITS = {"Softmax", "Sigmoid"}
"""Activation functions that make probabilities."""
