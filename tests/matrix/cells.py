"""The table of runtimes, protocols and kinds of data: which of them meet, and why others do not.

The test goes through all of it, and the documentation shows it (``docs/tables.py``). Nothing is
imported here, so that both can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Kind:
    """What goes into a model and comes out."""

    letter: str
    about: str


@dataclass(frozen=True, slots=True)
class Side:
    """A runtime or a protocol: its name, and which kinds it has not, with the reason."""

    title: str
    without: Mapping[str, str] = field(default_factory=dict)


KINDS = {
    "numbers": Kind("N", "FP32: images as arrays in, probabilities out"),
    "integers": Kind("I", "INT64 and BOOL: two inputs, two outputs"),
    "texts": Kind("T", "strings in and out, not of English alone"),
    "bytes": Kind("B", "strings that are no text: any bytes in and out"),
    "image": Kind("P", "a picture as its file in, JSON out: a model with hooks"),
    "steps": Kind("S", "a picture as its file in, labels and scores out, by `model.yaml` alone"),
    "picture": Kind("Q", "a picture as its file in, another one out: a model with hooks"),
}

NO_STRINGS = "{} has no tensors of strings; a model with hooks takes texts"
ONE_IS_ENOUGH = "it is there, but tested with ONNX Runtime alone: hooks know no runtime"
STANDING_BEFORE = {"steps": ONE_IS_ENOUGH, "picture": ONE_IS_ENOUGH}

RUNTIMES = {
    "onnx": Side("ONNX Runtime", {"bytes": "ONNX Runtime's strings are texts in UTF-8"}),
    "torch": Side(
        "PyTorch",
        {
            "texts": NO_STRINGS.format("PyTorch"),
            "bytes": NO_STRINGS.format("PyTorch"),
            **STANDING_BEFORE,
        },
    ),
    "tensorflow": Side("TensorFlow", STANDING_BEFORE),
    "openvino": Side(
        "OpenVINO",
        {
            "texts": NO_STRINGS.format("OpenVINO on a CPU"),
            "bytes": NO_STRINGS.format("OpenVINO on a CPU"),
            **STANDING_BEFORE,
        },
    ),
    "caffe": Side(
        "Caffe",
        {
            "integers": "Caffe computes in FP32 alone",
            "texts": NO_STRINGS.format("Caffe"),
            "bytes": NO_STRINGS.format("Caffe"),
            **STANDING_BEFORE,
        },
    ),
    "python": Side("Python", STANDING_BEFORE),
}

IN_JSON = "JSON holds texts, not bytes: send them as binary data, or with another protocol"

NOT_TEXTS = "Classify answers with labels, which are texts"
NO_CLASSES = {
    "integers": "Classify answers with labels, scores or both, and such a model has neither",
    "bytes": NOT_TEXTS,
    "picture": NOT_TEXTS,
}
CLASSIFYING = ("tfs-classify", "tfs-classes")
"""Those that answer with the scores or labels among the outputs, and leave the others out."""

PROTOCOLS = {
    "v2-json": Side(
        "Open Inference, REST, JSON",
        {"bytes": IN_JSON, "image": IN_JSON, "steps": IN_JSON, "picture": IN_JSON},
    ),
    "v2-binary": Side("Open Inference, REST, binary data"),
    "v2-grpc": Side("Open Inference, gRPC, raw contents"),
    "v2-typed": Side("Open Inference, gRPC, typed contents"),
    "tfs-grpc": Side("TensorFlow Serving, gRPC"),
    "tfs-rows": Side("TensorFlow Serving, REST, rows"),
    "tfs-columns": Side("TensorFlow Serving, REST, columns"),
    "tfs-classify": Side("TensorFlow Serving, gRPC, `Classify`", NO_CLASSES),
    "tfs-classes": Side("TensorFlow Serving, REST, `:classify`", NO_CLASSES),
    "seldon-rest": Side("Seldon, REST"),
    "seldon-grpc": Side("Seldon, gRPC"),
    "dl-predict": Side("dl_inference, `Predict`"),
    "dl-pytorch": Side("dl_inference, `PytorchPredict`"),
    "dl-caffe": Side("dl_inference, `CaffePredict`"),
    "dl-tis": Side("dl_inference, `TisPredict`"),
    "plain": Side("Plain HTTP"),
}


def models() -> Iterator[tuple[str, str]]:
    """Every runtime with every kind that it has."""
    for runtime, side in RUNTIMES.items():
        for kind in KINDS:
            if kind not in side.without:
                yield runtime, kind


def cells(exist: bool = True) -> Iterator[tuple[str, str, str]]:
    """Every protocol with every model: those that exist, or those that do not."""
    for protocol, side in PROTOCOLS.items():
        for runtime, kind in models():
            if (kind not in side.without) is exist:
                yield protocol, runtime, kind


def markdown() -> str:
    """Return the tables of the documentation."""
    meanings = ["| letter | data |", "| --- | --- |"]
    meanings += [f"| {kind.letter} | {kind.about} |" for kind in KINDS.values()]
    head = " | ".join(["", *(side.title for side in RUNTIMES.values()), ""])
    rows = [f"| protocol {head[1:]}".rstrip(), "|" + " --- |" * (len(RUNTIMES) + 1)]
    for protocol in PROTOCOLS:
        letters = (_letters(protocol, runtime) for runtime in RUNTIMES)
        rows.append(f"| {PROTOCOLS[protocol].title} | {' | '.join(letters)} |")
    reasons = ["| what is left out | why |", "| --- | --- |", *_reasons()]
    return "\n\n".join("\n".join(part) for part in (meanings, rows, reasons)) + "\n"


def _letters(protocol: str, runtime: str) -> str:
    missing = {*PROTOCOLS[protocol].without, *RUNTIMES[runtime].without}
    return " ".join(kind.letter for name, kind in KINDS.items() if name not in missing)


def _reasons() -> Iterator[str]:
    for sides in (RUNTIMES, PROTOCOLS):
        found: dict[str, dict[str, list[str]]] = {}
        for side in sides.values():
            for kind, reason in side.without.items():
                found.setdefault(reason, {}).setdefault(side.title, []).append(KINDS[kind].letter)
        for reason, titles in found.items():
            what = "; ".join(f"{title}: {' '.join(letters)}" for title, letters in titles.items())
            yield f"| {what} | {reason} |"
