"""The stream of a camera: a fixed number of buffers that go round, and what came in each."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

from flawscope.arrays import UInt8Array
from flawscope.runtime.line.sources.genicam.aravis import (
    BUFFER_STATUS,
    BUFFER_SUCCESS,
    PAYLOAD_IMAGES,
    TYPE_UINT64,
    AravisError,
    call,
    library,
    set_int,
    text,
)
from flawscope.runtime.line.sources.genicam.camera import Camera
from flawscope.runtime.line.sources.grabber import SourceLost

BUFFERS = 8
"""Buffers of a stream: images that may wait to be fetched. Memory does not grow beyond them."""

SOCKET_IMAGES = 2
"""Images that the system may keep while nobody fetches packets; it allows as much as `net.core.rmem_max`."""

_LEAST_SOCKET_BYTES = 1 << 20
"""Room for packets whatever the size of an image: two small ones would be less than what the system gives unasked."""


class Buffer:
    """What the camera sent; valid until it is given back.

    Attributes:
        status: `SUCCESS`, or what is wrong with it.
        frame_id: The camera's number, see `FrameIds`.
        is_image: Whether it begins with one image; if not, there is no size.
        pixel_format: Number of its format.
        width: Pixels of a row.
        height: Rows.
        padding: Bytes between rows.
    """

    def __init__(self, aravis: Any, handle: int) -> None:
        self._aravis, self._handle = aravis, handle
        status = aravis.arv_buffer_get_status(handle)
        self.is_whole = status == BUFFER_SUCCESS
        self.status = BUFFER_STATUS.get(status, str(status))
        self.frame_id: int = aravis.arv_buffer_get_frame_id(handle)
        self.is_image = self.is_whole and aravis.arv_buffer_get_payload_type(handle) in PAYLOAD_IMAGES
        self.pixel_format = self.width = self.height = self.padding = 0
        if self.is_image:  # the functions complain on stderr about other buffers
            self.pixel_format = aravis.arv_buffer_get_image_pixel_format(handle)
            self.width = aravis.arv_buffer_get_image_width(handle)
            self.height = aravis.arv_buffer_get_image_height(handle)
            right, below = ctypes.c_int(), ctypes.c_int()
            aravis.arv_buffer_get_image_padding(handle, ctypes.byref(right), ctypes.byref(below))
            self.padding = right.value

    def data(self) -> UInt8Array:
        """Return its bytes, uint8 [size]; a view that must not outlive the buffer."""
        size = ctypes.c_size_t()
        address = self._aravis.arv_buffer_get_image_data(self._handle, ctypes.byref(size))
        if not address or not size.value:
            return np.empty(0, np.uint8)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size.value).from_address(address))


class Stream:
    """Buffers between the camera and the line. `close` must be called, before that of the camera.

    Raises:
        SourceLost: If the camera does not begin to stream.
    """

    def __init__(self, camera: Camera) -> None:
        self._aravis = library()
        self._camera = camera
        if camera.is_gige:
            camera.stream_by_udp()
        try:
            size = call("arv_camera_get_payload", camera.handle)
            self._handle = call("arv_camera_create_stream", camera.handle, None, None)
            if not self._handle:
                raise AravisError("it has no stream")
        except AravisError as err:
            raise SourceLost(f"camera: {camera.name} gives no stream: {err}.") from err
        if camera.is_gige:
            # The system's default holds a few hundred packets: less than one image, sent at once, is lost in part.
            set_int(self._handle, "socket-buffer-size", min(max(SOCKET_IMAGES * size, _LEAST_SOCKET_BYTES), 2**31 - 1))
        for _ in range(BUFFERS):
            self._aravis.arv_stream_push_buffer(self._handle, self._aravis.arv_buffer_new_allocate(size))
        try:
            call("arv_camera_start_acquisition", camera.handle)
        except AravisError as err:
            self._aravis.g_object_unref(self._handle)
            raise SourceLost(f"camera: {camera.name} does not start: {err}.") from err

    @contextlib.contextmanager
    def buffer(self, timeout_s: float) -> Iterator[Buffer | None]:
        """Yield the next buffer, or None if none came within the time; afterwards it goes round again."""
        handle = self._aravis.arv_stream_timeout_pop_buffer(self._handle, int(timeout_s * 1e6))
        if not handle:
            yield None
            return
        try:
            yield Buffer(self._aravis, handle)
        finally:
            self._aravis.arv_stream_push_buffer(self._handle, handle)

    def counters(self) -> dict[str, int]:
        """Return the library's counters, such as `missing_packets`; which there are depends on the kind of camera."""
        return {
            text(self._aravis.arv_stream_get_info_name(self._handle, i)).removeprefix("n_"): int(
                self._aravis.arv_stream_get_info_uint64(self._handle, i)
            )
            for i in range(self._aravis.arv_stream_get_n_infos(self._handle))
            if self._aravis.arv_stream_get_info_type(self._handle, i) == TYPE_UINT64
        }

    def close(self, *, answers: bool) -> None:
        """Stop the camera and free the buffers.

        Args:
            answers: Whether the camera answers; one that does not is left as it is, instead of waiting for it.
        """
        if answers:
            self._camera.stop()
        self._aravis.g_object_unref(self._handle)
