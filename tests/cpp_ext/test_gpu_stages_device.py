"""The stages of `tools/gpu_check.py` whose twins run through stand-ins of PyCUDA and the driver; and their captures."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gpu_stage_kernels import Liar, add_one, built_kernels
from gpu_stages import (
    captures,
    cold_graph,
    correctness,
    device_stage,
    drawing_stage,
    drawing_stand_in,
    engine_stand_in,
    stand_ins,
)
from gpu_stages.card import HostCard
from gpu_stages.drawing_reference import KINDS, cases, noises_of
from gpu_stages.report import Absent, Report

from flawscope.cpp_ext.cuda_kernels import CudaKernels
from flawscope.errors import DeviceError
from flawscope.runtime.backends.device import Device, Graph

pytestmark = pytest.mark.long


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "result.json", 600, tmp_path)


@pytest.fixture
def kernels(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> CudaKernels:
    return built_kernels(tmp_path_factory, tmp_path)


# --- sessions on a device


def test_sessions_with_a_stand_in_for_the_engine_give_what_float64_gives(kernels: CudaKernels, report: Report) -> None:
    device_stage.on_cpu(report)
    assert report.failures == []
    assert report.checks > 10


def test_an_engine_that_gives_others_patches_is_found(
    kernels: CudaKernels, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_ins, "moving", lambda target, source, size: lambda: ctypes.memset(target, 0, size))
    device_stage.on_cpu(report)
    assert any("a batch of 2" in failure for failure in report.failures)


def test_patches_are_the_bytes_of_the_images() -> None:
    patches = np.random.default_rng(0).standard_normal((2, 6, engine_stand_in.CHANNELS), np.float32)
    images = engine_stand_in.images_of(patches)
    assert images.shape == (2, 6, engine_stand_in.WIDTH, 3)
    assert images.tobytes() == patches.tobytes()


# --- the sampling loop


def test_the_sampling_loop_gives_what_the_numpy_loop_gives(kernels: CudaKernels, report: Report) -> None:
    drawing_stage.on_cpu(report)
    assert report.failures == []
    assert report.checks > 200
    assert {row["kind"] for row in report.figures("memory")} == {kind.name for kind in KINDS}


def test_the_last_case_of_a_kind_takes_the_most_noise_and_more_than_the_first() -> None:
    for kind in KINDS:
        noises = [noises_of(kind, case) for case in cases(kind)]
        assert noises == sorted(noises)
        assert noises[0] < noises[-1]


@pytest.fixture
def one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing_stage, "KINDS", KINDS[1:2])


@pytest.mark.usefixtures("one_kind")
def test_a_network_that_is_given_other_latents_is_found(
    kernels: CudaKernels, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing_stand_in, "shift_of", lambda row, size: 0)
    drawing_stage.on_cpu(report)
    assert any("run 1, steps: not equal" in failure for failure in report.failures)


@pytest.mark.usefixtures("one_kind")
def test_a_step_that_is_rounded_otherwise_is_found(
    kernels: CudaKernels, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(arguments: dict[str, Any]) -> None:
        x = ctypes.c_float.from_address(arguments["x"])
        x.value = float(np.nextafter(np.float32(x.value), np.float32(2)))

    liar = Liar(kernels, "diffusion_step", change)
    monkeypatch.setattr(stand_ins, "open_card", lambda *_, **__: (HostCard(), liar))
    drawing_stage.on_cpu(report)
    assert any("after the last step: not equal to the last bit" in failure for failure in report.failures)


@pytest.mark.usefixtures("one_kind")
def test_a_loop_that_is_not_captured_is_found(
    kernels: CudaKernels, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Device, work: object) -> None:
        raise DeviceError("no capture")

    monkeypatch.setattr(Device, "try_capture", refuse)
    drawing_stage.on_cpu(report)
    assert "inpaint: no capture" in report.failures
    assert not any("not equal" in failure for failure in report.failures)


@pytest.mark.usefixtures("one_kind")
def test_a_graph_that_does_nothing_is_found(
    kernels: CudaKernels, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Graph, "launch", lambda self: None)
    drawing_stage.on_cpu(report)
    assert any("run 2, steps: not equal" in failure for failure in report.failures)
    assert not any("4 steps, 1 images, run 1" in failure for failure in report.failures)


@pytest.mark.usefixtures("one_kind")
def test_memory_that_is_not_given_back_is_found(
    kernels: CudaKernels, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = drawing_stand_in.Drawer.close
    opened: list[Any] = []
    monkeypatch.setattr(drawing_stand_in.Drawer, "close", lambda self: opened.append(self))
    real_run = drawing_stage.run

    def run(*arguments: Any) -> None:
        real_run(*arguments)
        for drawer in opened:  # while the stand-in is there
            close(drawer)

    monkeypatch.setattr(drawing_stage, "run", run)
    drawing_stage.on_cpu(report)
    (failure,) = report.failures
    assert failure.startswith("inpaint: memory: ")


# --- captures


def test_the_cold_graph_is_compared_with_the_search_of_another_process(kernels: CudaKernels, report: Report) -> None:
    bench = correctness.Bench(report, HostCard(), kernels, np.random.default_rng(0))
    cold_graph.prepare(bench)
    assert cold_graph.main([str(report.work)], on_gpu=False) == 0
    with np.load(report.work / cold_graph.FILE) as file:
        arrays = dict(file)
    arrays["found"][3] += 1
    np.savez(report.work / cold_graph.FILE, **arrays)
    assert cold_graph.main([str(report.work)], on_gpu=False) == 1


def test_before_its_capture_the_cold_graph_asks_the_kernels_for_nothing_but_sizes(
    kernels: CudaKernels, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold_graph.prepare(correctness.Bench(report, HostCard(), kernels, np.random.default_rng(0)))
    calls: list[str] = []

    class Recording:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(kernels, name)

    class Captures(HostCard):
        def capture(self, work: Callable[[], object]) -> Callable[[], object]:
            assert calls == ["nearest_bytes", "bank_bytes"]
            calls.append("capture")
            work()
            return work

    monkeypatch.setattr(cold_graph, "open_card", lambda *_, **__: (Captures(), Recording()))
    assert cold_graph.main([str(report.work)], on_gpu=True) == 0
    assert calls[2:4] == ["capture", "nearest"]


class Numpy:
    """A library of arrays in host memory, which are where the emulation finds them."""

    name = "NumPy"
    stream = 0

    def __init__(self) -> None:
        self.replays = True

    def used(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def put(self, array: npt.NDArray[Any]) -> Any:
        return array.copy()

    def address(self, array: Any) -> int:
        return int(array.ctypes.data)

    def double(self, array: Any, out: Any) -> None:
        np.multiply(array, 2, out=out)

    def back(self, array: Any) -> npt.NDArray[Any]:
        return np.array(array)

    def capture(self, work: Callable[[], None]) -> Callable[[], object]:
        return work if self.replays else lambda: None


def test_captures_with_the_arrays_of_a_library_are_held_to_a_plain_search(kernels: CudaKernels, report: Report) -> None:
    bench = correctness.Bench(report, HostCard(), kernels, np.random.default_rng(0))
    captures.check_library(bench, Numpy())
    assert (report.checks, report.failures) == (5, [])
    library = Numpy()
    library.replays = False
    captures.check_library(bench, library)
    assert report.failures == ["captures: NumPy: its graph, factor -1"]


def test_results_that_do_not_reach_the_arrays_of_a_library_are_found(kernels: CudaKernels, report: Report) -> None:
    turns = iter(range(100))
    wrong = add_one("found", ctypes.c_int64)
    liar = Liar(kernels, "nearest", lambda arguments: wrong(arguments) if next(turns) >= 2 else None)
    captures.check_library(correctness.Bench(report, HostCard(), liar, np.random.default_rng(0)), Numpy())
    assert len(report.failures) == 5


def test_a_library_that_is_not_here_is_left_out_and_one_that_fails_does_not_hide_the_next(
    kernels: CudaKernels, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnGpu(HostCard):
        is_gpu = True

    class Missing:
        def __init__(self) -> None:
            raise Absent("CuPy is not installed")

    class Fails(Numpy):
        def capture(self, work: Callable[[], None]) -> Callable[[], object]:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(captures, "LIBRARIES", (Missing, Fails, Numpy))
    captures.check_captures(correctness.Bench(report, OnGpu(), kernels, np.random.default_rng(0)))
    assert report.checks == 1 + 1 + 5
    (failure,) = report.failures
    assert failure.startswith("captures: NumPy: RuntimeError: CUDA error: operation not permitted")
    assert "captures with arrays: Missing: CuPy is not installed" in (report.work / "result.json").read_text()
