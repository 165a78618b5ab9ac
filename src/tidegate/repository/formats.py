"""What a model file is, told by its content; nothing is executed, unpickled or parsed whole.

Sources: ``onnx.proto`` (ModelProto), ``saved_model.proto``, ``graph.proto`` and
``caffe.proto`` for the field numbers; the zip members are those that ``torch.jit.save``,
``torch.export.save``, ``torch.save`` and Keras write.
"""

from __future__ import annotations

import importlib.util
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tidegate.errors import InvalidModel
from tidegate.repository.pickles import is_torch_pickle, only_weights
from tidegate.repository.wire import TruncatedError, fields_of


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of model file or folder."""

    name: str
    title: str
    """What to call it in a sentence."""
    runtimes: tuple[str, ...] = ()
    """The runtimes of this version of Tidegate that can serve it, the usual one first."""
    advice: str = "convert the model to ONNX"
    """What to do as long as there is none."""

    @property
    def runtime(self) -> str | None:
        """The runtime that serves it unless ``model.yaml`` says otherwise."""
        return self.runtimes[0] if self.runtimes else None


@dataclass(frozen=True, slots=True)
class Requirement:
    """What must be installed for a runtime."""

    module: str
    """The framework's top-level module."""
    extra: str
    """Tidegate's extra that brings it."""

    file: str = ""
    """A file in the module that is there only in the build that is needed."""
    rival: str = ""
    """Another build of the module, which must make room for that."""

    @property
    def command(self) -> str:
        """The command that installs it."""
        install = f"pip install 'tidegate[{self.extra}]'"
        return f"pip uninstall {self.rival}; {install}" if self.rival else install


_PLAN = "serve the ONNX model it was made from, with runtime: tensorrt"
FORMATS = {
    found.name: found
    for found in (
        Format("onnx", "an ONNX model", ("onnx", "openvino", "tensorrt")),
        Format("torchscript", "a TorchScript archive", ("torch",)),
        Format("pt2", "a torch.export archive", ("torch",)),
        Format("state-dict", "a file of PyTorch weights (a state_dict)", ("torch",)),
        Format("torch-pickle", "a PyTorch pickle of more than weights", ("torch",)),
        Format("safetensors", "a safetensors file (weights without a model)", ("torch",)),
        Format("pickle", "a Python pickle (as joblib writes)"),
        Format("savedmodel", "a TensorFlow SavedModel", ("tensorflow", "openvino")),
        Format("frozen-graph", "a frozen TensorFlow graph", ("tensorflow",)),
        Format("keras", "a Keras model", ("tensorflow",)),
        Format("hdf5", "an HDF5 file (as Keras writes)", ("tensorflow",)),
        Format(
            "checkpoint",
            "a TensorFlow checkpoint (weights without a model)",
            advice="where it was made, restore it and write the whole model: in Keras with "
            "model.export(path), otherwise with tf.saved_model.save(model, path), and a graph of "
            "TensorFlow 1 with tf.compat.v1.saved_model.Builder",
        ),
        Format(
            "tflite", "a TensorFlow Lite model", advice="serve the SavedModel it was made from"
        ),
        Format("caffe", "a Caffe model", ("caffe",)),
        Format("openvino", "an OpenVINO model", ("openvino",)),
        Format("python", "a model in Python", ("python",)),
        Format("tensorrt", "a TensorRT plan", advice=_PLAN),
    )
}
REQUIREMENTS = {
    "onnx": Requirement("onnxruntime", "onnx"),
    "torch": Requirement("torch", "torch"),
    "caffe": Requirement("cv2", "caffe"),
    "openvino": Requirement("openvino", "openvino"),
    "tensorflow": Requirement("tensorflow", "tensorflow"),
    # It needs nothing beyond what every replica does.
    "python": Requirement("tidegate", "serving"),
    "tensorrt": Requirement(
        "onnxruntime",
        "tensorrt",
        file="capi/libonnxruntime_providers_tensorrt.so",
        rival="onnxruntime",
    ),
}
"""By runtime: those that this version of Tidegate has."""

