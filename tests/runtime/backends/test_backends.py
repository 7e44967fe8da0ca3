"""Backends: what was asked for or an error, never something else in its place."""

from __future__ import annotations

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
from flawscope.runtime.backends import BACKENDS, choose_backend, driver_library, ort, table
from flawscope.runtime.backends.ort import OrtSession


def ramp(count: int = 2) -> npt.NDArray[np.uint8]:
    return np.arange(count * 64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(count, 64, 64, 3)


@pytest.fixture
def cuda_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the backend `cuda` run its code, I/O binding included, on the CPU provider."""
    monkeypatch.setitem(table.ROWS, "cuda", replace(table.ROWS["cuda"], provider="CPUExecutionProvider"))


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ONNX Runtime offer the CPU alone, on a machine with a GPU."""
    monkeypatch.setattr(driver_library, "load_driver", object)
    monkeypatch.setattr(ort.import_onnxruntime(), "get_available_providers", lambda: ["CPUExecutionProvider"])


def test_the_names_are_these() -> None:
    assert BACKENDS == (
        "auto",
        "cpu",
        "cuda",
        "tensorrt",
        "openvino",
        "openvino:gpu",
        "openvino:npu",
        "triton",
        "openvino:cpu",
    )


@pytest.mark.usefixtures("no_cuda")
def test_without_cuda_auto_takes_the_cpu_and_says_why() -> None:
    choice = choose_backend("auto")
    assert choice.name == "cpu"
    assert choice.reason.startswith("auto: no CUDA: this ONNX Runtime offers CPU;")
    assert choose_backend("cpu").reason == "asked for"


@pytest.mark.usefixtures("no_cuda")
def test_without_a_driver_nobody_is_told_to_install_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_library, "load_driver", lambda: None)
    reason = choose_backend("auto").reason
    assert reason.startswith("auto: no CUDA: this machine has no NVIDIA driver")
    assert "pip install" not in reason
    with pytest.raises(BackendError, match=r"cuda: is not there: this machine has no NVIDIA driver\. There is no"):
        choose_backend("cuda")


def test_the_library_of_the_driver_is_there_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_library, "DRIVERS", ("libno_such_driver.so",))
    assert driver_library.load_driver() is None
    monkeypatch.setattr(driver_library, "DRIVERS", ("libno_such_driver.so", None))  # None: this process itself
    assert driver_library.load_driver() is not None


@pytest.mark.usefixtures("no_cuda")
def test_without_cuda_asking_for_it_is_an_error() -> None:
    with pytest.raises(
        BackendError, match=r"backend cuda: is not there: this ONNX Runtime offers CPU; .* no fall-back"
    ) as caught:
        choose_backend("cuda")
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)


def test_with_cuda_auto_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort.import_onnxruntime(), "get_available_providers", lambda: providers)
    assert choose_backend("auto").name == "cuda"
    assert choose_backend("auto").reason == "auto: ONNX Runtime offers CUDA"
    assert choose_backend("cuda").reason == "asked for"
    assert choose_backend("cpu").name == "cpu"


@pytest.mark.parametrize("name", ["tensorrt-rtx", "CPU", "", "gpu"])
def test_an_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(ArgumentError, match=rf"backend: expected one of auto, cpu, cuda, tensorrt, .*, got '{name}'"):
        choose_backend(name)


def test_what_is_no_name_is_an_error() -> None:
    for name in (["cpu"], None, 3):
        with pytest.raises(ArgumentError, match="backend: expected one of auto, cpu"):
            choose_backend(name)  # type: ignore[arg-type]


def test_without_onnxruntime_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    ort.import_onnxruntime.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    try:
        with pytest.raises(MissingExtra, match=r'onnxruntime, which is not installed\. .* "flawscope\[cpu\]"'):
            choose_backend("cpu")
    finally:
        ort.import_onnxruntime.cache_clear()


@pytest.mark.usefixtures("cuda_on_the_cpu")
@pytest.mark.parametrize("method", ["patchcore", "padim"])
@pytest.mark.parametrize("graph", ["score", "features"])
def test_io_binding_gives_the_outputs_of_a_plain_run(bundles: dict[str, Path], method: str, graph: str) -> None:
    plain = OrtSession(OnnxModel.of_file(bundles[method] / f"{graph}.onnx"), "cpu")
    bound = OrtSession(OnnxModel.of_file(bundles[method] / f"{graph}.onnx"), "cuda")
    for count in (1, 3):
        expected, got = plain.infer(ramp(count)), bound.infer(ramp(count))
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            assert value.tobytes() == got[name].tobytes()
            assert value.shape == got[name].shape
    plain.close()
    bound.close()


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_bound_outputs_are_the_callers(padim_bundle: Path) -> None:
    session = OrtSession(OnnxModel.of_file(padim_bundle / "score.onnx"), "cuda")
    first = session.infer(ramp(2))["anomaly_map"]
    copied = first.copy()
    session.infer(255 - ramp(2))
    np.testing.assert_array_equal(first, copied)
    session.close()
    np.testing.assert_array_equal(first, copied)


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_an_inspector_works_through_io_binding(padim_bundle: Path, tiny_root: Path) -> None:
    with Inspector.load(padim_bundle, "cuda") as bound, Inspector.load(padim_bundle, "cpu", "graph") as plain:
        assert bound.backend == "cuda"
        got, expected = bound(normal_images(tiny_root)), plain(normal_images(tiny_root))
    assert [result.score for result in got] == [result.score for result in expected]


