"""What a result says of its image and bundle, how it is drawn, and that it keeps no image alive."""

from __future__ import annotations

import gc
import json
import weakref
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope.errors import ArgumentError, FlawscopeError, ImageError, StorageError
from flawscope.imaging.heat import BOX
from flawscope.imaging.images import read_image
from flawscope.runtime import Frame, Inspector, Result

SIDE = 16


def spotted(value: int = 200) -> np.ndarray:
    """Return a grey image with a bright spot: the tiny bundle's map is the brightness, its threshold 150."""
    image = np.full((SIDE, SIDE, 3), 60, np.uint8)
    image[4:8, 4:8] = value
    return image


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.flaw"
    write_tiny_bundle(path, thresholds=tiny_thresholds(150.0), min_area_px=1)
    return path


@pytest.fixture
def inspector(bundle: Path) -> Any:
    with Inspector.load(bundle, "cpu") as opened:
        yield opened


def test_a_frame_gives_its_id_and_its_time_in_utc(inspector: Inspector) -> None:
    taken = datetime(2026, 5, 4, 12, 30, tzinfo=timezone(timedelta(hours=2)))
    result = inspector(Frame(spotted(), id="part 7", time=taken))
    assert (result.image, result.id) == ("part 7", "part 7")
    assert result.time == taken
    assert result.time.utcoffset() == timedelta(0)
    assert result.decision == "reject"


def test_without_a_frame_the_time_is_that_of_reading_and_there_is_no_id(inspector: Inspector) -> None:
    before = datetime.now(timezone.utc)
    results = list(inspector.stream([spotted(), b"no image"]))
    assert [result.id for result in results] == [None, None]
    assert [result.image for result in results] == ["image 0", "image 1"]
    assert [result.decision for result in results] == ["reject", "fault"]
    assert all(before <= result.time <= datetime.now(timezone.utc) for result in results if result.time)
    assert None not in [result.time for result in results]


def test_a_result_names_bundle_precision_backend_and_ratio(inspector: Inspector) -> None:
    result = inspector(spotted(180))
    assert result.digest == inspector.manifest.digest
    assert (result.precision, result.backend) == ("fp32", "cpu")
    assert result.ratio == pytest.approx(180 / 150)
    assert result.threshold_source == "the bundle's own"
    fault = inspector(Frame(b"no image", "x"))
    assert (fault.decision, fault.digest, fault.id, fault.ratio) == ("fault", result.digest, "x", None)


@pytest.mark.parametrize("threshold", [None, 0.0, -3.0])
def test_there_is_no_ratio_to_a_threshold_that_is_not_positive(threshold: float | None) -> None:
    assert Result("x", "reject", score=2.0, threshold=threshold).ratio is None


def test_a_dict_has_all_but_the_map_and_is_json(inspector: Inspector) -> None:
    result = inspector(Frame(spotted(), "7", datetime(2026, 5, 4, 12, 30, tzinfo=timezone.utc)))
    found = json.loads(json.dumps(result.to_dict()))
    assert {key: found[key] for key in result.to_json()} == result.to_json()
    more = {key: found[key] for key in list(found)[len(result.to_json()) :]}
    assert more.pop("timings_ms") == result.timings_ms
    assert more == {
        "id": "7",
        "time": "2026-05-04T12:30:00.000+00:00",
        "digest": inspector.manifest.digest,
        "precision": "fp32",
        "backend": "cpu",
        "ratio": 200 / 150,
        "threshold_source": "the bundle's own",
    }
    assert set(Result("x", "fault").to_dict()) == {*Result("x", "fault").to_json(), *more, "timings_ms"}


def test_the_public_line_keeps_its_keys(inspector: Inspector) -> None:
    line = inspector(Frame(spotted(), "7")).to_json()
    assert list(line) == ["image", "score", "threshold", "threshold_revision", "decision", "boxes", "latency_ms"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"id": ""}, "id: expected a text that is not empty, got ''"),
        ({"id": 7}, "got 7"),
        ({"time": "now"}, "time: expected a datetime, got str"),
        ({"time": datetime(2026, 5, 4)}, "time: expected one with its zone"),
        ({"time": datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))}, "time: expected one that UTC has too"),
        ({"time": datetime.max.replace(tzinfo=timezone(timedelta(hours=-12)))}, "time: expected one that UTC has too"),
        ({"image": Frame(b"")}, "expected an image, got a frame"),
    ],
)
def test_a_frame_that_says_nothing_clear_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Frame(**{"image": b"", **arguments})


