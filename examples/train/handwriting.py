"""Real handwriting: the digits that scikit-learn ships, and the split that all examples use.

The data are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, 1998, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0):
1797 digits, each scaled down to 8 x 8 cells that count the inked pixels, 0 to 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

TRAINING_SAMPLES = 1297
"""The first so many are for training, the other 500 are held out.

The cut is not a random draw: neighbours in the file are often by the same hand, and a shuffle
would put them on both sides and flatter the model.
"""


@dataclass(frozen=True, slots=True)
class Handwriting:
    """Digits and what they are: ``images`` FP32 [n, 1, 8, 8] of 0 to 16, ``digits`` INT64 [n]."""

    images: npt.NDArray[np.float32]
    digits: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.digits)


def load() -> tuple[Handwriting, Handwriting]:
    """Return the training part and the held-out part, always the same."""
    data: Any = load_digits()
    images = np.ascontiguousarray(data.images[:, np.newaxis], dtype=np.float32)
    digits = np.ascontiguousarray(data.target, dtype=np.int64)
    cut = TRAINING_SAMPLES
    return Handwriting(images[:cut], digits[:cut]), Handwriting(images[cut:], digits[cut:])
