"""``preprocess: {image: …}``: from the bytes of images to what a model takes, without code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tidegate.config.steps import ImageStep
from tidegate.errors import ConfigurationError, InvalidInput, RuntimeMissing
from tidegate.hooks import Request
from tidegate.images import open_image
from tidegate.types import Array, Dimension, TensorSpec

_LARGEST_UNSIZED = 2**24
"""Pixels of an image that is not resized: its numbers take twelve bytes each, and more."""


class ImagePreprocess:
    """Decodes, resizes and normalises the images of a request; each is a row.

    ``spec`` is the model's input, ``most`` how many images one request may have.
    """

    def __init__(self, step: ImageStep, spec: TensorSpec, most: int) -> None:
        self._step = step
        self._most = most
        self._dtype = spec.dtype.numpy
        kind = self._dtype.kind
        if kind not in "fiuV" or spec.dtype.itemsize is None:
            raise ConfigurationError(
                f"preprocess.image: the input {spec.name!r} is {spec.dtype.value}, not pixels"
            )
        self._first, self._channels, fixed = _layout(step, spec)
        self._size = step.size
        height, width = fixed
        if self._size is None and height is not None and width is not None:
            self._size = (height, width)
        for want, have in zip(self._size or (), fixed):
            if have is not None and have != want:
                raise ConfigurationError(
                    f"preprocess.image.size is {list(self._size or ())}, but the model takes "
                    f"{list(spec.shape or ())}"
                )
        self._most_pixels = step.max_pixels
        if self._size is None:
            self._most_pixels = min(step.max_pixels, _LARGEST_UNSIZED)
        scale = step.scale if step.scale is not None else (1 / 255 if kind in "fV" else 1.0)
        mean, std = (
            _each(n, v, self._channels) for n, v in (("mean", step.mean), ("std", step.std))
        )
        self._factor = np.float32(scale) / std
        self._shift = mean / std
        self._plain = not self._shift.any() and bool((self._factor == 1).all())
        _check_pillow()

    def __call__(self, request: Request) -> Array:
        """Return the rows of a request.

        Raises:
            InvalidInput: one is no image, or too large, or there are too many.
        """
        images = [request.data] if not request.tensors else request.tensor().tolist()
        if not 1 <= len(images) <= self._most:
            raise InvalidInput(f"send 1 to {self._most} images in one request, not {len(images)}")
        rows = [self._row(data) for data in images]
        if any(row.shape != rows[0].shape for row in rows):
            raise InvalidInput("the images of one request must be of one size")
        return rows[0][np.newaxis] if len(rows) == 1 else np.stack(rows)

    def _row(self, data: bytes) -> Array:
        picture = open_image(data, "L" if self._channels == 1 else "RGB", self._most_pixels)
        pixels = np.asarray(self._sized(picture))
        if self._channels == 1:
            pixels = pixels[:, :, np.newaxis]
        elif self._step.channels == "bgr":
            pixels = pixels[:, :, ::-1]
        if self._plain:
            values: Array = pixels.astype(self._dtype)
        else:
            values = pixels * self._factor - self._shift
            if self._dtype.kind in "iu":
                limits = np.iinfo(self._dtype)
                values = np.clip(np.rint(values), limits.min, limits.max)
            values = values.astype(self._dtype, copy=False)
        return np.ascontiguousarray(values.transpose(2, 0, 1) if self._first else values)

    def _sized(self, picture: Any) -> Any:
        if self._size is None:
            return picture
        from PIL.Image import Resampling

        step = self._step
        how = Resampling[step.interpolation.upper()]
        height, width = self._size
        if step.crop == "none":
            return picture.resize((width, height), how)
        if step.resize is None:
            factor = max(height / picture.height, width / picture.width)
        else:
            factor = step.resize / min(picture.size)
        # Never less than what is cut out, whatever the rounding.
        across = max(width, round(picture.width * factor))
        down = max(height, round(picture.height * factor))
        if across * down > self._most_pixels:
            raise InvalidInput(
                f"the image of {picture.width} x {picture.height} is too long and narrow"
            )
        picture = picture.resize((across, down), how)
        left, top = round((across - width) / 2), round((down - height) / 2)
        return picture.crop((left, top, left + width, top + height))


def image_preprocess(
    step: ImageStep, inputs: tuple[TensorSpec, ...], most: int
) -> Callable[[Request], Array]:
    """Return the step for a model of these inputs.

    Raises:
        ConfigurationError: they are not one image, or contradict what is asked for.
        RuntimeMissing: Pillow is not installed.
    """
    if len(inputs) != 1:
        names = ", ".join(repr(spec.name) for spec in inputs)
        raise ConfigurationError(
            f"preprocess.image is for a model of one input, but this has {names}: write hooks.py"
        )
    return ImagePreprocess(step, inputs[0], most)


def _layout(step: ImageStep, spec: TensorSpec) -> tuple[bool, int, tuple[int | None, int | None]]:
    """Return whether the channels come first, how many, and height and width where fixed."""
    shape = spec.shape
    if shape is None:
        shape = ("batch", None, None, None)
    if len(shape) != 4:
        raise ConfigurationError(
            f"preprocess.image: the input {spec.name!r} has the shape {list(shape)}, but images "
            "are [batch, channels, height, width] or [batch, height, width, channels]"
        )
    wanted = {"gray": (1,), "rgb": (3,), "bgr": (3,), None: (3, 1)}[step.channels]
    for layout, channels, sides in (
        ("NCHW", shape[1], shape[2:]),
        ("NHWC", shape[3], shape[1:3]),
    ):
        if step.layout not in (None, layout):
            continue
        if channels in wanted or (step.layout == layout and not isinstance(channels, int)):
            number = channels if isinstance(channels, int) else wanted[0]
            return layout == "NCHW", number, (_number(sides[0]), _number(sides[1]))
    raise ConfigurationError(
        f"preprocess.image: the input {spec.name!r} has the shape {list(shape)}, in which there "
        f"are no {' or '.join(map(str, wanted))} channels"
        + (f" as {step.layout} has them" if step.layout else ": name its layout, NCHW or NHWC")
    )


def _number(dimension: Dimension) -> int | None:
    return dimension if isinstance(dimension, int) else None


def _each(name: str, values: tuple[float, ...], channels: int) -> Array:
    if len(values) not in (1, channels):
        raise ConfigurationError(
            f"preprocess.image.{name} has {len(values)} numbers for {channels} channels: give "
            "one, or one for each"
        )
    return np.array(values, np.float32)


def _check_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401 - whether it is there
    except ImportError as error:
        raise RuntimeMissing(
            "preprocess.image needs Pillow, which is not installed: pip install 'tidegate[image]'"
        ) from error
