"""The tree of errors."""

from __future__ import annotations

import pytest

from gradlens import errors

LEAVES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.GradlensError) and value is not errors.GradlensError
]


@pytest.mark.parametrize("leaf", LEAVES)
def test_each_error_is_also_a_built_in_and_keeps_its_message_and_tip(leaf: type[errors.GradlensError]) -> None:
    assert issubclass(leaf, (ValueError, RuntimeError, OSError, ImportError))
    error = leaf("it failed", tip="try this")
    assert (error.message, error.tip) == ("it failed", "try this")
    assert str(error) == "it failed (tip: try this)"
    assert str(leaf("it failed")) == "it failed"


@pytest.mark.parametrize("leaf", LEAVES)
def test_each_error_stands_in_the_drawn_tree(leaf: type[errors.GradlensError]) -> None:
    assert leaf.__name__ in (errors.__doc__ or "")
