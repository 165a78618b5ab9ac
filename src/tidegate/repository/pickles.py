"""What a pickle would do, told by its opcodes: nothing is unpickled.

A pickle is a program. It names the functions and classes that it calls, so that its names tell
weights (tensors in dictionaries) from everything else. This only sorts files and explains:
what keeps code from being run is that the runtime unpickles nothing but weights.

Sources: :mod:`pickletools`; ``torch/serialization.py`` for what ``torch.save`` writes.
"""

from __future__ import annotations

import contextlib
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_LARGEST = 8 * 2**20
"""Bytes of a pickle that are looked at; weights lie beside it, so it is small."""
_MOST_OPCODES = 2_000_000
_LEGACY = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e"
"""How files of ``torch.save`` began before PyTorch 1.6: a magic number, pickled."""
_PROTOCOL_AND_FRAME = 16
_LEGACY_PICKLES = 4
"""Magic number, protocol version, system and then the object."""
_WEIGHTS = re.compile(
    r"collections\.(OrderedDict|Counter)|_codecs\.encode"
    r"|(builtins|__builtin__)\.(set|bytearray|complex)"
    r"|torch\.(Size|Tensor|device|\w*Storage|bool|u?int\d+|b?float\d\w*|complex\d+|q\w+)"
    r"|torch\.storage\.\w*Storage|torch\._utils\._rebuild_\w+"
    r"|torch\._tensor\._rebuild_from_type_v2|torch\.nn\.parameter\.(Parameter|Buffer)"
    r"|torch\.serialization\._get_layout"
)
_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_GETS = {"BINGET", "LONG_BINGET", "GET"}
_PUTS = {"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"}


def is_torch_pickle(head: bytes) -> bool:
    """Whether a file that begins so is one of ``torch.save`` before PyTorch 1.6."""
    return _LEGACY in head[: _PROTOCOL_AND_FRAME + len(_LEGACY)]


def only_weights(file: IO[bytes]) -> bool:
    """Whether the pickle in ``file`` names nothing but what weights are made of.

    One that is too long to be looked at whole counts as weights: loading decides.
    """
    return not strange_names(file)


def strange_names(file: IO[bytes]) -> tuple[str, ...]:
    """Return what the pickle in ``file`` would import beyond what weights need, in order."""
    names = dict.fromkeys(n for n in _names(_opcodes(file)) if not _WEIGHTS.fullmatch(n))
    return tuple(names)


def danger(path: Path) -> tuple[str, str]:
    """Say why a pickle of more than weights is not loaded unasked, and what to do instead.

    Returns:
        The reason, and what to do.
    """
    names = _names_in(path)
    listed = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return (
        f"{path.name} is a PyTorch pickle of more than weights: loading it would run whatever "
        f"code it holds, with all that this user may do (it calls {listed or 'unknown code'})",
        "export the model where it was trained, with torch.export.save (.pt2) or as TorchScript, "
        "or save its weights alone, with torch.save(model.state_dict(), …) or as safetensors, and "
        "put its code beside them as model.py; or, only if you made the file yourself, write "
        "trust: pickle into the model.yaml of its folder",
    )


def _names_in(path: Path) -> tuple[str, ...]:
    """Return the strange names in a file; none of one that turns out to be damaged."""
    with contextlib.suppress(Exception), path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return strange_names(file)
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.rpartition("/")[2] == "data.pkl":
                    with archive.open(name) as member:
                        return strange_names(member)
    return ()


def _opcodes(file: IO[bytes]) -> Iterator[tuple[str, object]]:
    """Yield the opcodes of the pickles that ``file`` begins with, as far as they are sound."""
    data = file.read(_LARGEST)
    pickles = _LEGACY_PICKLES if is_torch_pickle(data) else 1
    left = _MOST_OPCODES
    start = 0
    for _ in range(pickles):
        try:
            for opcode, argument, position in pickletools.genops(data[start:]):
                left -= 1
                if not left:
                    return
                yield opcode.name, argument
                if opcode.name == "STOP":
                    start += (position or 0) + 1
        except (ValueError, IndexError, UnicodeDecodeError, OverflowError, MemoryError):
            return  # damaged, or cut off at the limit


def _names(opcodes: Iterator[tuple[str, object]]) -> Iterator[str]:
    """Yield ``module.name`` of everything that is imported."""
    pushed: list[str | None] = []
    memo: dict[int, str | None] = {}
    for opcode, argument in opcodes:
        if opcode in {"GLOBAL", "INST"}:
            yield str(argument).replace(" ", ".")
            pushed = [None]
        elif opcode == "STACK_GLOBAL":
            # Its module and name lie on the stack.
            yield ".".join(map(str, pushed[-2:]))
            pushed = [None]
        elif opcode.startswith("EXT"):
            yield "an extension"
        elif opcode in _STRINGS:
            pushed = [*pushed[-1:], str(argument)]
        elif opcode in _GETS:
            pushed = [*pushed[-1:], memo.get(_number(argument))]
        elif opcode in _PUTS:
            place = len(memo) if opcode == "MEMOIZE" else _number(argument)
            memo[place] = pushed[-1] if pushed else None
        else:
            pushed = [None]


def _number(argument: object) -> int:
    return argument if isinstance(argument, int) else -1