EXTENSIONS = frozenset(
    {".onnx", ".pb", ".pt", ".pt2", ".pth", ".torchscript", ".pkl", ".pickle", ".joblib"}
    | {".safetensors", ".keras", ".h5", ".hdf5", ".tflite", ".xml", ".caffemodel"}
    | {".plan", ".engine"}
)
"""How model files are usually named; what such a file is, its content decides."""
FOLDER_MARKS = ("saved_model.pb", "saved_model.pbtxt")
"""A folder with one of these files is itself the model."""

DAMAGED_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)
"""What zipfile raises for an archive that is damaged, encrypted or packed in an unknown way."""
_HEAD = 4096
_TABLE_FOOTER = 48
_TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
"""How the footer of a sorted table ends: ``kTableMagicNumber`` of LevelDB's ``table/format.h``."""
_ONNX_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_GRAPH_FIELDS = {1: 2, 2: 2, 3: 0, 4: 2}.items()
_GRAPH_SUFFIXES = (".pb", ".graphdef")
_LARGEST_IR_VERSION = 1000


def installed(runtime: str) -> bool:
    """Whether ``runtime``'s framework can be imported here; it is not imported."""
    needed = REQUIREMENTS[runtime]
    found = importlib.util.find_spec(needed.module)
    if found is None or not needed.file:
        return found is not None
    folders = found.submodule_search_locations or ()
    return any((Path(folder) / needed.file).is_file() for folder in folders)


def detect(path: Path) -> Format:
    """Tell what the file or folder at ``path`` is.

    Raises:
        InvalidModel: it is no model, or a damaged one; the message says what it seems to be.
        OSError: it cannot be read.
    """
    if path.is_dir():
        if any((path / mark).is_file() for mark in FOLDER_MARKS):
            return FORMATS["savedmodel"]
        raise InvalidModel(f"the folder {path.name} is not a model: it has no saved_model.pb")
    if not path.is_file() and path.exists():
        # Opening a pipe waits for who writes into it.
        raise InvalidModel(
            "is a pipe, a socket or a device, and not a file; copy the model's file here"
        )
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for recognise in (_by_magic, _by_zip, _by_table, _by_wire, _by_text):
        name = recognise(path, head)
        if name is not None:
            return FORMATS[name]
    raise InvalidModel(f"{path.name} is not a model: it {appearance(head)}")


def appearance(head: bytes) -> str:
    """Say in words what a file that is no model seems to be, from its first bytes."""
    if not head:
        return "is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer to the model; fetch the file itself with 'git lfs pull'"
    for magic, what in (
        (b"PK\x03\x04", "seems to be a zip archive"),
        (b"\x1f\x8b", "seems to be gzip-compressed; unpack it"),
        (b"BZh", "seems to be bzip2-compressed; unpack it"),
        (b"\xfd7zXZ", "seems to be xz-compressed; unpack it"),
        (b"(\xb5/\xfd", "seems to be zstd-compressed; unpack it"),
        (b"\x7fELF", "seems to be a program or shared library"),
        (b"\x89PNG", "seems to be a PNG image"),
        (b"\xff\xd8\xff", "seems to be a JPEG image"),
        (b"\x93NUMPY", "seems to be a NumPy array"),
    ):
        if head.startswith(magic):
            return what
    if head[257:262] == b"ustar":
        return "seems to be a tar archive; unpack it"
    if not _is_text(head):
        return "holds binary data in no format that Tidegate knows"
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "seems to be an HTML page, perhaps of a download that failed"
    kind = "JSON" if start[:1] in (b"{", b"[") else "XML" if start[:1] == b"<" else "text"
    line = head.split(b"\n")[0][:40].decode("utf-8", "replace").strip()
    return f"seems to be {kind}, which begins {line!r}"


