"""Images as the input of a model that takes them as numbers."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from tidegate.errors import InvalidInput, RuntimeMissing
from tidegate.protocols.open_inference.tensors import shown
from tidegate.types import Array, Dimension, Tensor, TensorSpec

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
"""What is read. Pillow knows more, some of which runs other programs."""
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def image_tensor(name: str, data: bytes, spec: TensorSpec, scale: float | None) -> Tensor:
    """Return the image in a file as the input ``spec``, [N]HWC or [N]CHW.

    It is turned as its camera says, converted to as many channels as the input has (1, 3 or
    4), resized where the input's height and width are fixed, and multiplied with ``scale``.

    Raises:
        InvalidInput: it is no image, or the input is not shaped like one.
        RuntimeMissing: Pillow is not installed.
    """
    channels, height, width, first = _layout(spec)
    picture = _decoded(name, data, channels, height, width)
    if channels == 1:
        picture = picture[:, :, np.newaxis]
    pixels = _scaled(picture, spec, scale)
    if first:
        pixels = pixels.transpose(2, 0, 1)
    if len(spec.shape or ()) == 4:
        pixels = pixels[np.newaxis]
    return Tensor(spec.name, spec.dtype, np.ascontiguousarray(pixels))


def _layout(spec: TensorSpec) -> tuple[int, Dimension, Dimension, bool]:
    """Return channels, height, width, and whether the channels come first."""
    shape = spec.shape or ()
    if len(shape) in (3, 4) and spec.dtype.itemsize is not None:
        first, second, last = shape[-3:]
        # [4, 6, 3] is a small picture in colours: 4 channels are the rarest.
        for channels in ((1, 3), (4,)):
            if isinstance(first, int) and first in channels:
                return first, second, last, True
            if isinstance(last, int) and last in channels:
                return last, first, second, False
    raise InvalidInput(
        f"the input {spec.name!r} ({spec.dtype.value} {list(spec.wire_shape)}) does not take "
        "images as [N, height, width, channels] or [N, channels, height, width] with 1, 3 or 4 "
        "channels; give an .npy file, JSON, or the file's bytes with --raw"
    )


def _decoded(name: str, data: bytes, channels: int, height: Dimension, width: Dimension) -> Array:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise RuntimeMissing(
            "reading images needs Pillow, which is not installed: pip install 'tidegate[image]'"
        ) from error
    try:
        with warnings.catch_warnings():
            # So few bytes can tell of so many pixels that decoding them is an attack.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
                image: Any = ImageOps.exif_transpose(opened).convert(_MODES[channels])
        if isinstance(height, int) and isinstance(width, int):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image)
    except UnidentifiedImageError:
        raise InvalidInput(
            f"{shown(name)} is neither JSON, .npy, .npz nor an image ({', '.join(_FORMATS)}); "
            "give --raw if it holds the bytes of the input"
        ) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InvalidInput(f"the image {shown(name)} is too large: {error}") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidInput(f"the image {shown(name)} cannot be decoded: {error}") from None


def _scaled(picture: Array, spec: TensorSpec, scale: float | None) -> Array:
    kind = spec.dtype.numpy.kind
    if kind in "fV":
        factor = 1 / 255 if scale is None else scale
        return (picture * np.float32(factor)).astype(spec.dtype.numpy)
    if kind not in "iu":
        raise InvalidInput(f"the input {spec.name!r} is {spec.dtype.value}, not pixels")
    limits = np.iinfo(spec.dtype.numpy)
    values = picture if scale is None else np.rint(picture * scale)
    return np.clip(values, limits.min, limits.max).astype(spec.dtype.numpy)
