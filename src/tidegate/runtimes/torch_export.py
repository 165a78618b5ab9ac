"""What a ``torch.export`` program says of its signature, and how it is called.

Source: https://docs.pytorch.org/docs/stable/export.html.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from tidegate.errors import InvalidModel
from tidegate.runtimes.torch_tensors import DTYPES, named_leaves
from tidegate.types import Dimension, Signature, TensorSpec

_BATCH = "batch"


def read_export(path: Path) -> ExportedProgram:
    """Read a ``.pt2`` file that was found to be sound."""
    # It brings PyTorch's compiler, which takes a second. torch.export.load hides why it fails.
    from torch.export.pt2_archive._package import load_pt2

    with path.open("rb") as file:
        programs = load_pt2(file).exported_programs
    if "model" not in programs:
        raise InvalidModel(f"{path.name} has no program named model")
    return programs["model"]


@dataclass(frozen=True, slots=True)
class Exported:
    """The signature of an exported program, and the form of its arguments."""

    signature: Signature
    most_rows: int | None
    """The largest first dimension that it was exported for."""
    _form: Any
    _constants: tuple[Any, ...]
    """Flat arguments; ``_TENSOR`` where a tensor goes."""

    @classmethod
    def of(cls, path: Path, program: ExportedProgram) -> Exported:
        """Read what ``program`` says.

        Raises:
            InvalidModel: it takes or gives what no request or answer can carry.
        """
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        inputs: list[tuple[str, Any]] = []
        constants: list[Any] = []
        for spec in program.graph_signature.input_specs:
            if spec.kind is not InputKind.USER_INPUT:
                continue
            if isinstance(spec.arg, TensorArgument):
                inputs.append((spec.arg.name, values[spec.arg.name]))
                constants.append(_TENSOR)
            elif isinstance(spec.arg, ConstantArgument):
                constants.append(spec.arg.value)
            else:
                raise InvalidModel(
                    f"{path.name} takes the input {spec.arg.name!r}, which is no tensor: export "
                    "a model that takes tensors alone"
                )
        outputs = _named_outputs(path, program, values)
        first = {_symbol(value.shape[0]) if value.ndim else None for _, value in inputs}
        batch = next(iter(first)) if len(first) == 1 else None
        signature = Signature(
            tuple(_spec(path, name, value, batch) for name, value in inputs),
            tuple(_spec(path, name, value, batch) for name, value in outputs),
        )
        return cls(
            signature,
            _upper(program, batch),
            program.call_spec.in_spec,
            tuple(constants),
        )

    def caller(self, module: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of the input tensors alone, in their order."""
        arguments, keywords = pytree.tree_unflatten(list(self._constants), self._form)
        if all(a is _TENSOR for a in arguments) and not keywords:
            return module

        def call(*tensors: torch.Tensor) -> Any:
            waiting = iter(tensors)
            flat = [next(waiting) if c is _TENSOR else c for c in self._constants]
            positional, named = pytree.tree_unflatten(flat, self._form)
            return module(*positional, **named)

        return call


_TENSOR = object()


def _named_outputs(
    path: Path, program: ExportedProgram, values: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    flat: list[Any] = []
    for spec in program.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            continue
        if isinstance(spec.arg, TensorArgument):
            flat.append(values[spec.arg.name])
        elif isinstance(spec.arg, ConstantArgument):
            flat.append(spec.arg.value)
        else:
            raise InvalidModel(
                f"{path.name} gives {spec.arg.name!r}, which is no tensor: export a model that "
                "returns tensors alone"
            )
    result = pytree.tree_unflatten(flat, program.call_spec.out_spec)
    return named_leaves(result)


def _spec(path: Path, name: str, value: Any, batch: Any) -> TensorSpec:
    dtype = DTYPES.get(value.dtype)
    if dtype is None:
        raise InvalidModel(
            f"{name!r} of {path.name} has the element type {value.dtype}, which no protocol has"
        )
    return TensorSpec(name, dtype, tuple(_dimension(d, batch) for d in value.shape))


def _dimension(size: Any, batch: Any) -> Dimension:
    if isinstance(size, int):
        return size
    symbol = _symbol(size)
    if symbol is None:
        return None
    return _BATCH if symbol == batch else str(symbol)


def _symbol(size: Any) -> Any:
    """Return the symbol that a dynamic dimension is; ``None`` for an expression or a number."""
    expression = None if isinstance(size, int) else size.node.expr
    return expression if isinstance(expression, sympy.Symbol) else None


def _upper(program: ExportedProgram, batch: Any) -> int | None:
    known = program.range_constraints.get(batch)
    upper = None if known is None else known.upper
    return int(upper) if upper is not None and upper.is_Integer else None
