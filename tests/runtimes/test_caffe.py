from __future__ import annotations

import contextlib
import os
import random
import re
import tempfile
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from tests import caffe_models
from tidegate.config.model import Batching
from tidegate.errors import ConfigurationError, InsufficientMemory, InvalidInput, InvalidModel
from tidegate.replica.warmup import can_batch
from tidegate.repository.layout import read_model, scan
from tidegate.runtimes import caffe
from tidegate.runtimes.caffe import CaffeModel, load
from tidegate.runtimes.caffe_net import check_weights, read_net
from tidegate.runtimes.interface import RuntimeOptions
from tidegate.types import Array, DType, TensorSpec

IMAGES = load_digits().images.astype(np.float32)[:, None]


def load_folder(folder: Path, settings: str = "", device: str = "auto") -> CaffeModel:
    """Load a model's folder as a node would."""
    if settings:
        (folder / "model.yaml").write_text(settings)
    entry = read_model(folder)
    if entry.problems:
        raise InvalidModel("; ".join(map(str, entry.problems)))
    (version,) = entry.versions.values()
    assert (version.format, version.runtime) == ("caffe", "caffe")
    return load(version.path, RuntimeOptions(device, 1, version.folder, entry.config))


def run(model: CaffeModel, **inputs: Array) -> dict[str, Array]:
    return model.run(inputs, [spec.name for spec in model.signature.outputs])


def test_lenet_reads_digits_as_its_weights_did_before(tmp_path: Path) -> None:
    caffe_models.lenet(tmp_path / "m")
    model = load_folder(tmp_path / "m")
    assert model.signature.inputs == (TensorSpec("data", DType.FP32, ("batch", 1, 8, 8)),)
    assert model.signature.outputs == (TensorSpec("prob", DType.FP32, ("batch", 10)),)
    assert (model.platform, model.device) == ("opencv_caffe", "cpu")
    assert can_batch(model, Batching())
    session = onnxruntime.InferenceSession(caffe_models.DIGITS)
    for rows in (1, 3, 32, 2):
        expected = session.run(["probabilities"], {"image": IMAGES[:rows]})[0]
        np.testing.assert_allclose(run(model, data=IMAGES[:rows])["prob"], expected, atol=1e-5)


def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff m")
    caffe_models.lenet(folder)
    model = load_folder(folder)
    assert run(model, data=IMAGES[:1])["prob"].argmax() == 0


def test_an_answer_stays_when_the_next_is_computed(tmp_path: Path) -> None:
    caffe_models.lenet(tmp_path / "m")
    model = load_folder(tmp_path / "m")
    first = run(model, data=IMAGES[:2])["prob"]
    copy = first.copy()
    run(model, data=IMAGES[2:4])
    np.testing.assert_array_equal(first, copy)


def test_an_input_may_lie_anywhere_in_a_message(tmp_path: Path) -> None:
    caffe_models.lenet(tmp_path / "m")
    model = load_folder(tmp_path / "m")
    data = np.frombuffer(b"x" + IMAGES[:2].tobytes(), np.uint8)[1:].view(np.float32)
    odd = data.reshape(2, 1, 8, 8)
    assert not odd.flags.aligned
    assert not odd.flags.writeable
    np.testing.assert_array_equal(
        run(model, data=odd)["prob"], run(model, data=IMAGES[:2])["prob"]
    )


def test_blobs_within_the_net_can_be_outputs(tmp_path: Path) -> None:
    caffe_models.lenet(tmp_path / "m")
    model = load_folder(tmp_path / "m", "signature: {outputs: [ip1, prob, conv2]}\n")
    assert model.signature.outputs == (
        TensorSpec("ip1", DType.FP32, ("batch", 96)),
        TensorSpec("prob", DType.FP32, ("batch", 10)),
        TensorSpec("conv2", DType.FP32, ("batch", 48, 8, 8)),
    )
    outputs = run(model, data=IMAGES[:3])
    # What a layer changes in place is what that layer makes of it.
    assert outputs["conv2"].min() == outputs["ip1"].min() == 0
    weights, bias = caffe_models.digits_weights()["ip2"]
    scores = outputs["ip1"] @ weights.T + bias
    np.testing.assert_array_equal(scores.argmax(1), outputs["prob"].argmax(1))
    assert model.run({"data": IMAGES[:1]}, ["prob"]).keys() == {"prob"}


