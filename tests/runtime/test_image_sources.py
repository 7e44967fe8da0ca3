"""Whatever an image is given as, its pixels and its decision are those of its file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_dataset import anomalous_images, normal_images

from flawscope.errors import ArgumentError
from flawscope.imaging.images import grey_as_rgb, read_image
from flawscope.runtime import Frame, Inspector
from flawscope.runtime.frame import as_seen
from flawscope.runtime.image_sources import read_source_image, split_batch

SHAPES = st.tuples(st.integers(8, 40), st.integers(8, 40), st.sampled_from([0, 1, 3, 4]))


def drawn(shape: tuple[int, int, int], dtype: Any, seed: int) -> np.ndarray:
    size = shape if shape[2] else shape[:2]
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, size, dtype)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@given(shape=SHAPES, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_an_array_is_taken_as_its_file_is(
    tmp_path_factory: pytest.TempPathFactory, color: Any, dtype: Any, shape: tuple[int, int, int], seed: int
) -> None:
    array = drawn(shape, dtype, seed)
    file = tmp_path_factory.mktemp("file") / "image.png"
    # cv2.imwrite takes BGR; an array in RGB is written with its colours exchanged.
    stored = array
    if color == "rgb" and array.ndim == 3 and array.shape[2] >= 3:
        stored = array[..., [2, 1, 0, 3][: array.shape[2]]]
    assert cv2.imwrite(str(file), stored)
    before = array.copy()
    pixels, bits = read_source_image(array, "part", color, None)
    np.testing.assert_array_equal(grey_as_rgb(pixels), read_image(file))
    assert pixels.ndim == (3 if array.ndim == 3 and array.shape[2] > 1 else 2)
    assert bits == 8 * array.itemsize
    np.testing.assert_array_equal(array, before)  # the caller's array is not written to
    for source in (file, str(file), file.read_bytes(), bytearray(file.read_bytes()), memoryview(file.read_bytes())):
        again, again_bits = read_source_image(source, "part", color, None)
        np.testing.assert_array_equal(again, pixels)
        assert again_bits == bits


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_an_image_of_pillow_is_taken_as_its_file_is(tmp_path: Path, mode: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(noise).convert("L" if mode == "LA" else mode).convert(mode)
    assert image.mode == mode
    image.save(tmp_path / "image.png")
    # Pillow's own order holds, whatever is said of arrays.
    for color in ("rgb", "bgr"):
        pixels, _ = read_source_image(image, "part", color, None)  # type: ignore[arg-type]
        np.testing.assert_array_equal(grey_as_rgb(pixels), read_image(tmp_path / "image.png"))


def test_a_mode_of_pillow_with_other_colours_is_named() -> None:
    image = Image.new("CMYK", (20, 20))
    with pytest.raises(ArgumentError, match=r"part: expected an image of Pillow in mode .*got CMYK\. Pass its file"):
        read_source_image(image, "part", "rgb", None)  # type: ignore[arg-type]


def test_colours_of_16_bit_that_pillow_would_cut_are_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((20, 30, 3), 4000, np.uint16))
    with (
        Image.open(tmp_path / "deep.png") as image,
        pytest.raises(ArgumentError, match="colours of 16 bit"),
    ):
        read_source_image(image, "part", "rgb", None)


def test_alpha_is_not_counted_among_the_bits_in_use() -> None:
    array = np.full((16, 16, 4), 4095, np.uint16)
    array[..., 3] = 65535
    assert read_source_image(array, "part", "rgb", 12).pixels.min() == 255


def test_what_is_no_plain_array_is_refused() -> None:
    masked = np.ma.masked_array(np.zeros((16, 16), np.uint16), mask=True)
    with pytest.raises(ArgumentError, match="expected an array without a mask"):
        read_source_image(masked, "part", "rgb", None)
    assert split_batch(type("Odd", (), {"shape": 5})()) is None


def test_the_bits_in_use_hold_for_arrays_too() -> None:
    array = np.full((16, 16), 4095, np.uint16)
    assert read_source_image(array, "part", "rgb", 12).pixels.max() == 255
    assert read_source_image(array, "part", "rgb", None).pixels.max() == 16


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [(8, 2**31 - 1, 3), (2**31 - 1, 8), (1 << 21, 8, 1), (20_000, 20_000, 4)])
def test_an_array_larger_than_any_image_is_refused_before_it_is_converted(shape: tuple[int, ...], dtype: str) -> None:
    array = np.broadcast_to(np.zeros((), dtype), shape)  # of no size in memory
    with pytest.raises(ArgumentError, match="a: expected at most 200,000,000 pixels, and sides of at most 1,048,576"):
        read_source_image(array, "a", "rgb", None)


def test_a_file_of_pillow_larger_than_any_image_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLAWSCOPE_MAX_PIXELS", "1000")
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64)).save(encoded, "PNG")
    image = Image.open(encoded)
    monkeypatch.setattr(image, "load", lambda: pytest.fail("it was decoded"))
    with pytest.raises(ArgumentError, match=r"a: expected at most 1,000 pixels, .* got 64x64"):
        read_source_image(image, "a", "rgb", None)


def test_batches_are_arrays_of_four_axes_alone() -> None:
    batch = np.zeros((3, 16, 16, 1), np.uint8)
    images = split_batch(batch)
    assert images is not None
    assert len(images) == 3
    for single in (batch[0], batch[0, ..., 0], b"123", "name", Path("name"), Image.new("L", (9, 9))):
        assert split_batch(single) is None
    sources = (Path("a/b.png"), "c.png", b"d", Frame(b"d", "part 7"), Frame("c.png", "part 8"))
    names = [as_seen(source, 4)[1].name for source in sources]
    assert names == ["a/b.png", "c.png", "image 4", "part 7", "c.png"]


def test_every_form_of_an_image_gets_the_same_decision(padim_bundle: Path, tiny_root: Path) -> None:
    file = anomalous_images(tiny_root)[0]
    rgb = read_image(file)
    with Inspector.load(padim_bundle, "cpu") as inspector:
        expected = inspector(file)
        with_alpha, of_16_bit = np.dstack([rgb, rgb[..., :1]]), rgb.astype(np.uint16) * 257
        forms = [rgb, file.read_bytes(), Image.fromarray(rgb), with_alpha, of_16_bit]
        for result in (inspector(form) for form in forms):
            assert (result.decision, result.score, result.boxes) == ("reject", expected.score, expected.boxes)
        bgr = rgb[..., ::-1]
        assert inspector(bgr, color="bgr").score == expected.score
        assert next(inspector.stream([bgr], color="bgr")).score == expected.score
        assert [result.score for result in inspector(np.stack([bgr, bgr]), color="bgr")] == [expected.score] * 2
        with pytest.raises(ArgumentError, match="color: expected rgb or bgr, got 'gbr'"):
            inspector(rgb, color="gbr")  # type: ignore[call-overload]


def test_a_name_that_an_inspector_lacks_cannot_be_set(padim_bundle: Path) -> None:
    with Inspector.load(padim_bundle, "cpu") as inspector, pytest.raises(AttributeError, match="threshold"):
        inspector.threshold = 500  # type: ignore[attr-defined]
    with Inspector.load(padim_bundle, "cpu") as inspector:
        # Nor can those be set that are in force, past the limits of the bundle.
        with pytest.raises(AttributeError):
            inspector.thresholds = None  # type: ignore[misc]
        with pytest.raises(ArgumentError, match="sources: expected several images, got str"):
            next(inspector.stream("part.png"))
    with pytest.raises(ArgumentError, match="bundle: expected a path or an opened bundle, got NoneType"):
        Inspector.load(None)  # type: ignore[arg-type]


def test_an_image_unlike_those_learned_from_has_a_note_and_is_a_fault_where_that_was_asked_for(
    padim_bundle: Path, tiny_root: Path
) -> None:
    image = read_image(normal_images(tiny_root)[0])
    dark = (image // 8).astype(np.uint8)
    with Inspector.load(padim_bundle, "cpu") as inspector:
        assert inspector.manifest.learned is not None
        usual, unusual = inspector([image, dark])
        assert usual.notes == ()
        assert "notes" not in usual.to_json()
        assert unusual.decision != "fault"
        assert any(note.startswith("darker than any image learned from") for note in unusual.notes)
        assert unusual.to_json()["notes"] == list(unusual.notes)
        score = unusual.score
    with Inspector.load(padim_bundle, "cpu", strict=True) as inspector:
        usual, unusual = inspector([image, dark])
        assert (usual.decision, unusual.decision, unusual.score) == ("accept", "fault", None)
        assert "unlike the images that the bundle learned from: " in (unusual.reason or "")
    with Inspector.load(padim_bundle, "cpu") as inspector:
        assert inspector(dark).score == score  # a note changes nothing
