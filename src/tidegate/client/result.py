"""What an inference answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tidegate.types import Array, InferResponse, Parameter


class InferResult(Mapping[str, Array]):
    """The outputs of one inference by name, in the model's order.

    An array may lie over the bytes of the answer: it is read-only then, and ``array.copy()``
    gives one to write to. A BYTES output is an object array of ``bytes``.

    Attributes:
        model: the model that answered.
        version: its version, as text; empty if the server does not say.
        id: the request's id, as the server sent it back; empty if there was none.
        parameters: what the server says of the answer beside the outputs.
    """

    __slots__ = ("_outputs", "id", "model", "parameters", "version")

    def __init__(self, response: InferResponse) -> None:
        self.model = response.model
        self.version = response.version
        self.id = response.id
        self.parameters: Mapping[str, Parameter] = response.parameters
        self._outputs = {tensor.name: tensor.data for tensor in response.outputs}

    def __getitem__(self, name: str) -> Array:
        try:
            return self._outputs[name]
        except KeyError:
            raise KeyError(f"there is no output {name!r} but {list(self._outputs)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        outputs = ", ".join(f"{n}: {a.dtype}{list(a.shape)}" for n, a in self._outputs.items())
        version = f" version {self.version}" if self.version else ""
        return f"<InferResult of {self.model}{version}: {outputs}>"
