"""Names of a package that are loaded on first use, so that a command pays only for what it does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def loader(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package.

    Args:
        package: Its ``__name__``.
        home: Name to the module that holds it.
    """

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load


def shown_by(function: str) -> Callable[[Any], str]:
    """Return the ``_repr_html_`` of a class: a function of ``gradlens.notebook``, found by name when it is called.

    Only a notebook asks an object for HTML. So the module that draws it is loaded then and not before: it stands on a
    floor above the classes that it shows, and whoever merely reads runs never loads a plotting library.

    Args:
        function: Its name; it takes the object and returns HTML.
    """

    def _repr_html_(self: Any) -> str:
        """Return what a notebook shows."""
        return str(getattr(import_module("gradlens.notebook"), function)(self))

    return _repr_html_
