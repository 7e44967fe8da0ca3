"""The array check: what passes comes back untouched, everything else is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flawscope.arrays import check_array
from flawscope.errors import ArgumentError


def test_a_fitting_array_is_returned_itself():
    array = np.ones((2, 3), np.float32)
    assert check_array(array, "x", ("N", 3), np.float32) is array
    assert check_array(array, "x", (2, "D"), "float32", finite=True) is array


@pytest.mark.parametrize("value", [None, 1.0, [[1.0]], "array", (1,), np.float32(1)])
def test_what_is_no_array_is_refused_by_type(value):
    with pytest.raises(ArgumentError, match=rf"x: expected a NumPy array float32 \[N, 3\], got {type(value).__name__}"):
        check_array(value, "x", ("N", 3), np.float32)


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.ones((2, 3)), r"float64 \[2, 3\]"),
        (np.ones((2, 4), np.float32), r"float32 \[2, 4\]"),
        (np.ones(3, np.float32), r"float32 \[3\]"),
        (np.ones((1, 2, 3), np.float32), r"float32 \[1, 2, 3\]"),
        (np.ones((0, 3), np.float32), r"float32 \[0, 3\]"),
        (np.array(1, np.float32), r"float32 \[\]"),
        (np.ones((2, 3), np.int32), r"int32 \[2, 3\]"),
        (np.ones((2, 3), np.dtype(np.float32).newbyteorder()), r"[<>]f4 \[2, 3\]"),
    ],
)
def test_another_shape_or_type_is_refused_with_both(array, got):
    with pytest.raises(ArgumentError, match=rf"x: expected float32 \[N, 3\] with no empty axis, got {got}\."):
        check_array(array, "x", ("N", 3), np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_counted_only_on_request(bad):
    array = np.ones((2, 3), np.float32)
    array[0, 0] = array[1, 2] = bad
    assert check_array(array, "x", ("N", 3), np.float32) is array
    with pytest.raises(ArgumentError, match=r"x: expected finite numbers, got 2 NaN or infinite values in float32"):
        check_array(array, "x", ("N", 3), np.float32, finite=True)


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.uint8]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)
    ),
    st.lists(st.integers(0, 3) | st.sampled_from("NHW"), max_size=3),
    st.sampled_from([np.float32, np.float64, np.uint8]),
)
def test_an_array_passes_exactly_if_dtype_and_every_axis_fit(array, shape, dtype):
    fits = (
        array.dtype == dtype
        and array.ndim == len(shape)
        and all(
            size >= 1 if isinstance(want, str) else size == want for size, want in zip(array.shape, shape, strict=False)
        )
    )
    if fits:
        assert check_array(array, "x", tuple(shape), dtype) is array
    else:
        with pytest.raises(ArgumentError, match="x: expected"):
            check_array(array, "x", tuple(shape), dtype)
