"""`GentlGrabber`: with a stand-in of harvesters, and with the simulated cameras of the package genicam where it is."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flawscope.errors import MissingExtra
from flawscope.runtime.line.sources.gentl import GentlGrabber
from flawscope.runtime.line.sources.grabber import SourceLost, SourcePlace
from flawscope.runtime.line.sources.table import GentlSource

_WAIT_S = 10.0


class Node:
    """A feature that is a text."""

    def __init__(self, value: str, symbolics: tuple[str, ...] = (), fixed: str = "") -> None:
        self.value, self.symbolics, self.fixed = value, symbolics, fixed

    def from_string(self, value: str) -> None:
        if self.symbolics and value not in self.symbolics:
            raise ValueError(f"the value {value} is invalid")
        self.value = self.fixed or value

    def to_string(self, verify: bool, ignore_cache: bool) -> str:
        assert ignore_cache
        if self.value == "gone":
            raise OSError("the device is gone")
        return self.value


class Nodes:
    def __init__(self) -> None:
        self.fired = 0
        self.PixelFormat = Node("Mono8", ("Mono8", "RGB8"))
        self.AcquisitionMode = Node("Continuous", ("Continuous",))
        self.TriggerMode = Node("Off", ("Off", "On"))
        self.TriggerSource = Node("Line1", ("Line1", "Software"))
        self.TriggerSoftware = SimpleNamespace(execute=self.fire)
        self.PayloadSize = Node("48")
        self.Gain = Node("0.0")
        self.Fixed = Node("1", fixed="1")

    def has_node(self, name: str) -> bool:
        return hasattr(self, name)

    def fire(self) -> None:
        self.fired += 1


class Acquirer:
    """What `Harvester.create` returns."""

    Events = SimpleNamespace(INCOMPLETE_BUFFER=4)

    def __init__(self) -> None:
        self.nodes = Nodes()
        self.remote_device = SimpleNamespace(node_map=self.nodes)
        self.waiting: list[Any] = []
        self.given_back = 0
        self.is_open = True
        self.callback: Any = None

    def add_callback(self, event: int, callback: Any) -> None:
        assert event == 4
        self.callback = callback

    def start(self) -> None:
        pass

    def try_fetch(self, *, timeout: float) -> Any:
        assert timeout > 0  # 0 would be for ever
        item = self.waiting.pop(0) if self.waiting else None
        if item == "incomplete":
            self.callback.emit(self)
            return None
        if isinstance(item, Exception):
            raise item
        return item

    def destroy(self) -> None:
        self.is_open = False

    def put(self, frame_id: int, name: str = "Mono8", components: int = 1, cut: int = 0) -> np.ndarray[Any, Any]:
        data = np.arange(48, dtype=np.uint8) + frame_id
        part = SimpleNamespace(width=8, height=6, data_format=name, data=data[: 48 - cut], x_padding=0)
        buffer = SimpleNamespace(frame_id=frame_id, payload=SimpleNamespace(components=[part] * components))
        buffer.queue = self.count
        self.waiting.append(buffer)
        return data

    def count(self) -> None:
        self.given_back += 1


@pytest.fixture
def acquirer(monkeypatch: pytest.MonkeyPatch) -> Acquirer:
    """Put a stand-in of harvesters in its place."""
    made = Acquirer()

    class Info:
        id_ = "DEV_1"
        serial_number = "123"

        @property
        def user_defined_name(self) -> str:
            raise RuntimeError("not supported by the device")

    class Harvester:
        device_info_list = (Info(),)

        def add_file(self, path: str, *, check_existence: bool, check_validity: bool) -> None:
            pass

        def update(self) -> None:
            pass

        def create(self, index: int) -> Acquirer:
            assert index == 0
            made.is_open = True
            return made

        def reset(self) -> None:
            raise RuntimeError("close must not pass this on")

    package, core = ModuleType("harvesters"), ModuleType("harvesters.core")
    core.Harvester, core.Callback, package.core = Harvester, object, core  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "harvesters", package)
    monkeypatch.setitem(sys.modules, "harvesters.core", core)
    return made


@pytest.fixture
def producer(tmp_path: Path) -> Path:
    (tmp_path / "maker.cti").write_bytes(b"")
    return tmp_path / "maker.cti"


def grabber(producer: Path, **options: Any) -> GentlGrabber:
    source = GentlSource(**{"producer": producer, "camera": "123", "heartbeat_s": 60.0, **options})
    return GentlGrabber(source, SourcePlace("top", "cam0", Path("unused")))


@pytest.fixture
def opened(producer: Path, acquirer: Acquirer) -> Iterator[GentlGrabber]:
    source = grabber(producer)
    source.open()
    yield source
    source.close()
    assert not acquirer.is_open


def test_images_are_copied_counted_and_given_back(opened: GentlGrabber, acquirer: Acquirer) -> None:
    data = acquirer.put(5)
    frame = opened.grab(0.0)
    assert frame is not None
    assert isinstance(frame.image, np.ndarray)
    assert (frame.frame_id, frame.lost, frame.problem) == (5, 0, "")
    before = data.copy()
    data[:] = 0
    assert frame.image.ravel().tolist() == before.tolist()
    acquirer.put(8)
    frame = opened.grab(0.0)
    assert frame is not None
    assert (frame.frame_id, frame.lost) == (8, 2)
    assert acquirer.given_back == 2
    assert opened.grab(0.0) is None


def test_an_incomplete_image_is_a_problem_and_fills_a_gap(opened: GentlGrabber, acquirer: Acquirer) -> None:
    acquirer.put(1)
    acquirer.waiting.append("incomplete")
    acquirer.put(3)
    frames = [opened.grab(0.0) for _ in range(3)]
    assert [frame and (frame.problem, frame.lost) for frame in frames] == [("", 0), ("incomplete_image", 0), ("", 0)]
    assert frames[1] is not None
    assert frames[1].image is None


def test_what_is_no_image_of_this_format_is_a_problem(opened: GentlGrabber, acquirer: Acquirer) -> None:
    acquirer.put(1, name="RGB8")
    acquirer.put(2, components=2)
    acquirer.put(3, cut=1)
    details = []
    for _ in range(3):
        frame = opened.grab(0.0)
        assert frame is not None
        assert (frame.image, frame.problem) == (None, "unreadable_image")
        details.append(frame.detail)
    assert details == [
        "buffer: expected Mono8, got RGB8.",
        "buffer: expected one image, got 2 components.",
        "buffer: expected at least 48 bytes of 8 × 6 Mono8, got 47.",
    ]
    assert acquirer.given_back == 3


def test_a_camera_that_fails_is_lost(opened: GentlGrabber, acquirer: Acquirer) -> None:
    acquirer.waiting.append(OSError("stream closed"))
    with pytest.raises(SourceLost, match="'123' gives no images: stream closed"):
        opened.grab(0.0)


def test_the_heartbeat_and_the_software_trigger(producer: Path, acquirer: Acquirer) -> None:
    source = grabber(producer, trigger="software", heartbeat_s=0.02)
    assert (source.is_triggered, source.policy) == (True, "every")
    source.open()
    assert acquirer.nodes.TriggerSource.value == "Software"
    source.trigger()
    end = time.monotonic() + _WAIT_S
    while not acquirer.nodes.fired:
        assert time.monotonic() < end
        source.grab(0.0)
    acquirer.nodes.PayloadSize.value = "gone"
    reason = ""
    while not reason:
        assert time.monotonic() < end
        try:
            source.grab(0.0)
        except SourceLost as err:
            reason = str(err)
    assert reason == "camera: expected '123' to answer, got: the device is gone."
    source.close()
    with pytest.raises(SourceLost, match="not open"):
        source.trigger()


def test_settings_and_cameras_that_are_not_there_are_named(producer: Path, acquirer: Acquirer) -> None:
    for options, message in (
        ({"features": {"Nope": 1}}, "feature Nope = 1: 123 refused it: it has no such feature"),
        ({"features": {"Fixed": 2}}, "feature Fixed = 2: expected to read it back, got 1 from 123"),
        ({"pixel_format": "BGR8"}, "feature PixelFormat = BGR8: 123 refused it: the value BGR8 is invalid"),
        ({"camera": "999"}, "expected '999' to answer, got DEV_1 from"),
        ({"producer": producer.parent / "none.cti"}, "producer: expected a file, got none at"),
    ):
        with pytest.raises(SourceLost, match=message):
            grabber(**{"producer": producer, **options}).open()
    acquirer.nodes.TriggerSource.value = "Software"
    with pytest.raises(SourceLost, match="expected a line for trigger: hardware"):
        grabber(producer).open()


def test_without_harvesters_the_extra_is_named(producer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "harvesters.core", None)
    with pytest.raises(MissingExtra, match=r"flawscope\[gentl\]"):
        grabber(producer)


@pytest.mark.long
def test_the_simulated_cameras_of_genicam_give_images() -> None:
    if importlib.util.find_spec("harvesters") is None or importlib.util.find_spec("genicam") is None:
        pytest.skip('harvesters is not installed: pip install "flawscope[gentl]"')
    import genicam

    simulated = Path(genicam.__file__).parent / "viky.cti"
    if not simulated.exists():
        pytest.skip("this version of the package genicam has no simulated camera")
    for name, shape in (("RGBa8", (400, 400, 3)), ("Mono8", (400, 400))):
        source = grabber(simulated, camera="VikyTL_DEV_red", trigger="free", pixel_format=name, heartbeat_s=0.1)
        source.open()
        try:
            frames = [source.grab(_WAIT_S) for _ in range(6)]
        finally:
            source.close()
        for frame in frames:
            assert frame is not None
            assert isinstance(frame.image, np.ndarray)
            assert (frame.problem, frame.image.shape) == ("", shape)
