"""Backward passes that reach no parameter, and passes that may have been taken for one."""

from __future__ import annotations

TRIAL = 8
"""Number of rows in which passes are distinguished after a suspicious one."""


class InnerPasses:
    """Decides in which rows the beginning of every pass must be noticed.

    ``torch.autograd.grad(..., create_graph=True)``, as in a gradient penalty or a physics-informed loss, also calls the
    hooks of layers, but not with gradients of the loss. The quick hooks of layers do not tell one pass from the next.
    """

    def __init__(self) -> None:
        self._most = 0
        self._rows_left = 0
        self.seen = False
        """Whether a step had passes that reached no parameter as well as passes that did."""

    def begin_trial(self) -> None:
        """Distinguish passes in the next rows."""
        self._rows_left = TRIAL

    def is_suspicious(self, taken: int, *, learning: bool) -> bool:
        """Return whether two passes may have been taken for one: more gradients arrived than in any pass before.

        Args:
            taken: Number of gradients of outputs in the pass.
            learning: Whether the pass belongs to the first row.

        Returns:
            Whether the pass is suspicious; always False in the first row.
        """
        if taken <= self._most:
            return False
        self._most = taken
        return not learning

    def end_row(self) -> bool:
        """Return, after one more row in which passes were distinguished, whether that may end (a false alarm)."""
        self._rows_left -= 1
        return self._rows_left < 0 and not self.seen
