"""Preprocessing of images: decoding, colour, resize, centre crop.

Training, calibration and inspection all call these functions, so an image becomes the same bytes everywhere. Cast,
normalization and layout are the first nodes of the graph instead. The bundle records the version of the rules below;
whoever changes a rule raises it.

Rules of version 2:
    * pixels are used as stored: an EXIF orientation tag is not applied (masks do not carry one);
    * 16 bit becomes 8 bit by v/257 rounded, never by a scale taken from the image;
    * grey becomes three equal channels, alpha is dropped without a trace in the colours, the order is RGB;
    * of a file with several pages the first is taken;
    * where `bits` says that fewer than 16 are in use, their largest value becomes 255, and a larger one is an error;
    * resize goes to the given height and width without keeping the aspect ratio, or with it and a mirrored margin
      (`letterbox`): by area along each side that shrinks, which averages and does not alias, bilinear along each that
      grows; then the centre is cropped.

Version 1, that of older bundles and runs, differs where one side shrinks and the other grows: it is bilinear along
both, which looks at two pixels of each span and can miss a defect between them. All other images come out the same.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray, UInt8Array, check_array
from flawscope.errors import ArgumentError, ImageError
from flawscope.imaging.image_headers import Header, name_unsupported, read_header
from flawscope.imaging.jpeg import DamagedJpeg, decode_jpeg, decode_with_opencv
from flawscope.imaging.png_decoding import decode_png
from flawscope.imaging.size_bounds import excess_of
from flawscope.imaging.tiff import DamagedTiff, UncheckedTiff, as_stored, check_tiff
from flawscope.open_files import read_regular
from flawscope.ranges import MAX_SIDE

PREPROCESSING_VERSION = 2
EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp"})
"""Endings of the files that are taken as images, in lower case."""
MIN_SIDE_PX = 8
MAX_SIDE_PX = 1 << 20
"""Longest side of an image, in pixels: OpenCV decodes no longer ones."""
MAX_PIXELS = 200_000_000
"""Largest image that is decoded, in pixels; the environment variable FLAWSCOPE_MAX_PIXELS changes it."""
_BYTES_OF_PIXEL = 8
"""Of a file: four samples of 16 bit, not compressed."""
_BYTES_BESIDE = 64 << 20
"""Of a file, for metadata."""
_BLOCK_PIXELS = 1 << 22
"""Pixels, or values, that are converted at a time."""

# At import, for the whole process: broken images become an ImageError with a name, and OpenCV's own log lines about
# them would only be noise on stderr.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


ResizeMode = Literal["stretch", "letterbox"]


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an image becomes the input of a graph.

    Attributes:
        resize: Height and width in pixels after the resize.
        crop: Height and width of the centre crop that follows, or None.
        version: Version of the rules in this module, 1 or 2.
        mode: `stretch` scales height and width by themselves; `letterbox` scales both by one factor, so that the whole
            image fits, and fills the rest with its mirror image, half on each side.
        bits: Bits in use of images stored in 16 bit, 9 to 16 (a camera of 12 bit: 12); None for all of them.
    """

    resize: tuple[int, int]
    crop: tuple[int, int] | None = None
    version: int = PREPROCESSING_VERSION
    mode: ResizeMode = "stretch"
    bits: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.version <= PREPROCESSING_VERSION:
            raise ArgumentError(
                f"preprocessing version: expected 1 to {PREPROCESSING_VERSION}, got {self.version}. "
                "Use a flawscope version that knows these rules."
            )
        for name, size in (("resize", self.resize), ("crop", self.crop or self.resize)):
            if min(size) < 16 or max(size) > MAX_SIDE:
                sides = f"16 to {MAX_SIDE} pixels"
                raise ArgumentError(f"{name}: expected height and width from {sides}, got {list(size)}.")
        if self.crop and (self.crop[0] > self.resize[0] or self.crop[1] > self.resize[1]):
            raise ArgumentError(f"crop: expected at most the resized size {list(self.resize)}, got {list(self.crop)}.")
        if self.crop and self.mode == "letterbox":
            raise ArgumentError(f"crop: expected none with letterbox, got {list(self.crop)}.")
        if self.bits is not None and not 9 <= self.bits <= 16:
            raise ArgumentError(f"bits: expected 9 to 16, or null for all bits of a file, got {self.bits}.")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the graph's input."""
        return self.crop or self.resize

    @property
    def stretched(self) -> Preprocessing:
        """The same with the mode `stretch`: the geometry of maps and masks in which letterbox has no margin."""
        return msgspec.structs.replace(self, mode="stretch")

    def place_of(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and columns of the resized image that an image of a size (H, W) covers."""
        if self.mode == "stretch":
            return slice(0, self.resize[0]), slice(0, self.resize[1])
        factor = min(self.resize[0] / size[0], self.resize[1] / size[1])
        # min: rounding may not leave the input; max: of a very long image at least one pixel must remain.
        height, width = (min(most, max(1, round(side * factor))) for side, most in zip(size, self.resize, strict=True))
        top, left = (self.resize[0] - height) // 2, (self.resize[1] - width) // 2
        return slice(top, top + height), slice(left, left + width)

    @property
    def offset(self) -> tuple[int, int]:
        """Row and column in the resized image at which the crop begins."""
        return (self.resize[0] - self.size[0]) // 2, (self.resize[1] - self.size[1]) // 2


def max_pixels() -> int:
    """Return the decode limit in pixels, from FLAWSCOPE_MAX_PIXELS where it is set."""
    text = os.environ.get("FLAWSCOPE_MAX_PIXELS")
    if text is None:
        return MAX_PIXELS
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentError(f"FLAWSCOPE_MAX_PIXELS: expected a number of pixels of at least 1, got {text!r}.")
    return int(text)


def decode_stored(data: bytes, name: str = "image") -> npt.NDArray[Any]:
    """Decode an image to the numbers stored in it.

    Args:
        data: The bytes of a png, jpeg, bmp, tiff or webp file.
        name: What the image is called in error messages.

    Returns:
        uint8 or uint16, [H, W] for grey or [H, W, 3] BGR for colour; alpha is dropped.

    Raises:
        ImageError: If the bytes are no image, are truncated, or the size or type is outside the limits.
    """
    header = read_header(data)
    if header is None:
        raise ImageError(
            f"{name}: expected an image (bmp, jpeg, png, tiff, webp), "
            f"got {name_unsupported(data)}. Remove the file, or save or send it again."
        )
    _check_size(header, name)
    if excess := excess_of(data, header):
        raise ImageError(
            f"{name}: expected a {header.format} image with the data of its pixels, got {excess}; it was not decoded. "
            "Save or send it again."
        )
    try:
        image = _decode(data, header.format)
    except UncheckedTiff as err:
        raise ImageError(
            f"{name}: expected TIFF with LZW, Deflate, PackBits, JPEG or no compression, got {err}, of which damage "
            "goes unnoticed. Save it as one of these, or as PNG."
        ) from err
    except (cv2.error, MemoryError, DamagedJpeg, DamagedTiff) as err:
        raise _broken(header, name) from err
    # The limit was checked on the announced size: another one would have evaded it.
    if image is None or image.shape[:2] != (header.height, header.width):
        raise _broken(header, name)
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"{name}: expected 8 or 16 bit unsigned integers, got {image.dtype.name}, whose range is not known. "
            "Convert it to 8 or 16 bit first."
        )
    return image


def _decode(data: bytes, kind: str) -> npt.NDArray[Any] | None:
    """Return the pixels in OpenCV's order; None for broken data where the decoder does not raise."""
    if kind == "jpeg":
        return decode_jpeg(data)
    if kind == "tiff":
        check_tiff(data)
        return decode_with_opencv(as_stored(data))
    if kind == "png":
        return decode_png(data)
    return decode_with_opencv(data)


def _broken(header: Header, name: str) -> ImageError:
    # Made where it is raised: an error that its own frame names keeps the frame, and so the bytes of the image, until
    # Python collects its garbage.
    return ImageError(f"{name}: expected a whole {header.format} image, got broken data. Save or send it again.")


def _check_size(header: Header, name: str) -> None:
    if min(header.width, header.height) < MIN_SIDE_PX:
        raise ImageError(
            f"{name}: expected sides of at least {MIN_SIDE_PX} pixels, got {header.width}x{header.height}. "
            "Remove the file or save it larger."
        )
    if max(header.width, header.height) > MAX_SIDE_PX:
        raise ImageError(
            f"{name}: expected sides of at most {MAX_SIDE_PX:,} pixels, got {header.width}x{header.height}; it was not "
            "decoded. Cut it into shorter ones."
        )
    if header.width * header.height > (limit := max_pixels()):
        raise ImageError(
            f"{name}: expected at most {limit:,} pixels, got {header.width}x{header.height}; it was not decoded. "
            "Raise FLAWSCOPE_MAX_PIXELS if this is a real image."
        )


def decode_image(data: bytes, name: str = "image", bits: int | None = None) -> UInt8Array:
    """Decode an encoded image to uint8 [H, W, 3] RGB; see `decode_stored` and `Preprocessing.bits`.

    Raises:
        ImageError: As `decode_stored`, or if a value has more bits than are said to be in use.
    """
    return to_rgb(decode_stored(data, name), name, bits)


def to_rgb(image: npt.NDArray[Any], name: str, bits: int | None) -> UInt8Array:
    """Return an image as `decode_stored` gives it as uint8 [H, W, 3] RGB; its own memory may be used for that.

    Raises:
        ImageError: As `to_8_bit`.
    """
    height, width = image.shape[:2]
    rows = max(1, _BLOCK_PIXELS // width)
    if height <= rows:
        return _as_rgb(image, name, bits)
    # In blocks, and in place where the form is the same: whole copies of an image of gigabytes would not fit beside it.
    is_in_place = image.dtype == np.uint8 and image.ndim == 3 and image.flags.writeable
    rgb = image if is_in_place else np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        rgb[top : top + rows] = _as_rgb(image[top : top + rows], name, bits)
    return rgb


def _as_rgb(image: npt.NDArray[Any], name: str, bits: int | None) -> UInt8Array:
    """Return rows of a decoded image as uint8 [H, W, 3] RGB."""
    code = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(to_8_bit(image, name, bits), code).astype(np.uint8, copy=False)


def to_8_bit(image: npt.NDArray[Any], name: str, bits: int | None) -> UInt8Array:
    """Return an image uint8 or uint16 of any shape as uint8: the largest value of `bits` (None: 16) becomes 255.

    Raises:
        ImageError: If a value has more bits.
    """
    if image.dtype == np.uint8:
        return image
    most = (1 << (bits or 16)) - 1
    if bits is not None and (largest := int(image.max(initial=0))) > most:
        raise ImageError(
            f"{name}: expected values up to {most} ({bits} bits in use), got {largest}. Set bits to those of the "
            "camera and train again, or leave the image out."
        )
    # A few rows at a time: the larger numbers of a whole image of gigabytes would not fit beside it.
    result = np.empty(image.shape, np.uint8)
    rows = max(1, _BLOCK_PIXELS // max(1, math.prod(image.shape[1:])))
    for top in range(0, len(image), rows):
        # v * 255 / most, rounded, in integers; in uint16 it would wrap around.
        result[top : top + rows] = (image[top : top + rows].astype(np.uint32) * 510 + most) // (2 * most)
    return result


def most_encoded_bytes() -> int:
    """Return the size in bytes of the largest image file that is read."""
    return _BYTES_OF_PIXEL * max_pixels() + _BYTES_BESIDE


def read_encoded(path: Path) -> bytes:
    """Return the bytes of an image file: a regular file, no larger than the largest image can be.

    Raises:
        ImageError: If it cannot be read.
    """
    try:
        return read_regular(path, most_encoded_bytes())
    except OSError as err:
        raise ImageError(f"{path}: could not be read: {err.strerror or err}.") from err


def read_stored(path: Path) -> npt.NDArray[Any]:
    """Read an image file to the numbers stored in it; see `decode_stored`."""
    return decode_stored(read_encoded(path), str(path))


def read_image(path: Path, bits: int | None = None) -> UInt8Array:
    """Read an image file to uint8 [H, W, 3] RGB; see `decode_image`."""
    return decode_image(read_encoded(path), str(path), bits)


def check_image(image: object, name: str = "image") -> UInt8Array:
    """Return `image` if it is uint8 [H, W, 3] within the limits of image files, or raise ArgumentError."""
    checked = check_array(image, name, ("H", "W", 3), np.uint8)
    check_sides(checked.shape[0], checked.shape[1], name)
    return checked


def check_sides(height: int, width: int, name: str) -> None:
    """Raise ArgumentError unless an image that is no file has sides as files may have."""
    limit = max_pixels()
    # OpenCV ends the process on some arrays that are larger than any image.
    if max(height, width) > MAX_SIDE_PX or height * width > limit:
        raise ArgumentError(
            f"{name}: expected at most {limit:,} pixels, and sides of at most {MAX_SIDE_PX:,}, got {width}x{height}. "
            "Raise FLAWSCOPE_MAX_PIXELS if this is a real image."
        )
    if min(height, width) < MIN_SIDE_PX:
        raise ArgumentError(f"{name}: expected sides of at least {MIN_SIDE_PX} pixels, got {width}x{height}.")


def resize(image: npt.NDArray[Any], size: tuple[int, int], version: int = PREPROCESSING_VERSION) -> npt.NDArray[Any]:
    """Return an image, or a map, at another height and width: by area along each side that shrinks, else bilinear.

    Args:
        image: uint8 or float32 [H, W] or [H, W, C].
        size: Height and width in pixels.
        version: That of the rules; by version 1, both sides are bilinear where one of them grows.
    """
    height, width = size
    rows, columns = image.shape[:2]
    if version > 1 and (rows - height) * (columns - width) < 0:
        # One side shrinks and the other grows. INTER_AREA averages only where both shrink, and silently interpolates
        # otherwise: so the side that shrinks goes first, alone.
        first = (columns, height) if rows > height else (width, rows)
        image = cv2.resize(image, first, interpolation=cv2.INTER_AREA)
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def prepare(image: UInt8Array, spec: Preprocessing) -> UInt8Array:
    """Resize and crop an image to the input of a graph.

    A grey image gives what its three equal channels would give, bit for bit, for less work.

    Args:
        image: uint8 [H, W, 3] RGB or [H, W] grey, any size.
        spec: Target sizes.

    Returns:
        uint8 [spec.size[0], spec.size[1], 3], contiguous.
    """
    place = spec.place_of((image.shape[0], image.shape[1]))
    height, width = (side.stop - side.start for side in place)
    resized = resize(image, (height, width), spec.version)
    if (height, width) != spec.resize:
        # A mirror image, and not one colour: its edge would be the most anomalous place of every image.
        resized = cv2.copyMakeBorder(resized, *_margins(place, spec), cv2.BORDER_REFLECT_101)
    cropped = _crop(resized, spec)
    if cropped.ndim == 2:
        # After the resize: every channel is computed by itself, in the same order, so the bits are the same.
        cropped = cv2.cvtColor(np.ascontiguousarray(cropped), cv2.COLOR_GRAY2RGB)
    return np.ascontiguousarray(cropped, dtype=np.uint8)


def grey_as_rgb(image: UInt8Array) -> UInt8Array:
    """Return an image uint8 [H, W] as three equal channels [H, W, 3]; one [H, W, 3] as it is."""
    return image if image.ndim == 3 else to_rgb(image, "image", None)


def _margins(place: tuple[slice, slice], spec: Preprocessing) -> tuple[int, int, int, int]:
    """Return the pixels above, below, left and right of a place in the resized image."""
    rows, columns = place
    return rows.start, spec.resize[0] - rows.stop, columns.start, spec.resize[1] - columns.stop


def prepare_mask(mask: BoolArray, spec: Preprocessing) -> BoolArray:
    """Resize (nearest) and crop a mask with the geometry of `prepare`; bool [H, W] in, bool [size] out."""
    place = spec.place_of((mask.shape[0], mask.shape[1]))
    height, width = (side.stop - side.start for side in place)
    # Nearest keeps it binary; EXACT, because INTER_NEAREST is not centred on pixels as `prepare` is.
    resized = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    if (height, width) != spec.resize:
        resized = cv2.copyMakeBorder(resized, *_margins(place, spec), cv2.BORDER_CONSTANT, value=0)
    return np.ascontiguousarray(_crop(resized, spec) > 0)


def _crop(image: npt.NDArray[Any], spec: Preprocessing) -> npt.NDArray[Any]:
    top, left = spec.offset
    height, width = spec.size
    return image[top : top + height, left : left + width]
