"""The steps before and after a model that need no code: ``preprocess`` and ``postprocess``."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from tidegate.config.section import Section, inside


def _factor(value: object) -> object:
    """Take fractions: ``1/255``."""
    if not isinstance(value, str):
        return value
    try:
        return float(Fraction(value.replace(" ", "")))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is no number: write it as 0.5 or 1/255") from None


def _numbers(value: object) -> object:
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


Factor = Annotated[float, BeforeValidator(_factor), Field(allow_inf_nan=False)]
Numbers = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=False)], ...], BeforeValidator(_numbers)
]
Side = Annotated[int, Field(ge=1, le=16384)]


class ImageStep(Section):
    """From the bytes of an image to what the model takes."""

    size: tuple[Side, Side] | None = Field(
        None,
        description="height and width (default: the model's; where these are dynamic, the image's "
        "own)",
    )
    crop: Literal["center", "none"] = Field(
        "none",
        description="center: keep the proportions and cut off what is over; none: stretch",
    )
    resize: Side | None = Field(
        None,
        description="with `crop: center`, the shorter side before cropping (default: what `size` "
        "just fits into)",
    )
    interpolation: Literal["bilinear", "bicubic", "nearest"] = Field(
        "bilinear", description="how to resize; the first two take all pixels into account"
    )
    channels: Literal["rgb", "bgr", "gray"] | None = Field(
        None, description="default: rgb, or gray where the model takes one channel"
    )
    layout: Literal["NCHW", "NHWC"] | None = Field(
        None, description="default: told by the model's shape"
    )
    scale: Factor | None = Field(
        None,
        description="what pixels of 0 to 255 are multiplied with (default: 1/255 for a "
        "floating-point input, else 1)",
    )
    mean: Numbers = Field(
        (0.0,), description="what is then subtracted, one number or one for each channel"
    )
    std: Annotated[Numbers, AfterValidator(lambda value: _not_zero(value))] = Field(
        (1.0,), description="what is then divided by, likewise"
    )
    max_pixels: PositiveInt = Field(
        2**25, description="an image of more pixels is refused before it is decoded"
    )

    @model_validator(mode="after")
    def _fits(self) -> ImageStep:
        if self.resize is not None and self.crop != "center":
            raise ValueError("resize needs crop: center; size alone says what to stretch to")
        if self.resize is not None and self.size is not None and self.resize < max(self.size):
            raise ValueError(f"resize: {self.resize} is less than size: {list(self.size)}")
        return self


def _not_zero(value: tuple[float, ...]) -> tuple[float, ...]:
    if 0 in value:
        raise ValueError("nothing can be divided by 0")
    return value


class TextStep(Section):
    """From a text to the ids of its tokens."""

    tokenizer: Annotated[str, AfterValidator(inside)] = Field(
        "tokenizer.json", description="the file of the tokenizer, in the model's folder"
    )
    max_length: PositiveInt | None = Field(
        None,
        description="tokens of a text at most; the rest is cut off (default: the model's length "
        "where that is fixed, else the tokenizer's, else 512)",
    )
    pad_to: PositiveInt = Field(
        1,
        description="lengths are rounded up to a multiple of this: texts of one length are joined "
        "into a batch",
    )
    inputs: dict[str, Literal["ids", "mask", "types"]] | None = Field(
        None,
        description="what each input of the model gets (default: told by names as `input_ids`, "
        "`attention_mask`, `token_type_ids`)",
    )
    max_characters: PositiveInt = Field(100_000, description="a longer text is refused")


class Preprocess(Section):
    """What is done with a request before the model, without code: one of these."""

    image: ImageStep | None = None
    text: TextStep | None = None

    @model_validator(mode="after")
    def _one(self) -> Preprocess:
        if self.image is not None and self.text is not None:
            raise ValueError("image and text are both there: a request is one of them")
        return self


class Postprocess(Section):
    """What is done with the scores of classes after the model, without code."""

    output: str | None = Field(
        None, description="the output with the scores (default: the only one that can be)"
    )
    softmax: bool = Field(False, description="make probabilities of scores, which add up to 1")
    sigmoid: bool = Field(False, description="make a probability of each score by itself")
    labels: Annotated[str, AfterValidator(inside)] | None = Field(
        None,
        description="a file in the model's folder with the names of the classes: a line each, or "
        "a JSON list",
    )
    top_k: PositiveInt | None = Field(
        None, description="the best so many classes (default: 5 with labels, else all scores)"
    )

    @model_validator(mode="after")
    def _one(self) -> Postprocess:
        if self.softmax and self.sigmoid:
            raise ValueError("softmax and sigmoid are both true: choose one")
        return self

    @property
    def wanted(self) -> bool:
        """Whether it does anything."""
        return self != Postprocess()
