"""Drawings in a manifest: one larger than any that is written is refused before it is decoded."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.bundle import region_mask, zone_numbers
from flawscope.bundle.part_place import PartFollower, PartPlace, encode_thumbnail
from flawscope.bundle.region import LARGEST_SIDE, make_region
from flawscope.bundle.small_drawing import decode_drawing
from flawscope.bundle.zones import make_zones
from flawscope.errors import BundleError, ImageError
from flawscope.imaging import images
from flawscope.imaging.part_shift import SIDE
from flawscope.imaging.png import encode_png


def left_half() -> np.ndarray:
    mask = np.zeros((32, 32), np.bool_)
    mask[:, :16] = True
    return mask


def read_region(png: bytes) -> None:
    region_mask(msgspec.structs.replace(make_region(left_half()), png=png), "b")


def read_zones(png: bytes) -> None:
    zone_numbers(msgspec.structs.replace(make_zones({"left": left_half()}, None, None), png=png), "b")


def read_part(png: bytes) -> None:
    place = PartPlace(png, (0, 0, SIDE, SIDE), 12.0, 0.3, 1, 0, 0.0, 0.0)
    PartFollower(place, (SIDE, SIDE), "b")


@pytest.mark.parametrize(
    ("read", "longest"), [(read_region, LARGEST_SIDE), (read_zones, LARGEST_SIDE), (read_part, SIDE)]
)
@pytest.mark.parametrize("tall", [False, True])
def test_a_drawing_that_is_too_large_is_refused_before_it_is_decoded(
    monkeypatch, read: Callable[[bytes], None], longest: int, tall: bool
):
    drawn = np.zeros((longest + 1, 8) if tall else (8, longest + 1), np.uint8)
    drawn[:4] = 1
    png = encode_png(drawn)
    decoded = []
    monkeypatch.setattr(images, "_decode", lambda *arguments: decoded.append(arguments))
    with pytest.raises(BundleError, match=rf"b: .* sides of at most {longest} pixels, got .*not decoded"):
        read(png)
    assert not decoded


@settings(max_examples=25)
@given(height=st.integers(8, 40), width=st.integers(8, 40), longest=st.integers(8, 40))
def test_a_drawing_within_the_limit_is_decoded_and_no_other(height, width, longest):
    drawn = np.arange(height * width, dtype=np.uint32).astype(np.uint8).reshape(height, width)
    if max(height, width) <= longest:
        np.testing.assert_array_equal(decode_drawing(encode_png(drawn), "drawing", longest), drawn)
    else:
        with pytest.raises(ImageError, match="drawing: expected sides of at most"):
            decode_drawing(encode_png(drawn), "drawing", longest)


def test_a_thumbnail_of_another_size_is_refused():
    with pytest.raises(BundleError, match="expected a grey thumbnail of"):
        read_part(encode_thumbnail(np.zeros((SIDE, SIDE // 2), np.float32)))