def test_every_blob_that_no_layer_takes_is_an_output(tmp_path: Path) -> None:
    caffe_models.image(tmp_path / "m")
    model = load_folder(tmp_path / "m")
    assert [spec.name for spec in model.signature.outputs] == ["a", "b"]
    image = np.arange(-16, 16, dtype=np.float32).reshape(1, 2, 4, 4)
    outputs = run(model, image=image)
    np.testing.assert_array_equal(outputs["a"][:, 0], image.sum(1))
    np.testing.assert_array_equal(outputs["b"], np.maximum(image, 0))


def test_images_of_any_size(tmp_path: Path) -> None:
    caffe_models.image(tmp_path / "m")
    declared = "signature: {inputs: [{name: image, shape: [n, 2, height, width]}], outputs: [b]}\n"
    model = load_folder(tmp_path / "m", declared)
    assert model.signature.inputs[0].shape == ("n", 2, "height", "width")
    assert model.signature.outputs[0].shape == ("n", 2, None, None)
    assert run(model, image=np.ones((2, 2, 5, 7), np.float32))["b"].shape == (2, 2, 5, 7)
    assert can_batch(model, Batching())


def test_nets_of_before_2014(tmp_path: Path) -> None:
    caffe_models.old(tmp_path / "m")
    model = load_folder(tmp_path / "m")
    assert model.signature.inputs == (TensorSpec("data", DType.FP32, ("batch", 1, 2, 2)),)
    data = np.array([[1, 0, 0, 0], [1, 1, 1, 1]], np.float32).reshape(2, 1, 2, 2)
    np.testing.assert_array_equal(run(model, data=data)["ip"], [[0, 1, 2], [6, 10, 14]])


def test_a_net_of_one_number_of_rows(tmp_path: Path) -> None:
    path = caffe_models.image(tmp_path / "m")
    reshape = 'layer { name: "flat" type: "Reshape" bottom: "b" top: "flat" reshape_param { '
    reshape += "shape { dim: 1 dim: 32 } } }\n"
    path.with_name("deploy.prototxt").write_text(caffe_models.IMAGE + reshape)
    model = load_folder(tmp_path / "m", "signature: {outputs: [flat]}\n")
    assert model.signature.inputs[0].shape == (1, 2, 4, 4)
    assert model.signature.outputs[0].shape == (1, 32)
    assert not can_batch(model, Batching())


def test_threads_are_the_replicas_share(tmp_path: Path) -> None:
    path = caffe_models.lenet(tmp_path / "m")
    load(path, RuntimeOptions("cpu", 2, tmp_path / "m"))
    assert cv2.getNumThreads() == 2
    load(path, RuntimeOptions("cpu", 1, tmp_path / "m"))
    assert cv2.getNumThreads() == 1


def test_a_gpu_needs_another_opencv(tmp_path: Path) -> None:
    caffe_models.lenet(tmp_path / "m")
    assert caffe.devices() == ("cpu",)
    with pytest.raises(ConfigurationError, match="device: cuda:0 needs an OpenCV that is built"):
        load_folder(tmp_path / "m", device="cuda:0")


def test_it_computes_in_fp32_alone(tmp_path: Path) -> None:
    caffe_models.lenet(tmp_path / "m")
    with pytest.raises(ConfigurationError, match="precision: bf16 is not for the runtime caffe"):
        load_folder(tmp_path / "m", "precision: bf16\n")
    load_folder(tmp_path / "m", "precision: fp32\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("signature: {outputs: [fc7]}", "signature.outputs names 'fc7', but the net has no such"),
        ("signature: {inputs: [{name: x}]}", "signature.inputs names 'x', but the model has no"),
        ("signature: {inputs: [{name: data, shape: [n, 3, 8, 8]}]}", "has the shape"),
        ("signature: {inputs: [{name: data, dtype: INT8}]}", "says that 'data' is INT8"),
    ],
)
def test_a_signature_that_contradicts_the_net(tmp_path: Path, settings: str, message: str) -> None:
    caffe_models.lenet(tmp_path / "m")
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        load_folder(tmp_path / "m", settings)


