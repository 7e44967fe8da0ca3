"""Backend `cuda` with the bank beside the graph, on stand-ins for PyCUDA, the driver and ONNX Runtime's provider."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from cuda_emulation import emulated_kernels
from cuda_stand_in import Stand, check_left, stand_in
from ort_cuda_stand_in import Binding, onnxruntime_with_cuda
from tensorrt_stand_in import KernelsOnStand
from tiny_dataset import normal_images

from flawscope import cpp_ext
from flawscope.bundle import open_bundle
from flawscope.errors import ArgumentError, BackendError, DeviceError
from flawscope.imaging.images import prepare, read_image
from flawscope.runtime import Inspector, Router
from flawscope.runtime.backends import ort, ort_cuda
from flawscope.runtime.backends.device import Device
from flawscope.runtime.scorers import bank_device

pytestmark = pytest.mark.long


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A GPU in host memory, with ONNX Runtime and the kernels on it."""
    stand = Stand()
    stand_in(stand, monkeypatch)
    runtime = onnxruntime_with_cuda(stand)
    for module in (ort, ort_cuda):
        monkeypatch.setattr(module, "import_onnxruntime", lambda: runtime)
    ort._preload_cuda.cache_clear()
    monkeypatch.setattr(cpp_ext, "HAVE_CUDA", True)
    emulated = emulated_kernels(tmp_path_factory)
    monkeypatch.setattr(bank_device, "CudaKernels", lambda: KernelsOnStand(stand, emulated))
    yield stand
    ort._preload_cuda.cache_clear()
    check_left(stand)


