"""The schema of ``model.yaml``: everything that can be said of one model.

Every field has a default, so the file is optional. The same schema serves every place a
model runs in.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    model_validator,
)

from tidegate.config.section import Section, inside
from tidegate.config.steps import Postprocess, Preprocess
from tidegate.config.units import Duration, Size
from tidegate.types import DType


class Batching(Section):
    """How requests are joined into one run of the model."""

    enabled: bool | Literal["auto"] = Field(
        "auto",
        description="join requests along the first dimension; auto: when the signature has a "
        "common dynamic first dimension and a trial run shows that rows do not mix",
    )
    max_batch_size: PositiveInt = Field(32, description="the most rows in one run")
    max_queue_delay: Annotated[Duration, Field(ge=0, le=10)] = Field(
        0.0,
        description="how long an idle replica may wait for more requests to join a batch "
        "(0: it runs at once what has come)",
    )
    max_queue_size: PositiveInt = Field(
        1024, description="requests that may wait; one more is refused as RESOURCE_EXHAUSTED / 429"
    )


class Resources(Section):
    """What one replica may use."""

    cpu: Annotated[float, Field(gt=0)] | None = Field(
        None, description="cores per replica (default: the machine's, shared by its replicas)"
    )
    memory: Annotated[Size, Field(gt=0)] | None = Field(
        None, description="the most data memory of a replica, as 2GiB (default: no limit)"
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="threads within one operator of the model (default: `cpu`, rounded)"
    )


def _label(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", value):
        raise ValueError(
            f"{value!r} cannot be a label: use letters, digits, '.', '_' and '-', at most 128 of "
            "them, a letter or digit first"
        )
    return value


Label = Annotated[str, AfterValidator(_label)]


class Versions(Section):
    """Which versions are served; the highest of them is the default one.

    Those that have labels are served beside the others.
    """

    latest: PositiveInt | None = Field(1, description="the newest N versions")
    only: tuple[PositiveInt, ...] | None = Field(None, description="exactly these versions")
    all: bool = Field(False, description="every version there is")
    labels: dict[Label, PositiveInt] = Field(
        {},
        description="names by which clients can call versions, as `{stable: 2, canary: 3}`; these "
        "versions are served beside the others",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: object) -> object:
        if value == "all":
            return {"all": True}
        if value == "latest":
            return {}
        if isinstance(value, int) and not isinstance(value, bool):
            return {"only": (value,)}
        if isinstance(value, list):
            return {"only": tuple(value)}
        return value

    def select(self, present: list[int]) -> tuple[int, ...]:
        """Return the versions of ``present`` to serve, ascending."""
        ordered = sorted(present)
        if self.all:
            return tuple(ordered)
        only = ordered[-(self.latest or 1) :] if self.only is None else self.only
        return tuple(v for v in ordered if v in only or v in self.labels.values())


class Limits(Section):
    """Bounds on one request."""

    timeout: Annotated[Duration, Field(gt=0)] | None = Field(
        None,
        description="the longest a request may take, in the queue and in the model, whatever "
        "the caller allows (default: the caller's deadline alone)",
    )


def _element_type(value: object) -> object:
    """Take numpy's names beside the protocol's: ``float32`` is FP32."""
    if not isinstance(value, str):
        return value
    known = {d.numpy.name: d for d in DType} | {"string": DType.BYTES}
    known |= {d.value.lower(): d for d in DType}
    if value.lower() not in known:
        names = ", ".join(d.value for d in DType)
        raise ValueError(f"{value!r} is no element type; known are {names}")
    return known[value.lower()]


def _dimension(value: object) -> object:
    if value == -1 or value == "?":
        return None
    if isinstance(value, bool) or (isinstance(value, int) and value < 0):
        raise ValueError(
            f"{value!r} is no dimension: write a number, a name for a dynamic dimension "
            "(those of one name are equal), or ?"
        )
    return value


ElementType = Annotated[DType, BeforeValidator(_element_type)]
DeclaredDimension = Annotated[int | str | None, BeforeValidator(_dimension)]


class DeclaredTensor(Section):
    """One input or output; what is not said is taken from the model or from a trial run."""

    name: Annotated[str, Field(min_length=1)]
    dtype: ElementType | None = None
    shape: tuple[DeclaredDimension, ...] | None = None


def _named(value: object) -> object:
    """Take a list of tensors of which some are only names."""
    if not isinstance(value, list | tuple):
        return value
    return tuple({"name": item} if isinstance(item, str) else item for item in value)


class DeclaredSignature(Section):
    """What goes into a model and comes out, for a model that does not say it itself."""

    inputs: Annotated[tuple[DeclaredTensor, ...], BeforeValidator(_named)] = Field(
        (),
        description="the inputs in the model's order, each `{name, dtype, shape}`; dynamic "
        "dimensions have names, as in `[batch, 3, height, width]`",
    )
    outputs: Annotated[tuple[DeclaredTensor, ...], BeforeValidator(_named)] = Field(
        (),
        description="the outputs in the model's order, likewise, or only their names "
        "(default: learnt from a trial run)",
    )

    @model_validator(mode="after")
    def _once_each(self) -> DeclaredSignature:
        for tensors in (self.inputs, self.outputs):
            names = [tensor.name for tensor in tensors]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{name!r} is there twice")
        return self


class Warmup(Section):
    """The runs before a model gets traffic."""

    enabled: bool = Field(
        True, description="run the model once before it gets traffic (short form: `warmup: false`)"
    )
    sample: Annotated[str, AfterValidator(inside)] | None = Field(
        None,
        description="inputs to run it on: an .npz, .npy or .json file in the model's folder "
        "(default: random ones that fit the signature; short form: `warmup: FILE`)",
    )
    dimensions: dict[str, PositiveInt] = Field(
        {}, description="lengths of dynamic dimensions in inputs that are made up, by name"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: object) -> object:
        if isinstance(value, bool):
            return {"enabled": value}
        return {"sample": value} if isinstance(value, str) else value


class Torch(Section):
    """What only PyTorch models have."""

    model: str | None = Field(
        None,
        description="the class or function in model.py that makes the model (default: `Model`, or "
        "the only `torch.nn.Module` there)",
    )
    arguments: dict[str, Any] = Field({}, description="keyword arguments to make it with")
    channels_last: bool = Field(
        False, description="keep images and weights of convolutions in channels-last order"
    )
    compile: bool = Field(
        False, description="compile the model with torch.compile (on a CPU: needs a C++ compiler)"
    )


class Onnx(Section):
    """What only ONNX models have."""

    spin: Annotated[Duration, Field(ge=0, le=1)] = Field(
        20e-6,
        description="how long the runtime's threads look for more work before they sleep, as 30ms "
        "(longer than between two calls: lowest latency at a low load, and a busy core for each "
        "thread)",
    )


class OpenVino(Section):
    """What only models on OpenVINO have."""

    hint: Literal["latency", "throughput"] = Field(
        "latency",
        description="latency: a batch runs on all threads at once; throughput: OpenVINO divides "
        "the threads into streams, and a batch among them (needs `batching.enabled: true`)",
    )
    streams: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="how many streams (default: as `hint` says)"
    )


PublicSide = Annotated[
    Literal["image", "text", "bytes", "json", "model"] | tuple[DeclaredTensor, ...] | None,
    BeforeValidator(_named),
]


class HookSettings(Section):
    """What is said of a model's hooks; each counts more than what ``hooks.py`` says itself."""

    input: PublicSide = Field(
        None,
        description="what clients send: image, text, bytes, json, model (as the model's own "
        "inputs), or tensors as under `signature.inputs` (default: `INPUT` in hooks.py, or "
        "anything)",
    )
    output: PublicSide = Field(
        None,
        description="what they get, likewise (default: `OUTPUT` in hooks.py, or anything)",
    )
    group_by: tuple[str, ...] = Field(
        (),
        description="parameters that `run_model` is told of; only requests that agree in them "
        "run together (default: `GROUP_BY` in hooks.py)",
    )
    threads: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None,
        description="requests that are preprocessed and postprocessed at once in a replica "
        "(default: 4, or twice the threads of the model if that is more)",
    )


