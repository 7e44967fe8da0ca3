"""Whole JPEGs decode to what OpenCV makes of them; damaged ones are refused."""

from __future__ import annotations

import io
import os
import tempfile

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flawscope.errors import ImageError
from flawscope.imaging.images import decode_stored


def jpeg(seed, *options):
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (200, 152), interpolation=cv2.INTER_CUBIC)
    grainy = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
    image = grainy[..., 0] if seed % 3 == 2 else grainy
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90, *options])[1].tobytes()


JPEG_OPTIONS = st.sampled_from(
    [
        (),
        (cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        (cv2.IMWRITE_JPEG_OPTIMIZE, 1),
        (cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
        (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
        (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422),
        (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440),
        (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411),
    ]
)


@settings(max_examples=60)
@given(seed=st.integers(0, 20), options=JPEG_OPTIONS)
def test_a_whole_jpeg_is_what_opencv_makes_of_it(seed, options):
    data = jpeg(seed, *options)
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
    np.testing.assert_array_equal(decode_stored(data), cv2.imdecode(np.frombuffer(data, np.uint8), flags))


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 5), options=JPEG_OPTIONS, where=st.floats(0.25, 0.9), kind=st.sampled_from(["zeros", "cut"]))
def test_a_damaged_jpeg_is_refused_where_libjpeg_complains(seed, options, where, kind):
    """The judge is libjpeg itself, as OpenCV calls it: it says so on stderr."""
    data = bytearray(jpeg(seed, *options))
    at = int(where * len(data))
    if kind == "cut":
        del data[at:]
    else:
        data[at : at + 256] = bytes(len(data[at : at + 256]))
    complains = opencv_complains(bytes(data))
    try:
        decode_stored(bytes(data))
    except ImageError as err:
        refused = str(err)
    else:
        refused = ""
    assert bool(refused) == complains
    assert complains or kind == "zeros"  # a file that was cut is always noticed


def opencv_complains(data):
    with tempfile.TemporaryFile() as caught:
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        caught.seek(0)
        return image is None or bool(caught.read())


def test_a_jpeg_of_four_inks_is_what_opencv_makes_of_it():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8), "CMYK")
    buffer = io.BytesIO()
    image.save(buffer, "jpeg")
    data = buffer.getvalue()
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    np.testing.assert_array_equal(decode_stored(data), expected)
    with pytest.raises(ImageError, match="expected a whole jpeg image, got broken data"):
        decode_stored(data[: len(data) // 2])
