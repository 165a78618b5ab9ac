"""Graphs that a session runs: SavedModels with their signatures, and frozen graphs.

A session loads a SavedModel as TensorFlow Serving does, and runs a small one in a tenth of the
time that its functions take when Python calls them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from google.protobuf.message import DecodeError

from tidegate.config.model import DeclaredSignature, Tensorflow
from tidegate.errors import ConfigurationError, InferenceFailed, InvalidModel
from tidegate.runtimes.declared import refined
from tidegate.runtimes.tensorflow_framework import DTYPES, reraise, tf
from tidegate.types import DEFAULT_SIGNATURE, Array, Dimension, Signature, TensorSpec

# After TensorFlow itself: it must be imported quietly.
from tensorflow.core.protobuf import config_pb2  # isort: skip

log = logging.getLogger(__name__)

_MOST_SETS = 8
"""Sets of outputs that are computed alone; for another one, all are."""
_MOST_REQUESTS = 256
"""Lists of outputs of which it is remembered what computes them."""
_SIMPLE = 500
"""Nodes of a graph that is run in the thread that asks: waking another one takes longer.

The calls of its nodes nest, in the worst case as deep as the graph."""
_CALLERS_THREAD = -1
"""A value of ``RunOptions.inter_op_thread_pool``."""
_INTERNAL = "__saved_model_"
"""How the names of signatures begin that are the loader's own."""
_UNKNOWN_OPERATOR = re.compile(r"Op type not registered '([^']+)'")


class _Prepared(NamedTuple):
    """Computes ``outputs``, in this order."""

    run: Any
    outputs: tuple[str, ...]


class Call:
    """Runs a graph under one signature."""

    def __init__(
        self, session: Any, inputs: Mapping[str, str], outputs: Mapping[str, str], *, inline: bool
    ) -> None:
        self._session = session
        self._inputs = inputs
        self._outputs = outputs
        self._inline = inline
        self._by_request: dict[tuple[str, ...], _Prepared] = {}
        self._by_set: dict[frozenset[str], _Prepared] = {}

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute ``outputs``, and as a rule nothing that they do not need.

        Raises:
            InsufficientMemory: the run needed more memory than there is.
            InferenceFailed: TensorFlow raised; the message is its own.
        """
        names = tuple(outputs)
        try:
            prepared = self._by_request.get(names) or self._prepare(names)
            values = prepared.run(*[inputs[name] for name in self._inputs])
        except Exception as error:
            reraise(error, InferenceFailed)
        found = dict(zip(prepared.outputs, values))
        if prepared.outputs != names:
            found = {name: found[name] for name in names}
        for name, value in found.items():
            if type(value) is not np.ndarray:
                found[name] = _scalar(value)
        return found

    def _prepare(self, names: tuple[str, ...]) -> _Prepared:
        """Return what computes ``names``: an optimized part of the graph, for the first few sets.

        Optimizing it takes as long as loading it does, and callers choose the outputs.
        """
        wanted = frozenset(names or self._outputs)  # a session wants something to do
        if wanted not in self._by_set and len(self._by_set) >= _MOST_SETS:
            wanted = frozenset(self._outputs)
        prepared = self._by_set.get(wanted)
        if prepared is None:
            ordered = tuple(name for name in self._outputs if name in wanted)
            prepared = self._by_set[wanted] = _Prepared(self._callable(ordered), ordered)
        if len(self._by_request) >= _MOST_REQUESTS:
            self._by_request.clear()
        self._by_request[names] = prepared
        return prepared

    def _callable(self, names: tuple[str, ...]) -> Any:
        options = config_pb2.CallableOptions()
        options.feed.extend(self._inputs.values())
        options.fetch.extend(self._outputs[name] for name in names)
        if self._inline:
            options.run_options.inter_op_thread_pool = _CALLERS_THREAD
        # The public make_callable takes 50 µs more for each call.
        return self._session._make_callable_from_options(options)


@dataclass(frozen=True, slots=True)
class Graph:
    """A loaded graph; ``signatures`` and ``calls`` are by name, the default one first."""

    session: Any
    platform: str
    signatures: Mapping[str, Signature]
    calls: Mapping[str, Call]


@dataclass(frozen=True, slots=True)
class _Found:
    """A signature, and which of the graph's tensors its own are."""

    signature: Signature
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def open_saved_model(path: Path, settings: Tensorflow) -> Graph:
    """Load the SavedModel in the folder ``path`` with all its signatures.

    Those with tensors that no protocol has are left out.

    Raises:
        InvalidModel: TensorFlow refuses it, or it has no signature that can be served.
        InsufficientMemory: it does not fit.
        ConfigurationError: it has no signature of the name in ``model.yaml``.
    """
    graph = tf.Graph()
    try:
        with graph.as_default():
            session = tf.compat.v1.Session(graph=graph)
            loaded = tf.compat.v1.saved_model.load(session, list(settings.tags), str(path))
    except Exception as error:
        refuse(error, f"the SavedModel {path.name}")
    found: dict[str, _Found] = {}
    refused: dict[str, str] = {}
    for name, signature in sorted(loaded.signature_def.items()):
        if not name.startswith(_INTERNAL):
            try:
                found[name] = _signature_of(name, signature)
            except InvalidModel as error:
                refused[name] = str(error)
    ordered = _default_first(path, found, refused, settings.signature)
    for reason in refused.values():
        log.warning("not served: %s", reason)
    definition = loaded.graph_def
    size = len(definition.node) + sum(len(f.node_def) for f in definition.library.function)
    return _graph("tensorflow_savedmodel", session, ordered, size, settings)


