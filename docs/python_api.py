"""Writes the reference of the Python API from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import tidegate
from tidegate import client, errors, hooks, types
from tidegate.client import EndpointState, Model
from tidegate.serving import Server, serve

CLASSES = (tidegate.Client, Model, tidegate.AsyncClient, tidegate.InferResult)
RECORDS = (
    types.ModelMetadata,
    types.ServerMetadata,
    types.Signature,
    types.TensorSpec,
    EndpointState,
)
HOOKS = (hooks.Request, hooks.Response, hooks.Batch, hooks.Model)
SECTIONS = ("Args", "Attributes", "Returns", "Raises")
ROLE = re.compile(r":(?:class|meth|func|mod):`~?(?:[a-z_]+\.)*([^`]+)`")


def serving() -> str:
    """Return ``serve()`` and what it gives."""
    return f"{function('serve', serve)}\n{of_class(Server, constructor=False)}"


def clients() -> str:
    """Return the clients and what they give."""
    shown = [of_class(kind, constructor=kind.__name__.endswith("Client")) for kind in CLASSES]
    return "\n".join(shown)


def records() -> str:
    """Return the records that describe models and servers."""
    rows = []
    for kind in RECORDS:
        fields = ", ".join(f"`{name}`" for name in kind.__dataclass_fields__)
        rows.append(f"| `{kind.__name__}` | {fields} | {prose(summary(kind))} |")
    return "\n".join(["| record | fields | what it is |", "| --- | --- | --- |", *rows]) + "\n"


def hook_types() -> str:
    """Return what functions of ``hooks.py`` are given and may return."""
    rows = []
    for kind in HOOKS:
        names = [f"`{name}`" for name in getattr(kind, "__dataclass_fields__", ())]
        for name, member in vars(kind).items():
            if isinstance(member, property):
                names.append(f"`{name}`")
            elif inspect.isfunction(member) and not name.startswith("_"):
                names.append(f"`{name}()`")
        rows.append(f"| `{kind.__name__}` | {', '.join(names)} | {prose(summary(kind))} |")
    return "\n".join(["| type | has | what it is |", "| --- | --- | --- |", *rows]) + "\n"


def error_tree() -> str:
    """Return the tree of errors, as the module draws it."""
    drawing = (inspect.getdoc(errors) or "").split("::\n", 1)[1].split("\n\nThe tree", 1)[0]
    return f"```text\n{textwrap.dedent(drawing).strip()}\n```\n"


def of_class(kind: type[Any], *, constructor: bool) -> str:
    """Return a class: what it is, its properties and its methods."""
    text = f"## {kind.__name__}\n\n"
    if constructor:
        text += f"```python\n{kind.__name__}{signature(kind)}\n```\n\n"
    text += markdown(inspect.getdoc(kind) or "")
    for name, member in members(kind):
        if isinstance(member, property):
            text += f"\n**`{name}`**: {prose(inspect.getdoc(member) or '')}\n"
        else:
            text += f"\n{function(f'{kind.__name__}.{name}', member, level=3)}"
    return text


def members(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the public members of a class and of what it is made of, as they were written."""
    for base in (kind, *kind.__mro__[1:]):
        if base.__module__.startswith(client.__name__) or base is kind:
            for name, member in vars(base).items():
                if not name.startswith("_") and (callable(member) or isinstance(member, property)):
                    yield name, member


def function(name: str, member: Any, level: int = 2) -> str:
    """Return a function or a method."""
    word = "await " if inspect.iscoroutinefunction(member) else ""
    text = f"{'#' * level} {name}\n\n```python\n{word}{name}{signature(member)}\n```\n\n"
    return text + markdown(inspect.getdoc(member) or "")


def signature(member: Any) -> str:
    """Return a signature, without ``self``, a parameter on each line when it is long."""
    found = inspect.signature(member)
    parameters = [p for p in found.parameters.values() if p.name != "self"]
    # Annotations are text, and shown in quotes as text is.
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(found.replace(parameters=parameters)))
    text = text.replace("npt.ArrayLike", "ArrayLike").replace(" -> None", "")
    if len(text) <= 80:
        return text
    inner, _, result = text[1:].rpartition(")")
    return "(\n" + "".join(f"    {part},\n" for part in split(inner)) + f"){result}"


def split(inner: str) -> list[str]:
    """Return the parameters in ``inner``; commas within brackets part nothing."""
    parts, depth = [""], 0
    for character in inner:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def markdown(text: str) -> str:
    """Return a docstring as Markdown: its sections become lists, its examples code."""
    out: list[str] = []
    section = ""
    for block in re.split(r"\n\n+", text):
        title, _, rest = block.partition("\n")
        if title.rstrip(":") in SECTIONS and title.endswith(":"):
            section = title.rstrip(":")
            out.append(f"**{section}**\n")
            out.append(entries(textwrap.dedent(rest), section))
        elif block.startswith("    ") and out and out[-1] == "::":
            out[-1] = f"```python\n{textwrap.dedent(block)}\n```\n"
        elif block == "::":
            out.append("::")
        else:
            out.append(prose(block) + "\n")
    return "\n".join(out)


def entries(text: str, section: str) -> str:
    """Return the entries of a section as a list."""
    if section == "Returns":
        return prose(text) + "\n"
    found: list[str] = []
    for line in text.splitlines():
        if line.startswith(" "):
            found[-1] += " " + line.strip()
        else:
            found.append(line)
    items = [entry.partition(": ") for entry in found]
    return "".join(f"- `{name}`: {prose(meaning)}\n" for name, _, meaning in items)


def prose(text: str) -> str:
    """Return text of a docstring as Markdown, with single backticks."""
    return ROLE.sub(r"`\1`", text).replace("``", "`")


def summary(kind: type[Any]) -> str:
    """Return the first sentence of a docstring."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n", 1)[0].split())