class Tensorflow(Section):
    """What only TensorFlow models have."""

    libraries: tuple[Annotated[str, AfterValidator(inside)], ...] = Field(
        (),
        description="libraries of operators to load before the model, as `[ops/my_ops.so]`: files "
        "in the model's folder, whose code runs with all that the server may do",
    )
    signature: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="the signature of a request that names none (default: `serving_default`, or "
        "the first by name)",
    )
    tags: tuple[str, ...] = Field(
        ("serve",), description="the tags of the graph to load from a SavedModel"
    )
    inter_op_threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="operators that may run at the same time, for graphs with wide branches"
    )


class Python(Section):
    """What only models in Python have."""

    model: str | None = Field(
        None,
        description="the class in model.py (default: `Model`, or the only one that has `run`)",
    )
    arguments: dict[str, Any] = Field({}, description="keyword arguments to make it with")


def _ascending(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] > value[1]:
        raise ValueError(f"the smallest length, {value[0]}, comes before the largest, {value[1]}")
    return value


_Range = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_ascending)]


class TensorRt(Section):
    """What only models on TensorRT have."""

    dimensions: dict[str, _Range] = Field(
        {},
        description="smallest and largest lengths of dynamic dimensions, by name, as "
        "`{length: [1, 512]}` (default for the first dimension: 1 to `batching.max_batch_size`)",
    )
    workspace: Annotated[Size, Field(gt=0)] | None = Field(
        None, description="the most GPU memory for intermediate results, as 2GiB (default: all)"
    )


