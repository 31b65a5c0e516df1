"""The registry of kinds of findings; causes come before their consequences.

A new kind needs a file and a line: ``gradlens/diagnosis/NAME.py`` with a function ``NAME(recording)`` that returns
findings, and an entry here with ``on_its_own=True``. A kind that causes other kinds, or is caused by them, has its
place in the sequence of ``gradlens.diagnosis.diagnose`` instead. Help texts, gates, JUnit cases and the wording of
reports follow from the entry. This file imports nothing heavy, so that the command line loads it fast.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradlens.errors import ConfigError

HEALTHY, UNDECIDED, LEARNING = "healthy", "undecided", "learning"
NOT_KNOWN = "no fault found, learning unknown"
"""What is printed of a run without a finding of which it is unknown whether the model learns."""


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Args:
        name: The kind as it is printed, and as ``--fail-on`` accepts it.
        meaning: The fault, in one line.
        indonesian: The kind's name in an Indonesian report.
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
    Kind("cut", "the loss does not reach what it should train", "graf terputus (cut)"),
    Kind("setup", "the loss, its inputs, modes or clearing are set up wrongly", "pengaturan keliru (setup)"),
    Kind("out_of_sync", "ranks that train one model have different weights", "rank tidak sinkron (out_of_sync)",
         on_its_own=True),
    Kind("clipping", "clipping leaves next to nothing, or comes too late", "pemotongan gradien keliru (clipping)"),
    Kind("exploding", "gradients or outputs grow more than the layers explain", "gradien meledak (exploding)", True),
    Kind("nonfinite", "a gradient, an output or the loss is NaN or infinite", "nilai tak hingga (nonfinite)", True),
    Kind("dead", "nearly all units after an activation function stay at 0", "unit mati (dead)", True),
    Kind("saturated", "inputs of a bounded activation function lie where it is flat", "unit jenuh (saturated)"),
    Kind("zero_gradient", "a gradient is exactly 0 to the end", "gradien tepat nol (zero_gradient)"),
    Kind("vanishing", "the gradient at the first layers is far too small", "gradien menghilang (vanishing)", True),
    Kind("frozen", "weights do not change, or change far too little to learn", "bobot tidak berubah (frozen)"),
    Kind("unused", "no gradient ever reaches a layer", "lapisan tak terpakai (unused)", True),
    Kind("incoherent", "gradients of parts of a batch have no common direction", "gradien tidak koheren (incoherent)"),
    Kind("plateau", "the model does not learn, and nothing else is found", "loss tidak turun (plateau)"),
)
# fmt: on
"""The first finding in this order is the main one, findings with an exact cause first. An explosion leads to non-finite
values; dead and saturated units make the gradient vanish; faults with healthy norms come last."""
KINDS = tuple(kind.name for kind in REGISTRY)


def list_kinds() -> str:
    """Return the kinds with their meanings, one per line, for help texts."""
    wide = max(map(len, KINDS))
    return "\n".join(f"  {kind.name:<{wide}}  {kind.meaning}" for kind in REGISTRY)


def parse_gates(text: str | None, *more: str, kinds: tuple[str, ...] = KINDS) -> tuple[str, ...]:
    """Read the kinds that ``--fail-on`` names; nothing where the option is not given.

    Args:
        text: Kinds with commas between them.
        more: Further names that are allowed here, such as "undecided".
        kinds: The kinds that can be found here.

    Returns:
        The kinds, in the order given.

    Raises:
        ConfigError: A name is empty (as an empty variable of a script makes it), not a kind, or given twice.
    """
    if text is None:
        return ()
    gates, expected = tuple(part.strip() for part in text.split(",")), (*kinds, *more, "any")
    wrong = [gate for gate in gates if gate not in expected]
    if wrong:
        what = _say_wrong(wrong)
        raise ConfigError(f"--fail-on {text!r}: {what}; expected some of {', '.join(expected)}")
    twice = [gate for number, gate in enumerate(gates) if gate in gates[:number]]
    if twice:
        raise ConfigError(f"--fail-on {text!r}: {twice[0]} is given twice")
    return gates


def _say_wrong(gates: list[str]) -> str:
    unknown = [gate for gate in gates if gate and gate not in KINDS]
    if unknown:
        return f"unknown kind {', '.join(map(repr, unknown))}"
    return f"{', '.join(filter(None, gates))} is not looked for here" if any(gates) else "a kind is missing"
