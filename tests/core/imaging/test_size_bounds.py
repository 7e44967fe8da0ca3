"""A limit on pixels is one on memory and time too: short data and endless passes are refused, real images are not."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.errors import ArgumentError, ImageError
from flawscope.imaging import images
from flawscope.imaging.image_headers import read_header
from flawscope.imaging.images import MAX_SIDE_PX, check_image, decode_image, decode_stored, read_encoded
from flawscope.imaging.jpeg import MAX_SCANS
from flawscope.imaging.size_bounds import excess_of
from flawscope.imaging.tiff import count_pages


def encode(ending, image, *parameters):
    return cv2.imencode(ending, image, list(parameters))[1].tobytes()


# ---- real images pass


@given(
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    channels=st.sampled_from([1, 3]),
    value=st.integers(0, 255),
    noise=st.integers(0, 255),
    form=st.sampled_from(
        [
            (".png", cv2.IMWRITE_PNG_COMPRESSION, 9),
            (".png", cv2.IMWRITE_PNG_COMPRESSION, 0),
            (".jpg", cv2.IMWRITE_JPEG_QUALITY, 1),
            (".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_QUALITY, 1),
            (".webp", cv2.IMWRITE_WEBP_QUALITY, 1),
            (".tif",),
            (".bmp",),
        ]
    ),
    is_deep=st.booleans(),
)
def test_an_image_that_was_encoded_passes(height, width, channels, value, noise, form, is_deep):
    rng = np.random.default_rng(0)
    image = rng.integers(value - value * noise // 256, value + 1, (height, width, channels)).astype(np.uint8)
    if is_deep and form[0] in (".png", ".tif"):
        image = image.astype(np.uint16) * 257
    data = encode(form[0], image, *form[1:])
    assert excess_of(data, read_header(data)) is None
    assert decode_stored(data).shape[:2] == (height, width)


@pytest.mark.long
@pytest.mark.parametrize(
    "form",
    [(".jpg",), (".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_OPTIMIZE, 1), (".png",), (".webp",)],
    ids=["baseline", "progressive", "png", "webp"],
)
def test_a_large_image_of_one_colour_passes(form):
    data = encode(form[0], np.full((8192, 8192), 128, np.uint8), *form[1:])
    assert decode_image(data).shape == (8192, 8192, 3)


# ---- what is too short is not decoded


@pytest.fixture
def no_decoder(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(images, "decode_jpeg", refuse)
    monkeypatch.setattr(images, "decode_with_opencv", refuse)


@pytest.mark.usefixtures("no_decoder")
@given(progressive=st.booleans(), height=st.integers(2000, 65500), width=st.integers(2000, 65500))
def test_a_jpeg_without_a_bit_for_every_block_is_not_decoded(progressive, height, width):
    data = bytearray(encode(".jpg", np.zeros((16, 16, 3), np.uint8), cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)))
    frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    message = "it was not decoded" if height * width <= images.MAX_PIXELS else "expected at most"
    with pytest.raises(ImageError, match=message):
        decode_image(bytes(data))


def png(height, width, bits, colour, packed):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.usefixtures("no_decoder")
@given(
    height=st.integers(2000, 10000), width=st.integers(2000, 20000), form=st.sampled_from([(8, 0), (16, 2), (16, 6)])
)
def test_a_png_that_cannot_inflate_to_its_rows_is_not_decoded(height, width, form):
    with pytest.raises(ImageError, match=r"got [\d,]+ bytes for \d+x\d+ pixels; it was not decoded"):
        decode_image(png(height, width, *form, zlib.compress(bytes(1000))))


@given(
    height=st.integers(8, 100),
    width=st.integers(8, 100),
    form=st.sampled_from([(1, 0), (2, 0), (4, 0), (8, 2), (16, 6)]),
)
def test_the_shortest_whole_png_passes(height, width, form):
    bits, colour = form
    row = 1 + (width * {0: 1, 2: 3, 6: 4}[colour] * bits + 7) // 8
    assert decode_image(png(height, width, bits, colour, zlib.compress(bytes(row * height), 9))).max() == 0


# ---- TIFF, whose strips are images and streams of their own


def tiff(strip, *, height=64, width=64, compression=1, rows=64, strips=1, **more):
    """A grey TIFF whose strips all are the same bytes, with further tags by their numbers."""
    tags = {256: (width,), 257: (height,), 258: (8,), 259: (compression,), 262: (1,), 277: (1,), 278: (rows,)}
    tags |= {273: (8,) * strips, 279: (len(strip),) * strips}
    tags |= {int(name.removeprefix("tag")): values for name, values in more.items()}
    body, entries = strip, b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            body += bytes(-len(body) % 2)
            packed, body = struct.pack("<I", 8 + len(body)), body + packed
        entries += struct.pack("<HHI", tag, 4, len(values)) + packed
    body += bytes(-len(body) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_a_tiff_that_is_whole_passes():
    assert decode_stored(tiff(bytes(64 * 64))).shape == (64, 64)
    assert decode_stored(tiff(bytes(64), rows=1, strips=64)).shape == (64, 64)  # strips may share their bytes


@pytest.mark.parametrize("side", [8000, 60000])
def test_a_jpeg_in_a_tiff_is_no_larger_than_its_strip(monkeypatch, side):
    data = bytearray(encode(".jpg", np.zeros((64, 64), np.uint8)))
    frame = data.index(b"\xff\xc0")
    assert decode_stored(tiff(bytes(data), compression=7)).shape == (64, 64)
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *arguments, **options: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="expected a whole tiff image"):
        decode_stored(tiff(bytes(data), compression=7))


@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
def test_a_strip_that_cannot_be_that_long_is_not_decompressed(compression, no_decoder):
    """Of any width, as a strip has it: samples and tiles may make far more of it than the image has pixels."""
    with pytest.raises(ImageError, match="expected a whole tiff image"):
        decode_stored(tiff(zlib.compress(bytes(100)), compression=compression, tag277=(60_000,)))


def test_strips_that_share_a_long_piece_are_not_read_one_by_one(no_decoder):
    data = zlib.compress(bytes(64)) + bytes(1 << 20)
    with pytest.raises(ImageError, match="expected a whole tiff image"):
        decode_stored(tiff(data, compression=8, height=1 << 17, rows=1, strips=1 << 17))


def test_a_tag_of_endless_values_makes_no_list_of_them():
    with pytest.raises(ImageError, match="expected a whole tiff image"):
        decode_stored(tiff(bytes(64 * 64), tag338=(2,) * (1 << 17)))


def test_pages_that_share_their_tags_are_counted_at_once():
    """Ten thousand directories of 65,535 tags, each two bytes behind the one before."""
    number = 3000
    directory = b"\xff\xff" * (6 * 65535 + number + 10)
    assert len(directory) > 12 * 65535
    data = bytearray(b"II*\0" + struct.pack("<I", 8) + directory)
    for page in range(number):
        end = 8 + 2 * page + 2 + 12 * 65535
        struct.pack_into("<I", data, end, 8 + 2 * (page + 1))
    started = time.process_time()
    assert count_pages(bytes(data)) >= 1
    assert time.process_time() - started < 5


# ---- passes


def with_scans(count):
    """A progressive JPEG whose last scan stands there again and again."""
    data = encode(".jpg", np.zeros((64, 64), np.uint8), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def test_a_jpeg_of_endless_passes_is_not_decoded(no_decoder):
    with pytest.raises(ImageError, match=f"more than {MAX_SCANS} passes over its pixels; it was not decoded"):
        decode_image(with_scans(MAX_SCANS))


def test_passes_are_counted_in_the_image_alone():
    data = encode(".jpg", np.zeros((64, 64), np.uint8))
    mark = b"\xff\xda"
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + 400) + mark * 200
    assert decode_image(data[:2] + thumbnail + data[2:] + mark * 200).shape == (64, 64, 3)  # and a film behind it


# ---- memory


@pytest.mark.serial
@pytest.mark.long
@pytest.mark.parametrize(("dtype", "channels"), [("uint16", 3), ("uint16", 1), ("uint8", 3)])
def test_decoding_takes_a_small_multiple_of_the_image(tmp_path, dtype, channels):
    side = 5000
    path = tmp_path / "a.png"
    path.write_bytes(encode(".png", np.zeros((side, side, channels), dtype)))
    program = f"""
