"""The signature of a model that carries none: what ``model.yaml`` says, and what runs show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tidegate.config.model import DeclaredSignature, DeclaredTensor
from tidegate.errors import ConfigurationError, InsufficientMemory, InvalidModel, TidegateError
from tidegate.runtimes.declared import renamed_outputs
from tidegate.runtimes.samples import Samples
from tidegate.types import Array, Dimension, DType, Signature, TensorSpec

_BATCH = "batch"
_HOW_TO = (
    "{name} does not say what it takes ({takes}): write that into model.yaml, as "
    "signature: {{inputs: [{{name: {first}, dtype: FP32, shape: [batch, 3, 224, 224]}}]}}, where "
    "names are dynamic dimensions and outputs are learnt; or put inputs that it takes into its "
    'folder, with numpy.savez("sample.npz", {first}=…), and write warmup: sample.npz'
)


@dataclass(frozen=True, slots=True)
class Output:
    """An output of one run."""

    name: str
    dtype: DType
    shape: tuple[int, ...]


Run = Callable[[Sequence[TensorSpec], Sequence[Array]], list[Output]]
"""Runs the model on one array for each input; raises as :meth:`Model.run` does."""


def find_signature(
    name: str,
    takes: Sequence[str],
    declared: DeclaredSignature,
    samples: Samples,
    run: Run,
) -> Signature:
    """Find the signature of a model that carries none.

    What is not declared is learnt: the inputs from the operator's sample, the outputs from
    running the model. Two runs with different numbers of rows tell which dimensions are
    dynamic.

    Args:
        name: The model's file, for messages.
        takes: The names of what it takes, where they are known.
        declared: What is said of the signature.
        samples: Inputs for the runs.
        run: Runs the model.

    Raises:
        InvalidModel: nothing says what the model takes, or it fails on what it should take.
        ConfigurationError: what is declared is not so.
        InsufficientMemory: a run does not fit.
    """
    inputs, learnt = _inputs(name, takes, declared.inputs, samples)
    outputs = declared.outputs
    if outputs and not learnt and all(o.dtype and o.shape is not None for o in outputs):
        complete = tuple(TensorSpec(o.name, o.dtype, o.shape) for o in outputs if o.dtype)
        return Signature(inputs, complete)
    if any(spec.shape is None for spec in inputs) and samples.given is None:
        raise InvalidModel(_how_to(name, takes))
    return _learn(inputs, learnt, outputs, samples, run)


def _inputs(
    name: str, takes: Sequence[str], declared: Sequence[DeclaredTensor], samples: Samples
) -> tuple[tuple[TensorSpec, ...], frozenset[str]]:
    """Return the inputs, and the names of those whose shape is that of the sample."""
    given = samples.given or {}
    if not declared:
        if not given:
            raise InvalidModel(_how_to(name, takes))
        own = takes[0] if takes else "input"
        declared = [DeclaredTensor(name=key or own) for key in given]
    specs, learnt = [], set()
    for tensor in declared:
        array = given.get("" if "" in given else tensor.name)
        dtype, shape = tensor.dtype, tensor.shape
        if array is None and (dtype is None or shape is None):
            raise InvalidModel(_how_to(name, takes))
        if array is not None:
            dtype = dtype or DType.of(array.dtype)
            if shape is None:
                shape = (_BATCH, *array.shape[1:]) if array.ndim else ()
                learnt.add(tensor.name)
        assert dtype is not None
        specs.append(TensorSpec(tensor.name, dtype, shape))
    return tuple(specs), frozenset(learnt)


def _learn(
    inputs: tuple[TensorSpec, ...],
    learnt: frozenset[str],
    declared: Sequence[DeclaredTensor],
    samples: Samples,
    run: Run,
) -> Signature:
    sample = samples.make(inputs, None if samples.given is not None else 2)
    assert sample is not None
    one = _try(run, inputs, sample)
    rows = next((len(a) for s, a in zip(inputs, sample) if _dynamic(s)), None)
    if rows is None:
        return Signature(inputs, _specs(one, one, one, {}, declared))
    more = samples.make(inputs, rows + 1)
    assert more is not None
    try:
        two = _try(run, inputs, more)
    except (InvalidModel, InsufficientMemory):
        if not learnt:
            raise
        # It takes this number of rows and no other.
        inputs = tuple(
            replace(s, shape=a.shape) if s.name in learnt else s for s, a in zip(inputs, sample)
        )
        return Signature(inputs, _specs(one, one, one, {}, declared))
    first = next(s.shape[0] for s in inputs if _dynamic(s) and s.shape)
    others = any(not isinstance(d, int) for s in inputs for d in (s.shape or ())[1:])
    longer = _longer(inputs, samples, rows, run) if others else one
    return Signature(inputs, _specs(one, two, longer, {(rows, rows + 1): first}, declared))


def _longer(
    inputs: tuple[TensorSpec, ...], samples: Samples, rows: int, run: Run
) -> list[Output] | None:
    """Run with all dynamic dimensions but the first twice as long; ``None`` if it fails."""
    names = {d for s in inputs for d in (s.shape or ())[1:] if isinstance(d, str)}
    sizes = {name: 2 * samples.sizes.get(name, 1) for name in names}
    made = Samples(None, sizes).make(inputs, rows)
    if made is None or samples.given is not None:
        return None
    try:
        return _try(run, inputs, made)
    except (InvalidModel, InsufficientMemory):
        return None


def _specs(
    one: list[Output],
    two: list[Output],
    longer: list[Output] | None,
    names: dict[tuple[int, int], Dimension],
    declared: Sequence[DeclaredTensor],
) -> tuple[TensorSpec, ...]:
    """Say what the outputs are, from runs with one number of rows, one more, and longer rows."""
    if len(one) != len(two) or (longer is not None and len(longer) != len(one)):
        raise InvalidModel(
            f"the model gave {len(one)} outputs for one sample and {len(two)} for another: it "
            "must always give the same"
        )
    found = []
    for index, (a, b) in enumerate(zip(one, two)):
        shape: tuple[Dimension, ...] | None = None
        if len(a.shape) == len(b.shape):
            other = None if longer is None else longer[index].shape
            shape = tuple(
                _dimension(place, x, y, other, names)
                for place, (x, y) in enumerate(zip(a.shape, b.shape))
            )
        found.append(TensorSpec(a.name, a.dtype, shape))
    return renamed_outputs(found, declared)


def _dimension(
    place: int,
    one: int,
    two: int,
    longer: tuple[int, ...] | None,
    names: dict[tuple[int, int], Dimension],
) -> Dimension:
    if one != two:
        return names.get((one, two))
    return one if longer is not None and longer[place : place + 1] == (one,) else None


def _dynamic(spec: TensorSpec) -> bool:
    return bool(spec.shape) and not isinstance((spec.shape or (0,))[0], int)


def _try(run: Run, inputs: Sequence[TensorSpec], sample: Sequence[Array]) -> list[Output]:
    try:
        return run(inputs, sample)
    except (ConfigurationError, InsufficientMemory):
        raise
    except TidegateError as error:
        shapes = ", ".join(
            f"{s.name} {s.dtype.value} {list(a.shape)}" for s, a in zip(inputs, sample)
        )
        raise InvalidModel(
            f"a trial run on {shapes} failed: {error}; correct signature.inputs in model.yaml, "
            "give the lengths of its dynamic dimensions under warmup.dimensions, or give inputs "
            "that the model takes as warmup.sample"
        ) from error


def _how_to(name: str, takes: Sequence[str]) -> str:
    listed = ", ".join(takes) or "any number of tensors"
    return _HOW_TO.format(name=name, takes=listed, first=takes[0] if takes else "x")
