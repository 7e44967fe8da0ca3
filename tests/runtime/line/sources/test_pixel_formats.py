"""A camera's buffer becomes an image with the right colours, whatever its format, and a short one is refused."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from flawscope.errors import ArgumentError, ImageError
from flawscope.runtime.line.sources.pixel_formats import PIXEL_FORMATS, image_of_buffer, pixel_format, row_bytes

# White, yellow, cyan, green, magenta, red, blue, black: an exchange of any two channels shows.
_BARS = np.array(
    [
        [255, 255, 255],
        [255, 255, 0],
        [0, 255, 255],
        [0, 255, 0],
        [255, 0, 255],
        [255, 0, 0],
        [0, 0, 255],
        [0, 0, 0],
    ],
    np.uint8,
)


def _bars(height: int = 12, wide: int = 8) -> npt.NDArray[np.uint8]:
    """Return colour bars, uint8 [H, 8 * wide, 3] RGB."""
    return np.tile(np.repeat(_BARS, wide, axis=0), (height, 1, 1))


def _mosaic(image: npt.NDArray[np.uint8], first_row: str) -> npt.NDArray[np.uint8]:
    """Return what a sensor with a Bayer filter sees, uint8 [H, W]."""
    second_row = {"RG": "GB", "GR": "BG", "GB": "RG", "BG": "GR"}[first_row]
    grey = np.empty(image.shape[:2], np.uint8)
    for y, letters in enumerate((first_row, second_row)):
        for x, letter in enumerate(letters):
            grey[y::2, x::2] = image[y::2, x::2, "RGB".index(letter)]
    return grey


def _packed(values: npt.NDArray[np.int64], bits: int, packing: str) -> bytes:
    """Write values as the standard says, one by one: the readable reference of what the product reads at once."""
    if packing == "":
        return values.astype("<u2").tobytes() if bits > 8 else values.astype(np.uint8).tobytes()
    if packing == "p":
        stream = sum(int(value) << (bits * i) for i, value in enumerate(values.ravel()))
        return stream.to_bytes(values.size * bits // 8, "little")
    data = bytearray()
    low = bits - 8
    for first, second in values.reshape(-1, 2).tolist():
        lows = (first & (1 << low) - 1) | (second & (1 << low) - 1) << 4
        data += bytes([first >> low, lows, second >> low])
    return bytes(data)


@pytest.mark.parametrize("name", [name for name, form in PIXEL_FORMATS.items() if form.kind == "mono"])
def test_every_grey_format_gives_its_upper_8_bits(name: str) -> None:
    form = PIXEL_FORMATS[name]
    values = np.random.default_rng(0).integers(0, 1 << form.bits, (6, 8))
    values[0, :4] = [0, 1, (1 << form.bits) - 1, 1 << (form.bits - 1)]
    image = image_of_buffer(_packed(values, form.bits, form.packing), 8, 6, name)
    assert image.dtype == np.uint8
    assert image.tolist() == (values >> (form.bits - 8)).tolist()


@pytest.mark.parametrize("name", [name for name, form in PIXEL_FORMATS.items() if form.kind == "bayer"])
def test_every_bayer_format_shows_the_colours_of_the_bars(name: str) -> None:
    form = PIXEL_FORMATS[name]
    bars = _bars()
    # The full range of the format: 255 of the bars is the format's white.
    values = _mosaic(bars, form.order).astype(np.int64) * ((1 << form.bits) - 1) // 255
    image = image_of_buffer(_packed(values, form.bits, form.packing), bars.shape[1], bars.shape[0], name)
    assert image.shape == bars.shape
    # Inside a bar the colour is exact; beside an edge neighbours of another bar are mixed in.
    inner = np.arange(bars.shape[1]) % 8
    inside = (inner > 1) & (inner < 6)
    assert image[2:-2, inside].tolist() == bars[2:-2, inside].tolist()


def _bilinear(grey: npt.NDArray[np.uint8], first_row: str) -> npt.NDArray[np.int64]:
    """Interpolate a Bayer image pixel by pixel, without its border; int64 [H - 2, W - 2, 3]."""
    letters = first_row, {"RG": "GB", "GR": "BG", "GB": "RG", "BG": "GR"}[first_row]
    image = np.zeros((grey.shape[0] - 2, grey.shape[1] - 2, 3), np.int64)
    for y in range(1, grey.shape[0] - 1):
        for x in range(1, grey.shape[1] - 1):
            near: dict[str, list[int]] = {"R": [], "G": [], "B": []}
            for v in (-1, 0, 1):
                for u in (-1, 0, 1):
                    letter = letters[(y + v) % 2][(x + u) % 2]
                    if v == 0 and u == 0:
                        near = {**near, letter: [int(grey[y, x])] * 4}
                    elif letter != letters[y % 2][x % 2] and (letter != "G" or v == 0 or u == 0):
                        near[letter].append(int(grey[y + v, x + u]))
            for channel, letter in enumerate("RGB"):
                values = near[letter]
                image[y - 1, x - 1, channel] = (sum(values) + len(values) // 2) // len(values)
    return image


@pytest.mark.parametrize("order", ["RG", "GR", "GB", "BG"])
def test_bayer_is_interpolated_bilinearly(order: str) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (10, 12)).astype(np.uint8)
    image = image_of_buffer(grey.tobytes(), 12, 10, f"Bayer{order}8")
    assert image[1:-1, 1:-1].tolist() == _bilinear(grey, order).tolist()


@pytest.mark.parametrize("name", [name for name, form in PIXEL_FORMATS.items() if form.kind == "colour"])
def test_every_colour_format_gives_rgb(name: str) -> None:
    bars = _bars()
    order = PIXEL_FORMATS[name].order
    channels = [bars[:, :, "RGB".index(letter)] if letter != "a" else np.full(bars.shape[:2], 7) for letter in order]
    data = np.stack(channels, axis=2).astype(np.uint8).tobytes()
    assert image_of_buffer(data, bars.shape[1], bars.shape[0], name).tolist() == bars.tolist()


@pytest.mark.parametrize("name", [name for name, form in PIXEL_FORMATS.items() if form.kind == "chroma"])
def test_every_chroma_format_gives_rgb_in_the_full_range(name: str) -> None:
    bars = _bars()
    red, green, blue = (bars[:, :, channel].astype(np.float64) for channel in range(3))
    bright = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = {"Y": bright, "U": 128 + (blue - bright) / 1.772, "V": 128 + (red - bright) / 1.402}
    pairs = {letter: np.clip(np.rint(plane), 0, 255).astype(np.uint8) for letter, plane in planes.items()}
    order = PIXEL_FORMATS[name].order
    data = np.empty((bars.shape[0], bars.shape[1] // 2, 4), np.uint8)
    for i, letter in enumerate(order):
        data[:, :, i] = pairs[letter][:, i // 2 if letter == "Y" else 0 :: 2]
    image = image_of_buffer(data.tobytes(), bars.shape[1], bars.shape[0], name)
    # White is 255 and black 0: the narrow range would give them 17 grey values away. 2 are lost to rounding.
    assert np.abs(image.astype(int) - bars.astype(int)).max() <= 2


@pytest.mark.parametrize("name", ["Mono8", "Mono12", "Mono10p", "BayerGB12Packed", "RGB8", "YUV422_8_UYVY"])
def test_padding_of_rows_is_left_out(name: str) -> None:
    row = row_bytes(name, 8)
    data = np.random.default_rng(2).integers(0, 256, (6, row)).astype(np.uint8)
    padded = np.hstack([data, np.full((6, 5), 255, np.uint8)])
    plain = image_of_buffer(data.tobytes(), 8, 6, name)
    assert image_of_buffer(padded.tobytes(), 8, 6, name, padding=5).tolist() == plain.tolist()
    # The padding of the last row may be missing, and chunks may follow.
    assert image_of_buffer(padded.tobytes()[:-5], 8, 6, name, padding=5).tolist() == plain.tolist()
    assert image_of_buffer(data.tobytes() + b"chunk", 8, 6, name).tolist() == plain.tolist()


@pytest.mark.parametrize("name", sorted(PIXEL_FORMATS))
def test_an_image_owns_its_memory_and_a_short_buffer_is_refused(name: str) -> None:
    data = np.full(row_bytes(name, 8) * 4, 200, np.uint8)
    image = image_of_buffer(data, 8, 4, name)
    before = image.copy()
    data[:] = 0
    assert image.flags.c_contiguous
    assert image.tolist() == before.tolist()
    with pytest.raises(ImageError, match=rf"expected at least {data.size} bytes of 8 × 4 {name}, got {data.size - 1}"):
        image_of_buffer(data[:-1], 8, 4, name)


def test_a_value_above_the_nominal_range_is_white_and_does_not_wrap() -> None:
    assert image_of_buffer(np.array([1023, 1024, 65535, 4], "<u2").tobytes(), 2, 2, "Mono10").tolist() == [
        [255, 255],
        [255, 1],
    ]


def test_what_cannot_be_an_image_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"expected one of BGR8, .*, got 'Mono9'"):
        pixel_format("Mono9")
    with pytest.raises(ArgumentError, match=r"at least 1 × 1 pixels of Mono8 .* got 0 × 4"):
        image_of_buffer(b"", 0, 4, "Mono8")
    with pytest.raises(ArgumentError, match=r"no negative padding, got 4 × 4 and -1"):
        image_of_buffer(bytes(16), 4, 4, "Mono8", padding=-1)
    # OpenCV would give black.
    with pytest.raises(ArgumentError, match=r"at least 3 × 3 pixels of BayerRG8 .* got 2 × 4"):
        image_of_buffer(bytes(8), 2, 4, "BayerRG8")
    for name, width, multiple in (("Mono10p", 6, 4), ("Mono12p", 3, 2), ("BayerRG12Packed", 5, 2), ("YUV422_8", 3, 2)):
        with pytest.raises(ArgumentError, match=rf"a width of {name} that is a multiple of {multiple}.*, got {width}"):
            image_of_buffer(bytes(100), width, 4, name)