from pathlib import Path
from flawscope.imaging.images import read_image
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10
before = peak()
image = read_image(Path({str(path)!r}))
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    larger = max(side * side * channels * np.dtype(dtype).itemsize, side * side * 3)
    assert int(done.stdout) < 2.6 * larger


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_blocks_of_rows_give_the_pixels_of_the_whole(monkeypatch, channels, dtype):
    data = encode(".png", np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (50, 31, channels)).astype(dtype))
    whole = decode_image(data)
    monkeypatch.setattr(images, "_BLOCK_PIXELS", 31 * 7)
    np.testing.assert_array_equal(decode_image(data), whole)


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(8 * images.MAX_PIXELS + (64 << 20) + 1)
    with pytest.raises(ImageError, match="it has more than 1,667,108,864 bytes, the most that is read"):
        read_encoded(path)


# ---- arrays


@pytest.mark.parametrize("shape", [(8, 2**31 - 1, 3), (2**31 - 1, 8, 3), (MAX_SIDE_PX + 1, 8, 3), (20_000, 20_000, 3)])
def test_an_array_larger_than_any_image_is_refused(shape):
    array = np.broadcast_to(np.zeros((), np.uint8), shape)  # of no size in memory
    with pytest.raises(ArgumentError, match="expected at most 200,000,000 pixels, and sides of at most 1,048,576, got"):
        check_image(array)


# ---- whatever the bytes


def image_files():
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    forms = [(".png",), (".jpg",), (".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (".tif",), (".bmp",), (".webp",)]
    return [encode(ending, noise, *parameters) for ending, *parameters in forms] + [
        tiff(bytes(24 * 20), height=24, width=20, rows=4, strips=6, tag338=(2, 2)),
        tiff(bytes(64 * 64), tag274=(6,)),
    ]


@settings(max_examples=200)
@given(
    file=st.integers(0, 7),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8),
    keep=st.floats(0, 1),
)
def test_changed_bytes_give_an_image_or_an_error_in_one_line(file, changes, keep):
    data = bytearray(image_files()[file])
    for place, value in changes:
        # At both ends, where headers and directories are.
        data[(place if place % 2 else -place) % len(data)] = value
    message = ""
    try:
        assert decode_stored(bytes(data[: round(len(data) * max(keep, 0.5))])).ndim in (2, 3)
    except ImageError as err:
        message = str(err)
    assert "\n" not in message
