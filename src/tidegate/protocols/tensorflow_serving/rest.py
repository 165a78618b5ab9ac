"""TensorFlow Serving's REST API: calls of a model, and their answers.

Source: ``api_rest.md`` and ``json_tensor.cc`` of TensorFlow Serving.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

from tidegate.errors import InvalidInput, MethodNotAllowed, MethodNotFound
from tidegate.protocols.dialect import Inference, ModelView, Reply, RestCall
from tidegate.protocols.open_inference.tensors import shown
from tidegate.protocols.payloads import as_tensors
from tidegate.protocols.routing import check_model
from tidegate.protocols.tensorflow_serving import json_tensors, messages
from tidegate.protocols.tensorflow_serving.classification import (
    Classified,
    Regressed,
    classified,
    regressed,
    rows_of,
    values_of,
)
from tidegate.protocols.tensorflow_serving.examples import Examples, tensors_of
from tidegate.protocols.tensorflow_serving.json_tensors import Texts
from tidegate.protocols.tensorflow_serving.metadata import encode_metadata_body, signature_of
from tidegate.protocols.tensorflow_serving.model_spec import version_of_label
from tidegate.types import InferRequest, InferResponse, Signature, Tensor

MODELS = "/v1/models/"
"""How all paths begin."""
_PATH = re.compile(
    r"/v1/models/([^/:]+)(?:/versions/([^/:]+)|/labels/([^/:]+))?(?::([^/:]*)|/([^/:]*))?"
)
_MOST_SHOWN = 16
_ROWS, _COLUMNS = "instances", "inputs"
_Found = tuple[str, tuple[Tensor, ...], bool]
_Wish = TypeVar("_Wish", Classified, Regressed)


class _Place(NamedTuple):
    """What a path names."""

    model: str
    version: str
    verb: str


def read_call(call: RestCall, view: ModelView) -> Inference | Reply:
    """Read a call of a model.

    Raises:
        InvalidInput: it is malformed, or does not fit the model.
        MethodNotFound: there is no such path, or it takes another HTTP method.
    """
    place = _place(call.path, view.labels)
    if place.verb == "/metadata":
        _expect(call, "GET", "HEAD")
        body = encode_metadata_body(view.metadata, view.version)
        return Reply((body,), model=place.model, version=place.version)
    read = _VERBS.get(place.verb)
    if read is None:
        verbs = ", ".join(_VERBS)
        raise MethodNotFound(f"there is no path {call.path}: a model has {verbs} and /metadata")
    _expect(call, "POST")
    return read(place, call.body, view)


def _place(path: str, labels: Mapping[str, str]) -> _Place:
    match = _PATH.fullmatch(path)
    if match is None:
        raise MethodNotFound(f"there is no path {path}: see /v1/models/MODEL")
    model, version, label, verb, part = match.groups(default="")
    if label:
        version = version_of_label(unquote(label), labels)
    check_model(model, version)
    return _Place(model, version, f":{verb}" if verb or not part else f"/{part}")


def _expect(call: RestCall, *methods: str) -> None:
    if call.method not in methods:
        raise MethodNotAllowed(f"{call.path} takes {methods[0]}, not {call.method}", methods)


def _read_predict(place: _Place, body: bytes, view: ModelView) -> Inference:
    document, texts = json_tensors.parse(body)
    try:
        signature, tensors, rows = _read_tensors(document, texts, view)
        if texts:
            raise InvalidInput("a list is where no input is")
    except InvalidInput:
        if not texts:
            raise
        # What is wrong is said with the whole document at hand; a mark that is left is wrong.
        whole = json_tensors.parse_plainly(body)
        signature, tensors, rows = _read_tensors(whole, Texts(), view)
    request = _request(place, signature, tensors)
    return Inference(request, functools.partial(_write_predictions, rows))


def _read_tensors(document: dict[str, Any], texts: Texts, view: ModelView) -> _Found:
    name = _signature_name(document)
    signature = signature_of(view.metadata, name)
    present = [key for key in (_ROWS, _COLUMNS) if key in document]
    if len(present) != 1:
        what = "both" if present else "neither"
        raise InvalidInput(
            f"the body has {what} of {_ROWS!r} (a list of rows) and {_COLUMNS!r} (tensors by "
            "name); send one of them"
        )
    value = document[present[0]]
    read = _read_rows if present[0] == _ROWS else _read_columns
    return name, read(value, signature, texts), present[0] == _ROWS


def _read_rows(value: object, signature: Signature, texts: Texts) -> tuple[Tensor, ...]:
    if not isinstance(value, list) or not value:
        raise _no_rows(value)
    specs = signature.inputs
    if not json_tensors.is_object(value[0]):
        tensor = _alone(signature, _ROWS, value, texts)
        if not len(tensor.data):  # a long list of nothing but spaces
            raise _no_rows([])
        return (tensor,)
    columns: dict[str, list[Any]] = {spec.name: [] for spec in specs}
    for index, row in enumerate(value):
        if not isinstance(row, dict) or row.keys() != columns.keys():
            found = _keys(row) if isinstance(row, dict) else shown(row)
            raise InvalidInput(
                f"{_ROWS}[{index}] has {found}; send an object with {_names(signature)} in each"
            )
        for name, column in columns.items():
            column.append(row[name])
    return tuple(
        json_tensors.stacked(spec.name, spec.dtype, columns[spec.name], texts) for spec in specs
    )


def _no_rows(value: object) -> InvalidInput:
    return InvalidInput(f"{_ROWS!r} is {shown(value)}; send a list of at least one row")


def _read_columns(value: object, signature: Signature, texts: Texts) -> tuple[Tensor, ...]:
    if not isinstance(value, dict) or json_tensors.is_base64(value):
        return (_alone(signature, _COLUMNS, value, texts),)
    known = {spec.name for spec in signature.inputs}
    if value.keys() != known:
        raise InvalidInput(f"{_COLUMNS!r} has {_keys(value)}; send {_names(signature)}")
    return tuple(
        json_tensors.tensor_of(spec.name, spec.dtype, value[spec.name], texts)
        for spec in signature.inputs
    )


def _alone(signature: Signature, key: str, value: object, texts: Texts) -> Tensor:
    """Return the only input, whose name is not said."""
    if len(signature.inputs) != 1:
        what = "objects" if key == _ROWS else "an object"
        raise InvalidInput(
            f"{key!r} is {shown(value)}, but the model takes {_names(signature)}; send {what} "
            "with these names"
        )
    [spec] = signature.inputs
    return json_tensors.tensor_of(spec.name, spec.dtype, value, texts)


def _write_predictions(rows: bool, response: InferResponse) -> Reply:
    tensors = list(as_tensors(response))
    if not tensors:
        raise InvalidInput("the model answered with nothing that could be sent")
    if rows:
        return Reply((b'{"predictions":', json_tensors.dump_rows(tensors), b"}"))
    return Reply((b'{"outputs":', json_tensors.dump_columns(tensors), b"}"))


def _read_classify(place: _Place, body: bytes, view: ModelView) -> Inference:
    request, found = _examples_for(classified, place, body, view)
    return Inference(request, functools.partial(_write_classes, found))


def _write_classes(found: Classified, response: InferResponse) -> Reply:
    results = json_tensors.dump_classes(rows_of(found, response))
    return Reply((b'{"results":', results, b"}"))


def _read_regress(place: _Place, body: bytes, view: ModelView) -> Inference:
    request, found = _examples_for(regressed, place, body, view)
    return Inference(request, functools.partial(_write_values, found))


def _write_values(found: Regressed, response: InferResponse) -> Reply:
    values = json_tensors.dump_number_list(values_of(found, response))
    return Reply((b'{"results":', values, b"}"))


def _examples_for(
    wish: Callable[[Signature, int], _Wish], place: _Place, body: bytes, view: ModelView
) -> tuple[InferRequest, _Wish]:
    """Return the request in a body of examples, and what is to come of so many of them."""
    name, signature, examples = _read_examples(body, view)
    found = wish(signature, len(examples.rows))
    request = _request(place, name, tensors_of(examples, signature))
    request.outputs = found.wanted
    return request, found


def _read_examples(body: bytes, view: ModelView) -> tuple[str, Signature, Examples]:
    document = json_tensors.parse_plainly(body)
    name = _signature_name(document)
    listed = document.get("examples")
    if not isinstance(listed, list) or not listed:
        raise InvalidInput(
            f"'examples' is {shown(listed)}; send a list of at least one object with features"
        )
    rows = [_example(f"examples[{index}]", item) for index, item in enumerate(listed)]
    context = _example("'context'", document["context"]) if "context" in document else None
    return name, signature_of(view.metadata, name), Examples(rows, context)


def _example(where: str, item: object) -> Any:
    """Return the features in a JSON object as a ``tf.Example``."""
    if not isinstance(item, dict):
        raise InvalidInput(f"{where} is {shown(item)}; send an object with features")
    example = messages.Example()
    for name, value in item.items():
        values = value if isinstance(value, list) else [value]
        _fill(f"the feature {shown(name)} of {where}", example.features.feature[name], values)
    return example


def _fill(where: str, feature: Any, values: list[Any]) -> None:
    kinds = set(map(type, values))
    try:
        if kinds <= {bool, int}:
            feature.int64_list.value.extend(map(int, values))
        elif kinds <= {float, int}:
            feature.float_list.value.extend(values)
        elif kinds <= {str, dict}:
            feature.bytes_list.value.extend(
                value.encode()
                if isinstance(value, str)
                else json_tensors.decode_base64(where, value)
                for value in values
                if isinstance(value, str) or json_tensors.is_base64(value)
            )
            if len(feature.bytes_list.value) == len(values):
                return
            raise InvalidInput(f'{where} has an object other than {{"b64": "..."}}')
        else:
            raise InvalidInput(
                f"{where} is {shown(values)}; send numbers, strings, or bytes as "
                '{"b64": "..."}, and only one of these kinds'
            )
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{where} is {shown(values)}: {error}") from error


def _request(place: _Place, signature: str, tensors: tuple[Tensor, ...]) -> InferRequest:
    return InferRequest(place.model, place.version, inputs=tensors, signature=signature)


def _signature_name(document: Mapping[str, Any]) -> str:
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise InvalidInput(f"'signature_name' is {shown(name)}; send a string")
    return name


def _keys(found: Mapping[str, Any]) -> str:
    """Return the first keys that came, for an error message."""
    return ", ".join(map(shown, itertools.islice(found, _MOST_SHOWN))) or "nothing"


def _names(signature: Signature) -> str:
    return ", ".join(repr(spec.name) for spec in signature.inputs) or "nothing"


_VERBS: Mapping[str, Callable[[_Place, bytes, ModelView], Inference]] = {
    ":predict": _read_predict,
    ":classify": _read_classify,
    ":regress": _read_regress,
}