def open_frozen(path: Path, declared: DeclaredSignature, settings: Tensorflow) -> Graph:
    """Load the ``GraphDef`` at ``path``, whose variables are constants.

    Its inputs and outputs are those that ``declared`` names, as ``name`` or ``name:0``; without
    it, the placeholders, and what no other node takes.

    Raises:
        InvalidModel: it is damaged, not frozen, or does not say what goes in and comes out.
        InsufficientMemory: it does not fit.
        ConfigurationError: ``model.yaml`` names what is not in the graph.
    """
    definition = tf.compat.v1.GraphDef()
    graph = tf.Graph()
    try:
        definition.ParseFromString(path.read_bytes())
        with graph.as_default():
            tf.import_graph_def(definition, name="")
        session = tf.compat.v1.Session(graph=graph)
    except Exception as error:
        refuse(error, f"the graph {path.name}")
    _check_frozen(path, graph)
    inputs = _declared_tensors(path, graph, [t.name for t in declared.inputs], "input")
    outputs = _declared_tensors(path, graph, [t.name for t in declared.outputs], "output")
    inputs = inputs or _placeholders(path, graph)
    outputs = outputs or _sinks(path, graph)
    signature = Signature(
        tuple(
            _spec(name, t.dtype, t.shape, f"the graph {path.name}") for name, t in inputs.items()
        ),
        tuple(
            _spec(name, t.dtype, t.shape, f"the graph {path.name}") for name, t in outputs.items()
        ),
    )
    found = _Found(
        refined(signature, declared),
        {name: tensor.name for name, tensor in inputs.items()},
        {name: tensor.name for name, tensor in outputs.items()},
    )
    only = {DEFAULT_SIGNATURE: found}
    return _graph("tensorflow_graphdef", session, only, len(definition.node), settings)


def refuse(error: Exception, what: str) -> NoReturn:
    """Raise InvalidModel with TensorFlow's reason why it does not load ``what``.

    Raises:
        InsufficientMemory: that is the reason.
    """
    if isinstance(error, DecodeError):
        raise InvalidModel(f"{what} is damaged: it cannot be parsed; copy it again") from error
    operator = _UNKNOWN_OPERATOR.search(str(error))
    if operator is not None:
        raise InvalidModel(
            f"{what} has the operator {operator[1]}, which TensorFlow {tf.__version__} does not "
            "have: put the library that has it into the model's folder, and its name into "
            "model.yaml, as tensorflow: {libraries: [ops/my_ops.so]}"
        ) from error
    reraise(error, InvalidModel, f"TensorFlow {tf.__version__} refuses {what}: ")


def _graph(
    platform: str, session: Any, found: Mapping[str, _Found], size: int, settings: Tensorflow
) -> Graph:
    inline = size <= _SIMPLE and settings.inter_op_threads == 1
    calls = {}
    graph = session.graph
    with graph.as_default():
        for name, each in found.items():
            fed = set(each.inputs.values())
            # A session refuses to give back what it is given.
            outputs = {
                key: tf.identity(graph.get_tensor_by_name(tensor)).name
                if tensor in fed
                else tensor
                for key, tensor in each.outputs.items()
            }
            calls[name] = Call(session, each.inputs, outputs, inline=inline)
    signatures = {name: each.signature for name, each in found.items()}
    return Graph(session, platform, signatures, calls)


