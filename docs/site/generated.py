"""The parts of pages that are made from code: help texts, docstrings, metrics, kinds, the layout, lists of tests."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

WIDTH = 90
INSIDE = {"disabled", "close_at_exit", "fail"}
"""Methods of public classes that only gradlens calls."""
SECTIONS = ("Args", "Returns", "Yields", "Raises", "Source", "Example", "Attributes")


def fence(text: str, language: str = "text") -> str:
    """Return a block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def commands() -> str:
    """Return the help text of every command, as ``--help`` prints it."""
    import click

    from gradlens.cli import cli

    parts = []
    for name, command in cli.commands.items():
        with click.Context(command, info_name=f"gradlens {name}", max_content_width=WIDTH, terminal_width=WIDTH) as ctx:
            parts.append(f"### gradlens {name}\n\n{fence(command.get_help(ctx))}")
    return "\n\n".join(parts)


def metrics() -> str:
    """Return how to read each metric."""
    from gradlens.metrics import SHOWN_METRICS

    rows = [f"| `{one.name}` | {one.title} | {one.reading} |" for one in SHOWN_METRICS.values()]
    return "\n".join(["| metric | axis label | how to read it |", "|---|---|---|", *rows])


def kinds() -> str:
    """Return what ``gradlens diagnose --explain`` prints for each kind."""
    from gradlens.diagnosis.explanations import explain
    from gradlens.diagnosis.kinds import KINDS

    return "\n\n".join(f"### {kind}\n\n{fence(explain(kind))}" for kind in KINDS)


def layout() -> str:
    """Return the layout of a run file, from the module that writes it."""
    text = inspect.getdoc(import_module("gradlens.storage.schema")) or ""
    return fence(textwrap.dedent(text.partition("::\n")[2].partition("\n\nRows are written")[0]).strip("\n"))


def tested() -> str:
    """Return the names of what the tests record and compare with autograd."""
    from tests.recorder.compile_ways import WAYS
    from tests.recorder.torchvision_zoo import QUICK, SLOW
    from tests.recorder.zoo import ZOO

    def say(names: Iterable[str]) -> str:
        return ", ".join(f"`{name}`" for name in names)

    exact = [name for name, way in WAYS.items() if not way.missing]
    missing = [name for name, way in WAYS.items() if way.missing]
    return (
        f"**{len(ZOO)} small models with unusual structure**: {say(ZOO)}.\n\n"
        f"**{len(QUICK) + len(SLOW)} unmodified models of torchvision**: {say([*QUICK, *SLOW])}.\n\n"
        f"**{len(exact)} ways of compiling, all metrics exact**: {say(exact)}.\n\n"
        f"**{len(missing)} ways of compiling, activation gradients missing, with a note**: {say(missing)}."
    )


def api() -> str:
    """Return every public name with its signature and its docstring."""
    import gradlens

    parts = []
    for name, home in gradlens.PUBLIC.items():
        if not name.startswith("__"):
            parts.append(describe(f"gradlens.{name}", getattr(import_module(home), name)))
    return "\n\n".join(parts)


def describe(name: str, value: Any) -> str:
    """Return the part of the page about a function or a class, with its public methods.

    Args:
        name: The name as users write it.
        value: The function or class.
    """
    made = "" if name == "gradlens.Recorder" else signature(name, value)  # `record` makes it
    parts = [f"### {name}", made, docstring(value).partition("\n\n**Args**" if not made else "\0")[0]]
    if inspect.isclass(value) and not issubclass(value, Exception):
        for key, member in vars(value).items():
            if key.startswith("_") or key in INSIDE or not (found := inspect.getdoc(member)) or not own(member):
                continue
            if isinstance(member, property):
                parts.append(f"**`{key}`**: {markdown(found)}")
            else:
                call = signature(key, inspect.unwrap(getattr(value, key)), drop_self=True)
                parts += [f"#### {name.removeprefix('gradlens.')}.{key}", call, markdown(found)]
    return "\n\n".join(part for part in parts if part)


def own(member: Any) -> bool:
    """Return whether a member of a class is a method or a property, and not a value with a type's docstring."""
    return isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member)


def signature(name: str, value: Any, *, drop_self: bool = False) -> str:
    """Return how a function or class is called; "" for one without a signature."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parameters = [one.replace(annotation=shorten(one.annotation)) for one in found.parameters.values()]
    if drop_self and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    returned = shorten(found.return_annotation)
    text = str(found.replace(parameters=parameters, return_annotation=returned)).replace("'", "")
    if len(name + text) > WIDTH:
        inside, _, rest = text[1:].rpartition(")")
        text = "(\n" + "".join(f"    {part},\n" for part in split_top(inside)) + ")" + rest
    return fence(name + text, "python")


def shorten(annotation: Any) -> Any:
    """Return an annotation as it is written in the code."""
    if annotation in (None, inspect.Signature.empty) or isinstance(annotation, str):
        return annotation
    return getattr(annotation, "__name__", str(annotation))


def split_top(text: str) -> list[str]:
    """Split arguments at commas that are in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def docstring(value: Any) -> str:
    """Return an object's docstring as Markdown."""
    return markdown(inspect.getdoc(value) or "")


def markdown(text: str) -> str:
    """Turn a docstring with Google's sections into Markdown.

    Args:
        text: The docstring, without indentation.
    """
    out, section, lines = list[str](), "", text.splitlines()
    for number, line in enumerate(lines):
        title = re.fullmatch(rf"({'|'.join(SECTIONS)}):{{1,2}}(.*)", line)
        if title and (number == 0 or not lines[number - 1].strip() or title.group(2)):
            section = title.group(1)
            out += ["", f"**{section}**:{title.group(2)}", ""]
            if section == "Example":
                out.append("```python")
        elif section == "Example" and line and not line.startswith(" "):
            out += ["```", "", line]
            section = ""
        elif section == "Example":
            out.append(line[4:])
        elif section in ("Args", "Raises", "Attributes") and line.startswith("    "):
            out.append(item(line))
        else:
            out.append(line.removeprefix("    ") if section else line)
    if section == "Example":
        out.append("```")
    joined = re.sub(r"\n{3,}", "\n\n", "\n".join(out)).replace("```python\n\n", "```python\n")
    return re.sub(r"(?<!`)``(?!`)", "`", re.sub(r"\n{2,}```$", "\n```", joined, flags=re.M))


def item(line: str) -> str:
    """Return a line of a list of arguments or errors as Markdown."""
    head = re.fullmatch(r"    ([*\w.]+): (.*)", line)
    return f"- `{head.group(1)}`: {head.group(2)}" if head else f"  {line.strip()}"


GENERATORS: dict[str, Callable[[], str]] = {
    function.__name__: function for function in (commands, metrics, kinds, layout, tested, api)
}
