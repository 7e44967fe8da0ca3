"""`GenicamGrabber`: the images of a GigE Vision or USB3 Vision camera, and the word when one should have come."""

from __future__ import annotations

import logging
import time

from flawscope.arrays import UInt8Array
from flawscope.errors import ArgumentError, ImageError
from flawscope.runtime.line.sources.genicam.aravis import AravisError, call, library
from flawscope.runtime.line.sources.genicam.camera import Camera
from flawscope.runtime.line.sources.genicam.control import Control
from flawscope.runtime.line.sources.genicam.frame_ids import FrameIds
from flawscope.runtime.line.sources.genicam.settings import OPTIONAL, is_same, settings_of
from flawscope.runtime.line.sources.genicam.stream import Buffer, Stream
from flawscope.runtime.line.sources.grabber import SourceLost, SourcePlace
from flawscope.runtime.line.sources.pixel_formats import image_of_buffer
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.sources.table import GenicamSource, is_triggered, policy_of

_LOOK_S = 0.1
"""Seconds after which a wait for an image looks whether the camera is still there."""

_log = logging.getLogger(__name__)


class GenicamGrabber:
    """Gives the images of one camera.

    Args:
        options: What is asked of it.
        place: Where it stands.

    Raises:
        ArgumentError: If the pixel format is unknown, or `features` writes what another option does.
        AravisMissing: If Aravis is not installed.
    """

    def __init__(self, options: GenicamSource, place: SourcePlace) -> None:
        settings = settings_of(options)
        library()
        self.policy = policy_of(options)
        self.is_triggered = is_triggered(options)
        self._options = options
        self._place = place
        self._settings = settings
        self._camera: Camera | None = None
        self._stream: Stream | None = None
        self._control: Control | None = None
        self._ids = FrameIds()
        self._format = 0
        self._counts = {"images": 0, "incomplete_images": 0, "unreadable_images": 0, "lost_images": 0}

    def open(self) -> None:
        """Open the camera, write its settings, read them back and compare, and start the stream.

        Raises:
            SourceLost: If it does not answer, a setting does not read back, or it does not start.
        """
        self.close()
        self._camera = Camera(self._options.camera)
        try:
            self._configure(self._camera)
            self._ids = FrameIds()
            self._stream = Stream(self._camera)
        except BaseException:
            self.close()
            raise
        # The thread may be in a call of the library when the camera is closed.
        self._camera.hold()
        self._control = Control(
            self._camera.ping, self._camera.trigger, self._options.heartbeat_s, self._camera.release
        )

    def grab(self, timeout_s: float) -> Frame | None:
        """Return the next image, or None if none came within the time.

        An image that is not whole is a `Frame` without pixels, with the problem `incomplete_image` and the status of
        its buffer; its pixels, in part those of an earlier image, are never handed out.

        Raises:
            SourceLost: If the camera no longer answers, or counts its images anew.
        """
        end = time.monotonic() + timeout_s
        while True:
            stream = self._watched()
            left_s = max(end - time.monotonic(), 0.0)
            with stream.buffer(min(left_s, _LOOK_S)) as buffer:
                if buffer is not None:
                    return self._frame(buffer)
            if left_s <= _LOOK_S:
                return None

    def trigger(self) -> None:
        """Have a software trigger sent, and return; several images may be on their way. For other triggers: nothing.

        Raises:
            SourceLost: If the camera no longer answers; where it does not take this trigger, `grab` says so.
        """
        self._watched()
        if self.is_triggered and self._control is not None:
            self._control.trigger()

    def done(self, source: str) -> None:
        """Do nothing: images of a camera are no files."""

    def statistics(self) -> dict[str, int]:
        """Return counters since `open`: images, and the packets and buffers that Aravis counts."""
        return {**self._counts, **(self._stream.counters() if self._stream is not None else {})}

    def close(self) -> None:
        """Close the camera; never raises. Takes about 10 s where the camera is gone: the library goes on asking it."""
        camera, stream, control = self._camera, self._stream, self._control
        self._camera = self._stream = self._control = None
        if control is not None:
            control.stop()
        if stream is not None:
            _log.info("camera %s: %s", self._options.camera, {**self._counts, **stream.counters()})
            stream.close(answers=control is not None and not control.problem)
        if camera is not None:
            camera.close()
        self._counts = dict.fromkeys(self._counts, 0)

    def _configure(self, camera: Camera) -> None:
        camera.stop()
        camera.clear_triggers()
        settings = {
            feature: value
            for feature, value in self._settings.items()
            # What not every camera has, and needs no word where it is missing: then there is no other way.
            if feature not in OPTIONAL or camera.has(feature, str(value))
        }
        if self._options.trigger == "free" and not camera.has("TriggerMode"):
            settings.pop("TriggerMode", None)
        for feature, value in settings.items():
            # An optional one may be fixed, and refuse to be written.
            if feature not in OPTIONAL or not is_same(value, camera.read(feature)):
                camera.write(feature, value)
        # After all are written, as one may change another.
        for feature, value in settings.items():
            camera.check(feature, value)
        if self._options.trigger == "hardware" and camera.read("TriggerSource") == "Software":
            raise SourceLost(
                "feature TriggerSource: expected a line for trigger: hardware, got Software. Name the line in "
                "features, such as TriggerSource: Line1."
            )
        camera.set_packet_size(self._options.packet_size)
        try:
            self._format = call("arv_camera_get_pixel_format", camera.handle)
        except AravisError as err:
            raise SourceLost(f"camera: {camera.name} does not say its pixel format: {err}.") from err

    def _watched(self) -> Stream:
        if self._stream is None or self._control is None:
            raise SourceLost(f"camera: {self._options.camera!r} is not open.")
        problem = self._control.problem
        if problem:
            raise SourceLost(f"camera: expected {self._options.camera!r} to answer, got: {problem}.")
        return self._stream

    def _frame(self, buffer: Buffer) -> Frame:
        now = time.monotonic_ns()
        frame_id, lost = self._ids.step(buffer.frame_id, is_whole=buffer.is_whole)
        self._counts["images"] += 1
        self._counts["lost_images"] += lost
        if not buffer.is_whole:
            self._counts["incomplete_images"] += 1
            detail = f"the camera's image did not arrive whole: {buffer.status}"
            return Frame(None, now, frame_id, problem="incomplete_image", detail=detail, lost=lost)
        try:
            return Frame(self._image(buffer), now, frame_id, lost=lost)
        except (ArgumentError, ImageError) as err:
            self._counts["unreadable_images"] += 1
            return Frame(None, now, frame_id, problem="unreadable_image", detail=str(err), lost=lost)

    def _image(self, buffer: Buffer) -> UInt8Array:
        if not buffer.is_image:
            raise ImageError("buffer: expected one image, got another kind of data. Switch the camera's chunks off.")
        if buffer.pixel_format != self._format:
            raise ImageError(
                f"buffer: expected pixel format {self._options.pixel_format}, 0x{self._format:08x}, "
                f"got 0x{buffer.pixel_format:08x}."
            )
        return image_of_buffer(
            buffer.data(), buffer.width, buffer.height, self._options.pixel_format, padding=buffer.padding
        )