def _by_magic(path: Path, head: bytes) -> str | None:
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head[4:8] == b"TFL3":
        return "tflite"
    if head.startswith((b"ptrt", b"ftrt")):
        return "tensorrt"
    if len(head) > 9 and head[8:9] == b"{":
        length = int.from_bytes(head[:8], "little")
        if length <= path.stat().st_size - 8 and b'"' in head[9:16]:
            return "safetensors"
    # A pickle begins with PROTO and its version; the first opcodes of all are one byte long.
    if len(head) > 3 and head[0] == 0x80 and 2 <= head[1] <= 5:
        if not is_torch_pickle(head):
            return "pickle"
        with path.open("rb") as file:
            return "state-dict" if only_weights(file) else "torch-pickle"
    return None


def _by_zip(path: Path, head: bytes) -> str | None:
    if not head.startswith(b"PK\x03\x04"):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.partition("/")[2] or name: name for name in archive.namelist()}
            members.update((name, name) for name in archive.namelist())
            found = _by_members(set(members))
            if found == "state-dict":
                with archive.open(members["data.pkl"]) as file:
                    return found if only_weights(file) else "torch-pickle"
            return found
    except DAMAGED_ZIP as error:
        raise InvalidModel(
            f"{path.name} is a damaged or truncated zip archive ({error})"
        ) from None


def _by_members(members: set[str]) -> str | None:
    if "constants.pkl" in members and any(m.startswith("code/") for m in members):
        return "torchscript"
    if "archive_format" in members or "serialized_exported_program.json" in members:
        return "pt2"
    if "model.weights.h5" in members:
        return "keras"
    return "state-dict" if "data.pkl" in members else None


def _by_table(path: Path, head: bytes) -> str | None:
    """Look for the end of a sorted table, which the index of a checkpoint is."""
    size = path.stat().st_size
    if size < _TABLE_FOOTER:
        return None
    with path.open("rb") as file:
        file.seek(size - len(_TABLE_MAGIC))
        return "checkpoint" if file.read() == _TABLE_MAGIC else None


def _by_wire(path: Path, head: bytes) -> str | None:
    """Walk the top-level fields of a protobuf message."""
    if not head or _is_text(head):
        return None
    kinds: dict[int, int] = {}
    ir_version = 0
    cut = False
    try:
        with path.open("rb") as file:
            for field in fields_of(file, 0, path.stat().st_size):
                kinds.setdefault(field.number, field.kind)
                if field.number == 1 and field.kind == 0:
                    ir_version = field.value
    except TruncatedError:
        cut = True
    except ValueError:
        return None
    found = _message(kinds, ir_version, cut)
    if found != "onnx" and path.suffix in _GRAPH_SUFFIXES and kinds.items() <= _GRAPH_FIELDS:
        found = "frozen-graph" if kinds else None  # old ones do not say their version
    if cut and found is not None:
        raise InvalidModel(
            f"{path.name} is {FORMATS[found].title} that is cut short at "
            f"{path.stat().st_size:,} bytes; copy it again"
        )
    return found


def _message(kinds: dict[int, int], first: int, cut: bool) -> str | None:
    strings = {number for number, kind in kinds.items() if kind == 2}
    if kinds.get(1) == 0:
        if 7 in strings and kinds.keys() <= _ONNX_FIELDS and 0 < first <= _LARGEST_IR_VERSION:
            return "onnx"
        if kinds.keys() == {1, 2} and 2 in strings and not cut:
            return "savedmodel"
        return None
    if 100 in strings and 1 in strings:
        return "caffe"
    if 1 in strings and kinds.keys() <= {1, 2, 3, 4, 5}:
        if 4 in kinds:
            return "frozen-graph"
        return "caffe" if 2 in strings else None
    return None


def _by_text(path: Path, head: bytes) -> str | None:
    if not _is_text(head):
        return None
    start = head.lstrip()
    if start.startswith(b"<") and b"<net " in head:
        return "openvino"
    if path.suffix == ".pbtxt" and b"meta_graphs" in head:
        return "savedmodel"
    return None


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        # The last character of a long text may be cut.
        if error.start < len(head) - 4 or len(head) < _HEAD:
            return False
    control = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
    return control == 0


Installed = Callable[[str], bool]
"""Whether a runtime can be imported here."""
