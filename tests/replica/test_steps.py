"""Steps that need no code: images, texts, labels."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.replica.fake_model import FakeModel
from tidegate.config.model import ModelConfig
from tidegate.errors import ConfigurationError, InferenceFailed, InvalidInput, InvalidModel
from tidegate.hooks import Request, Response
from tidegate.replica.binding import binding
from tidegate.replica.hooks import Functions
from tidegate.replica.loading import with_hooks
from tidegate.replica.steps import with_steps
from tidegate.runtimes.folder_code import code_in
from tidegate.types import (
    Array,
    Dimension,
    DType,
    InferRequest,
    InferResponse,
    Signature,
    Tensor,
    TensorSpec,
)

NCHW = ("batch", 3, 4, 6)
SCORES = (TensorSpec("y", DType.FP32, ("batch", 3)),)
PICTURE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)


def signature(
    shape: tuple[Dimension, ...] | None = NCHW,
    dtype: DType = DType.FP32,
    outputs: tuple[TensorSpec, ...] = SCORES,
) -> Signature:
    return Signature((TensorSpec("x", dtype, shape),), outputs)


def functions(
    config: dict[str, Any], found: Signature, folder: Path | None = None, own: Any = None
) -> Functions:
    code = None if folder is None else code_in(folder / "m", folder)
    made = with_steps(own, ModelConfig.model_validate(config), found, code)
    assert made is not None
    return made


def image(step: dict[str, Any], found: Signature, *files: bytes) -> Array:
    """Return what the model is given."""
    made = functions({"preprocess": {"image": step}}, found)
    assert made.preprocess is not None
    request = Request(payload=files[0]) if len(files) == 1 else Request({"image": texts(*files)})
    array: Array = made.preprocess(request)
    return array


def texts(*elements: bytes) -> Array:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array


def png(pixels: Array = PICTURE, **how: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **how)
    return buffer.getvalue()


def test_an_image_is_stretched_and_scaled() -> None:
    array = image({}, signature(), png())
    resized = Image.fromarray(PICTURE).resize((6, 4), Image.Resampling.BILINEAR)
    expected = np.asarray(resized, np.float32).transpose(2, 0, 1)[None] / 255
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    np.testing.assert_allclose(array, expected, rtol=1e-6)


def test_mean_and_std_as_torchvision_has_them() -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    step = {"size": [4, 4], "crop": "center", "resize": 5, "mean": mean, "std": std}
    array = image(step, signature(("batch", 3, None, None)), png())
    # 9 x 7: the shorter side becomes 5, and 4 x 4 are cut out of 6 x 5.
    resized = Image.fromarray(PICTURE).resize((5, 6), Image.Resampling.BILINEAR)
    cut = np.asarray(resized.crop((0, 1, 4, 5)), np.float32) / 255
    expected = ((cut - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)
    np.testing.assert_allclose(array[0], expected, rtol=1e-5, atol=1e-6)


def test_cropping_keeps_the_proportions() -> None:
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, 15:25] = 255
    array = image({"crop": "center"}, signature(("batch", 3, 10, 10)), png(pixels))
    assert array.min() == 1.0


@pytest.mark.parametrize(
    ("step", "found", "shape"),
    [
        ({"size": [2, 5]}, signature(("batch", None, None, 3)), (1, 2, 5, 3)),
        ({}, signature((None, 9, 7, 3)), (1, 9, 7, 3)),
        ({}, signature(("n", 3, "h", "w")), (1, 3, 9, 7)),
        ({}, signature(("n", 1, 4, 4)), (1, 1, 4, 4)),
        ({"layout": "NHWC", "size": [3, 3]}, signature(("n", 3, 3, 3)), (1, 3, 3, 3)),
        ({"layout": "NHWC", "channels": "gray"}, signature(("n", "h", "w", "c")), (1, 9, 7, 1)),
        ({"layout": "NCHW", "size": [2, 2]}, signature(None), (1, 3, 2, 2)),
    ],
)
def test_layouts(step: dict[str, Any], found: Signature, shape: tuple[int, ...]) -> None:
    assert image(step, found, png()).shape == shape


def test_types_and_channels() -> None:
    same = signature(("n", 9, 7, 3), DType.UINT8)
    assert (image({}, same, png())[0] == PICTURE).all()
    assert (image({"channels": "bgr"}, same, png())[0] == PICTURE[:, :, ::-1]).all()
    caffe = {"scale": 1, "mean": [104, 117, 123], "channels": "bgr"}
    found = image(caffe, signature(("n", 9, 7, 3)), png())[0]
    np.testing.assert_allclose(
        found, PICTURE[:, :, ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32)
    )
    half = image({"scale": "1/2"}, same, png())[0]
    assert (half == np.rint(PICTURE * np.float32(0.5))).all()
    signed = image({"mean": 128}, signature(("n", 9, 7, 3), DType.INT8), png())[0]
    assert (signed == PICTURE.astype(int) - 128).all()
    assert image({}, signature(dtype=DType.FP16), png()).dtype == np.float16


def test_several_images_are_several_rows() -> None:
    array = image({}, signature(), png(), png(PICTURE[::-1]), png())
    assert array.shape == (3, 3, 4, 6)
    assert (array[0] == array[2]).all()
    assert (array[0] != array[1]).any()
    with pytest.raises(InvalidInput, match="send 1 to 32 images in one request, not 33"):
        image({}, signature(), *[png()] * 33)
    with pytest.raises(InvalidInput, match="must be of one size"):
        image({}, signature(("n", 3, "h", "w")), png(), png(PICTURE[1:]))


def test_an_image_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    found = image({}, signature(("n", "h", "w", 3), DType.UINT8), png(exif=exif))
    assert (found[0] == np.rot90(PICTURE, -1)).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "I;16"])
def test_images_of_every_kind_become_colours(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (5, 4)).save(buffer, "TIFF")
    assert image({}, signature(), buffer.getvalue()).shape == (1, 3, 4, 6)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "this is no image"),
        (b"GIF89a", "image"),
        (png()[:60], "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "this is no image"),
    ],
)
def test_what_is_no_image_is_the_callers_fault(data: bytes, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        image({}, signature(), data)


def test_an_image_is_not_decoded_when_it_tells_of_too_many_pixels() -> None:
    with pytest.raises(InvalidInput, match="7 x 9 pixels, more than 62"):
        image({"max_pixels": 62}, signature(), png())
    bomb = bytearray(png())
    bomb[16:24] = (30_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(InvalidInput, match="the image is too large"):
        image({}, signature(), bytes(bomb))
    narrow = png(np.zeros((1, 3000, 3), np.uint8))
    with pytest.raises(InvalidInput, match="too long and narrow"):
        image({"crop": "center", "max_pixels": 10**6}, signature(("n", 3, 64, 64)), narrow)


@pytest.mark.parametrize(
    ("step", "found", "said"),
    [
        ({"size": [4, 4]}, signature(), "size is [4, 4], but the model takes"),
        ({}, signature(("n", 3)), "images are [batch, channels, height, width]"),
        ({}, signature(("n", 8, 8, 8)), "there are no 3 or 1 channels"),
        ({"layout": "NHWC"}, signature(), "as NHWC has them"),
        ({"channels": "gray"}, signature(), "no 1 channels"),
        ({"mean": [1, 2]}, signature(), "mean has 2 numbers for 3 channels"),
        ({}, signature(dtype=DType.BYTES), "BYTES, not pixels"),
        ({}, Signature((), ()), "for a model of one input"),
    ],
)
def test_what_does_not_go_with_the_model(
    step: dict[str, Any], found: Signature, said: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        image(step, found, png())
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"preprocess": {"image": {}, "text": {}}}, "image and text are both there"),
        ({"preprocess": {"image": {"resize": 3}}}, "resize needs crop: center"),
        ({"preprocess": {"image": {"resize": 3, "crop": "center", "size": [4, 4]}}}, "less than"),
        ({"preprocess": {"image": {"std": 0}}}, "divided by 0"),
        ({"preprocess": {"image": {"scale": "1/0"}}}, "is no number"),
        ({"preprocess": {"image": {"size": [0, 4]}}}, "greater than or equal to 1"),
        ({"preprocess": {"text": {"tokenizer": "../x"}}}, "must lie in the model's folder"),
        ({"postprocess": {"softmax": True, "sigmoid": True}}, "choose one"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ModelConfig.model_validate(settings)


VOCABULARY = {"[PAD]": 7, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5, "ü": 6}


def tokenizer(folder: Path, **changed: Any) -> None:
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_padding(pad_id=7, pad_token="[PAD]", **changed)
    made.save(str(folder / "tokenizer.json"))


def bert(*names: str, length: Dimension = "length", dtype: DType = DType.INT64) -> Signature:
    inputs = names or ("input_ids", "attention_mask", "token_type_ids")
    return Signature(tuple(TensorSpec(n, dtype, ("batch", length)) for n in inputs), SCORES)


def tokens(
    folder: Path, step: dict[str, Any], found: Signature, *sent: str
) -> dict[str, list[list[int]]]:
    made = functions({"preprocess": {"text": step}}, found, folder)
    assert made.preprocess is not None
    request = Request(payload=sent[0])
    if len(sent) != 1:
        request = Request({"text": texts(*(text.encode() for text in sent))})
    arrays = made.preprocess(request)
    assert {a.dtype for a in arrays.values()} == {spec.dtype.numpy for spec in found.inputs}
    return {name: array.tolist() for name, array in arrays.items()}


def test_a_text_becomes_tokens(tmp_path: Path) -> None:
    tokenizer(tmp_path, length=16)
    assert tokens(tmp_path, {}, bert(), "A ü x") == {
        "input_ids": [[2, 4, 6, 1, 3]],
        "attention_mask": [[1, 1, 1, 1, 1]],
        "token_type_ids": [[0, 0, 0, 0, 0]],
    }


def test_texts_are_as_long_as_they_must_be(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    two = tokens(tmp_path, {}, bert(), "a b", "a")
    assert two["input_ids"] == [[2, 4, 5, 3], [2, 4, 3, 7]]
    assert two["attention_mask"] == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert tokens(tmp_path, {"pad_to": 4}, bert(), "a b b")["input_ids"] == [
        [2, 4, 5, 5, 3, 7, 7, 7]
    ]
    assert tokens(tmp_path, {"max_length": 3}, bert(), "a b b")["input_ids"] == [[2, 4, 3]]
    fixed = tokens(tmp_path, {}, bert("input_ids", length=6, dtype=DType.INT32), "a")
    assert fixed == {"input_ids": [[2, 4, 3, 7, 7, 7]]}
    cut = tokens(tmp_path, {}, bert("input_ids", length=3), "a b b")
    assert cut == {"input_ids": [[2, 4, 3]]}
    named = tokens(tmp_path, {"inputs": {"q": "mask", "w": "ids"}}, bert("w", "q"), "a")
    assert named == {"w": [[2, 4, 3]], "q": [[1, 1, 1]]}


def test_texts_that_are_refused(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    step = {"max_characters": 3}
    with pytest.raises(InvalidInput, match="4 characters, more than 3"):
        tokens(tmp_path, step, bert(), "aaaa")
    with pytest.raises(InvalidInput, match="send 1 to 32 texts"):
        tokens(tmp_path, step, bert(), *["a"] * 33)
    made = functions({"preprocess": {"text": {}}}, bert(), tmp_path)
    assert made.preprocess is not None
    with pytest.raises(InvalidInput, match="UTF-8"):
        made.preprocess(Request({"text": texts(b"\xff")}))
    assert tokens(tmp_path, {}, bert(), "")["input_ids"] == [[2, 3]]


@pytest.mark.parametrize(
    ("step", "found", "said"),
    [
        ({}, bert("words"), "does not know what the input 'words' INT64"),
        ({}, signature(), "does not know what the input 'x' FP32"),
        ({"inputs": {"y": "ids", "input_ids": "ids"}}, bert("input_ids"), "has 'y'"),
        ({"max_length": 9}, bert("input_ids", length=4), "max_length is 9"),
    ],
)
def test_texts_for_other_models(
    tmp_path: Path, step: dict[str, Any], found: Signature, said: str
) -> None:
    tokenizer(tmp_path)
    with pytest.raises(ConfigurationError) as refused:
        tokens(tmp_path, step, found, "a")
    assert said in str(refused.value)


def test_tokenizers_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"no tokenizer\.json in the model's folder"):
        tokens(tmp_path, {}, bert(), "a")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidModel, match=r"tokenizer\.json is no tokenizer"):
        tokens(tmp_path, {}, bert(), "a")


def named(
    folder: Path, step: dict[str, Any], scores: Any, *, payload: Any = b"x"
) -> tuple[dict[str, Any], Any]:
    """Return the tensors and the JSON that come of ``scores``."""
    array = np.array(scores, np.float32)
    own = Functions(lambda request: array)

    class Echo(FakeModel):
        def run(self, inputs: Any, outputs: Any) -> dict[str, Array]:
            return {"y": inputs["x"]}

    spec = TensorSpec("x", DType.FP32, ("batch", 3))
    found = Signature((spec,), SCORES)
    loaded = with_hooks(
        Echo(signature=found), functions({"postprocess": step}, found, folder, own)
    )
    hooks = loaded.hooks(binding(loaded.model.signatures, {"serving_default": True}))
    assert hooks is not None
    sent = InferRequest("m", payload=payload)
    if payload is None:
        sent = InferRequest("m", inputs=(Tensor.of("z", array),))
    prepared = hooks.prepare(sent)
    (outcome,) = loaded.runner(lambda: 0.0).run([prepared.bound]).outcomes
    assert isinstance(outcome, dict), outcome
    response: InferResponse = hooks.finish(sent, prepared, outcome)
    assert [t.name for t in response.outputs] == [s.name for s in loaded.public.outputs]
    return {t.name: t.data.tolist() for t in response.outputs}, response.payload


def test_scores_become_names(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndög\ncow\n\n")
    step = {"softmax": True, "labels": "labels.txt", "top_k": 2}
    tensors, said = named(tmp_path, step, [[1, 1000, 999]])
    assert tensors["label"] == [["dög".encode(), b"cow"]]
    np.testing.assert_allclose(tensors["score"], [[0.7310586, 0.26894143]], rtol=1e-5)
    assert [each["label"] for each in said] == ["dög", "cow"]
    (tmp_path / "labels.json").write_text('["a", "b", "c"]')
    tensors, said = named(
        tmp_path, {"labels": "labels.json"}, [[3, 2, 1], [0, 0, 9]], payload=None
    )
    assert tensors["label"] == [[b"a", b"b", b"c"], [b"c", b"a", b"b"]]
    assert said[1][0] == {"label": "c", "score": 9.0}


def test_scores_without_names(tmp_path: Path) -> None:
    tensors, said = named(tmp_path, {"top_k": 1}, [[1, 5, 2]])
    assert tensors == {"class": [[1]], "score": [[5]]}
    assert said == [{"class": 1, "score": 5.0}]
    tensors, said = named(tmp_path, {"sigmoid": True}, [[0, 1000, -1000]])
    assert tensors == {"y": [[0.5, 1, 0]]}
    assert said == [0.5, 1, 0]
    tensors, _ = named(tmp_path, {"softmax": True}, [[0, 0, 0]])
    np.testing.assert_allclose(tensors["y"], [[1 / 3] * 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\nb\n", "has 2 labels, but the output 'y' 3 classes"),
        (b"\xff", "is no file of labels"),
        ("\n\n", "has no labels"),
    ],
)
def test_labels_that_are_wrong(tmp_path: Path, content: str | bytes, said: str) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "labels.txt").write_bytes(data)
    with pytest.raises((InvalidModel, ConfigurationError), match=said):
        named(tmp_path, {"labels": "labels.txt"}, [[1, 2, 3]])


def test_labels_in_json_are_a_list_of_texts(tmp_path: Path) -> None:
    for document in ({"a": 1}, [1], "a"):
        (tmp_path / "l.json").write_text(json.dumps(document))
        with pytest.raises(InvalidModel, match="is no list of labels"):
            named(tmp_path, {"labels": "l.json"}, [[1, 2, 3]])
    with pytest.raises(InvalidModel, match=r"there is no other\.txt"):
        named(tmp_path, {"labels": "other.txt"}, [[1, 2, 3]])


@pytest.mark.parametrize(
    ("outputs", "step", "said"),
    [
        ((*SCORES, TensorSpec("z", DType.FP32, ("n", 2))), {"top_k": 1}, "one of 'y', 'z'"),
        (SCORES, {"output": "w"}, "one of 'y'"),
        ((TensorSpec("y", DType.INT64, ("n", 3)),), {"top_k": 1}, "not scores"),
        ((TensorSpec("y", DType.FP32, ("n",)),), {"top_k": 1}, "not scores"),
    ],
)
def test_outputs_that_are_no_scores(
    outputs: tuple[TensorSpec, ...], step: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        functions({"postprocess": step}, signature(outputs=outputs))


def test_the_best_class_beside_the_scores_is_passed_over() -> None:
    found = signature(outputs=(TensorSpec("digit", DType.INT64, ("n",)), *SCORES))
    after = functions({"postprocess": {"top_k": 1}}, found).postprocess
    assert after is not None
    answer = after(Request(), {"digit": np.array([2]), "y": np.array([[0.25, 0.75, 0]])})
    assert isinstance(answer, Response)
    assert answer.payload == [{"class": 1, "score": 0.75}]


def test_scores_of_another_shape_are_the_models_fault() -> None:
    found = signature(outputs=(TensorSpec("y", DType.FP32, None),))
    after = functions({"postprocess": {"top_k": 1}}, found).postprocess
    assert after is not None
    with pytest.raises(InferenceFailed, match=r"shape \[3\]"):
        after(Request(), {"y": np.ones(3, np.float32)})


def test_steps_and_functions_go_together_but_not_twice() -> None:
    settings = {"preprocess": {"image": {}}, "postprocess": {"top_k": 1}}
    own = Functions(run_model=lambda model, batch: model(batch.inputs))
    both = functions(settings, signature(), own=own)
    assert None not in (both.preprocess, both.postprocess, both.run_model)
    for twice in (Functions(lambda request: 1), Functions(None, lambda request, outputs: 1)):
        with pytest.raises(ConfigurationError, match=r"is in model\.yaml and in hooks\.py"):
            functions(settings, signature(), own=twice)


def test_the_public_signature_of_steps() -> None:
    settings = {"preprocess": {"image": {}}, "postprocess": {"top_k": 2}}
    found = with_hooks(FakeModel(signature=signature()), functions(settings, signature())).public
    assert found.inputs == (TensorSpec("image", DType.BYTES, ("batch",)),)
    assert found.outputs == (
        TensorSpec("class", DType.INT64, ("batch", 2)),
        TensorSpec("score", DType.FP32, ("batch", 2)),
    )
