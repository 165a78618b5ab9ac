"""Images that strangers send: whatever is wrong with them is said, and nothing else happens."""

from __future__ import annotations

import contextlib
import io
import random
import warnings

import pytest
from PIL import Image

from tidegate.errors import InvalidInput
from tidegate.images import NotAnImage, open_image


def _files() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "made by hand"
    noise = Image.effect_noise((24, 16), 60)
    files = []
    for form, options in (
        ("PNG", {"exif": exif}),
        ("JPEG", {"exif": exif}),
        ("JPEG", {"progressive": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {"exif": exif}),
        ("TIFF", {"exif": exif}),
    ):
        buffer = io.BytesIO()
        noise.save(buffer, form, **options)
        files.append(buffer.getvalue())
    return files


FILES = _files()


@pytest.mark.parametrize("data", FILES)
def test_every_format_is_read(data: bytes) -> None:
    picture = open_image(data)
    assert (picture.mode, sorted(picture.size)) == ("RGB", [16, 24])


@pytest.mark.parametrize("data", FILES)
def test_a_damaged_file_is_the_callers_fault(data: bytes) -> None:
    rng = random.Random(len(data))
    with warnings.catch_warnings(action="ignore"):
        for _ in range(300):
            damaged = bytearray(data)
            for _ in range(rng.choice((1, 2, 8))):
                place = rng.randrange(min(len(damaged), rng.choice((64, 200, len(damaged)))))
                damaged[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(1, 4))
            with contextlib.suppress(InvalidInput):
                open_image(bytes(damaged[: rng.choice((None, len(data) // 2))]))


def test_what_a_library_raises_of_a_damaged_file_is_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: object) -> None:
        raise TypeError("bad operand")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", broken)
    with pytest.raises(InvalidInput, match="cannot be decoded: bad operand"):
        open_image(FILES[0])


def test_what_is_no_image_says_how_it_begins() -> None:
    with pytest.raises(NotAnImage, match="it begins b'hello'"):
        open_image(b"hello")
