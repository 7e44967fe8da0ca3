"""`GentlGrabber`: cameras that a maker's driver (a GenTL producer, `*.cti`) reaches, through the package harvesters."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np

from flawscope.arrays import UInt8Array
from flawscope.errors import ArgumentError, ImageError, MissingExtra
from flawscope.runtime.line.sources.genicam.control import Control
from flawscope.runtime.line.sources.genicam.frame_ids import FrameIds
from flawscope.runtime.line.sources.genicam.settings import OPTIONAL, Value, hint, is_same, settings_of, shown
from flawscope.runtime.line.sources.grabber import SourceLost, SourcePlace
from flawscope.runtime.line.sources.pixel_formats import image_of_buffer
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.sources.table import GentlSource, is_triggered, policy_of

_SHORTEST_S = 1e-3
"""Shortest wait for an image: for 0, harvesters waits for ever."""

_PINGED = "PayloadSize"
"""The feature that the heartbeat reads: every camera with images has it."""

_log = logging.getLogger(__name__)


class GentlGrabber:
    """Gives the images of one camera.

    Args:
        options: What is asked of it.
        place: Where it stands.

    Raises:
        ArgumentError: If the pixel format is unknown, or `features` writes what another option does.
        MissingExtra: If harvesters is not installed.
    """

    def __init__(self, options: GentlSource, place: SourcePlace) -> None:
        self._settings = settings_of(options)
        self._harvesters = _harvesters()
        self.policy = policy_of(options)
        self.is_triggered = is_triggered(options)
        self._options = options
        self._harvester: Any = None
        self._acquirer: Any = None
        self._control: Control | None = None
        self._ids = FrameIds()
        self._incomplete = 0

    def open(self) -> None:
        """Open the camera, write its settings, read them back and compare, and start the stream.

        Raises:
            SourceLost: If it does not answer, a setting does not read back, or it does not start.
        """
        self.close()
        self._ids, self._incomplete = FrameIds(), 0
        options = self._options
        if not options.producer.is_file():
            raise SourceLost(f"producer: expected a file, got none at {options.producer}. Install the maker's driver.")
        try:
            self._harvester = self._harvesters.Harvester()
            self._harvester.add_file(str(options.producer), check_existence=True, check_validity=True)
            self._harvester.update()
            self._acquirer = self._harvester.create(self._index())
            self._acquirer.add_callback(self._acquirer.Events.INCOMPLETE_BUFFER, self._counter())
            self._configure()
            self._acquirer.start()
        except SourceLost:
            self.close()
            raise
        # Of the driver, of harvesters and of GenICam, which have no base of their own.
        except Exception as err:
            self.close()
            raise SourceLost(f"camera: {options.camera!r} of {options.producer} does not open: {_words(err)}.") from err
        self._control = Control(self._ping, self._fire, options.heartbeat_s, lambda: None)

    def grab(self, timeout_s: float) -> Frame | None:
        """Return the next image, or None if none came within the time.

        An image that is not whole is a `Frame` without pixels, with the problem `incomplete_image`; harvesters keeps
        its number to itself, so that it is also missing before the next one, unless it is counted here.

        Raises:
            SourceLost: If the camera no longer answers, or counts its images anew.
        """
        control = self._watched()
        before = self._incomplete
        try:
            buffer = self._acquirer.try_fetch(timeout=max(timeout_s, _SHORTEST_S))
        except Exception as err:
            raise SourceLost(f"camera: {self._options.camera!r} gives no images: {_words(err)}.") from err
        now = time.monotonic_ns()
        if buffer is not None:
            try:
                return self._frame(buffer, now)
            finally:
                buffer.queue()
        if self._incomplete > before:
            self._ids.step(0, is_whole=False)
            return Frame(None, now, problem="incomplete_image", detail="the camera's image did not arrive whole")
        if control.problem:
            self._watched()
        return None

    def trigger(self) -> None:
        """Have a software trigger sent, and return; several images may be on their way. For other triggers: nothing.

        Raises:
            SourceLost: If the camera no longer answers; where it does not take this trigger, `grab` says so.
        """
        control = self._watched()
        if self.is_triggered:
            control.trigger()

    def done(self, source: str) -> None:
        """Do nothing: images of a camera are no files."""

    def close(self) -> None:
        """Close the camera; never raises."""
        control, acquirer, harvester = self._control, self._acquirer, self._harvester
        self._control = self._acquirer = self._harvester = None
        if control is not None:
            control.stop()
        for end in (acquirer and acquirer.destroy, harvester and harvester.reset):
            try:
                if end:
                    end()
            except Exception as err:
                _log.warning("camera %s: could not be closed: %s", self._options.camera, _words(err))

    def _index(self) -> int:
        """Return the place of the camera in the driver's list."""
        wanted, found = self._options.camera, []
        for i, info in enumerate(self._harvester.device_info_list):
            names = {_name(info, kind) for kind in ("id_", "serial_number", "user_defined_name")} - {""}
            if wanted in names:
                return i
            found.append(_name(info, "id_"))
        raise SourceLost(
            f"camera: expected {wanted!r} to answer, got {', '.join(found) or 'none'} from {self._options.producer}."
        )

    def _counter(self) -> Any:
        grabber = self

        class Counter(self._harvesters.Callback):  # type: ignore[misc, name-defined]
            def emit(self, context: object = None) -> None:
                grabber._incomplete += 1

        return Counter()

    def _configure(self) -> None:
        written: dict[str, Value] = {}
        for feature, value in self._settings.items():
            if feature in OPTIONAL and not self._has(feature, shown(value)):
                continue
            if feature == "TriggerMode" and value == "Off" and not self._has(feature, "Off"):
                continue  # a camera without triggers is free
            written[feature] = value
            if feature in OPTIONAL and is_same(value, self._read(feature)):
                continue  # it may be fixed, and refuse to be written
            try:
                self._node(feature).from_string(shown(value))
            except Exception as err:
                raise SourceLost(
                    f"feature {feature} = {shown(value)}: {self._options.camera} refused it: "
                    f"{_words(err)}.{hint(value)}"
                ) from err
        for feature, value in written.items():
            got = self._read(feature)
            if not is_same(value, got):
                raise SourceLost(
                    f"feature {feature} = {shown(value)}: expected to read it back, got {got} from "
                    f"{self._options.camera}. Write a value that the camera takes.{hint(value)}"
                )
        if self._options.trigger == "hardware" and self._read("TriggerSource") == "Software":
            raise SourceLost(
                "feature TriggerSource: expected a line for trigger: hardware, got Software. Name the line in "
                "features, such as TriggerSource: Line1."
            )

    def _node(self, feature: str) -> Any:
        nodes = self._acquirer.remote_device.node_map
        if not nodes.has_node(feature):
            raise LookupError("it has no such feature")
        return getattr(nodes, feature)

    def _read(self, feature: str) -> str:
        # Never the library's own copy of it: (Verify, IgnoreCache).
        return str(self._node(feature).to_string(False, True))

    def _has(self, feature: str, entry: str) -> bool:
        try:
            return entry in self._node(feature).symbolics
        except Exception:
            return False

    def _ping(self) -> None:
        self._read(_PINGED)

    def _fire(self) -> None:
        self._node("TriggerSoftware").execute()

    def _watched(self) -> Control:
        if self._control is None:
            raise SourceLost(f"camera: {self._options.camera!r} is not open.")
        if problem := self._control.problem:
            raise SourceLost(f"camera: expected {self._options.camera!r} to answer, got: {problem}.")
        return self._control

    def _frame(self, buffer: Any, now: int) -> Frame:
        frame_id, lost = self._ids.step(int(buffer.frame_id), is_whole=True)
        try:
            return Frame(self._image(buffer.payload), now, frame_id, lost=lost)
        except (ArgumentError, ImageError) as err:
            return Frame(None, now, frame_id, problem="unreadable_image", detail=str(err), lost=lost)

    def _image(self, payload: Any) -> UInt8Array:
        if len(payload.components) != 1 or not hasattr(payload.components[0], "width"):
            raise ImageError(f"buffer: expected one image, got {len(payload.components)} components.")
        part = payload.components[0]
        if part.data_format != self._options.pixel_format:
            raise ImageError(f"buffer: expected {self._options.pixel_format}, got {part.data_format}.")
        data = np.ascontiguousarray(part.data).view(np.uint8)
        return image_of_buffer(data, part.width, part.height, part.data_format, padding=part.x_padding)


def _harvesters() -> Any:
    try:
        import harvesters.core
    except ImportError as err:
        raise MissingExtra("a camera of a GenTL producer", "harvesters", "gentl") from err
    return harvesters.core


def _name(info: Any, kind: str) -> str:
    try:
        return str(getattr(info, kind) or "")
    except Exception:  # drivers raise for what they do not have
        return ""


def _words(err: Exception) -> str:
    return " ".join(str(err).split()).rstrip(".") or type(err).__name__