def test_no_rows(tmp_path: Path) -> None:
    caffe_models.lenet(tmp_path / "m")
    model = load_folder(tmp_path / "m")
    with pytest.raises(InvalidInput, match="'data' is empty"):
        run(model, data=IMAGES[:0])


def test_the_net_may_lie_in_the_models_folder(tmp_path: Path) -> None:
    for number in ("1", "2"):
        caffe_models.lenet(tmp_path / "m" / number).with_name("deploy.prototxt").rename(
            tmp_path / "m" / "deploy.prototxt"
        )
    entry = scan(tmp_path).models["m"]
    assert sorted(entry.versions) == [1, 2]
    assert not entry.problems
    version = entry.versions[2]
    load(version.path, RuntimeOptions("cpu", 1, version.folder))
    before = version.fingerprint
    (tmp_path / "m" / "deploy.prototxt").write_text(caffe_models.LENET + "# changed\n")
    assert scan(tmp_path).models["m"].versions[2].fingerprint != before


def test_a_bare_model_has_its_net_beside_it(tmp_path: Path) -> None:
    path = caffe_models.lenet(tmp_path)
    path.with_name("deploy.prototxt").rename(tmp_path / "model.prototxt")
    entry = scan(tmp_path).models["model"]
    version = entry.versions[1]
    assert version.folder is None
    load(version.path, RuntimeOptions("cpu", 1))


@pytest.mark.parametrize(
    ("present", "taken"),
    [
        (("deploy.prototxt", "train_val.prototxt", "solver.prototxt"), "deploy.prototxt"),
        (("model.prototxt", "solver.prototxt"), "model.prototxt"),
        (("lenet_deploy.prototxt", "lenet_train.prototxt"), "lenet_deploy.prototxt"),
        (("net.prototxt",), "net.prototxt"),
        (("a.prototxt", "b.prototxt"), None),
        ((), None),
    ],
)
def test_which_prototxt(tmp_path: Path, present: tuple[str, ...], taken: str | None) -> None:
    net = caffe_models.lenet(tmp_path / "m").with_name("deploy.prototxt")
    text = net.read_text()
    net.unlink()
    for name in present:
        (tmp_path / "m" / name).write_text(text if name == taken else "net: 1\n")
    if taken is not None:
        load_folder(tmp_path / "m")
        return
    (problem,) = read_model(tmp_path / "m").problems
    assert "deploy.prototxt" in str(problem)
    assert str(problem).startswith("model.caffemodel ")


