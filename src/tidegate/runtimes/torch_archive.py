"""What in an archive of PyTorch could run code or fill memory while it is being loaded.

``torch.export.load`` unpickles constants and sample inputs, evaluates expressions, and looks up
the functions of a graph by name among everything that PyTorch has. So a ``.pt2`` file is looked
at first: weights and sample inputs must be tensors, expressions arithmetic, and functions
operators. A model is a program all the same: serve only those whose source you trust.

Sources: ``torch/export/pt2_archive/_package.py``, ``torch/_export/serde/serialize.py``.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tidegate.errors import InvalidModel
from tidegate.repository.formats import DAMAGED_ZIP
from tidegate.runtimes.torch_tensors import said

_PROGRAM = "models/model.json"
_SAVE_AGAIN = "save it again with torch.export.save of PyTorch 2.8 or newer"
_LARGEST_PROGRAM = 256 * 2**20
_FREE = 64 * 2**20
_RATIO = 50
"""Text packs well, and weights are not packed at all."""
_NAME = re.compile(r"[^\s'\"\\;#()\[\]{}=,]*")
_OPERATOR = re.compile(
    r"torch\.ops\.(?!_)[a-zA-Z0-9_]+\.(?!__)[a-zA-Z0-9_]+(\.(?!__)[a-zA-Z0-9_]+)?"
    r"|torch\._?sym_[a-z0-9_]+|math\.[a-z0-9_]+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|gt|le|ge"
    r"|and_|or_|xor|not_|invert|lshift|rshift)"
)
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Name, ast.Load,
    ast.Constant, ast.Call, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Tuple,
    ast.keyword,
)  # fmt: skip
_FUNCTION = re.compile(r"[A-Z]\w*|abs|min|max|int|float|round|pow|ceiling|floor|sqrt|log")
"""Classes of sympy and a few functions; Python's own functions that do harm are lower case."""
_WORD = re.compile(r"[\w.+-]{1,100}", re.ASCII)
_LONGEST_EXPRESSION = 10_000


def check_size(path: Path) -> None:
    """Refuse a zip archive that unpacks to far more than it is.

    Raises:
        InvalidModel: it does, or it is no zip archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except DAMAGED_ZIP as error:
        raise InvalidModel(f"{path.name} is a damaged zip archive: {error}") from error
    size = path.stat().st_size
    if unpacked > max(_FREE, _RATIO * size):
        raise InvalidModel(
            f"{path.name} has {size:,} bytes and would unpack to {unpacked:,}, which no model does"
        )


def check_export(path: Path, *, trust_pickle: bool) -> None:
    """Refuse a ``.pt2`` file that would run code of its own while it is loaded.

    Raises:
        InvalidModel: it would, or it is not what ``torch.export.save`` writes.
    """
    check_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.partition("/")[2]: name for name in archive.namelist()}
            if any(name.startswith("data/aotinductor/") for name in members):
                raise InvalidModel(
                    f"{path.name} holds machine code that AOTInductor compiled, which is not "
                    "served: save the exported program itself, with torch.export.save"
                )
            if _PROGRAM not in members:
                raise InvalidModel(
                    f"{path.name} has no {_PROGRAM}, so it is of an older format or has several "
                    f"models: {_SAVE_AGAIN}"
                )
            if archive.getinfo(members[_PROGRAM]).file_size > _LARGEST_PROGRAM:
                raise InvalidModel(f"the graph in {path.name} is larger than 256 MiB")
            _check_program(path, json.loads(archive.read(members[_PROGRAM])))
            if not trust_pickle:
                _check_pickles(path, archive, members)
    except (*DAMAGED_ZIP, RecursionError) as error:
        raise InvalidModel(f"{path.name} is a damaged torch.export archive: {error}") from error


def _check_pickles(path: Path, archive: zipfile.ZipFile, members: dict[str, str]) -> None:
    for member, name in members.items():
        if member.startswith("data/sample_inputs/"):
            content = archive.read(name)
            try:
                # What loads so here will load so again: PyTorch tries nothing else then.
                torch.load(io.BytesIO(content), weights_only=True)
            except Exception as error:
                raise InvalidModel(
                    f"the sample inputs in {path.name} are a pickle of more than tensors, which "
                    f"could run any code: {_SAVE_AGAIN}, or, only if you made the file yourself, "
                    "write trust: pickle into model.yaml"
                ) from error
        elif member.endswith("_config.json") and member.startswith("data/"):
            for payload in json.loads(archive.read(name)).get("config", {}).values():
                place = str(payload.get("path_name", ""))
                if payload.get("use_pickle") or not place.startswith(("weight_", "tensor_")):
                    raise InvalidModel(
                        f"{path.name} holds {place!r} as a pickle, which could run any code: "
                        f"export a model whose weights are plain tensors, or, only if you made "
                        "the file yourself, write trust: pickle into model.yaml"
                    )


def _check_program(path: Path, program: Any) -> None:
    for key, value in _strings(program):
        if key == "target" or key == "as_operator":
            sound = _OPERATOR.fullmatch(value) is not None
        elif key == "expr_str":
            sound = _is_arithmetic(value)
        elif key in ("name", "as_name"):
            sound = _NAME.fullmatch(value) is not None
        else:
            continue
        if not sound:
            raise InvalidModel(
                f"the graph in {path.name} has the {key} {value[:80]!r}, which is no operator, "
                f"arithmetic or name, and could run any code: {_SAVE_AGAIN}"
            )


def _strings(content: Any) -> Iterator[tuple[str, str]]:
    """Yield every text in parsed JSON with the key that it stands under."""
    pending: list[tuple[str, Any]] = [("", content)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            pending.extend(value.items())
        elif isinstance(value, list):
            pending.extend((key, item) for item in value)


def _is_arithmetic(text: str) -> bool:
    if len(text) > _LONGEST_EXPRESSION or "__" in text:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, _ARITHMETIC) and _is_harmless(node) for node in ast.walk(tree))


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and bool(_FUNCTION.fullmatch(node.func.id))
    # The name of a symbol, or the digits of a number.
    text = node.value if isinstance(node, ast.Constant) else None
    return not isinstance(text, str | bytes) or bool(_WORD.fullmatch(str(text)))


def words_of(error: Exception) -> str:
    """Say what PyTorch says of a file that it cannot load, without its guesses."""
    return said(error).partition(" This is an internal miniz error")[0]
