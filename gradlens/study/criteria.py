"""The original study's claims, and what would count for and against each.

The lines of A to D and F were fixed before any run was judged. That of E (0.01 per ten layers), and what is no test of
F, were set when first numbers had been seen; neither makes a claim easier to support. Each stands here with its reason.
A verdict is one of

* supported: what the claim says is shown, by a 95 % interval over seeds that lies on its side of the line;
* not supported: the contrary is shown, or an effect that would be worth speaking of is excluded;
* mixed: a part of the claim is shown and another part is refuted;
* undecided: the interval holds both, or what the test needs was not trained or recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradlens.analysis.gradient_ratio import SIMILAR_DECADES, VANISH_DECADES

Outcome = Literal["supported", "not supported", "mixed", "undecided", "withheld"]
OUTCOMES: tuple[Outcome, ...] = ("supported", "not supported", "mixed", "undecided", "withheld")
"""What a verdict may be; "withheld" where a control failed, so that there is none."""

VANISHES, KEEPS = VANISH_DECADES, -SIMILAR_DECADES
"""log10 of the gradient's norm at the first layer's output over that at the last hidden one's. Below 10^-3 it vanishes
(AutoTrainer, Zhang et al. 2021, ICSE: |g_first| / |g_last| < 1e-3); within a factor of ten it has not weakened."""
FLOAT32_DECADES = 7.22
"""log10 of 2^24, float32's resolution (IEEE 754): what is smaller than this beside another number adds nothing to it. A
gradient that is weaker by more has vanished whichever the number, so ratios are cut here before seeds are averaged."""
MAIN_ROAD, NO_ROAD = 0.5, 0.1
"""Share of the gradient at a block's input that came through its shortcut: above a half it is the main road, below a
tenth it is none."""
ACCURACY_MARGIN = 0.02
"""A difference in accuracy below this is not worth speaking of: less than the standard error of a share of a few
hundred pictures (0.03 for 222 of them)."""
LOSS_MARGIN = 0.05
"""Likewise of the loss, in nats; 3 % of the loss of guessing one of five classes."""
DEPTH_MARGIN = 0.01
"""Accuracy per ten layers: 0.09 between 20 and 110 layers."""
HALF = 0.5
"""Share of the gap between plain and residual network that a half of the shortcut must close to be called its cause."""
TARGETS = (0.25, 0.5, 0.75)
"""How far from chance to 1 a training accuracy must come, for the epochs until then."""
SHALLOW = 8
"""Plain networks up to this depth, from He initialisation, are negative controls. PyTorch's default without batch norm
brings first / last to 10^-2.5 at 8 layers and to 10^-5 at 14 (measured at initialisation, 32 px): such a network may well
vanish."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the original study with its test.

    Args:
        key: "A" to "E", in the study's order; "F" is the cause that it names.
        text: The claim.
        supports: What would count for it.
        refutes: What would count against it.
        reason: Why the lines are where they are, with source.
    """

    key: str
    text: str
    supports: str
    refutes: str
    reason: str


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "A",
        "Without shortcuts the gradient weakens on its way back until it almost vanishes.",
        "In the plain network the gradient's norm at the first layer's output is below 10^-3 of that at the last hidden "
        "one's (median over the rows of a run; interval over seeds).",
        "It is above 10^-1 of it: it weakens by less than a factor of ten, or grows.",
        "10^-3: AutoTrainer (Zhang et al. 2021, ICSE). Ratios are cut at 10^±7.2, float32's resolution.",
    ),
    Claim(
        "B",
        "A residual connection gives the gradient an alternative path to the early layers.",
        "At the median block more than half of the gradient at its input came through the shortcut.",
        "Less than a tenth did.",
        "The shortcut's part is projected on the sum of both, (S² + cSB) / (S² + B² + 2cSB) with norms S, B and cosine "
        "c, so that the two parts add up to 1. Between the lines the shortcut is a side road: mixed.",
    ),
    Claim(
        "C",
        "The residual network converges faster.",
        "The area under the training accuracy over the epochs that all runs have is larger than the plain network's (pairs "
        "of equal seed), and no level of accuracy is reached later.",
        "An advantage of 0.02 in mean accuracy is excluded.",
        "Epochs to reach a level are cut at the epochs that all runs have, so that a run that never reaches it counts "
        "as what is known of it (restricted mean, Royston & Parmar 2013, BMC Med. Res. Methodol. 13:152).",
    ),
    Claim(
        "D",
        "The residual network ends with better accuracy and loss.",
        "In the last epoch validation accuracy and loss are both better (pairs of equal seed), and training accuracy "
        "and loss are not worse.",
        "Neither is better in training or validation, and gains of 0.02 in accuracy and 0.05 in loss are excluded, or "
        "validation is worse.",
        "0.02 is below the standard error of a share of a few hundred pictures, 0.05 is 3 % of the loss of guessing.",
    ),
    Claim(
        "E",
        "A plain network stagnates or overfits as it gets deeper; a residual network stays healthy.",
        "Over depth the plain network's final training accuracy falls, or its gap between training and validation grows, "
        "and the residual network's does neither by 0.01 per ten layers.",
        "The plain network's neither falls nor grows by as much.",
        "A slope over depth, seed by seed; 0.01 per ten layers is 0.09 between 20 and 110. One part shown and the "
        "other refuted is mixed. The plateau of the training loss stands beside it and decides nothing: a learning "
        "rate that is brought down flattens any curve.",
    ),
    Claim(
        "F",
        "The plain network fails because its gradient vanishes; the shortcut cures it by the gradient's way back.",
        "In the plain network the gradient vanishes as A has it, a shortcut that passes the gradient alone closes more "
        "than half of the gap between plain and residual network, and one that passes the value alone less than half.",
        "The one that passes the gradient alone closes less than half.",
        "Gap in the area under the training accuracy; interval of the ratio by Fieller 1954 (J. R. Stat. Soc. B 16). "
        "Mixed where both halves close most of it, or the gradient alone does and nothing had vanished. No test where "
        "there is no gap, or where the gradient vanishes all the same (10^-3) with its way alone. What such a shortcut "
        "passes back is not the gradient of the loss that the network has.",
    ),
)


def claim(key: str) -> Claim:
    """Return a claim by its letter."""
    return next(one for one in CLAIMS if one.key == key)
