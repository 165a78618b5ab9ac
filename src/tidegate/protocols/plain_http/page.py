"""A model's page for a browser.

A page is one file that needs no other and no network. What it shows is escaped, and its policy
lets no script and no style run but its own (https://www.w3.org/TR/CSP3/).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from tidegate.protocols.dialect import Reply
from tidegate.protocols.plain_http.answers import NO_SNIFFING
from tidegate.protocols.plain_http.description import Description, Way
from tidegate.protocols.plain_http.paths import LIST, write_path
from tidegate.types import TensorSpec

_HERE = Path(__file__).parent
_KIND = b"text/html; charset=utf-8"


def model_page(about: Description, host: bytes, scheme: str) -> Reply:
    """Return the page of a model; ``host`` and ``scheme`` are how the caller came here."""
    model = about.path.model
    title = escape(model)
    parts = [
        f'<p><a href="{LIST}">Models</a></p>',
        f"<h1>{title}</h1>",
        f'<p class="about">version {escape(about.version)}, {escape(about.platform)}</p>',
        _others(about),
        _form(about.ways),
        '<section id="answer" aria-live="polite" hidden><h2>Answer</h2>'
        '<p id="took"></p><div id="shown"></div></section>',
        '<h2>The same with curl <button type="button" class="plain" id="copy" hidden>Copy'
        "</button></h2>",
        f'<pre id="command">{escape(_command(about, host, scheme))}</pre>',
        _signature("Inputs", about.signature.inputs),
        _signature("Outputs", about.signature.outputs),
    ]
    return make_page(title, parts, _script())


def make_page(title: str, parts: Sequence[str], script: str) -> Reply:
    """Return a page of these parts, which are HTML like its title."""
    style = _style()
    text = "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # An address that is no request, as browsers ask for an icon otherwise.
            '<link rel="icon" href="data:,">',
            f"<title>{title} - Tidegate</title>\n<style>{style}</style>",
            *parts,
            f"<script>{script}</script>" if script else "",
            "</html>\n",
        )
    )
    headers = (
        (b"content-security-policy", _policy(style, script)),
        (b"referrer-policy", b"same-origin"),
        (b"cache-control", b"no-cache"),
        (b"vary", b"accept"),
        NO_SNIFFING,
    )
    return Reply([text.encode()], _KIND, headers=headers)


@functools.cache
def _style() -> str:
    return (_HERE / "page.css").read_text(encoding="utf-8")


@functools.cache
def _script() -> str:
    return (_HERE / "page.js").read_text(encoding="utf-8")


@functools.cache
def _policy(style: str, script: str) -> bytes:
    runs = f"'sha256-{_digest(script)}'" if script else "'none'"
    return (
        f"default-src 'none'; style-src 'sha256-{_digest(style)}'; script-src {runs}; "
        "img-src blob: data:; media-src blob:; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ).encode()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _form(ways: Sequence[Way]) -> str:
    boxes = "\n".join(_box(i, way) for i, way in enumerate(ways))
    return (
        f'<form method="post" enctype="multipart/form-data">\n{boxes}\n'
        '<button type="submit">Ask the model</button>\n</form>'
    )


def _box(index: int, way: Way) -> str:
    """Return the fields of one input."""
    name, at = escape(way.name), f"input-{index}"
    found = [f'<p class="hint" id="{at}-hint">{escape(way.hint)}</p>']
    # Without scripts a browser would send both, and one name is sent once: there it is the file.
    if way.file:
        found.append(
            f'<label for="{at}-file">File (or drop it here)</label>'
            f'<input type="file" id="{at}-file" name="{name}" accept="{escape(way.accept)}" '
            f'aria-describedby="{at}-hint"> <button type="button" class="plain">Clear</button>'
            '<img alt="The chosen image" hidden>'
        )
    if way.white:
        found.append(
            f'<label for="{at}-white" class="inline">Of an image, a white pixel is</label>'
            f'<input type="number" id="{at}-white" value="1" step="any" size="6">'
        )
    if way.text:
        label = "JSON" if way.json else "Text"
        sent = "" if way.file else f' name="{name}"'
        found.append(
            f'<label for="{at}-text">{"or " if way.file else ""}{label}</label>'
            f'<textarea id="{at}-text"{sent} spellcheck="false" '
            f'aria-describedby="{at}-hint">\n{escape(way.example)}</textarea>'
        )
    if way.either:
        found.append(
            f'<label for="{at}-as" class="inline">sent as</label><select id="{at}-as">'
            '<option value="text">text</option><option value="json">JSON</option></select>'
        )
    json = " data-json" if way.json else ""
    return (
        f'<fieldset data-name="{name}"{json}><legend>{name}</legend>\n'
        + "\n".join(found)
        + "\n</fieldset>"
    )


def _command(about: Description, host: bytes, scheme: str) -> str:
    """Return what curl does the same with, for whom no script fills it in."""
    fields = []
    for way in about.ways:
        if way.file:
            fields.append("-F " + shlex.quote(f"{way.name}=@FILE"))
        else:
            fields.append("--form-string " + shlex.quote(f"{way.name}={way.example or 'TEXT'}"))
    address = f"{scheme}://{host.decode('latin-1')}{write_path(*about.path)}"
    return " ".join(("curl", *fields, shlex.quote(address)))


def _others(about: Description) -> str:
    """Return links to the other versions and signatures."""
    found = ""
    if len(about.versions) > 1:
        links = ", ".join(link(about.path.model, version) for version in about.versions)
        found += f"<p>Versions: {links}</p>"
    if about.names:
        links = ", ".join(
            f'<a href="?signature_name={quote(name)}">{escape(name)}</a>' for name in about.names
        )
        found += f"<p>Signatures: {links}</p>"
    return found


def _signature(title: str, specs: Sequence[TensorSpec]) -> str:
    if not specs:
        return f"<h2>{title}</h2><p>Not declared: the model's hooks know.</p>"
    rows = [
        [f"<code>{escape(s.name)}</code>", s.dtype.value, f"<code>{escape(_shape(s))}</code>"]
        for s in specs
    ]
    return f"<h2>{title}</h2>" + table(["Name", "Type", "Shape"], rows)


def _shape(spec: TensorSpec) -> str:
    if spec.shape is None:
        return "any"
    return "[" + ", ".join("?" if size is None else str(size) for size in spec.shape) + "]"


def link(model: str, version: str) -> str:
    """Return a link to a version's page."""
    return f'<a href="{escape(write_path(model, version))}">{escape(version)}</a>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of what is HTML already."""
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    lines = "\n".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table></div>"
    )
