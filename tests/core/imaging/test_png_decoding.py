"""PNG chunks: what does not decide on pixels changes nothing, is not printed about, and damage is refused."""

from __future__ import annotations

import struct
import time
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flawscope.errors import ImageError
from flawscope.imaging.images import decode_image, decode_stored

ANCILLARY = b"tRNS cHRM gAMA iCCP sBIT sRGB tEXt zTXt iTXt bKGD hIST pHYs sPLT tIME eXIf acTL fcTL fdAT abCd".split()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def parts_of(image: Any) -> tuple[bytes, list[bytes]]:
    """Return the signature and the chunks of an image as OpenCV encodes it."""
    done, encoded = cv2.imencode(".png", image)
    assert done
    data, position, parts = encoded.tobytes(), 8, []
    while position < len(data):
        end = position + 12 + struct.unpack_from(">I", data, position)[0]
        parts.append(data[position:end])
        position = end
    return data[:8], parts


def picture(kind: str) -> Any:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 4), np.uint8)
    pictures = {"grey": noise[..., 0], "colour": noise[..., :3], "alpha": noise, "deep": noise.astype(np.uint16) * 257}
    return pictures[kind]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["grey", "colour", "alpha", "deep"]),
    extra=st.lists(
        st.tuples(st.sampled_from(ANCILLARY), st.binary(max_size=40), st.booleans()), min_size=1, max_size=4
    ),
)
def test_chunks_that_do_not_decide_on_pixels_change_nothing(
    capfd: pytest.CaptureFixture[str], kind: str, extra: list[tuple[bytes, bytes, bool]]
) -> None:
    signature, parts = parts_of(picture(kind))
    before = decode_image(signature + b"".join(parts))
    for name, content, is_first in extra:
        parts.insert(1 if is_first else len(parts) - 1, chunk(name, content))
    after = decode_image(signature + b"".join(parts))
    np.testing.assert_array_equal(after, before)
    assert capfd.readouterr().err == ""


def test_of_an_announced_animation_the_image_that_is_there_is_taken() -> None:
    signature, parts = parts_of(picture("colour"))
    parts.insert(1, chunk(b"acTL", struct.pack(">II", 2, 0)))  # OpenCV itself returns other pixels
    np.testing.assert_array_equal(decode_stored(signature + b"".join(parts)), picture("colour"))


def test_a_suggested_palette_is_passed_over_but_no_unknown_critical_chunk() -> None:
    signature, parts = parts_of(picture("grey"))
    parts.insert(1, chunk(b"PLTE", bytes(7)))  # a palette of two and a third colours, that no pixel of grey refers to
    assert decode_stored(signature + b"".join(parts)).shape == (12, 16)
    parts.insert(1, chunk(b"ABCD", b""))
    with pytest.raises(ImageError, match="got broken data"):
        decode_stored(signature + b"".join(parts))


def test_pixels_in_two_pieces_are_refused() -> None:
    signature, parts = parts_of(picture("alpha"))
    place = next(index for index, part in enumerate(parts) if part[4:8] == b"IDAT")
    content = parts[place][8:-4]
    halves = [chunk(b"IDAT", content[:100]), chunk(b"IDAT", content[100:])]
    whole = [*parts[:place], *halves, *parts[place + 1 :]]
    np.testing.assert_array_equal(decode_stored(signature + b"".join(whole)), picture("alpha")[..., :3])
    torn = [*parts[:place], halves[0], chunk(b"tEXt", b"a\x00b"), halves[1], *parts[place + 1 :]]
    with pytest.raises(ImageError, match="got broken data"):
        decode_stored(signature + b"".join(torn))


def test_an_end_with_something_in_it_is_refused() -> None:
    signature, parts = parts_of(picture("grey"))
    assert parts[-1][4:8] == b"IEND"
    with pytest.raises(ImageError, match="got broken data"):
        decode_stored(signature + b"".join((*parts[:-1], chunk(b"IEND", b"x"))))


@pytest.mark.serial
def test_many_chunks_take_linear_time() -> None:
    signature, parts = parts_of(picture("grey"))
    empty, note = chunk(b"IDAT", b""), chunk(b"abCd", b"")
    place = next(index for index, part in enumerate(parts) if part[4:8] == b"IDAT")

    def seconds(count: int) -> float:
        data = signature + b"".join((*parts[:place], note * count, empty * count, *parts[place:]))
        started = time.process_time()
        np.testing.assert_array_equal(decode_stored(data), picture("grey"))
        return time.process_time() - started

    seconds(10)
    # The quickest of three: another program, or a collection of garbage, makes one of them longer and none shorter.
    few, many = (min(seconds(count) for _ in range(3)) for count in (4_000, 40_000))
    assert many < 40 * max(few, 1e-3)


# --- the compressed rows


def with_rows(parts: list[bytes], change: Any) -> list[bytes]:
    """Return chunks whose compressed stream is `change(stream)`: one or several pieces, their checksums right."""
    content = b"".join(part[8:-4] for part in parts if part[4:8] == b"IDAT")
    pieces = change(content)
    return [parts[0], *(chunk(b"IDAT", piece) for piece in pieces), parts[-1]]


DAMAGES = {
    "checksum": lambda stream: [stream[:-1] + bytes([stream[-1] ^ 1])],
    # In a piece of its own: libpng reads it after the last pixel, and only warns.
    "late checksum": lambda stream: [stream[:-4], stream[-4:-1] + bytes([stream[-1] ^ 1])],
    "no checksum": lambda stream: [stream[:-4]],
    "more bytes": lambda stream: [stream, b"more"],
    "more pixels": lambda stream: [zlib.compress(zlib.decompress(stream) * 2)],
    "fewer pixels": lambda stream: [zlib.compress(zlib.decompress(stream)[:-1])],
    "a changed pixel": lambda stream: [stream[:100] + bytes([stream[100] ^ 1]) + stream[101:]],
}


@pytest.mark.parametrize("side", [16, 200])  # without a thread, and with one
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_stream_that_is_not_just_the_image_is_refused(damage: str, side: int) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    signature, parts = parts_of(noise)
    np.testing.assert_array_equal(decode_stored(signature + b"".join(with_rows(parts, lambda data: [data]))), noise)
    with pytest.raises(ImageError, match="got broken data"):
        decode_stored(signature + b"".join(with_rows(parts, DAMAGES[damage])))


def adam7(image: Any) -> bytes:
    """Return the rows of the seven passes of an image, none of them filtered."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b""
    for left, top, across, down in passes:
        part = image[top::down, left::across]
        rows += b"".join(b"\x00" + row.tobytes() for row in part) if part.size else b""
    return rows


@given(width=st.integers(8, 40), height=st.integers(8, 40), seed=st.integers(0, 9))
def test_interlaced_images_of_any_size_are_whole(width: int, height: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1))
    parts = [header, chunk(b"IDAT", zlib.compress(adam7(image))), chunk(b"IEND", b"")]
    signature = b"\x89PNG\r\n\x1a\n"
    np.testing.assert_array_equal(decode_stored(signature + b"".join(parts)), image)
    with pytest.raises(ImageError, match="got broken data"):
        decode_stored(signature + b"".join([header, chunk(b"IDAT", zlib.compress(adam7(image) + b"\x00")), parts[2]]))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("width", [8, 9, 13])
def test_pixels_of_less_than_a_byte_are_whole(bits: int, width: int) -> None:
    row = bytes([0, *range(1, 1 + (width * bits + 7) // 8)])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 9, bits, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row * 9)) + chunk(b"IEND", b"")
    assert decode_stored(data).shape == (9, width)