class FakeOrtSession:
    """ONNX Runtime as it behaves where the CUDA libraries do not load: it takes the CPU and only logs it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.wanted = __["providers"]

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def disable_fallback(self) -> None:
        """Have none."""


def test_a_session_neither_falls_back_in_a_run_nor_keeps_the_graph_twice(padim_bundle: Path) -> None:
    model = OnnxModel.of_file(padim_bundle / "score.onnx")
    session = ort.make_session(model, ort.session_options(), "cpu")
    assert not session._enable_fallback
    assert not any(value is model.data for value in vars(session).values())
    assert session.run(None, {"image": np.zeros((1, 64, 64, 3), np.uint8)})


def test_onnxruntimes_own_fall_back_is_an_error(padim_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.import_onnxruntime(), "InferenceSession", FakeOrtSession)
    with pytest.raises(
        BackendError, match=r"backend cuda: expected CUDAExecutionProvider for score\.onnx, .* took CPU"
    ):
        OrtSession(OnnxModel.of_file(padim_bundle / "score.onnx"), "cuda")


def test_a_graph_that_cannot_be_loaded_is_one_sentence() -> None:
    with pytest.raises(BackendError, match=r"backend cpu: could not load score\.onnx: ") as caught:
        OrtSession(OnnxModel("score.onnx", b"this is no graph", {}), "cpu")
    assert "\n" not in str(caught.value)


def test_a_device_that_fails_is_a_device_error(padim_bundle: Path) -> None:
    session = OrtSession(OnnxModel.of_file(padim_bundle / "score.onnx"), "cpu")
    with pytest.raises(DeviceError, match=r"backend cpu: the device failed: ") as caught:
        session.infer(np.zeros((1, 32, 64, 3), np.uint8))
    assert "\n" not in str(caught.value)
    session.close()


@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_a_bound_device_that_fails_is_a_device_error_too(padim_bundle: Path) -> None:
    session = OrtSession(OnnxModel.of_file(padim_bundle / "score.onnx"), "cuda")
    with pytest.raises(DeviceError, match=r"backend cuda: the device failed: "):
        session.infer(np.zeros((1, 32, 64, 3), np.uint8))
    session.close()


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
@pytest.mark.usefixtures("cuda_on_the_cpu")
def test_arrays_that_are_not_contiguous_give_the_same(padim_bundle: Path, backend: str) -> None:
    session = OrtSession(OnnxModel.of_file(padim_bundle / "score.onnx"), backend)
    images = ramp(4)
    strided = images[::2]
    assert not strided.flags.c_contiguous
    np.testing.assert_array_equal(session.infer(strided)["score"], session.infer(strided.copy())["score"])
    session.close()


def test_outputs_have_the_graphs_names(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["image"], ["as_numbers"], to=TensorProto.FLOAT)]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 2, 2, 3])],
        [helper.make_tensor_value_info("as_numbers", TensorProto.FLOAT, ["N", 2, 2, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "one.onnx")
    session = OrtSession(OnnxModel.of_file(tmp_path / "one.onnx"), "cpu")
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    outputs = session.infer(image)
    assert list(outputs) == ["as_numbers"]
    np.testing.assert_array_equal(outputs["as_numbers"], image.astype(np.float32))


def test_auto_takes_the_cpu_where_cuda_is_offered_but_fails_and_says_so(
    monkeypatch: pytest.MonkeyPatch, padim_bundle: Path, tiny_root: Path
) -> None:
    # This ONNX Runtime has no CUDA: asked to use it, it takes the CPU, exactly what a broken CUDA install does.
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort.import_onnxruntime(), "get_available_providers", lambda: providers)
    with Inspector.load(padim_bundle, "auto") as inspector:
        assert inspector.backend == "cpu"
        assert inspector.backend_reason.startswith("auto: backend cuda: ")
        assert inspector(normal_images(tiny_root)[0]).decision != "fault"
    with pytest.raises(BackendError, match="backend cuda: "):
        Inspector.load(padim_bundle, "cuda")
