"""Sums of INT8 products in ONNX Runtime are not cut, on this processor and on one without VNNI."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flawscope.bundle import OnnxModel
from flawscope.runtime.backends.ort import OrtSession

CHANNELS, LARGEST = 16, 127
TRUE_SUM = CHANNELS * LARGEST**2

EMULATED = """
import site, sys
for folder in sys.argv[2:]:
    site.addsitedir(folder)
import numpy as np
from flawscope.bundle import OnnxModel
from flawscope.runtime.backends.ort import OrtSession
within, beside = (open(sys.argv[1] + end, "rb").read() for end in ("", ".beside"))
weight = np.load(sys.argv[1] + ".npy")
rows = np.full((2, weight.shape[0]), weight.max(), np.float32)
for model in (OnnxModel("within", within, {}), OnnxModel("beside", beside, {"weight": weight})):
    print(*OrtSession(model, "cpu").run({"x": rows})["y"].ravel())
"""


def product(*, is_weight_beside: bool = False) -> onnx.ModelProto:
    """A product in INT8 as our quantiser writes it, all factors as large as they can be: the result stays in FP32."""
    weight = numpy_helper.from_array(np.full((CHANNELS, CHANNELS), LARGEST, np.int8), "weight")
    if is_weight_beside:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="beside")
    constants = [
        numpy_helper.from_array(np.float32(1), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
        weight,
        numpy_helper.from_array(np.ones(CHANNELS, np.float32), "weight.scale"),
        numpy_helper.from_array(np.zeros(CHANNELS, np.int8), "weight.zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x/int8"]),
        helper.make_node("DequantizeLinear", ["x/int8", "scale", "zero"], ["x/rounded"]),
        helper.make_node("DequantizeLinear", ["weight", "weight.scale", "weight.zero"], ["weight/rounded"], axis=1),
        helper.make_node("MatMul", ["x/rounded", "weight/rounded"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CHANNELS])]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_sums_of_int8_products_are_not_cut_here() -> None:
    session = OrtSession(OnnxModel("product.onnx", product().SerializeToString(), {}), "cpu")
    found = session.run({"x": np.full((2, CHANNELS), LARGEST, np.float32)})["y"]
    np.testing.assert_array_equal(found, TRUE_SUM)


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("qemu-x86_64") is None,
    reason="no emulator for an x86 processor without VNNI (Debian: qemu-user)",
)
def test_sums_of_int8_products_are_not_cut_on_a_processor_without_vnni(tmp_path: Path) -> None:
    path = tmp_path / "product.onnx"
    path.write_bytes(product().SerializeToString())
    path.with_name("product.onnx.beside").write_bytes(product(is_weight_beside=True).SerializeToString())
    np.save(tmp_path / "product.onnx.npy", np.full((CHANNELS, CHANNELS), LARGEST, np.int8))
    folders = [folder for folder in sys.path if Path(folder).is_dir()]
    command = [
        "qemu-x86_64",
        "-cpu",
        "Haswell",
        str(Path(sys.executable).resolve()),
        "-c",
        EMULATED,
        str(path),
        *folders,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.array([line.split() for line in done.stdout.splitlines()], dtype=float)
    assert found.shape == (2, 2 * CHANNELS)
    np.testing.assert_array_equal(found, TRUE_SUM)
