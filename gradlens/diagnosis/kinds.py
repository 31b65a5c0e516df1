"""The registry of kinds: each kind of finding in a line, the causes before what they cause.

Adding a kind takes a file and a line: ``gradlens/diagnosis/NAME.py`` with a function ``NAME(recording)`` that returns
findings, and a line here with ``on_its_own=True``. A kind that explains other kinds, or is explained by them, has its
place in the sequence of ``gradlens.diagnosis.diagnose`` instead. Help texts, gates, JUnit cases and the words of
reports follow from the line. The file imports nothing, so that the command line may read it at once.
"""

from __future__ import annotations

from dataclasses import dataclass

HEALTHY, UNDECIDED = "healthy", "undecided"


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Args:
        name: As it is printed, and as ``--fail-on`` takes it.
        meaning: What is wrong, in a line.
        indonesian: Its name in an Indonesian report.
        before_training: Whether ``gradlens probe`` looks for it.
        on_its_own: Whether its rule is independent of all other kinds; ``diagnose`` finds the rule by the kind's name.
    """

    name: str
    meaning: str
    indonesian: str
    before_training: bool = False
    on_its_own: bool = False


# fmt: off
REGISTRY = (
    Kind("exploding", "gradients or outputs grow more than the layers explain", "gradien meledak (exploding)", True),
    Kind("nonfinite", "a gradient, an output or the loss is NaN or infinite", "nilai tak hingga (nonfinite)", True),
    Kind("dead", "nearly all units behind an activation function are 0 for good", "unit mati (dead)", True),
    Kind("saturated", "a bounded activation function is driven where its slope is gone", "unit jenuh (saturated)"),
    Kind("vanishing", "the first layers' gradient is far below the last ones'", "gradien menghilang (vanishing)", True),
    Kind("frozen", "weights do not change, or far too little to learn", "bobot diam (frozen)"),
    Kind("unused", "no gradient ever reaches a layer", "lapisan tak terpakai (unused)", True),
    Kind("incoherent", "gradients of parts of a batch have no common direction", "gradien tidak koheren (incoherent)"),
)
# fmt: on
"""Of several findings the first in this order is the main one. An explosion ends in what is not finite; dead and
saturated units let the gradient vanish; what is still wrong with norms that are healthy comes last."""
KINDS = tuple(kind.name for kind in REGISTRY)


def list_kinds() -> str:
    """Return the kinds with their meanings, a line each, for help texts."""
    wide = max(map(len, KINDS))
    return "\n".join(f"  {kind.name:<{wide}}  {kind.meaning}" for kind in REGISTRY)
