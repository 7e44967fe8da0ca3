"""Facts about image files: what the pixels no longer tell."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flawscope.errors import ImageError
from flawscope.imaging.image_facts import facts_of, read_image_with_facts
from flawscope.imaging.images import decode_stored

FORMATS = ["png", "jpeg", "bmp", "tiff", "webp"]


def pixels(mode, height=20, width=30):
    shape = (height, width) if len(mode) == 1 else (height, width, len(mode))
    return np.random.default_rng(5).integers(0, 250, shape, np.uint8)


def saved(mode, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def facts(data):
    return facts_of(data, decode_stored(data))


# JPEG has no alpha, and Pillow writes none to BMP.
MODES = [
    (kind, mode)
    for kind in FORMATS
    for mode in ("L", "LA", "RGB", "RGBA")
    if kind not in ("jpeg", "bmp") or "A" not in mode
]


@pytest.mark.parametrize(("kind", "mode"), MODES)
def test_channels_alpha_size_and_format_are_those_of_the_file(kind, mode):
    found = facts(saved(mode, kind))
    assert found[:3] == (kind, 30, 20)
    # WebP has no grey.
    assert found.channels == ("grey" if mode[0] == "L" and kind != "webp" else "colour")
    assert found.has_alpha == mode.endswith("A")
    assert (found.bits_stored, found.pages, found.orientation) == (8, 1, 1)


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp"])
@settings(max_examples=12)
@given(orientation=st.integers(1, 8))
def test_an_orientation_is_named_and_not_applied(kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    found = facts(saved("RGB", kind, exif=exif))
    assert found.orientation == orientation
    assert (found.width, found.height) == (30, 20)


@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
@settings(max_examples=8)
@given(count=st.integers(1, 6))
def test_pages_are_counted_and_the_first_is_used(kind, count):
    pages = [Image.fromarray(np.full((20, 30, 3), 40 * page, np.uint8)) for page in range(1, count + 1)]
    buffer = io.BytesIO()
    lossless = {"lossless": True} if kind == "webp" else {}
    pages[0].save(buffer, kind, save_all=True, append_images=pages[1:], **lossless)
    found = facts(buffer.getvalue())
    assert found.pages == count
    assert found.largest_value == 40


@pytest.mark.parametrize("extension", [".png", ".tif"])
@settings(max_examples=20)
@given(bits=st.integers(9, 16))
def test_the_largest_value_tells_how_many_bits_are_used(extension, bits):
    image = np.random.default_rng(bits).integers(0, 2**bits, (16, 16), np.uint16)
    image[3, 3] = 2**bits - 1
    found = facts(cv2.imencode(extension, image)[1].tobytes())
    assert (found.bits_stored, found.largest_value) == (16, 2**bits - 1)


def test_alpha_of_bmp_is_found():
    assert facts(cv2.imencode(".bmp", pixels("RGBA"))[1].tobytes()).has_alpha


def test_a_palette_with_transparency_has_alpha():
    buffer = io.BytesIO()
    Image.fromarray(pixels("L")).convert("P").save(buffer, "png", transparency=0)
    assert facts(buffer.getvalue()).has_alpha


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60, deadline=None)
@given(where=st.integers(0, 400), value=st.integers(0, 255))
def test_broken_metadata_is_never_more_than_an_image_error(kind, where, value):
    exif = Image.Exif()
    exif[274] = 6
    data = bytearray(saved("RGB", kind, **({} if kind == "bmp" else {"exif": exif})))
    data[where % len(data)] = value
    try:
        found = facts(bytes(data))
    except ImageError:
        return
    assert (found.width, found.height) == decode_stored(bytes(data)).shape[1::-1]
    assert 1 <= found.orientation <= 8


def test_facts_come_with_the_pixels_of_one_reading(tmp_path):
    (path := tmp_path / "part.jfif").write_bytes(data := saved("RGB", "jpeg"))
    stored, found = read_image_with_facts(path)
    np.testing.assert_array_equal(stored, decode_stored(data))
    assert found == facts_of(data, stored)
    with pytest.raises(ImageError, match=r"nothing\.png: could not be read: No such file"):
        read_image_with_facts(tmp_path / "nothing.png")