_PYTHON = "python:"


def _environment(value: str) -> str:
    kind, _, path = value.partition(":")
    if kind != "python" or not PurePosixPath(path).is_absolute():
        raise ValueError(
            f"{value!r} is no environment: write python: and the absolute path of an interpreter, "
            "as python:/opt/flowers/bin/python"
        )
    return value


class ModelConfig(Section):
    """``model.yaml``."""

    runtime: str | None = Field(
        None,
        description="the runtime to use, of those that serve such a file (default: the first)",
    )
    replicas: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="processes that serve each version"
    )
    environment: Annotated[str, AfterValidator(_environment)] | None = Field(
        None,
        description="the interpreter that replicas run with, as `python:/opt/flowers/bin/python` "
        "(default: the node's own)",
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")] = Field(
        "auto", description="auto, cpu, cuda or cuda:N (auto: a GPU when the runtime finds one)"
    )
    precision: Literal["fp32", "bf16", "fp16"] | None = Field(
        None,
        description="the type to compute in, where the runtime can; inputs and outputs keep "
        "theirs (default: as the model is)",
    )
    versions: Versions = Field(
        Versions(), description="latest (default), all, a list, or {latest: N}"
    )
    task_ids: tuple[Annotated[int, Field(ge=0, lt=10**18)], ...] = Field(
        (),
        description="the ids of tasks by which clients of dl_inference call the model, as `[69]`",
    )
    trust: Literal["pickle"] | None = Field(
        None,
        description="pickle: load a pickle of more than weights, which runs the code that it "
        "holds; only for files that you made yourself",
    )
    signature: DeclaredSignature = DeclaredSignature()
    warmup: Warmup = Warmup()
    batching: Batching = Batching()
    resources: Resources = Resources()
    limits: Limits = Limits()
    torch: Torch = Torch()
    onnx: Onnx = Onnx()
    openvino: OpenVino = OpenVino()
    hooks: HookSettings = HookSettings()
    preprocess: Preprocess = Preprocess()
    postprocess: Postprocess = Postprocess()
    tensorflow: Tensorflow = Tensorflow()
    python: Python = Python()
    tensorrt: TensorRt = TensorRt()

    @property
    def interpreter(self) -> Path | None:
        """The interpreter that ``environment`` names."""
        return None if self.environment is None else Path(self.environment.removeprefix(_PYTHON))
