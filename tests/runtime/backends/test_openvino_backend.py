"""The backend `openvino`: the scores of `cpu`, in the precision that was asked for, or an error that says why not."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_dataset import normal_images

from flawscope.bundle import OnnxModel
from flawscope.errors import ArgumentError, BackendError, DeviceError, MissingExtra
from flawscope.runtime import Inspector
from flawscope.runtime.backends import choose_backend, openvino, openvino_devices, openvino_graph
from flawscope.runtime.backends.openvino import OpenvinoSession
from flawscope.runtime.backends.openvino_graph import Place
from flawscope.runtime.backends.ort import OrtSession

pytest.importorskip("openvino", reason="the extra openvino is not installed")

CPU = Place("openvino", "CPU", "fp32")
CLOSE = 2e-5
"""Relative to the largest value: both sum in FP32, in another order."""


def ramp(count: int = 2, size: int = 64) -> npt.NDArray[np.uint8]:
    return np.arange(count * size * size * 3, dtype=np.uint32).astype(np.uint8).reshape(count, size, size, 3)


def opened(path: Path, precision: str = "fp32") -> OpenvinoSession:
    return OpenvinoSession(OnnxModel.of_file(path), replace(CPU, precision=precision))


def small_model(*nodes: onnx.NodeProto, batch: int | str = "N", outputs: tuple[str, ...] = ("y",)) -> OnnxModel:
    """A graph from `image`, uint8 [N, 2, 2, 3], to float32 of the same shape."""
    shape = [batch, 2, 2, 3]
    graph = helper.make_graph(
        [helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT), *nodes],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return OnnxModel("small.onnx", model.SerializeToString(), {})


def assert_close(got: dict[str, npt.NDArray[Any]], expected: dict[str, npt.NDArray[Any]]) -> None:
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert (got[name].shape, got[name].dtype) == (value.shape, value.dtype)
        np.testing.assert_allclose(got[name], value, rtol=0, atol=CLOSE * np.abs(value).max())


@pytest.mark.parametrize("method", ["patchcore", "padim"])
@pytest.mark.parametrize("graph", ["score", "features"])
def test_outputs_are_those_of_onnxruntime_for_every_batch(bundles: dict[str, Path], method: str, graph: str) -> None:
    path = bundles[method] / f"{graph}.onnx"
    session, reference = opened(path), OrtSession(OnnxModel.of_file(path), "cpu")
    assert session.outputs == reference.outputs
    for count in (1, 4, 3, 1):
        assert_close(session.infer(ramp(count)), reference.infer(ramp(count)))
    session.close()
    reference.close()


@pytest.mark.parametrize("method", ["patchcore", "padim"])
@pytest.mark.parametrize("path", ["graph", "kernel"])
def test_an_inspector_scores_as_on_the_cpu(bundles: dict[str, Path], tiny_root: Path, method: str, path: str) -> None:
    images = normal_images(tiny_root)
    with Inspector.load(bundles[method], "openvino:cpu", path) as inspector:
        assert (inspector.backend, inspector.path) == ("openvino", path)
        got = inspector(images)
    with Inspector.load(bundles[method], "cpu", path) as reference:
        expected = reference(images)
    assert [result.decision for result in got] == [result.decision for result in expected]
    np.testing.assert_allclose([r.score for r in got], [r.score for r in expected], rtol=CLOSE)


def test_without_a_path_it_takes_the_kernels(patchcore_bundle: Path) -> None:
    with Inspector.load(patchcore_bundle, "openvino") as inspector, Inspector.load(patchcore_bundle, "cpu") as cpu:
        assert inspector.path == cpu.path


@pytest.mark.parametrize("count", [1, 3])
def test_outputs_are_the_callers(padim_bundle: Path, count: int) -> None:
    session = opened(padim_bundle / "score.onnx")
    first = session.infer(ramp(count))["anomaly_map"]
    copied = first.copy()
    session.infer(255 - ramp(count))
    np.testing.assert_array_equal(first, copied)
    session.close()
    np.testing.assert_array_equal(first, copied)


def test_outputs_are_written_where_the_caller_has_them(padim_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[int] = []
    tensor_over = openvino._shared

    def listen(array: npt.NDArray[Any]) -> Any:
        shared.append(array.ctypes.data)
        return tensor_over(array)

    monkeypatch.setattr(openvino, "_shared", listen)
    session = opened(padim_bundle / "features.onnx")
    images = ramp(1)
    patches = session.infer(images)["patches"]
    assert shared == [images.ctypes.data, patches.ctypes.data]
    session.close()


def test_arrays_that_are_not_contiguous_or_may_only_be_read_give_the_same(padim_bundle: Path) -> None:
    session = opened(padim_bundle / "score.onnx")
    strided = ramp(4)[::2]
    expected = session.infer(strided.copy())["score"]
    frozen = strided.copy()
    frozen.flags.writeable = False
    for images in (strided, frozen):
        np.testing.assert_array_equal(session.infer(images)["score"], expected)
    session.close()


def test_several_threads_have_their_own_results(padim_bundle: Path) -> None:
    session = opened(padim_bundle / "features.onnx")
    images = [np.full((1 + number % 3, 64, 64, 3), 30 * number, np.uint8) for number in range(6)]
    expected = [session.infer(image)["patches"] for image in images]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            if not np.array_equal(session.infer(images[number])["patches"], expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    session.close()


def test_a_graph_with_a_fixed_batch_takes_multiples_of_it() -> None:
    model = small_model(helper.make_node("Add", ["x", "x"], ["y"]), batch=2)
    session = OpenvinoSession(model, CPU)
    images = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3)
    np.testing.assert_array_equal(session.infer(images)["y"], 2 * images.astype(np.float32))
    with pytest.raises(DeviceError, match=r"backend openvino: the device failed: image: expected uint8 \[N, 2, 2, 3\]"):
        session.infer(images[:3])


def test_outputs_that_one_node_gives_twice_keep_their_names() -> None:
    nodes = (helper.make_node("Identity", ["x"], ["b"]), helper.make_node("Identity", ["x"], ["a"]))
    session = OpenvinoSession(small_model(*nodes, outputs=("b", "a")), CPU)
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    assert session.outputs == ("b", "a")
    for value in session.infer(image).values():
        np.testing.assert_array_equal(value, image.astype(np.float32))


def test_inputs_keep_their_names_where_a_node_takes_the_name_of_one() -> None:
    shape = helper.make_tensor_value_info("timestep", TensorProto.INT64, ["N"])
    nodes = [
        helper.make_node("Cast", ["timestep"], ["as_number"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["as_number", "axis"], ["a"]),
        helper.make_node("Mul", ["a", "table"], ["y"]),
    ]
    table = [onnx.numpy_helper.from_array(np.ones((1, 3), np.float32), "table")]
    axis = [onnx.numpy_helper.from_array(np.array([1]), "axis")]
    given = [shape, helper.make_tensor_value_info("a_first", TensorProto.FLOAT, ["N", 3])]
    nodes.append(helper.make_node("Add", ["y", "a_first"], ["z"]))
    result = [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 3])]
    graph = helper.make_graph(nodes, "two", given, result, initializer=table + axis)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = OpenvinoSession(OnnxModel("two.onnx", model.SerializeToString(), {}), CPU)
    for count in (1, 3):
        got = session.run({"a_first": np.ones((count, 3), np.float32), "timestep": np.arange(count)})
        np.testing.assert_array_equal(got["z"], np.repeat(np.arange(count)[:, None] + 1.0, 3, axis=1))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (
            {"image": np.zeros((1, 2, 3, 3), np.uint8)},
            r"image: expected uint8 \[N, 2, 2, 3\], got uint8 \[1, 2, 3, 3\]",
        ),
        ({"image": np.zeros((1, 2, 2, 3), np.float32)}, r"image: expected uint8 \[N, 2, 2, 3\], got float32"),
        ({"image": np.zeros((0, 2, 2, 3), np.uint8)}, r"image: expected uint8 \[N, 2, 2, 3\], got uint8 \[0, "),
        ({"images": np.zeros((1, 2, 2, 3), np.uint8)}, r"expected the inputs \['image'\], got \['images'\]"),
    ],
)
def test_what_the_graph_does_not_take_is_a_device_error(inputs: dict[str, npt.NDArray[Any]], said: str) -> None:
    session = OpenvinoSession(small_model(helper.make_node("Abs", ["x"], ["y"])), CPU)
    with pytest.raises(DeviceError, match=rf"^backend openvino: the device failed: {said}") as caught:
        session.run(inputs)
    assert "\n" not in str(caught.value)


def test_a_closed_session_is_a_device_error() -> None:
    session = OpenvinoSession(small_model(helper.make_node("Abs", ["x"], ["y"])), CPU)
    session.close()
    session.close()
    with pytest.raises(DeviceError, match="backend openvino: the session is closed"):
        session.infer(np.zeros((1, 2, 2, 3), np.uint8))


def test_a_graph_that_cannot_be_loaded_is_one_sentence() -> None:
    with pytest.raises(BackendError, match=r"^backend openvino: could not load score\.onnx: ") as caught:
        OpenvinoSession(OnnxModel("score.onnx", b"this is no graph", {}), CPU)
    assert "\n" not in str(caught.value)


class OtherCore:
    """OpenVINO that compiles as it likes: here with what it takes by itself."""

    def __init__(self, **changed: Any) -> None:
        self._core, self._changed = openvino_devices.openvino_core(), changed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def compile_model(self, model: Any, device: str, config: dict[str, Any]) -> Any:
        return self._core.compile_model(model, self._changed.pop("device", device), {**config, **self._changed})


def test_another_precision_than_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if "BF16" not in openvino_devices.openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no BF16, which OpenVINO would take by itself")
    monkeypatch.setattr(openvino_graph, "openvino_core", lambda: OtherCore(INFERENCE_PRECISION_HINT="bf16"))
    with pytest.raises(BackendError, match=r"expected small\.onnx to run in f32, OpenVINO took bf16"):
        OpenvinoSession(small_model(helper.make_node("Abs", ["x"], ["y"])), CPU)


def test_every_session_says_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class Listening(OtherCore):
        def compile_model(self, model: Any, device: str, config: dict[str, Any]) -> Any:
            asked.append(config)
            return super().compile_model(model, device, config)

    monkeypatch.setattr(openvino_graph, "openvino_core", Listening)
    session = OpenvinoSession(small_model(helper.make_node("Abs", ["x"], ["y"])), replace(CPU, precision="int8"))
    session.infer(np.zeros((3, 2, 2, 3), np.uint8))
    assert [config["PERFORMANCE_HINT"] for config in asked] == ["LATENCY", "THROUGHPUT"]
    assert {(config["INFERENCE_PRECISION_HINT"], config["EXECUTION_MODE_HINT"]) for config in asked} == {
        ("f32", "ACCURACY")
    }


@pytest.mark.parametrize("device", ["gpu", "npu"])
def test_a_device_that_is_not_there_is_an_error(device: str) -> None:
    if any(name.startswith(device.upper()) for name in openvino_devices.openvino_core().available_devices):
        pytest.skip(f"this machine has the device {device}")
    with pytest.raises(
        BackendError, match=rf"^backend openvino:{device}: is not there: this OpenVINO lists CPU, no {device.upper()}; "
    ) as caught:
        choose_backend(f"openvino:{device}")
    assert "no fall-back" in str(caught.value)
    with pytest.raises(ArgumentError, match=r"backend: expected one of .*openvino:npu"):
        choose_backend("openvino:tpu")


def test_without_openvino_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for cached in (openvino_devices.import_openvino, openvino_devices.openvino_core):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    try:
        with pytest.raises(BackendError, match=r'openvino, which is not installed\. .* "flawscope\[openvino\]"'):
            choose_backend("openvino")
        with pytest.raises(MissingExtra, match=r'"flawscope\[openvino\]"'):
            OpenvinoSession(OnnxModel("score.onnx", b"", {}), CPU)
    finally:
        for cached in (openvino_devices.import_openvino, openvino_devices.openvino_core):
            cached.cache_clear()
