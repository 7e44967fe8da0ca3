"""The CUDA functions for Python: what they refuse, and their results with the kernels in emulation."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulation import emulated_kernels
from project_paths import ROOT

from flawscope import cpp_ext
from flawscope.cpp_ext import native
from flawscope.cpp_ext.cuda_kernels import CudaKernels
from flawscope.cpp_ext.window import place_starts
from flawscope.errors import ArgumentError, BackendError, DeviceError

pytestmark = pytest.mark.long

needs_native = pytest.mark.skipif(not cpp_ext.HAVE_NATIVE, reason="native kernels are not in this installation")
needs_cuda = pytest.mark.skipif(not cpp_ext.HAVE_CUDA, reason="this build has no CUDA kernels")
HEADER = ROOT / "cpp_ext" / "include" / "flawscope" / "patch_distance.h"
M, D, N, P = 40, 8, 5, 3

DTYPES = {"dtype": "float32", "rows_dtype": "float32"}
SIZES = {
    "height": 2,
    "width": 3,
    "m": M,
    "d": D,
    "n": N,
    "p": P,
    "k": 1,
    "rerank": 0,
    "count": 4,
    "first": 0,
    "workspace_bytes": 64,
    "c": 4,
    "cells": 6,
    "guided": 1,
    "arrays": 2,
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> CudaKernels:
    return emulated_kernels(tmp_path_factory)


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def workspace(size: int) -> np.ndarray:
    """Memory aligned to 16 bytes, as that of CUDA is; never zero, because nobody may count on that."""
    memory = np.full(size + 16, 0xA5, np.uint8)
    return memory[-address(memory) % 16 :][:size]


def declarations() -> dict[str, list[str]]:
    """Return the CUDA functions of the C header without their prefix, with the names of their arguments."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"FLAWSCOPE_API int flawscope_cuda_(\w+)\((.*?)\);", text, re.DOTALL)
    return {name: [part.split()[-1].lstrip("*") for part in arguments.split(",")] for name, arguments in found}


FUNCTIONS = {name: [part for part in parts if part != "bytes"] for name, parts in declarations().items()}
FUNCTIONS["device_count"] = []  # its only argument is where the result goes
ARGUMENTS = [(name, argument) for name, arguments in FUNCTIONS.items() for argument in arguments]


def sound(name: str) -> dict[str, Any]:
    """Return arguments of the right types. Every address is 0, so a call that is let through is refused by C."""
    return {argument: DTYPES.get(argument, SIZES.get(argument, 0)) for argument in FUNCTIONS[name]}


# --- names and types


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_of_the_header_is_there_with_its_arguments_in_order(name: str) -> None:
    assert len(FUNCTIONS) == 12
    assert list(inspect.signature(getattr(CudaKernels, name)).parameters) == ["self", *FUNCTIONS[name]]