def _default_first(
    path: Path, found: Mapping[str, _Found], refused: Mapping[str, str], wanted: str | None
) -> dict[str, _Found]:
    """Return the signatures in order: the default one, then by name."""
    known = ", ".join(map(repr, (*found, *refused))) or "none"
    default = wanted or DEFAULT_SIGNATURE
    if wanted is None and default not in found and default not in refused and found:
        default = next(iter(found))
    if default in refused:
        others = (
            f"; tensorflow: {{signature: {next(iter(found))}}} serves another" if found else ""
        )
        raise InvalidModel(refused[default] + others)
    if default not in found:
        if wanted is not None:
            raise ConfigurationError(
                f"tensorflow.signature is {wanted!r}, but {path.name} has the signatures {known}"
            )
        raise InvalidModel(
            f"the SavedModel {path.name} has no signature that can be served (it has {known}): "
            "export it with tf.saved_model.save(model, path, signatures={'serving_default': …})"
        )
    return {default: found[default], **found}


def _signature_of(name: str, definition: Any) -> _Found:
    """Return what a ``SignatureDef`` says, its tensors by name.

    Raises:
        InvalidModel: no protocol has one of its tensors.
    """
    if not definition.outputs:
        raise InvalidModel(f"the signature {name!r} gives nothing: export it with outputs")
    tensors: list[dict[str, str]] = []
    specs: list[tuple[TensorSpec, ...]] = []
    for role, infos in (("input", definition.inputs), ("output", definition.outputs)):
        where = f"the {role} {{!r}} of the signature {name!r}"
        for key, info in infos.items():
            if info.WhichOneof("encoding") != "name":
                raise InvalidModel(
                    f"{where.format(key)} is a sparse, ragged or composite tensor, which no "
                    "protocol has: convert it in the model"
                )
        tensors.append({key: infos[key].name for key in sorted(infos)})
        specs.append(
            tuple(
                _spec(
                    key,
                    tf.dtypes.as_dtype(infos[key].dtype),
                    tf.TensorShape(infos[key].tensor_shape),
                    f"the signature {name!r}",
                )
                for key in sorted(infos)
            )
        )
    return _Found(Signature(specs[0], specs[1]), tensors[0], tensors[1])


def _spec(name: str, dtype: Any, shape: Any, where: str) -> TensorSpec:
    found = DTYPES.get(dtype)
    if found is None:
        raise InvalidModel(
            f"{name!r} of {where} is of the type {dtype.name}, which no protocol has: convert it "
            "in the model"
        )
    dimensions: tuple[Dimension, ...] | None = None
    if shape.rank is not None:
        dimensions = tuple(shape.as_list())
    return TensorSpec(name, found, dimensions)


def _declared_tensors(path: Path, graph: Any, names: Sequence[str], role: str) -> dict[str, Any]:
    found = {}
    for name in names:
        try:
            found[name] = graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
        except (KeyError, ValueError):
            known = [op.name for op in graph.get_operations()]
            near = [n for n in known if n.rpartition("/")[2] == name.partition(":")[0]]
            listed = near or [*_inputs_of(graph), *known[-5:]]
            raise ConfigurationError(
                f"signature.{role}s names {name!r}, but {path.name} has no such tensor: it has "
                f"{len(known)} nodes, such as {', '.join(map(repr, listed[:8]))}"
            ) from None
    return found


def _inputs_of(graph: Any) -> dict[str, Any]:
    return {op.name: op.outputs[0] for op in graph.get_operations() if op.type == "Placeholder"}


def _placeholders(path: Path, graph: Any) -> dict[str, Any]:
    found = _inputs_of(graph)
    if not found:
        raise InvalidModel(
            f"the graph {path.name} has no placeholder, so nothing says what goes into it: name "
            "its inputs in model.yaml, as signature: {inputs: ['x:0'], outputs: ['y:0']}"
        )
    return found


def _sinks(path: Path, graph: Any) -> dict[str, Any]:
    """Return the tensors that nobody takes, of nodes of which nobody takes any."""
    found = {}
    for op in graph.get_operations():
        used = any(tensor.consumers() for tensor in op.outputs)
        if op.outputs and not used and op.type not in ("Placeholder", "Const"):
            several = len(op.outputs) > 1
            found.update({(t.name if several else op.name): t for t in op.outputs})
    if not found or any(tensor.dtype not in DTYPES for tensor in found.values()):
        listed = ", ".join(map(repr, found)) or "none"
        raise InvalidModel(
            f"the graph {path.name} does not say what comes out of it (its last nodes are "
            f"{listed}): name its outputs in model.yaml, as signature: {{outputs: ['y:0']}}"
        )
    return found


def _check_frozen(path: Path, graph: Any) -> None:
    for op in graph.get_operations():
        if op.type in ("VariableV2", "Variable", "VarHandleOp"):
            raise InvalidModel(
                f"the graph {path.name} has the variable {op.name!r}, whose value is not in the "
                "file: freeze it with tf.compat.v1.graph_util.convert_variables_to_constants, or "
                "export a SavedModel"
            )


def _scalar(value: Any) -> Array:
    return np.asarray(value, np.object_ if isinstance(value, bytes) else None)
