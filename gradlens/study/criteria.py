"""The original study's claims, and what would support and refute each.

Each threshold is given here with its reason; when each was fixed is listed in ``experiments/PLAN.md``. A verdict is one
of

* supported: a 95 % interval over seeds lies completely on the claim's side of the threshold;
* refuted: it lies completely on the other side;
* mixed: a part of the claim is shown and another part is refuted, or settings, outcomes or measures differ, which are
  named; no vote is taken;
* undecided: the interval contains the threshold, or what the test needs was not trained or recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradlens.analysis.gradient_ratio import SIMILAR_DECADES, VANISH_DECADES

Outcome = Literal["supported", "refuted", "mixed", "undecided", "withheld"]
OUTCOMES: tuple[Outcome, ...] = ("supported", "refuted", "mixed", "undecided", "withheld")
"""The outcomes of a verdict; "withheld" means that a control failed and no verdict is given."""

VANISHES, KEEPS = VANISH_DECADES, -SIMILAR_DECADES
"""log10 of the gradient's norm at the first layer's output over that at the last hidden one's. Below 10^-3 it vanishes
(AutoTrainer, Zhang et al. 2021, ICSE: |g_first| / |g_last| < 1e-3); within a factor of ten it has not weakened."""
FLOAT32_DECADES = 7.22
"""log10 of 2^24, float32's resolution (IEEE 754): a number smaller than another by more than this adds nothing to it.
A gradient that is weaker by more has vanished in any case, so ratios are cut here before seeds are averaged."""
GUESSING = 0.05
"""A loss that is not lower than that of guessing by so many nats (``LOSS_MARGIN``) is at the level of guessing."""
NO_PATH = 0.1
"""Share of the gradient at a block's input that came through its shortcut: below one tenth the shortcut is no path."""
ACCURACY_MARGIN = 0.02
"""Smallest relevant difference in accuracy. It is below the standard error of a share of a few hundred images (0.03 for
222 images)."""
LOSS_MARGIN = 0.05
"""Smallest relevant difference in loss, in nats: 3 % of the loss of guessing one of five classes."""
DEPTH_MARGIN = 0.01
"""Smallest relevant change of accuracy per ten layers: 0.09 between 20 and 110 layers."""
HALF = 0.5
"""Share of the gap between plain and residual network that half a shortcut must close to count as the cause."""
TARGETS = (0.25, 0.5, 0.75)
"""Levels of training accuracy whose first epoch is compared, as shares of the way from chance to 1."""
SHALLOW = 8
"""Plain networks up to this depth, from He initialisation, are negative controls. With PyTorch's default initialisation
and without batch norm, first / last is 10^-2.5 at 8 layers and 10^-5 at 14 (measured at initialisation, 32 px), so the
gradient of such a network may vanish."""


@dataclass(frozen=True)
class Claim:
    """A claim of the original study with its test.

    Args:
        key: "A" to "E", in the study's order; "F" is the cause that the study names.
        text: The claim.
        supports: What would support it.
        refutes: What would refute it.
        reason: The reason for the thresholds, with source.
    """

    key: str
    text: str
    supports: str
    refutes: str
    reason: str


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "A",
        "Without shortcuts the gradient weakens in the backward pass until it almost vanishes.",
        "In the plain network the gradient norm at the first layer's output is below 10^-3 of that at the last hidden "
        "layer's (interval over seeds), at the first step, in the last row before the loss stays at the level of "
        "guessing, and in the median over rows.",
        "The ratio is above 10^-1 in all three: the gradient weakens by less than a factor of ten, or grows.",
        "10^-3: AutoTrainer (Zhang et al. 2021, ICSE). If the three disagree, the verdict is mixed: rows after a "
        "collapse describe a network whose forward signal is gone. Ratios are cut at 10^±7.2, float32's resolution. "
        "Reported with it: the ratio per element, of |W| |dL/dW|, and at the norms' outputs, which scaling cannot "
        "change.",
    ),
    Claim(
        "B",
        "A residual connection gives the gradient an alternative path to the early layers.",
        "There is a path: in every block some of the gradient came through the shortcut, and at the median block more "
        "than a tenth of it.",
        "At the median block less than a tenth of the gradient came through the shortcut, or none did in some block.",
        "A shortcut is a path by construction; a tenth excludes one that is hardly used. The shortcut's "
        "part is projected on the sum of both, (S² + cSB) / (S² + B² + 2cSB) with norms S, B and cosine c; the two "
        "parts add up to 1. Reported with it: the share that came through shortcuts alone, the product over all "
        "blocks.",
    ),
    Claim(
        "C",
        "The residual network converges faster.",
        "The area under the training accuracy, over the epochs that all runs have, is larger than that of the plain "
        "network (pairs of equal seed), and no level of accuracy is reached later.",
        "An advantage of 0.02 in mean accuracy is excluded.",
        "The epochs to reach a level are cut at the epochs that all runs have; a run that never reaches the level "
        "counts with that number (restricted mean, Royston & Parmar 2013, BMC Med. Res. Methodol. 13:152).",
    ),
    Claim(
        "D",
        "The residual network ends with better accuracy and loss.",
        "In the last epoch validation accuracy and loss are both better (pairs of equal seed), and training accuracy "
        "and loss are not worse.",
        "No accuracy or loss is better, and gains of 0.02 in accuracy and 0.05 in loss are excluded; or validation is "
        "worse.",
        "0.02 is below the standard error of a share of a few hundred images, 0.05 is 3 % of the loss of guessing.",
    ),
    Claim(
        "E",
        "A plain network stagnates or overfits as it gets deeper; a residual network stays healthy.",
        "With depth, the plain network's final training accuracy falls or its gap between training and validation "
        "grows, and the residual network shows neither by 0.01 per ten layers.",
        "In the plain network neither changes by 0.01 per ten layers.",
        "The test is a slope over depth for each seed; 0.01 per ten layers is 0.09 between 20 and 110 layers. If one "
        "part is shown and the other is refuted, the verdict is mixed. The plateau of the training loss is reported "
        "but does not decide: a learning rate that decreases flattens any curve.",
    ),
    Claim(
        "F",
        "The plain network fails because its gradient vanishes; the shortcut cures it by the gradient's alternative "
        "path.",
        "In the plain network the gradient vanishes as in claim A, a shortcut that passes only the gradient closes "
        "more than half of the gap between plain and residual network, and one that passes only the value less than "
        "half.",
        "The shortcut that passes only the gradient closes less than half.",
        "The gap is judged in two outcomes, the speed of training (area under the training accuracy) and unseen images "
        "(final validation accuracy); interval of the ratio by Fieller 1954 (J. R. Stat. Soc. B 16). Mixed if the two "
        "outcomes differ, if both halves close most of the gap, or if the gradient alone does although nothing had "
        "vanished. Not tested if there is no gap, or if the gradient still vanishes (10^-3) with its path alone. The "
        "gradient that such a shortcut passes back is not the gradient of the network's loss.",
    ),
)
