"""The registry of kinds: each kind of finding in a line, the causes before what they cause.

Adding a kind takes a file with its rule, a line here, and its place in the sequence of
``gradlens.diagnosis.diagnose``. Help texts, gates, JUnit cases and the words of reports follow from the line. The file
imports nothing heavy, so that the command line may read it at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradlens.errors import ConfigError

HEALTHY, UNDECIDED = "healthy", "undecided"


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Args:
        name: As it is printed, and as ``--fail-on`` takes it.
        meaning: What is wrong, in a line.
        indonesian: Its name in an Indonesian report.
        before_training: Whether ``gradlens probe`` looks for it.
    """

    name: str
    meaning: str
    indonesian: str
    before_training: bool = False


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


def parse_gates(text: str | None, *more: str) -> tuple[str, ...]:
    """Read the kinds that ``--fail-on`` names; nothing where the option is not given.

    Args:
        text: Kinds with commas between them.
        more: Further names that are allowed here, such as "undecided".

    Raises:
        ConfigError: A name is empty (as an empty variable of a script makes it), or not a kind.
    """
    if text is None:
        return ()
    gates, expected = tuple(part.strip() for part in text.split(",")), (*KINDS, *more, "any")
    wrong = [gate for gate in gates if gate not in expected]
    if wrong:
        what = f"unknown kind {', '.join(map(repr, filter(None, wrong)))}" if any(wrong) else "a kind is missing"
        raise ConfigError(f"--fail-on {text!r}: {what}; expected some of {', '.join(expected)}")
    return gates
