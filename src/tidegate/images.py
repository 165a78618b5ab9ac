"""Image files that strangers send: decoded, turned upright, and never larger than they may be."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from tidegate.errors import InvalidInput, RuntimeMissing

if TYPE_CHECKING:  # it needs an extra
    from PIL.Image import Image as Picture

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
"""What is read. Pillow knows more, some of which runs other programs."""
MOST_PIXELS = 1024 * 1024 * 1024 // 4 // 3
"""89 million, as Pillow has it: 256 MiB in three colours."""


class NotAnImage(InvalidInput):
    """The bytes are no image of any kind that is read."""


def open_image(
    data: bytes, mode: str = "RGB", most_pixels: int = MOST_PIXELS, side: int | None = None
) -> Picture:
    """Return the image in a file's bytes, turned as its camera says, in Pillow's ``mode``.

    The size that the file tells of is looked at before anything is decoded: so few bytes can
    tell of so many pixels that decoding them is an attack. Of an animation it is the first frame.
    ``side`` says that no side need be longer than that: a JPEG is then decoded at a half, a
    quarter or an eighth of its size if that will do, and may have eight times ``most_pixels``.

    Raises:
        NotAnImage: it is no image.
        InvalidInput: it is damaged, or has more than ``most_pixels`` pixels.
        RuntimeMissing: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise RuntimeMissing(
            "reading images needs Pillow, which is not installed: pip install 'tidegate[image]'"
        ) from error
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if side is not None and opened.width * opened.height <= 8 * most_pixels:
                opened.draft(None, (side, side))
            width, height = opened.size
            if width * height > most_pixels:
                raise InvalidInput(
                    f"the image has {width} x {height} pixels, more than {most_pixels}: send a "
                    "smaller one"
                )
            upright: Any = ImageOps.exif_transpose(opened)
            picture: Picture = upright.convert(mode)
            return picture
    except UnidentifiedImageError:
        raise NotAnImage(
            f"this is no image that is read here ({', '.join(FORMATS)}): it begins "
            f"{bytes(data[:16])!r}"
        ) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InvalidInput(f"the image is too large: {error}") from None
    except (InvalidInput, MemoryError):
        raise
    except Exception as error:
        # Of a damaged file, what reads it raises whatever comes: struct.error, TypeError, …
        raise InvalidInput(f"the image cannot be decoded: {error}") from None