def test_a_net_without_its_weights(tmp_path: Path) -> None:
    caffe_models.lenet(tmp_path / "m").unlink()
    (problem,) = read_model(tmp_path / "m").problems
    assert "holds the net of a Caffe model without its .caffemodel" in str(problem)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layer {", "layer", "no prototxt of a net: "),
        ('"ip2" type', '"ip9" type', "the layer 'ip9' of deploy.prototxt has no weights in"),
        ("num_output: 48", "num_output: 1", "num_output: 1, but its weights in model.caffemodel"),
        ("num_output: 10", "num_output: 3", "num_output: 3, but its weights in model.caffemodel"),
        ('"Power"', '"Power9"', "OpenCV refuses model.caffemodel with deploy.prototxt: "),
        ("kernel_size", "kernel_sise", "OpenCV refuses model.caffemodel with deploy.prototxt: "),
        (
            "dim: 8 dim: 8",
            "dim: 8 dim: 9",
            "OpenCV refuses model.caffemodel with deploy.prototxt: ",
        ),
        ("dim: 8 dim: 8", "dim: 8 dim: 0", "the input 'data' of deploy.prototxt has the shape"),
        ("dim: 8 dim: 8", "dim: 8 dim: 9999999999", "has the shape [1, 1, 8, 9999999999]"),
        ('type: "Input"', 'type: "Data"', "it describes training; serve the deploy.prototxt"),
        ("kernel_size: 2 stride: 2", "kernel_size: 2 stride: 0", "OpenCV "),
    ],
)
def test_a_broken_prototxt(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = caffe_models.lenet(tmp_path / "m").with_name("deploy.prototxt")
    path.write_text(caffe_models.LENET.replace(old, new))
    with pytest.raises(InvalidModel, match=re.escape(message)):
        load_folder(tmp_path / "m")


def test_what_opencv_would_die_of_is_an_error(tmp_path: Path) -> None:
    """A net whose weights are not those that it says: OpenCV reads beyond them."""
    path = caffe_models.image(tmp_path / "m")
    weights = np.zeros((3, 2, 1, 1), np.float32)
    # A layer that is not looked at; its blobs are.
    deadly = caffe_models.layer("conv", "Convolution", weights, np.zeros(3, np.float32))
    path.write_bytes(caffe_models.network("image", deadly))
    division = "convolution_param { num_output: 3 kernel_size: 1 group: 0 }"
    text = caffe_models.IMAGE.replace(
        "convolution_param { num_output: 3 kernel_size: 1 }", division
    )
    path.with_name("deploy.prototxt").write_text(text)
    with pytest.raises(InvalidModel, match="OpenCV "):
        load_folder(tmp_path / "m")


@pytest.mark.parametrize("cut", [100, 1000, -3])
def test_weights_that_are_cut_short(tmp_path: Path, cut: int) -> None:
    path = caffe_models.lenet(tmp_path / "m")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InvalidModel, match="cut short"):
        load_folder(tmp_path / "m")


@pytest.mark.parametrize("seed", range(4))
def test_damaged_weights_are_refused_or_run(tmp_path: Path, seed: int) -> None:
    path = caffe_models.lenet(tmp_path / "m")
    damaged = bytearray(path.read_bytes())
    chance = random.Random(seed)
    for _ in range(3):
        damaged[chance.randrange(60)] = chance.randrange(256)
    path.write_bytes(damaged)
    with contextlib.suppress(InvalidModel):
        run(load_folder(tmp_path / "m"), data=IMAGES[:1])


def test_a_net_that_takes_all_memory(tmp_path: Path) -> None:
    path = caffe_models.image(tmp_path / "m").with_name("deploy.prototxt")
    path.write_text(caffe_models.IMAGE.replace("kernel_size: 1", "kernel_size: 1 pad: 400000"))
    with pytest.raises(InsufficientMemory, match="allocate"):
        load_folder(tmp_path / "m")


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_prototxt_is_read_or_refused(data: st.DataObject) -> None:
    text = caffe_models.LENET.encode()
    place = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 40))
    put = data.draw(st.sampled_from((b"", b"{", b"}", b'"', b"-1", b"\xff", b": ", b"9" * 30)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deploy.prototxt"
        path.write_bytes(text[:place] + put + text[place + cut :])
        with contextlib.suppress(InvalidModel):
            net = read_net(path)
            assert all(net.place(name) for name in net.outputs)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_weights_are_read_or_refused(data: st.DataObject) -> None:
    blobs = np.ones((3, 2, 1, 1), np.float32), np.ones(3, np.float32)
    layer = caffe_models.layer("conv", "Convolution", *blobs)
    whole = caffe_models.network("image", layer)
    place = data.draw(st.integers(0, len(whole)))
    put = data.draw(st.binary(max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.caffemodel"
        path.write_bytes(whole[:place] + put + whole[place + data.draw(st.integers(0, 4)) :])
        (path.parent / "deploy.prototxt").write_text(caffe_models.IMAGE)
        net = read_net(path.parent / "deploy.prototxt")
        with contextlib.suppress(InvalidModel):
            check_weights(net, "deploy.prototxt", path)
