"""Reads a picture of one handwritten digit: clients send an image and get labels.

The model takes ink in 8 x 8 cells, 0 (paper) to 16 (full). The picture is turned into that: grey,
ink bright on dark paper, cut to the digit, a square with as much margin as the model knows.
"""

import numpy as np
from PIL import Image

from tidegate.hooks import Array, InvalidInput, Json, Outputs, Request

INPUT = "image"
OUTPUT = "json"

CELLS = 8
FULL = 16
"""A cell that is all ink."""
FAINTEST = 48
"""How much brighter ink must be than paper, of 255."""


def preprocess(request: Request) -> Array:
    """Return the ink of the picture, [1, 1, 8, 8]."""
    picture = request.image("L")
    picture.thumbnail((512, 512))
    pixels = np.asarray(picture, np.float32)
    paper = np.median([*pixels[0], *pixels[-1], *pixels[:, 0], *pixels[:, -1]])
    ink = np.abs(pixels - paper)
    if ink.max() < FAINTEST:
        raise InvalidInput("there is no ink in the picture: send one digit on plain paper")
    ink /= ink.max()
    rows, columns = np.nonzero(ink > 0.3)
    digit = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = digit.shape
    side = max(height, width)
    square = np.zeros((side, side), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = digit
    cells = Image.fromarray(square).resize((CELLS, CELLS), Image.Resampling.BOX)
    return np.asarray(cells, np.float32)[None, None] * FULL


def postprocess(request: Request, outputs: Outputs) -> Json:
    """Return the three likeliest digits, the best first."""
    scores = outputs["probabilities"][0]
    best = np.argsort(-scores)[:3]
    return [{"label": str(digit), "score": round(float(scores[digit]), 4)} for digit in best]
