"""TensorFlow models: SavedModels, Keras files and frozen graphs.

API: https://www.tensorflow.org/api_docs/python/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tidegate.errors import InvalidModel
from tidegate.repository import formats
from tidegate.runtimes.batch_dimension import with_batch
from tidegate.runtimes.declared import refined
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.runtimes.samples import Samples, samples_of
from tidegate.runtimes.tensorflow_framework import devices, prepare
from tidegate.runtimes.tensorflow_graph import Graph, open_frozen, open_saved_model
from tidegate.runtimes.tensorflow_keras import exported
from tidegate.runtimes.tensorflow_ops import load_libraries
from tidegate.types import Array, Signature

__all__ = ["TensorflowModel", "devices", "load"]


class TensorflowModel:
    """A TensorFlow graph; meets :class:`~tidegate.runtimes.interface.Model`."""

    most_rows: int | None = None

    def __init__(
        self, graph: Graph, signatures: Mapping[str, Signature], name: str, device: str
    ) -> None:
        self._graph = graph
        self._run = graph.calls[name].run
        self.signatures = signatures
        self.signature = signatures[name]
        self.platform = graph.platform
        self.device = device

    def under(self, signature: str) -> TensorflowModel:
        """Return the same graph with another of its signatures."""
        return TensorflowModel(self._graph, self.signatures, signature, self.device)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run once; see :meth:`tidegate.runtimes.interface.Model.run`.

        Raises:
            InsufficientMemory: the run needed more memory than there is, on the CPU or a GPU.
            InferenceFailed: TensorFlow raised; the message is its own.
        """
        return self._run(inputs, outputs)

    def attach(self) -> None:
        """Nothing: a session's threads serve whoever calls."""

    def close(self) -> None:
        """Free the session and its variables."""
        self._graph.session.close()


def load(path: Path, options: RuntimeOptions) -> TensorflowModel:
    """Load the model at ``path``, whichever of TensorFlow's formats it is in.

    Raises:
        InvalidModel: TensorFlow refuses it, or nothing says what it takes.
        InsufficientMemory: it does not fit.
        ConfigurationError: a GPU is asked for that TensorFlow cannot use, or ``model.yaml``
            contradicts the model.
    """
    config = options.config
    device = prepare(options)
    load_libraries(options.folder, config.tensorflow.libraries)
    try:
        kind = formats.detect(path).name
    except OSError as error:
        raise InvalidModel(f"{path.name} cannot be read: {error.strerror}") from error
    if kind in ("keras", "hdf5"):
        with exported(path, kind, trusted=config.trust == "pickle") as folder:
            graph = open_saved_model(folder, config.tensorflow)
    elif kind == "frozen-graph":
        graph = open_frozen(path, config.signature, config.tensorflow)
    else:
        graph = open_saved_model(_folder_of(path), config.tensorflow)
    return _with_dimensions(graph, options, device)


def _folder_of(path: Path) -> Path:
    """Return the folder of a SavedModel, of which ``path`` may be the file."""
    if path.is_dir():
        return path
    if path.name in formats.FOLDER_MARKS:
        return path.parent
    raise InvalidModel(
        f"{path.name} is the graph of a SavedModel: name it saved_model.pb, beside its folder "
        "variables"
    )


def _with_dimensions(graph: Graph, options: RuntimeOptions, device: str) -> TensorflowModel:
    """Add what ``model.yaml`` says of the default signature, and the batch's dimensions."""
    samples = samples_of(options)
    found: dict[str, Signature] = {}
    for name, signature in graph.signatures.items():
        if not found:
            signature = refined(signature, options.config.signature)
        given = Samples(None, samples.sizes) if found else samples
        found[name] = with_batch(signature, graph.calls[name].run, given)
    return TensorflowModel(graph, found, next(iter(found)), device)
