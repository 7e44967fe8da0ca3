"""TIFF: the pixels that are stored, whole, or a refusal."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flawscope.errors import ImageError
from flawscope.imaging.images import decode_image, decode_stored
from flawscope.imaging.tiff import first_page


def pil_tiff(image, compression, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "tiff", compression=compression, **options)
    return buffer.getvalue()


COMPRESSIONS = st.sampled_from([None, "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits"])
CHANNELS = st.sampled_from([1, 2, 3, 4])


@settings(max_examples=120)
@given(
    compression=COMPRESSIONS,
    channels=CHANNELS,
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    rows=st.integers(1, 80),
    seed=st.integers(0, 99),
)
def test_a_whole_tiff_gives_the_pixels_that_are_stored(compression, channels, height, width, rows, seed):
    """Alpha is drawn like the rest: were colours multiplied by it, they would differ."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    data = pil_tiff(image if channels > 1 else image[..., 0], compression, tiffinfo={278: rows})
    expected = image[..., :3] if channels > 2 else np.dstack([image[..., 0]] * 3)
    np.testing.assert_array_equal(decode_image(data), expected)


@settings(max_examples=60)
@given(compression=COMPRESSIONS, channels=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_a_16_bit_tiff_gives_the_pixels_that_are_stored(compression, channels, seed):
    image = np.random.default_rng(seed).integers(0, 65_536, (21, 17, channels), np.uint16)
    number = {None: 1, "tiff_lzw": 5, "packbits": 32773}.get(compression, 8)
    data = cv2.imencode(".tif", image, [cv2.IMWRITE_TIFF_COMPRESSION, number])[1].tobytes()
    np.testing.assert_array_equal(decode_stored(data).reshape(image.shape), image)


@settings(max_examples=150)
@given(
    compression=st.sampled_from(["tiff_lzw", "tiff_deflate", "packbits", "jpeg"]),
    channels=st.sampled_from([1, 3]),
    where=st.floats(0.1, 0.9),
    rows=st.sampled_from([8, 16, 80]),
    damage=st.sampled_from(["zeros", "noise"]),
)
def test_a_tiff_with_damaged_strips_never_passes_as_other_pixels(compression, channels, where, rows, damage):
    """Only damage that leaves an image which libtiff reads without a complaint may pass: some bytes of LZW and JPEG."""
    image = grainy(channels)
    data = bytearray(pil_tiff(image, compression, tiffinfo={278: rows}))
    page = first_page(bytes(data))
    first, last = min(page.numbers(273)), max(map(sum, zip(page.numbers(273), page.numbers(279), strict=True)))
    at = int(first + where * (last - first - 200))
    data[at : at + 200] = bytes(200) if damage == "zeros" else np.random.default_rng(at).bytes(200)
    try:
        decode_stored(bytes(data))
    except ImageError as err:
        assert "expected a whole tiff image, got broken data" in str(err)  # noqa: PT017
    else:
        assert compression != "tiff_deflate"
        assert pillow_reads(bytes(data))


def grainy(channels):
    rng = np.random.default_rng(3)
    smooth = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (97, 71), interpolation=cv2.INTER_CUBIC)
    noisy = (smooth + rng.normal(0, 3, smooth.shape)).clip(0, 255).astype(np.uint8)
    return noisy if channels == 3 else noisy[..., 0]