class TestDrawing:
    def test_a_file_is_read_again_and_shown_in_grey_with_heat_and_box(
        self, inspector: Inspector, tmp_path: Path
    ) -> None:
        cv2.imwrite(str(tmp_path / "a.png"), spotted())
        drawn = inspector(tmp_path / "a.png").draw()
        assert (drawn.shape, drawn.dtype) == ((SIDE, SIDE, 3), np.uint8)
        assert drawn[0, 0].tolist() == [60, 60, 60]
        assert drawn[4, 5].tolist() == [*BOX]

    def test_what_was_no_file_is_passed_again(self, inspector: Inspector) -> None:
        image = spotted()
        image[..., 0] = 10  # of OpenCV: blue
        result = inspector(image, color="bgr")
        with pytest.raises(ArgumentError, match=r"image 0: expected its image, which a result does not keep, got none"):
            result.draw()
        np.testing.assert_array_equal(result.draw(image, color="bgr"), result.draw(Frame(image[..., ::-1])))
        with pytest.raises(ArgumentError, match="color: expected rgb or bgr"):
            result.draw(image, color="hsv")  # type: ignore[arg-type]

    def test_another_image_is_refused(self, inspector: Inspector, tmp_path: Path) -> None:
        result = inspector(spotted())
        with pytest.raises(ArgumentError, match=r"expected the image that was inspected, 16x16 px, got one of 9x8 px"):
            result.draw(np.zeros((8, 9, 3), np.uint8))
        cv2.imwrite(str(tmp_path / "a.png"), spotted())
        result = inspector(str(tmp_path / "a.png"))
        (tmp_path / "a.png").unlink()
        with pytest.raises(ImageError, match=r"a\.png"):
            result.draw()

    @pytest.mark.parametrize("value", ["none", "nan"])
    def test_a_fault_without_a_map_says_why(
        self, inspector: Inspector, monkeypatch: pytest.MonkeyPatch, value: str
    ) -> None:
        if value == "nan":
            infer = Inspector.infer
            monkeypatch.setattr(
                Inspector, "infer", lambda self, prepared: (infer(self, prepared)[0] * np.float32("nan"), np.ones(1))
            )
        result = inspector(spotted() if value == "nan" else b"no image")
        with pytest.raises(ArgumentError, match=r"expected a result with an anomaly map, got a fault: .*i"):
            result.draw(spotted())
        with pytest.raises(ArgumentError, match="expected a result that an inspector made"):
            Result("x", "fault").draw(spotted())

    def test_it_is_saved_as_png_and_nothing_is_overwritten_unasked(self, inspector: Inspector, tmp_path: Path) -> None:
        result = inspector(spotted())
        target = tmp_path / "new" / "a.png"
        result.save(target, spotted())
        np.testing.assert_array_equal(read_image(target), result.draw(spotted()))
        with pytest.raises(ArgumentError, match="got an existing file"):
            result.save(target, spotted())
        result.save(str(target), spotted(), overwrite=True)
        with pytest.raises(ArgumentError, match=r"expected the name of a PNG file, \*\.png"):
            result.save(tmp_path / "a.jpg", spotted())
        assert [path.name for path in target.parent.iterdir()] == ["a.png"]

    @pytest.mark.parametrize(
        ("path", "kind", "words"),
        [
            (None, ArgumentError, "path: expected a path, got NoneType"),
            (b"a.png", ArgumentError, "path: expected a path, got bytes"),
            ("a\0.png", ArgumentError, "which has a null character"),
            (f"{'x' * 300}.png", StorageError, "File name too long"),
        ],
    )
    def test_what_is_no_name_of_a_file_is_told(
        self, inspector: Inspector, path: Any, kind: type[FlawscopeError], words: str
    ) -> None:
        with pytest.raises(kind, match=words):
            inspector(spotted()).save(path, spotted())

    def test_it_can_be_drawn_when_the_inspector_is_closed(self, bundle: Path) -> None:
        with Inspector.load(bundle, "cpu") as opened:
            result = opened(spotted())
        assert result.draw(spotted()).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("way", ["call", "stream", "ahead", "submit", "fault"])
def test_a_result_keeps_no_image_alive(inspector: Inspector, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "fault":
        monkeypatch.setattr(Inspector, "infer", lambda self, prepared: 1 / 0)
    image = spotted()
    reference = weakref.ref(image)
    gc.disable()  # what a cycle holds would be freed some time, and until then fill the memory
    try:
        if way == "submit":
            future = inspector.submit(Frame(image, "7"))
            result = future.result(20)
            inspector.submit(b"no image").result(20)  # the thread is done with the first
        elif way in ("call", "fault"):
            result = inspector(Frame(image, "7"))
        else:
            (result,) = inspector.stream([Frame(image, "7")], ahead=way == "ahead")
        del image
        assert reference() is None
        assert result.id == "7"
    finally:
        gc.enable()
