"""Load the names of a package on first use, so that a command imports only what it needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def loader(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package.

    Args:
        package: Its ``__name__``.
        home: Name to the module that defines it.
    """

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load


class Face(ModuleType):
    """A package whose public names win over the modules of the same name inside it.

    Python binds a package's name in its parent when the package is imported. So ``gradlens.report``, a function, would
    become the package ``gradlens.report`` as soon as the function imports it. A package with such names sets
    ``sys.modules[__name__].__class__ = Face``. Code inside writes ``from gradlens.report.files import ...``, which
    looks modules up by their full name; ``import gradlens.report.files as files`` does not work.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in self.__dict__["__all__"]):
            super().__setattr__(name, value)


def shown_by(function: str) -> Callable[[Any], str]:
    """Return the ``_repr_html_`` of a class, which calls a function of ``gradlens.notebook``.

    Only a notebook asks an object for HTML. The function is imported at that moment: ``gradlens.notebook`` imports the
    classes that it shows, and a program that only reads runs never loads a plotting library.

    Args:
        function: Name of the function; it takes the object and returns HTML.
    """

    def _repr_html_(self: Any) -> str:
        """Return HTML for a notebook."""
        return str(getattr(import_module("gradlens.notebook"), function)(self))

    return _repr_html_