def pillow_reads(data):
    """Return what libtiff says through Pillow, which stops at the first error."""
    try:
        Image.open(io.BytesIO(data)).load()
    except (OSError, ValueError):
        return False
    return True


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
def test_a_tiff_whose_strips_are_cut_off_is_refused(compression):
    """The directory stands in front, as scanners write it, so that it is whole when the end is missing."""
    data = pil_tiff(grainy(3), compression)
    page = first_page(data)
    (start,), (count,) = page.numbers(273), page.numbers(279)
    moved = bytearray(data + data[start : start + count])
    page.write(moved, 273, (len(data),))
    whole = decode_stored(bytes(moved))
    np.testing.assert_array_equal(whole, decode_stored(data))
    for missing in (1, count // 2, count - 1):
        with pytest.raises(ImageError, match="expected a whole tiff image, got broken data"):
            decode_stored(bytes(moved[:-missing]))


def lzw(data, bit_order="big"):
    """Compress to LZW without any match: every code is a byte. The table is cleared before codes take ten bits."""
    codes = []
    for start in range(0, len(data), 200):
        codes += [256, *data[start : start + 200]]
    codes.append(257)
    step = codes if bit_order == "big" else codes[::-1]
    bits = int("".join(f"{code:09b}" for code in step), 2)
    size = -(-9 * len(codes) // 8)
    return (bits << (8 * size - 9 * len(codes)) if bit_order == "big" else bits).to_bytes(size, bit_order)


def lzw_tiff(strip, height, width, fill_order=1):
    entries = [(256, width), (257, height), (258, 8), (259, 5), (262, 1), (266, fill_order), (273, 8), (277, 1)]
    entries += [(278, height), (279, len(strip))]
    padded = strip + bytes(len(strip) % 2)
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in entries)
    return b"II*\x00" + struct.pack("<I", 8 + len(padded)) + padded + directory + bytes(4)


@settings(max_examples=60)
@given(
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    missing=st.integers(1, 3),
    form=st.sampled_from(["new", "old", "reversed"]),
)
def test_an_lzw_strip_that_is_a_byte_too_short_is_refused(height, width, missing, form):
    image = np.random.default_rng(height * width).integers(0, 256, (height, width), np.uint8)

    def stored(content):
        strip = lzw(content, "little" if form == "old" else "big")
        if form == "reversed":
            strip = bytes(int(f"{byte:08b}"[::-1], 2) for byte in strip)
        return lzw_tiff(strip, height, width, 2 if form == "reversed" else 1)

    np.testing.assert_array_equal(decode_stored(stored(image.tobytes())), image)
    with pytest.raises(ImageError, match="expected a whole tiff image, got broken data"):
        decode_stored(stored(image.tobytes()[:-missing]))


def tiled_tiff(image):
    """Return a grey TIFF of Deflate-compressed tiles of 16 x 16 pixels."""
    padded = np.pad(image, [(0, -side % 16) for side in image.shape])
    tiles = [
        zlib.compress(padded[top : top + 16, left : left + 16].tobytes())
        for top in range(0, padded.shape[0], 16)
        for left in range(0, padded.shape[1], 16)
    ]
    offsets = [8 + sum(map(len, tiles[:index])) for index in range(len(tiles))]
    end = 8 + sum(map(len, tiles))
    lists = struct.pack(f"<{2 * len(tiles)}I", *offsets, *map(len, tiles))
    entries = [(256, 1, image.shape[1]), (257, 1, image.shape[0]), (258, 1, 8), (259, 1, 8), (262, 1, 1), (277, 1, 1)]
    entries += [(322, 1, 16), (323, 1, 16), (324, len(tiles), end), (325, len(tiles), end + 4 * len(tiles))]
    directory = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in entries)
    head = b"II*\x00" + struct.pack("<I", end + len(lists))
    return head + b"".join(tiles) + lists + struct.pack("<H", len(entries)) + directory + bytes(4), offsets


@settings(max_examples=30)
@given(height=st.integers(17, 60), width=st.integers(17, 60), damaged=st.floats(0, 1, exclude_max=True))
def test_a_tiff_of_tiles_is_read_whole_or_refused(height, width, damaged):
    image = np.random.default_rng(7).integers(0, 256, (height, width), np.uint8)
    data, offsets = tiled_tiff(image)
    np.testing.assert_array_equal(decode_stored(data), image)
    broken = bytearray(data)
    broken[offsets[int(damaged * len(offsets))] + 12] ^= 0x55
    with pytest.raises(ImageError, match="expected a whole tiff image, got broken data"):
        decode_stored(bytes(broken))


def test_a_tiff_that_cannot_be_checked_is_refused_with_its_reason():
    fax = pil_tiff(np.eye(16, dtype=bool), "group4")
    with pytest.raises(ImageError, match=r"expected TIFF with LZW, .* or no compression, got compression 4, of which"):
        decode_stored(fax)
