"""An operator that TensorFlow has not, compiled against the headers that it ships."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.tensorflow_models import tf, traced

SOURCE = """
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

REGISTER_OP("TidegateTriple")
    .Input("x: float")
    .Output("y: float")
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      c->set_output(0, c->input(0));
      return absl::OkStatus();
    });

class TripleOp : public tensorflow::OpKernel {
 public:
  explicit TripleOp(tensorflow::OpKernelConstruction* c) : OpKernel(c) {}
  void Compute(tensorflow::OpKernelContext* c) override {
    const tensorflow::Tensor& x = c->input(0);
    tensorflow::Tensor* y = nullptr;
    OP_REQUIRES_OK(c, c->allocate_output(0, x.shape(), &y));
    auto in = x.flat<float>();
    auto out = y->flat<float>();
    for (int i = 0; i < in.size(); i++) out(i) = 3 * in(i);
  }
};
REGISTER_KERNEL_BUILDER(Name("TidegateTriple").Device(tensorflow::DEVICE_CPU), TripleOp);
"""
"""``y = 3 x``."""


def compiled(folder: Path) -> Path:
    """Compile the operator as TensorFlow's guide says; skip the test without a compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source, library = folder / "triple.cc", folder / "triple.so"
    source.write_text(SOURCE)
    subprocess.run(
        [
            compiler, "-shared", "-fPIC", "-w", str(source), "-o", str(library),
            *tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags(),
        ],
        check=True,
    )  # fmt: skip
    return library


def tripling(folder: Path, library: Path) -> Path:
    """A model folder of one version, whose model has the operator, from ``ops/triple.so``."""
    (folder / "ops").mkdir(parents=True)
    shutil.copy(library, folder / "ops/triple.so")
    triple: Any = tf.load_op_library(str(library)).tidegate_triple
    signatures = {
        "serving_default": traced(lambda x: {"y": triple(x)}, x=([None, 4], tf.float32)),
        "text": traced(lambda text: {"y": tf.strings.upper(text)}, text=([None], tf.string)),
    }
    tf.saved_model.save(tf.Module(), str(folder / "1"), signatures=signatures)
    (folder / "model.yaml").write_text("tensorflow: {libraries: [ops/triple.so]}\n")
    return folder
