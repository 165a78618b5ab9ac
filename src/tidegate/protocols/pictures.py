"""Images as the input of a model that takes them as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tidegate.errors import InvalidInput
from tidegate.images import MOST_PIXELS, open_image
from tidegate.types import Array, Dimension, Tensor, TensorSpec

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, slots=True)
class PictureInput:
    """An input that is shaped like images, [N]HWC or [N]CHW."""

    spec: TensorSpec
    channels: int
    height: Dimension
    width: Dimension
    channels_first: bool

    @classmethod
    def of(cls, spec: TensorSpec) -> PictureInput | None:
        """Return how ``spec`` takes images; ``None`` when it does not."""
        shape = spec.shape or ()
        if len(shape) not in (3, 4) or spec.dtype.numpy.kind not in "fVui":
            return None
        first, second, last = shape[-3:]
        # [4, 6, 3] is a small picture in colours: 4 channels are the rarest.
        for channels in ((1, 3), (4,)):
            if isinstance(first, int) and first in channels:
                return cls(spec, first, second, last, channels_first=True)
            if isinstance(last, int) and last in channels:
                return cls(spec, last, first, second, channels_first=False)
        return None

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers, so that pixels are what they are in the file."""
        return self.spec.dtype.numpy.kind in "ui"

    def tensor(self, data: bytes, scale: float | None, most_pixels: int = MOST_PIXELS) -> Tensor:
        """Return the image in a file as the input.

        It is turned as its camera says, converted to as many channels as the input has (1, 3 or
        4), resized where the input's height and width are fixed, and multiplied with ``scale``:
        by default, 1/255 where the input is of floating-point numbers.

        Raises:
            InvalidInput: it is no image, is damaged or has more than ``most_pixels``.
            RuntimeMissing: Pillow is not installed.
        """
        size = None
        if isinstance(self.height, int) and isinstance(self.width, int):
            size = (self.width, self.height)
        side = None if size is None else max(size)
        picture = open_image(data, _MODES[self.channels], most_pixels, side)
        if size is not None:
            from PIL.Image import Resampling

            picture = picture.resize(size, Resampling.BILINEAR)
        pixels = np.asarray(picture)
        if self.channels == 1:
            pixels = pixels[:, :, np.newaxis]
        pixels = self._scaled(pixels, scale)
        if self.channels_first:
            pixels = pixels.transpose(2, 0, 1)
        if len(self.spec.shape or ()) == 4:
            pixels = pixels[np.newaxis]
        return Tensor(self.spec.name, self.spec.dtype, np.ascontiguousarray(pixels))

    def _scaled(self, picture: Array, scale: float | None) -> Array:
        dtype = self.spec.dtype.numpy
        if not self.whole:
            factor = 1 / 255 if scale is None else scale
            return (picture * np.float32(factor)).astype(dtype)
        limits = np.iinfo(dtype)
        values = picture if scale is None else np.rint(picture * scale)
        return np.clip(values, limits.min, limits.max).astype(dtype)


def picture_input(spec: TensorSpec) -> PictureInput:
    """Return how ``spec`` takes images.

    Raises:
        InvalidInput: it does not.
    """
    found = PictureInput.of(spec)
    if found is None:
        raise InvalidInput(
            f"the input {spec.name!r} ({spec.dtype.value} {list(spec.wire_shape)}) does not take "
            "images as [N, height, width, channels] or [N, channels, height, width] with 1, 3 or "
            "4 channels"
        )
    return found