@needs_native
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "device_count"])
def test_the_compiled_module_names_the_arguments_in_the_same_order(name: str) -> None:
    signature = getattr(native.MODULE.CudaKernels, name).__nb_signature__[0][0]
    assert re.findall(r"(\w+): ", signature) == FUNCTIONS[name]


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
@pytest.mark.parametrize(
    "value", ["4096", 1.0, True, None, b"rows", np.ones(3, np.float32), -1, 1 << 64], ids=lambda value: str(value)[:6]
)
def test_what_is_no_address_size_or_dtype_is_refused_by_name(
    kernels: CudaKernels, name: str, argument: str, value: object
) -> None:
    expected = "one of float32, float16" if "dtype" in argument else "a[n]? .*integer"
    with pytest.raises(ArgumentError, match=rf"^{argument}: expected {expected}.*, got "):
        getattr(kernels, name)(**{**sound(name), argument: value})


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_the_compiled_module_alone_converts_nothing(kernels: CudaKernels, name: str, argument: str) -> None:
    function = getattr(kernels._native, name)
    for value in ("4096", 1.0, None, [], np.float32(1), 1 << 64) if "dtype" not in argument else (0, None, b"float32"):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            function(**{**sound(name), argument: value})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_argument_too_few_or_too_many_is_refused(kernels: CudaKernels, name: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'length'"):
        getattr(kernels, name)(**sound(name), length=1)
    for function, takes_none in ((getattr(kernels, name), False), (getattr(kernels._native, name), True)):
        with pytest.raises(TypeError):
            function(*sound(name).values(), 1)
        if FUNCTIONS[name]:
            *all_but_last, _ = sound(name).items()
            with pytest.raises(TypeError, match="incompatible" if takes_none else "missing 1 required"):
                function(**dict(all_but_last))


def test_an_unknown_dtype_is_refused_by_both(kernels: CudaKernels) -> None:
    bad: Any = {**sound("bank_pack"), "dtype": "float64"}
    with pytest.raises(ArgumentError, match="dtype: expected one of float32, float16, got 'float64'"):
        kernels.bank_pack(**bad)
    with pytest.raises(ArgumentError, match="dtype: expected float32 or float16, got float64"):
        kernels._native.bank_pack(**bad)


@pytest.mark.parametrize(
    "name",
    [
        *("bank_pack", "bank_check", "nearest", "windows_nearest", "mahalanobis", "mahalanobis_triangles"),
        *("kcenter_greedy", "diffusion_step"),
    ],
)
def test_a_null_address_and_memory_off_its_alignment_are_errors_and_no_crash(kernels: CudaKernels, name: str) -> None:
    with pytest.raises(ArgumentError, match=rf"^CUDA kernels: {name}: "):
        getattr(kernels, name)(**sound(name))
    if name == "bank_pack":
        rows, packed = np.ones((M, D), np.float32), workspace(kernels.bank_bytes(m=M, d=D) + 4)
        with pytest.raises(ArgumentError, match=r"^CUDA kernels: bank_pack: "):
            kernels.bank_pack(rows=address(rows), dtype="float32", m=M, d=D, packed=address(packed) + 4, stream=0)


# --- results in emulation


def pack(kernels: CudaKernels, rows: np.ndarray) -> np.ndarray:
    packed = workspace(kernels.bank_bytes(m=rows.shape[0], d=rows.shape[1]))
    m, d = rows.shape
    kernels.bank_pack(rows=address(rows), dtype=rows.dtype.name, m=m, d=d, packed=address(packed), stream=0)
    return packed


def nearest(kernels: CudaKernels, rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    packed, (m, d), n = pack(kernels, rows), rows.shape, len(queries)
    memory = workspace(kernels.nearest_bytes(n=n, m=m, d=d, k=k, rerank=0))
    squared, found = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
    kernels.nearest(
        packed=address(packed),
        rows=address(rows),
        rows_dtype=rows.dtype.name,
        m=m,
        d=d,
        queries=address(queries),
        dtype=queries.dtype.name,
        n=n,
        k=k,
        rerank=0,
        workspace=address(memory),
        workspace_bytes=len(memory),
        squared=address(squared),
        found=address(found),
        stream=0,
    )
    return squared, found


@pytest.mark.parametrize("rows_type", [np.float32, np.float16])
@pytest.mark.parametrize("queries_type", [np.float32, np.float16])
def test_nearest_rows_are_those_of_the_cpu(kernels: CudaKernels, rows_type: Any, queries_type: Any) -> None:
    # Small integers: every product and sum is exact, whatever its order.
    rng = np.random.default_rng(0)
    rows, queries = (rng.integers(-9, 10, (size, D)).astype(kind) for size, kind in ((M, rows_type), (N, queries_type)))
    squared, found = nearest(kernels, rows, queries, 3)
    expected, expected_rows = cpp_ext.nearest(queries.astype(np.float32), rows.astype(np.float32), 3)
    np.testing.assert_array_equal(squared, expected)
    np.testing.assert_array_equal(found, expected_rows)


def test_a_bank_that_is_not_finite_is_told(kernels: CudaKernels) -> None:
    rows = np.ones((M, D), np.float32)
    assert kernels.bank_check(packed=address(pack(kernels, rows)), stream=0)
    rows[7, 2] = np.nan
    assert not kernels.bank_check(packed=address(pack(kernels, rows)), stream=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("images", [0, 1, 3])
def test_rows_within_windows_are_those_of_the_cpu(kernels: CudaKernels, images: int, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    grid, rows = (6, 9), rng.integers(-9, 10, (M, D)).astype(np.float32)
    cells = np.sort(rng.integers(0, 40, M))  # the last places have none
    windows = cpp_ext.WindowBank(rows, np.stack(np.divmod(cells, 9), axis=1), grid, 1)
    starts = place_starts(np.stack(np.divmod(cells, 9), axis=1), grid)
    queries = rng.integers(-9, 10, (images * 54, D)).astype(dtype)
    squared, found = np.empty(images * 54, np.float32), np.empty(images * 54, np.int64)
    kernels.windows_nearest(
        rows=address(rows),
        m=M,
        d=D,
        starts=address(starts),
        height=6,
        width=9,
        reach=address(windows.reach),
        queries=address(queries),
        dtype=queries.dtype.name,
        n=images,
        squared=address(squared),
        found=address(found),
        stream=0,
    )
    expected, expected_rows = windows.nearest(queries.astype(np.float32))
    np.testing.assert_array_equal(squared, expected)
    np.testing.assert_array_equal(found, expected_rows)


def test_mahalanobis_distances_are_those_of_the_cpu(kernels: CudaKernels) -> None:
    rng = np.random.default_rng(1)
    mean, whitening, features = (
        rng.integers(-5, 6, shape).astype(np.float32) for shape in ((P, D), (P, D, D), (N, P, D))
    )
    squared = np.empty((N, P), np.float32)
    kernels.mahalanobis(
        mean=address(mean),
        whitening=address(whitening),
        p=P,
        d=D,
        features=address(features),
        n=N,
        squared=address(squared),
        stream=0,
    )
    np.testing.assert_array_equal(squared, cpp_ext.mahalanobis(features, mean, whitening))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_mahalanobis_distances_by_triangles_are_those_of_the_cpu(kernels: CudaKernels, dtype: str) -> None:
    rng = np.random.default_rng(2)
    mean, features = (rng.integers(-5, 6, shape).astype(np.float32) for shape in ((P, D), (N, P, D)))
    triangles = rng.integers(-5, 6, (P, D * (D + 1) // 2)).astype(dtype)
    squared = np.empty((N, P), np.float32)
    kernels.mahalanobis_triangles(
        mean=address(mean),
        triangles=address(triangles),
        dtype=dtype,
        p=P,
        d=D,
        features=address(features),
        n=N,
        squared=address(squared),
        stream=0,
    )
    np.testing.assert_array_equal(squared, cpp_ext.Gaussians.of_triangles(mean, triangles).mahalanobis(features))


def test_the_selection_is_that_of_the_cpu(kernels: CudaKernels) -> None:
    features = np.random.default_rng(2).integers(-99, 100, (M, D)).astype(np.float32)
    expected = cpp_ext.kcenter_greedy(features, 10, 0)
    memory, chosen = workspace(kernels.kcenter_bytes(n=M, count=10)), np.empty(10, np.int64)
    kernels.kcenter_greedy(
        features=address(features),
        n=M,
        d=D,
        count=10,
        first=int(expected[0]),
        workspace=address(memory),
        workspace_bytes=len(memory),
        chosen=address(chosen),
        stream=0,
    )
    np.testing.assert_array_equal(chosen, expected)


def test_other_threads_run_during_a_selection(kernels: CudaKernels) -> None:
    # A launch waits where the queue of the device is full, which a selection of many centres fills.
    features = np.random.default_rng(3).normal(size=(1500, D)).astype(np.float32)
    memory, chosen = workspace(kernels.kcenter_bytes(n=1500, count=60)), np.empty(60, np.int64)
    sizes = {"n": 1500, "d": D, "count": 60, "first": 0, "workspace_bytes": len(memory), "stream": 0}
    addresses = {"features": address(features), "workspace": address(memory), "chosen": address(chosen)}
    thread = threading.Thread(target=lambda: kernels.kcenter_greedy(**sizes, **addresses))
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
        time.sleep(0)
    assert turns > 20
    assert len(set(chosen.tolist())) == 60


def test_numpy_integers_are_integers(kernels: CudaKernels) -> None:
    assert kernels.bank_bytes(m=np.int64(M), d=np.int32(D)) == kernels.bank_bytes(m=M, d=D)  # type: ignore[arg-type]


# --- libraries that are not there, or not ours


@pytest.mark.slow
def test_a_library_of_another_version_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ArgumentError, match=r"expected version \d+ of the interface in .*\.so, got 99\."):
        emulated_kernels(tmp_path_factory, "99")


@needs_native
def test_what_is_no_library_of_kernels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"^CUDA kernels: expected a library that loads, got: .*nowhere\.so"):
        CudaKernels(tmp_path / "nowhere.so")
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile an empty library with")
    empty = tmp_path / "empty.so"
    subprocess.run(["g++", "-shared", "-x", "c++", "/dev/null", "-o", str(empty)], check=True)
    with pytest.raises(ArgumentError, match=r"expected flawscope_\w+ in .*empty\.so, got a library without\."):
        CudaKernels(empty)


@pytest.mark.parametrize("has_native", [True, False])
def test_without_kernels_it_is_said(monkeypatch: pytest.MonkeyPatch, has_native: bool) -> None:
    if has_native and (cpp_ext.HAVE_CUDA or not cpp_ext.HAVE_NATIVE):
        pytest.skip("this build has CUDA kernels, or no native ones")
    monkeypatch.setattr(native, "HAVE_NATIVE", has_native)
    with pytest.raises(BackendError, match=r"^CUDA kernels: expected them in this installation, got none"):
        CudaKernels()


@needs_cuda
def test_without_a_driver_sizes_are_known_and_the_count_of_devices_is_an_error_in_words() -> None:
    installed = CudaKernels()
    assert installed.bank_bytes(m=100, d=64) >= 2 * 100 * 64
    assert installed.kcenter_bytes(n=1000, count=10) >= 4 * 1000
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a driver")
    count: Callable[[], int] = installed.device_count
    with pytest.raises(DeviceError, match=r"^CUDA kernels: device_count: \w+"):
        count()