@pytest.fixture
def batch(bundles: dict[str, Path], tiny_root: Path) -> Any:
    """Four prepared images."""
    with open_bundle(bundles["padim"]) as opened:
        return np.stack([prepare(read_image(path), opened.manifest.input) for path in normal_images(tiny_root)[:4]])


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_scores_of_the_bank_on_the_device_are_those_of_the_cpu(
    bundles: dict[str, Path], batch: Any, stand: Stand, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Inspector.load(bundles[method], "cpu", "kernel") as inspector:
        expected = [inspector.infer(batch[:count]) for count in (1, 4, 2)]
    with Inspector.load(bundles[method], "cuda", "kernel") as inspector:
        assert inspector.scorer.describe() == "CUDA kernels"
        before = stand.allocated, stand.pinned
        results = [inspector.infer(batch[:count]) for count in (1, 4, 2)]
        assert (stand.allocated, stand.pinned) == before
    for (maps, scores), (other_maps, other_scores) in zip(expected, results, strict=True):
        np.testing.assert_allclose(other_maps, maps, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(other_scores, scores, rtol=2e-5)
    assert (stand.freed, stand.unpinned, stand.streams) == (stand.allocated, stand.pinned, {})
    assert capsys.readouterr().out == "", "what the preloading prints would stand among results"


def test_bundles_of_a_router_share_the_graph_and_not_the_bank_of_one(
    bundles: dict[str, Path], batch: Any, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(
        ort_cuda, "OrtSession", lambda model, backend: made.append(model) or ort.OrtSession(model, "cpu")
    )
    with Router({"one": bundles["padim"], "two": bundles["padim"]}, "cuda", path="kernel") as router:
        assert len(made) == 1
        assert router.inspector("one").scorer.describe() != "CUDA kernels"


def test_the_path_that_was_asked_for_is_refused_with_what_is_missing(
    bundles: dict[str, Path], stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.count = 0
    with pytest.raises(BackendError, match=r"path kernel: backend cuda cannot .*: expected CUDA device 0, got 0"):
        Inspector.load(bundles["padim"], "cuda", "kernel")
    monkeypatch.setattr(cpp_ext, "HAVE_CUDA", False)
    with pytest.raises(BackendError, match=r"this installation has no CUDA kernels; .*\. Or use --path graph\."):
        Inspector.load(bundles["padim"], "cuda", "kernel")


def test_a_node_that_computes_elsewhere_is_refused(bundles: dict[str, Path], stand: Stand) -> None:
    stand.elsewhere = {"Conv", "FusedConv", "Cast"}
    with pytest.raises(BackendError, match=r"expected every node of features\.onnx on CUDAExecutionProvider, got \d"):
        Inspector.load(bundles["padim"], "cuda", "kernel")
    gc.collect()  # frames of the error have let go of the session before its stream went: the stand-in complains
    assert stand.complaints == []
    with (
        open_bundle(bundles["padim"]) as opened,
        pytest.raises(BackendError, match=r"expected every node of score\.onnx on CUDAExecutionProvider, got \d"),
    ):
        ort_cuda.open_on_cuda(opened, "score", "fp32")


def test_nodes_that_compute_shapes_may_be_on_the_cpu(bundles: dict[str, Path], stand: Stand) -> None:
    stand.elsewhere = {"Shape", "Gather", "Concat", "Reshape"}
    Inspector.load(bundles["padim"], "cuda", "kernel").close()


def test_a_dead_context_asks_for_a_new_process(bundles: dict[str, Path], batch: Any, stand: Stand) -> None:
    with Inspector.load(bundles["padim"], "cuda", "kernel") as inspector:
        stand.sticky = 700
        with pytest.raises(DeviceError, match=r"backend cuda: .*\(CUDA error 700, ILLEGAL_ADDRESS\).* Start it again"):
            inspector.infer(batch[:1])
        with pytest.raises(DeviceError, match=r"backend cuda: the device cannot be used any more in this process"):
            inspector.infer(batch[:1])


OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}


def test_the_provider_s_options_are_stated(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLAWSCOPE_CUDA_MEMORY_MIB", raising=False)
    ((_, options),) = ort.session_providers("cuda")
    assert options == OPTIONS
    monkeypatch.setenv("FLAWSCOPE_CUDA_MEMORY_MIB", "512")
    assert ort.session_providers("cuda")[0][1]["gpu_mem_limit"] == str(512 << 20)
    monkeypatch.setenv("FLAWSCOPE_CUDA_MEMORY_MIB", "half")
    with pytest.raises(ArgumentError, match="FLAWSCOPE_CUDA_MEMORY_MIB: expected a number of MiB, got 'half'"):
        ort.session_providers("cuda")


class Looking:
    """A bank that looks how much waits on the stream when its turn comes."""

    def __init__(self, stand: Stand, device: Device) -> None:
        self.stream, self.waiting = stand.streams[device.stream_number], []

    def enqueue(self, count: int, patches: int) -> None:
        self.waiting.append(len(self.stream.waiting))

    def finish(self, count: int, patches: int) -> Any:
        return np.zeros((count, 1, 1), np.float32), np.zeros(count, np.float32)


def test_every_session_gets_the_options_after_cuda_s_libraries_were_loaded_once(
    bundles: dict[str, Path], stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAWSCOPE_CUDA_MEMORY_MIB", "512")
    stated = {**OPTIONS, "gpu_mem_limit": str(512 << 20)}
    with open_bundle(bundles["padim"]) as opened:
        ort_cuda.open_on_cuda(opened, "score", "fp32").close()
        beside = ort_cuda.open_on_cuda(opened, "features", "fp32", lambda device, _: Looking(stand, device))
        (stream,) = stand.streams
        beside.close()
    assert ort.import_onnxruntime().opened == [
        (1, stated),
        (1, {**stated, "device_id": "0", "user_compute_stream": str(stream)}),
    ]


def test_nobody_waits_between_the_graph_and_the_bank(bundles: dict[str, Path], batch: Any, stand: Stand) -> None:
    heads: list[Looking] = []
    with open_bundle(bundles["padim"]) as opened:
        session = ort_cuda.open_on_cuda(
            opened, "features", "fp32", lambda device, _: heads.append(Looking(stand, device)) or heads[0]
        )
        assert len(heads[0].waiting) == opened.manifest.max_batch, "every batch size has run before the first image"
        session.infer(batch[:2])
        session.close()
    assert heads[0].waiting[-1] == 2, "the image's copy and the graph"


@pytest.mark.parametrize("name", ["bind_input", "bind_output"])
def test_the_stand_in_takes_the_arguments_of_the_real_binding(name: str) -> None:
    real = list(inspect.signature(getattr(onnxruntime.IOBinding, name)).parameters)
    assert list(inspect.signature(getattr(Binding, name)).parameters) == real
