"""Decoding, its limits, and the one preprocessing."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from no_garbage import no_collections

from flawscope.errors import ArgumentError, ImageError
from flawscope.imaging import images
from flawscope.imaging.image_headers import Header, read_header
from flawscope.imaging.images import (
    decode_image,
    decode_stored,
    read_image,
)

FORMATS = {".png": "png", ".jpg": "jpeg", ".bmp": "bmp", ".tif": "tiff", ".webp": "webp"}
LOSSLESS = {".webp": [cv2.IMWRITE_WEBP_QUALITY, 101]}


def encode(extension, image, parameters=()):
    is_encoded, data = cv2.imencode(extension, image, list(parameters) or LOSSLESS.get(extension, []))
    assert is_encoded
    return data.tobytes()


def noise(height=20, width=30, channels=3, dtype=np.uint8):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(7).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def rgb(stored):
    """Return what decoding must give for an 8 bit image stored in OpenCV's order."""
    return np.dstack([stored] * 3) if stored.ndim == 2 else stored[..., 2::-1]


def png_header(width, height):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def tiff(pixels, order="<", orientation=1, kind=3):
    """Return a hand-made uncompressed grey TIFF; `kind` is the type of the size tags, 3 SHORT or 4 LONG."""
    height, width = pixels.shape
    entries = [(256, kind, width), (257, kind, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    entries += [(274, 3, orientation), (277, 3, 1), (278, kind, height), (279, 4, pixels.size)]
    magic = b"II*\x00" if order == "<" else b"MM\x00*"
    data = magic + struct.pack(order + "I", 8 + pixels.size) + pixels.tobytes()
    data += struct.pack(order + "H", len(entries))
    for tag, layout, value in entries:
        raw = struct.pack(order + ("H" if layout == 3 else "I"), value)
        data += struct.pack(order + "HHI", tag, layout, 1) + raw.ljust(4, b"\0")
    return data + struct.pack(order + "I", 0)


def huge(extension):
    """Return the first bytes of an image of 30,000 by 30,000 pixels."""
    side = 30_000
    return {
        ".png": png_header(side, side),
        ".jpg": b"\xff\xd8\xff\xc0\x00\x11\x08" + struct.pack(">HH", side, side) + b"\x03" + bytes(9),
        ".bmp": b"BM" + bytes(12) + struct.pack("<Iii", 40, side, -side) + bytes(40),
        ".tif": b"II*\x00\x08\x00\x00\x00\x02\x00"
        + struct.pack("<HHIIHHII", 256, 4, 1, side, 257, 4, 1, side)
        + bytes(4),
        ".webp": b"RIFF\x00\x00\x00\x00WEBPVP8X" + bytes(8) + (side - 1).to_bytes(3, "little") * 2,
    }[extension]


# ---- decoding


@pytest.mark.parametrize("extension", [".png", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_lossless_images_decode_to_rgb_exactly(extension, channels):
    stored = noise(channels=channels)
    if channels == 4 and extension == ".webp":
        stored[..., 3] = 200  # where alpha is 0, WebP does not keep the colour
    np.testing.assert_array_equal(decode_image(encode(extension, stored)), rgb(stored))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_of_one_colour_decodes_to_that_colour(channels):
    stored = np.full((16, 24, channels), (200, 100, 50)[:channels], np.uint8)
    decoded = decode_image(encode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, 100]))
    assert decoded.shape == (16, 24, 3)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - rgb(stored[..., 0] if channels == 1 else stored)).max() <= 2


@pytest.mark.parametrize("extension", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_16_bit_value_becomes_the_nearest_8_bit_value(extension, channels):
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    stored = values if channels == 1 else np.dstack([values] * channels)
    expected = np.round(values / 257).astype(np.uint8)
    decoded = decode_image(encode(extension, stored))
    for channel in range(3):
        np.testing.assert_array_equal(decoded[..., channel], expected)


def test_16_bit_colours_keep_their_order():
    stored = np.full((8, 8, 3), (1 * 257, 2 * 257, 3 * 257), np.uint16)
    np.testing.assert_array_equal(decode_image(encode(".png", stored))[0, 0], [3, 2, 1])


@pytest.mark.parametrize(
    ("stored", "shape", "dtype"),
    [
        (noise(channels=1), (20, 30), np.uint8),
        (noise(channels=4), (20, 30, 3), np.uint8),
        (noise(channels=1, dtype=np.uint16), (20, 30), np.uint16),
        (noise(channels=3, dtype=np.uint16), (20, 30, 3), np.uint16),
    ],
)
def test_decode_stored_keeps_depth_and_grey_and_drops_alpha(stored, shape, dtype):
    image = decode_stored(encode(".png", stored))
    assert image.shape == shape
    assert image.dtype == dtype
    np.testing.assert_array_equal(image, stored[..., :3] if stored.ndim == 3 else stored)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_of_a_jpeg_is_ignored(orientation):
    plain = encode(".jpg", noise())
    exif = b"Exif\0\0" + b"MM\x00*\x00\x00\x00\x08\x00\x01" + struct.pack(">HHIHHI", 274, 3, 1, orientation, 0, 0)
    tagged = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    # The tag is one that the decoder understands: without our flag it turns the image.
    is_turned = cv2.imdecode(np.frombuffer(tagged, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (30, 20)
    assert is_turned == (orientation >= 5)
    np.testing.assert_array_equal(decode_image(tagged), decode_image(plain))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_tag_of_a_tiff_is_ignored(order, orientation):
    pixels = noise(channels=1)
    np.testing.assert_array_equal(decode_image(tiff(pixels, order, orientation)), rgb(pixels))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_tiff_sizes_are_read_in_both_byte_orders_and_types(order, kind):
    assert read_header(tiff(noise(9, 11, 1), order, kind=kind)) == Header("tiff", 11, 9)


# ---- refusals


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_truncated_image_is_refused_or_decodes_whole(extension, channels, capfd):
    stored = cv2.GaussianBlur(noise(40, 60, channels), (0, 0), 2)
    data = encode(extension, stored)
    whole = decode_image(data)
    refused = 0
    for length in [*range(0, len(data), max(1, len(data) // 40)), len(data) - 1]:
        try:
            # Bytes may be missing behind the last pixel, in the tables at the end of a TIFF.
            np.testing.assert_array_equal(decode_image(data[:length]), whole)
        except ImageError as err:
            assert str(err).startswith("image: expected a")  # noqa: PT017
            refused += 1
    assert refused >= 40
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("position", [19, 40, 60, -20, -5])
def test_a_png_with_a_damaged_byte_is_refused_silently(position, capfd):
    data = bytearray(encode(".png", noise()))
    data[position] ^= 0x10
    with pytest.raises(ImageError, match=r"^image: expected a (whole )?png image.*Save or send it again\.$"):
        decode_image(bytes(data))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("content", "got"), [(b"not a picture\n", "other or broken bytes"), (b"", "an empty file")])
def test_a_text_file_named_png_is_refused_by_name(tmp_path, content, got):
    path = tmp_path / "note.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"note\.png: expected an image \(bmp, jpeg, .*\), got {got}\. Remove"):
        read_image(path)


def test_missing_files_and_folders_are_refused_by_name(tmp_path):
    with pytest.raises(ImageError, match=r"absent\.png: could not be read: No such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="could not be read: Is a directory"):
        read_image(tmp_path)


@pytest.mark.parametrize("extension", FORMATS)
def test_images_below_8_pixels_are_refused(extension):
    with pytest.raises(ImageError, match="expected sides of at least 8 pixels, got 1x1"):
        decode_image(encode(extension, np.zeros((1, 1, 3), np.uint8)))
    with pytest.raises(ImageError, match="got 9x7"):
        decode_image(encode(extension, np.zeros((7, 9, 3), np.uint8)))
    assert decode_image(encode(extension, np.zeros((8, 8, 3), np.uint8))).shape == (8, 8, 3)


@pytest.mark.parametrize("extension", FORMATS)
def test_a_huge_image_is_refused_before_it_is_decoded(extension, monkeypatch):
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(ImageError, match="at most 200,000,000 pixels, got 30000x30000; it was not decoded"):
        decode_image(huge(extension))


@pytest.mark.serial
def test_refusing_a_huge_image_takes_little_memory():
    program = (
        "import resource, sys\n"
        "from flawscope.imaging.images import ImageError, decode_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: decode_image(sys.stdin.buffer.read())\n"
        "except ImageError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    process = subprocess.run([sys.executable, "-c", program], input=huge(".png"), capture_output=True, check=True)
    assert int(process.stdout) < 10_000  # KiB; the decoded image would take 2.6 GiB


def test_the_pixel_limit_can_be_changed(monkeypatch):
    data = encode(".png", noise(20, 30))
    monkeypatch.setenv("FLAWSCOPE_MAX_PIXELS", "599")
    with pytest.raises(ImageError, match="expected at most 599 pixels, got 30x20"):
        decode_image(data)
    monkeypatch.setenv("FLAWSCOPE_MAX_PIXELS", "600")
    assert decode_image(data).shape == (20, 30, 3)


@pytest.mark.parametrize("text", ["", "many", "0", "-5", "1e9"])
def test_a_wrong_pixel_limit_is_an_error(monkeypatch, text):
    monkeypatch.setenv("FLAWSCOPE_MAX_PIXELS", text)
    with pytest.raises(ArgumentError, match="FLAWSCOPE_MAX_PIXELS: expected a number of pixels of at least 1"):
        decode_image(encode(".png", noise()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32])
def test_a_tiff_without_a_known_range_is_refused(dtype):
    with pytest.raises(ImageError, match=f"expected 8 or 16 bit unsigned integers, got {np.dtype(dtype).name}"):
        decode_image(encode(".tif", np.zeros((16, 16), dtype)))


def test_an_image_of_another_size_than_announced_is_refused(monkeypatch):
    data = encode(".bmp", noise(20, 30))
    monkeypatch.setattr(images, "read_header", lambda _: Header("bmp", 20, 30))
    with pytest.raises(ImageError, match="expected a whole bmp image, got broken data"):
        decode_image(data)


def test_an_error_keeps_no_image_in_memory():
    data = encode(".png", noise(64, 64))[:-100]
    with no_collections():
        before = sys.getrefcount(data)
        for _ in range(3):
            with contextlib.suppress(ImageError):
                decode_image(data)
                raise AssertionError("it was decoded")
        assert sys.getrefcount(data) == before


# ---- headers


@given(
    extension=st.sampled_from(sorted(FORMATS)),
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    grey=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_read_header_agrees_with_the_encoded_size(extension, height, width, grey):
    image = np.zeros((height, width) if grey else (height, width, 3), np.uint8)
    for parameters in [(), (cv2.IMWRITE_WEBP_QUALITY, 80), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)]:
        header = read_header(encode(extension, image, parameters))
        assert header == Header(FORMATS[extension], width, height)


def test_read_header_finds_the_size_of_a_webp_with_alpha():
    assert read_header(encode(".webp", noise(21, 34, 4), [cv2.IMWRITE_WEBP_QUALITY, 80])) == Header("webp", 34, 21)


def test_read_header_skips_fill_bytes_and_the_thumbnail_of_a_jpeg():
    data, thumbnail = encode(".jpg", noise(20, 30)), encode(".jpg", noise(8, 8))
    segment = b"\xff\xff\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    assert read_header(data[:2] + segment + data[2:]) == Header("jpeg", 30, 20)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        png_header(20, 30).replace(b"IHDR", b"IDAT"),
        b"\xff\xd8\x00" + encode(".jpg", noise())[2:],
        b"RIFF\x00\x00\x00\x00WEBPXXXX" + bytes(40),
        b"GIF89a" + bytes(40),
        tiff(noise(9, 9, 1)).replace(b"\x00\x01\x03\x00\x01", b"\x00\x07\x03\x00\x01", 1),
    ],
    ids=["empty", "cut", "png without IHDR", "jpeg with garbage", "webp of no kind", "gif", "tiff without a width"],
)
def test_read_header_gives_none_for_what_is_no_image(data):
    assert read_header(data) is None


MAGIC = [
    b"",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"\xff\xd8\xff",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"RIFF\0\0\0\0WEBPVP8 ",
    b"RIFF\0\0\0\0WEBPVP8X",
]


@given(magic=st.sampled_from(MAGIC), data=st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_random_bytes_raise_nothing_but_image_error(magic, data):
    with pytest.raises(ImageError, match=r"^image: expected "):
        decode_image(magic + data)


@given(
    extension=st.sampled_from(sorted(FORMATS)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
@settings(max_examples=200, deadline=None)
def test_a_damaged_image_decodes_or_raises_image_error(extension, changes):
    data = bytearray(encode(extension, noise(16, 16)))
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        assert decode_image(bytes(data)).ndim == 3
    except ImageError as err:
        assert str(err).startswith("image: expected ")  # noqa: PT017


def test_reading_from_a_path_equals_decoding_its_bytes(tmp_path: Path):
    data = encode(".png", noise())
    (path := tmp_path / "part.PNG").write_bytes(data)
    np.testing.assert_array_equal(read_image(path), decode_image(data))


# ---- other formats and endings


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"II+\x00\x08\x00\x00\x00" + bytes(20), "BigTIFF"),
        (b"MM\x00+\x00\x08" + bytes(20), "BigTIFF"),
        (b"GIF89a" + bytes(20), "GIF"),
        (b"%PDF-1.7" + bytes(20), "PDF"),
        (b"\x00\x00\x00\x1cftypavif" + bytes(20), "HEIF, AVIF or a film"),
    ],
)
def test_other_formats_are_named_as_what_they_are(data, name):
    with pytest.raises(ImageError, match=f"expected an image .*, got {name}"):
        decode_stored(data)


@pytest.mark.parametrize("extension", [".JPE", ".jfif", ".JPEG"])
def test_every_ending_of_jpeg_is_an_image(extension):
    assert extension.lower() in images.EXTENSIONS
