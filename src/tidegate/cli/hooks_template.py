"""Hooks: what is done around the model in this folder. Remove the functions that you don't need.

As it is, this file changes nothing. Try it without a server by ``tidegate infer FOLDER INPUT``.
"""

from tidegate.hooks import Batch, InvalidInput, Model, Outputs, Request

# What clients send: "image", "text", "bytes", "json", "model" (what the model itself takes), or a
# list of tensors: [{"name": "x", "dtype": "FP32", "shape": ["batch", 3]}]. Without it, preprocess
# gets whatever came.
INPUT = "model"

# What they get, likewise. Without it, what postprocess returns decides.
OUTPUT = "model"

# Parameters of requests that run_model is told of; only requests that agree in them are joined.
# GROUP_BY = ("scale",)


def preprocess(request: Request) -> Outputs:
    """Return what the model takes: arrays by input. Called for each request, in a thread.

    An image, for example::

        picture = request.image().resize((224, 224))
        pixels = np.asarray(picture, np.float32) / 255
        return {"x": pixels.transpose(2, 0, 1)[None]}

    The first dimension is the batch: ``[None]`` makes it one row.
    """
    if any(array.size == 0 for array in request.tensors.values()):
        # The caller is told so, as INVALID_ARGUMENT. Any other error is the model's fault: its
        # log has the traceback.
        raise InvalidInput("there is nothing in a tensor: send one row at least")
    return request.tensors


def run_model(model: Model, batch: Batch) -> Outputs:
    """Return what comes out: arrays by output. Called for the rows of several requests at once.

    The model may be called more than once. ``batch.parameters`` are those that GROUP_BY names,
    ``model.native`` is the framework's own object.
    """
    return model(batch.inputs, batch.outputs)


def postprocess(request: Request, outputs: Outputs) -> Outputs:
    """Return the answer: arrays, text, bytes or JSON. Called for each request, in a thread.

    The best of some scores, for example::

        scores = outputs["scores"][0]
        return {"label": LABELS[int(scores.argmax())], "score": float(scores.max())}
    """
    return outputs
