"""The GPU of this machine, asked of the CUDA driver: by a stand-in for its bindings, with and without NVML."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from cuda_stand_in import Stand, check_left, stand_in

from flawscope.errors import BackendError
from flawscope.runtime.doctor.driver import match_driver
from flawscope.runtime.engines import Target, cuda_driver, current_target


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    stand = Stand()
    stand_in(stand, monkeypatch)
    yield stand
    check_left(stand)


class Nvml(types.ModuleType):
    """`pynvml` of a machine whose driver answers with a version, or does not answer."""

    class NVMLError(Exception):
        pass

    def __init__(self, version: str | bytes | None) -> None:
        super().__init__("pynvml")
        self.version, self.open = version, 0

    def nvmlInit(self) -> None:
        if self.version is None:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str | bytes | None:
        return self.version

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13000


@pytest.mark.parametrize("version", ["580.65", b"580.65"])
def test_the_device_is_that_of_cuda_and_the_version_that_of_nvml(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, version: str | bytes
) -> None:
    nvml = Nvml(version)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    stand.count = 2
    assert [current_target(index) for index in range(2)] == [
        Target("Orin 0", (8, 7), "580.65"),
        Target("Orin 1", (8, 7), "580.65"),
    ]
    assert nvml.open == 0
    assert (match_driver().driver, match_driver().cuda) == ("580.65", "13.0")


@pytest.mark.parametrize("nvml", [None, Nvml(None)], ids=["not installed", "silent"])
def test_without_nvml_the_driver_is_named_by_its_cuda(stand: Stand, monkeypatch: pytest.MonkeyPatch, nvml: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert current_target() == Target("Orin 0", (8, 7), "of CUDA 12.6")
    assert (match_driver().driver, match_driver().cuda) == ("of unknown version", "12.6")


def test_no_context_is_made_to_ask(stand: Stand) -> None:
    current_target()
    assert stand.retained == 0


def test_a_device_that_is_not_there_is_named(stand: Stand) -> None:
    with pytest.raises(BackendError, match=r"device: expected CUDA device 1, got 1 devices\."):
        current_target(1)


def test_a_machine_without_a_gpu_says_so(stand: Stand) -> None:
    stand.count = 0
    with pytest.raises(
        BackendError,
        match=r"no NVIDIA driver answers \(cuInit failed with CUDA error 100 \(NO_DEVICE\)\)\. Is there a GPU\?",
    ):
        current_target()


def test_a_machine_without_a_driver_says_so(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(flags: int) -> None:
        raise RuntimeError("libcuda.so.1 is not here\nand more")

    monkeypatch.setattr(cuda_driver.bindings(), "cuInit", missing)
    with pytest.raises(BackendError, match=r"no NVIDIA driver answers \(libcuda\.so\.1 is not here\)\. Is there a GPU"):
        current_target()


def test_without_the_bindings_it_says_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    cuda_driver.bindings.cache_clear()
    with pytest.raises(BackendError, match=r"device: the package cuda-bindings, .* Install it with: pip install"):
        current_target()
    cuda_driver.bindings.cache_clear()
