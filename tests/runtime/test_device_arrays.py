"""Images that are not NumPy arrays: fetched from a stand-in for a CUDA device, or taken by DLPack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_frames import FakeCudaArray, FakeDriver
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny_dataset import anomalous_images, normal_images

from flawscope.errors import ArgumentError, DeviceError
from flawscope.imaging.images import read_image
from flawscope.runtime import Inspector, device_arrays
from flawscope.runtime.backends import driver_library
from flawscope.runtime.device_arrays import on_host


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A device in host memory."""
    driver = FakeDriver()
    monkeypatch.setattr(device_arrays, "_load_driver", lambda: driver)
    return driver


def test_numpy_arrays_are_returned_as_they_are() -> None:
    array = np.zeros((8, 8, 3), np.uint8)[::-1]
    assert on_host(array, "image") is array


def test_an_array_on_a_device_is_copied_after_what_was_put_on_its_context(driver: FakeDriver) -> None:
    frame = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    copied = on_host(FakeCudaArray(frame), "image")
    assert copied.tolist() == frame.tolist()
    assert not np.shares_memory(copied, frame)
    assert (driver.copied, driver.current, driver.retained) == (24, [], 0)


def test_memory_of_a_pool_is_read_in_the_primary_context_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(context=0)
    monkeypatch.setattr(device_arrays, "_load_driver", lambda: driver)
    assert on_host(FakeCudaArray(np.eye(3, dtype=np.bool_)), "mask").tolist() == np.eye(3, dtype=bool).tolist()
    assert (driver.current, driver.retained) == ([], 0)


@settings(max_examples=60, deadline=None)
@given(
    array=arrays.arrays(st.sampled_from(["|u1", "<i2", "<f4", "|b1"]), arrays.array_shapes(max_dims=4, max_side=5)),
    data=st.data(),
)
def test_any_slice_of_an_array_comes_back_with_its_values(array: np.ndarray, data: st.DataObject) -> None:
    part = np.asarray(array[data.draw(arrays.basic_indices(array.shape, allow_ellipsis=False))])
    order = data.draw(st.permutations(range(part.ndim)))
    part = np.transpose(part, order)
    driver, load_driver = FakeDriver(), device_arrays._load_driver
    device_arrays._load_driver = lambda: driver  # type: ignore[assignment]
    try:
        copied = on_host(FakeCudaArray(part), "array")
    finally:
        device_arrays._load_driver = load_driver
    assert copied.dtype == part.dtype
    assert copied.shape == part.shape
    assert np.array_equal(copied, part, equal_nan=part.dtype.kind == "f")
    assert driver.copied <= array.nbytes


@pytest.mark.parametrize(
    "changes",
    [
        {"typestr": "nonsense"},
        {"typestr": "|O"},
        {"shape": ("a",)},
        {"data": None},
        {"strides": (1,)},
        {"mask": object()},
        {"shape": (-1, 4, 3)},
    ],
)
def test_an_interface_that_says_nothing_sensible_is_refused(driver: FakeDriver, changes: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"^image: expected .*\.$"):
        on_host(FakeCudaArray(np.zeros((2, 4, 3), np.uint8), **changes), "image")
    assert driver.copied == 0


@pytest.mark.parametrize(
    "call", ["cuInit", "cuCtxPushCurrent", "cuCtxSynchronize", "cuMemcpyDtoH", "cuDevicePrimaryCtxRetain"]
)
def test_a_failing_driver_is_said_and_nothing_stays_behind(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    driver = FakeDriver(context=0, fail=call)
    monkeypatch.setattr(device_arrays, "_load_driver", lambda: driver)
    with pytest.raises(DeviceError, match=f"{call} failed with CUDA error 700"):
        on_host(FakeCudaArray(np.zeros((2, 4, 3), np.uint8)), "image")
    assert (driver.current, driver.retained) == ([], 0)


def test_without_a_driver_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_library, "DRIVERS", ("libno_such_driver.so",))
    with pytest.raises(DeviceError, match=r"cannot be loaded\. Install the driver, or pass NumPy arrays\.$"):
        on_host(FakeCudaArray(np.zeros((2, 4, 3), np.uint8)), "image")


def test_tensors_of_the_host_are_taken_by_dlpack() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(24, dtype=torch.uint8).reshape(2, 4, 3)
    assert on_host(tensor, "image").tolist() == tensor.tolist()
    with pytest.raises(ArgumentError, match="that NumPy cannot read"):
        on_host(torch.zeros(2, requires_grad=True), "image")
    with pytest.raises(ArgumentError, match="that NumPy cannot read"):
        on_host(torch.zeros(2, device="meta"), "image")


def test_something_else_is_no_array() -> None:
    with pytest.raises(ArgumentError, match="expected an array of NumPy, CUDA or DLPack, got list"):
        on_host([1, 2], "image")


def test_the_inspector_takes_frames_from_a_device(
    bundles: dict[str, Path], tiny_root: Path, driver: FakeDriver
) -> None:
    images = [read_image(path) for path in (*normal_images(tiny_root)[:2], anomalous_images(tiny_root)[0])]
    with Inspector.load(bundles["padim"], "cpu") as inspector:
        for image in images:
            from_device, from_host = inspector(FakeCudaArray(image[:, ::-1])), inspector(image[:, ::-1])
            assert (from_device.score, from_device.decision) == (from_host.score, from_host.decision)
            assert np.array_equal(from_device.anomaly_map, from_host.anomaly_map)
        together = inspector(FakeCudaArray(np.stack(images)))
        assert [result.score for result in together] == [result.score for result in inspector(np.stack(images))]
        assert [result.image for result in together] == ["image 0", "image 1", "image 2"]


def test_a_frame_that_cannot_be_fetched_is_a_fault_and_the_rest_is_scored(
    bundles: dict[str, Path], tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_arrays, "_load_driver", lambda: FakeDriver(fail="cuMemcpyDtoH"))
    image = read_image(normal_images(tiny_root)[0])
    with Inspector.load(bundles["padim"], "cpu") as inspector:
        lost, scored = inspector([FakeCudaArray(image), image])
        nothing = inspector(5)  # type: ignore[call-overload]
    assert (lost.decision, scored.reason) == ("fault", None)
    assert "cuMemcpyDtoH failed with CUDA error 700" in lost.reason
    assert scored.score is not None
    assert nothing.decision == "fault"
