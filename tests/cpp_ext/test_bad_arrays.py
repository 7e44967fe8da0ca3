"""Arrays that do not fit: every kernel refuses them with an ArgumentError that names the array, or handles them."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest
from kernel_cases import assert_same, integers

from flawscope.errors import ArgumentError

M, D, P = 6, 4, 3
BANK = integers(M, D)
QUERIES = integers(5, D, seed=1)
MEAN, WHITENING, FEATURES = integers(P, D), integers(P, D, D, seed=1), integers(2, P, D, seed=2)

# Name of the array -> a call that is in order but for it.
CALLS = {
    "queries": (QUERIES, lambda face, array: face.nearest(array, BANK, 2)),
    "queries of a bank": (QUERIES, lambda face, array: face.bank(BANK, "int8").nearest(array, 2)),
    "bank": (BANK, lambda face, array: face.nearest(QUERIES, array, 2)),
    "bank to pack": (BANK, lambda face, array: face.bank(array, "float16").nearest(QUERIES, 2)),
    "features of the selection": (BANK, lambda face, array: face.kcenter_greedy(array, 3, 0)),
    "features": (FEATURES, lambda face, array: face.mahalanobis(array, MEAN, WHITENING)),
    "mean": (MEAN, lambda face, array: face.mahalanobis(FEATURES, array, WHITENING)),
    "whitening": (WHITENING, lambda face, array: face.mahalanobis(FEATURES, MEAN, array)),
}
every_array = pytest.mark.parametrize("name", list(CALLS))


def refused(face, name, array, got):
    """The call is refused in one line that begins with the name of the array and says what was got."""
    with pytest.raises(ArgumentError, match=f"^{name.split()[0]}: expected [^\n]*, got [^\n]*{got}[^\n]*$"):
        CALLS[name][1](face, array)


# --- types


@every_array
@pytest.mark.parametrize("dtype", ["float64", "int8", "uint8", "int32", "int64", "bool", "complex64", "complex128"])
def test_another_dtype_is_refused(face, name, dtype):
    refused(face, name, CALLS[name][0].astype(dtype), dtype)


@every_array
@pytest.mark.parametrize("dtype", ["O", "U4", "S4", "M8[s]", "longdouble", "V4"])
def test_a_dtype_that_no_other_library_knows_is_refused_too(face, name, dtype):
    kind = np.dtype(dtype)
    refused(face, name, np.zeros(CALLS[name][0].shape, kind), f"({re.escape(kind.name)}|{re.escape(str(kind))})")


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith("queries")])
def test_float16_is_for_queries_only(face, name):
    refused(face, name, CALLS[name][0].astype(np.float16), "float16")


@every_array
def test_another_byte_order_is_refused(face, name):
    refused(face, name, CALLS[name][0].astype(">f4"), ">f4")


@every_array
@pytest.mark.parametrize(
    "value", [None, 1.0, "rows", [[1.0, 2.0]], np.float32(1), object()], ids=lambda v: type(v).__name__
)
def test_what_is_no_array_is_refused(face, name, value):
    refused(face, name, value, type(value).__name__)


# --- shapes


@every_array
def test_another_number_of_axes_is_refused(face, name):
    array = CALLS[name][0]
    for wrong in (array[0], array[None], array[0, 0], np.float32(1).reshape(())):
        refused(face, name, np.asarray(wrong), r"float32 \[")


@pytest.mark.parametrize("name", ["queries", "queries of a bank", "features", "whitening"])
def test_another_number_of_channels_is_refused(face, name):
    array = CALLS[name][0]
    for wrong in (array[..., : D - 1], np.concatenate([array, array], axis=-1)):
        refused(face, name, np.ascontiguousarray(wrong), r"float32 \[")


@pytest.mark.parametrize("name", ["bank", "bank to pack", "features of the selection", "mean", "whitening"])
def test_an_array_without_rows_is_refused(face, name):
    refused(face, name, CALLS[name][0][:0], r"float32 \[0, ")


@pytest.mark.parametrize("name", ["bank", "bank to pack", "features of the selection", "mean", "whitening"])
def test_an_array_without_channels_is_refused(face, name):
    refused(face, name, CALLS[name][0][..., :0], r"float32 \[.*0\]")


@pytest.mark.parametrize("name", ["queries", "queries of a bank", "features"])
@pytest.mark.parametrize(
    "make", [lambda array: array[:0], lambda array: np.empty((0, *array.shape[1:]), np.float32)], ids=["cut", "new"]
)
def test_no_queries_are_fine(face, name, make):
    got = CALLS[name][1](face, make(CALLS[name][0]))
    assert len(got[0] if isinstance(got, tuple) else got) == 0


@pytest.mark.parametrize("name", ["queries", "queries of a bank", "features"])
def test_no_queries_of_another_kind_are_refused_all_the_same(face, name):
    array = CALLS[name][0][:0]
    refused(face, name, array.astype(np.float64), r"float64 \[0, ")
    refused(face, name, np.ascontiguousarray(array[..., :2]), r"float32 \[0, ")


# --- layouts of NumPy: all are handled


@every_array
@pytest.mark.parametrize(
    "layout",
    [
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(np.repeat(a, 2, axis=-1), 2, axis=0)[::2, ..., ::2],
        lambda a: a[::-1].copy()[::-1],
        lambda a: a[..., ::-1].copy()[..., ::-1],
        lambda a: np.frombuffer(b"x" + a.tobytes(), np.uint8)[1:].view(np.float32).reshape(a.shape),
        lambda a: np.lib.stride_tricks.as_strided(a, a.shape, a.strides, writeable=False),
    ],
    ids=["fortran", "skips", "rows turned", "channels turned", "not aligned", "read only"],
)
def test_any_layout_of_numpy_gives_the_same_result(face, name, layout):
    array, call = CALLS[name]
    turned = layout(array)
    assert_same(turned, array)
    assert_same(call(face, turned), call(face, array))


@every_array
def test_rows_that_are_one_row_in_memory_give_the_same_result(face, name):
    array, call = CALLS[name]
    repeated = np.broadcast_to(array[:1], array.shape)
    assert_same(call(face, repeated), call(face, repeated.copy()))


# --- counts


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("k", [0, -1, M + 1, 1.5, "2", True, None, np.float32(1)])
def test_a_wrong_number_of_neighbours_is_refused(face, k, packed):
    bank = face.bank(BANK) if packed else BANK
    with pytest.raises(ArgumentError, match=rf"^k: expected an integer from 1 to {M} \(rows of the bank.*\), got "):
        face.nearest(QUERIES, bank, k)


@pytest.mark.parametrize("packed", [False, True])
def test_more_than_64_neighbours_are_refused(face, packed):
    rows = integers(100, D)
    with pytest.raises(ArgumentError, match=r"^k: expected an integer from 1 to 64 \(.*at most 64\), got 65"):
        face.nearest(QUERIES, face.bank(rows) if packed else rows, 65)


@pytest.mark.parametrize("threads", [-1, 1.5, "2", True, None, 2**31, 2**63])
def test_a_wrong_number_of_threads_is_refused(face, threads):
    for call in (
        lambda: face.nearest(QUERIES, BANK, 1, threads=threads),
        lambda: face.bank(BANK, threads=threads),
        lambda: face.kcenter_greedy(BANK, 1, 0, threads=threads),
        lambda: face.mahalanobis(FEATURES, MEAN, WHITENING, threads=threads),
    ):
        with pytest.raises(ArgumentError, match=r"^threads: expected an integer from 0 .*, got "):
            call()


# --- arrays of another device


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Managed(ctypes.Structure):
    """DLManagedTensor of dlpack.h (before version 1.0)."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class OnDevice:
    """Says through DLPack that it lies on a CUDA device, at an address that must not be read."""

    def __init__(self, shape):
        self.shape, self.ndim = shape, len(shape)
        self._sizes = (ctypes.c_int64 * self.ndim)(*shape)
        self._managed = _Managed(16, _Device(2, 0), self.ndim, _DType(2, 32, 1), self._sizes, None, 0, None, None)

    def __len__(self):
        return self.shape[0]

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **_):
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return capsule(ctypes.addressof(self._managed), b"dltensor", None)


@every_array
def test_an_array_on_another_device_is_refused(compiled, name):
    array = OnDevice(CALLS[name][0].shape)
    with pytest.raises(ArgumentError, match=rf"^{name.split()[0]}: expected .* CPU, got one on device 2:0"):
        CALLS[name][1](compiled, array)
