"""What lies in the folders of the models: hooks, steps and classes."""

from __future__ import annotations

READS_PICTURES = """\
import numpy as np

INPUT, OUTPUT = "image", "json"


def preprocess(request):
    return np.asarray(request.image("L"), np.float32)[None, None] / 16


def postprocess(request, outputs):
    return {"digit": int(outputs["%s"][0].argmax()), "written": "\u4e2d"}
"""
MAKES_PICTURES = """\
import io

import numpy as np
from PIL import Image

INPUT, OUTPUT = "image", "image"


def preprocess(request):
    return np.asarray(request.image("L"), np.float32)[None]


def postprocess(request, outputs):
    file = io.BytesIO()
    Image.fromarray((255 - outputs["y"][0]).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
"""
PYTHON = {
    "numbers": """\
import joblib


class Model:
    signature = {
        "inputs": [{"name": "image", "dtype": "FP32", "shape": ["batch", 1, 8, 8]}],
        "outputs": [{"name": "probabilities", "dtype": "FP32", "shape": ["batch", 10]}],
    }

    def load(self, context):
        self.regression = joblib.load(context.path("regression.joblib"))

    def run(self, inputs):
        pixels = inputs["image"].reshape(-1, 64)
        return {"probabilities": self.regression.predict_proba(pixels)}
""",
    "integers": """\
import numpy as np


class Model:
    signature = {
        "inputs": [
            {"name": "number", "dtype": "INT64", "shape": ["batch", 3]},
            {"name": "negate", "dtype": "BOOL", "shape": ["batch", 3]},
        ],
    }

    def run(self, inputs):
        number, negate = inputs["number"], inputs["negate"]
        return {"result": np.where(negate, -number, number), "even": number % 2 == 0}
""",
    "texts": """\
class Model:
    signature = {"inputs": [{"name": "text", "dtype": "BYTES", "shape": ["batch"]}]}

    def run(self, inputs):
        return {"loud": inputs["text"] + b"!"}
""",
}
STEPS = """\
preprocess: {image: {scale: 0.0625}}
postprocess: {labels: labels.txt, top_k: 3}
"""
