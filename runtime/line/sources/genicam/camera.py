"""A camera that is open: its features, its trigger, its packets and the register that tells that it lives."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Literal

from flawscope.runtime.line.sources.genicam.aravis import (
    PACKET_SIZE_NEVER_ADJUSTED,
    STREAM_BY_UDP_ALONE,
    AravisError,
    call,
    library,
    text,
)
from flawscope.runtime.line.sources.genicam.settings import Value, hint, is_same, shown
from flawscope.runtime.line.sources.grabber import SourceLost

_CONTROL_CHANNEL = 0x0A00
"""GigE Vision's register of who controls the camera: 0 says nobody."""

_GENCP_VERSION = 0x0000
"""The first register of every USB3 Vision camera."""


class Camera:
    """An open camera. The handle is freed by `close`, which must be called.

    Args:
        name: Its name, as `flawscope line cameras` lists it, or its address.

    Raises:
        AravisMissing: If Aravis is not installed.
        SourceLost: If no camera of this name answers, or another program controls it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            self.handle = call("arv_camera_new", name.encode())
        except AravisError as err:
            raise SourceLost(
                f"camera: expected {name!r} to answer, got: {err}. See flawscope line cameras for those that do."
            ) from err
        if not self.handle:
            raise SourceLost(f"camera: expected {name!r} to answer, got none. See flawscope line cameras.")
        self._aravis = library()
        self._device = self._aravis.arv_camera_get_device(self.handle)
        self.is_gige = bool(self._aravis.arv_camera_is_gv_device(self.handle))
        if self.is_gige and not self._aravis.arv_gv_device_is_controller(self._device):
            self.close()
            raise SourceLost(
                f"camera: expected to control {name!r}, got a camera that another program controls. End that program; "
                "after a crash wait until the camera gives it up, some seconds."
            )

    def close(self) -> None:
        """Leave the camera to others."""
        self._aravis.g_object_unref(self.handle)

    def has(self, feature: str, entry: str = "") -> bool:
        """Return whether a feature is there now; with `entry`, whether it may take this value."""
        try:
            if not call("arv_camera_is_feature_available", self.handle, feature.encode()):
                return False
            return not entry or bool(
                call("arv_camera_is_enumeration_entry_available", self.handle, feature.encode(), entry.encode())
            )
        except AravisError:
            return False

    def write(self, feature: str, value: Value) -> None:
        """Write a feature.

        Raises:
            SourceLost: If the camera lacks it or refuses the value.
        """
        try:
            call("arv_gc_feature_node_set_value_from_string", self._node(feature), shown(value).encode())
        except AravisError as err:
            raise SourceLost(
                f"feature {feature} = {shown(value)}: {self.name} refused it: {err}.{hint(value)}"
            ) from err

    def read(self, feature: str) -> str:
        """Return the value of a feature as text.

        Raises:
            SourceLost: If the camera lacks it or it cannot be read.
        """
        try:
            return text(call("arv_gc_feature_node_get_value_as_string", self._node(feature)))
        except AravisError as err:
            raise SourceLost(f"feature {feature}: expected {self.name} to give its value, got: {err}.") from err

    def check(self, feature: str, value: Value) -> None:
        """Compare a feature with what was written.

        Raises:
            SourceLost: If it differs: numbers with a fraction by more than a thousandth, all others at all.
        """
        got = self.read(feature)
        if not is_same(value, got):
            raise SourceLost(
                f"feature {feature} = {shown(value)}: expected to read it back, got {got} from {self.name}. Write a "
                f"value that the camera takes.{hint(value)}"
            )

    def stop(self) -> None:
        """Stop its images, if it sends any.

        A camera whose program was killed goes on sending to that program's port; the next one would never get an image.
        """
        with contextlib.suppress(AravisError):
            call("arv_camera_stop_acquisition", self.handle)

    def clear_triggers(self) -> None:
        """Switch every trigger off, whatever was left on.

        Raises:
            SourceLost: If the camera does not do it.
        """
        try:
            call("arv_camera_clear_triggers", self.handle)
        except AravisError as err:
            raise SourceLost(f"camera: {self.name} does not switch its triggers off: {err}.") from err

    def trigger(self) -> None:
        """Send a software trigger; it does not wait for the image.

        Raises:
            AravisError: If the camera does not take it.
        """
        try:
            call("arv_camera_software_trigger", self.handle)
        except AravisError as err:
            raise AravisError(f"a software trigger was not taken: {err}") from err

    def set_packet_size(self, size: int | Literal["auto"]) -> None:
        """Set the bytes of a network packet; `auto` tries which is the largest that arrives.

        Raises:
            SourceLost: If the camera takes another, or has no network.
        """
        if not self.is_gige:
            if size != "auto":
                raise SourceLost(f"packet_size: {self.name} has no network, got {size}. Leave packet_size out.")
            return
        try:
            if size == "auto":
                call("arv_camera_gv_auto_packet_size", self.handle)
                return
            self._aravis.arv_camera_gv_set_packet_size_adjustment(self.handle, PACKET_SIZE_NEVER_ADJUSTED)
            call("arv_camera_gv_set_packet_size", self.handle, size)
            got = call("arv_camera_gv_get_packet_size", self.handle)
        except AravisError as err:
            raise SourceLost(f"packet_size {size}: {self.name} refused it: {err}. Set packet_size: auto.") from err
        if got != size:
            raise SourceLost(f"packet_size {size}: expected to read it back, got {got}. Set packet_size: auto.")

    def stream_by_udp(self) -> None:
        """Let a stream that is made afterwards be received as all who are not root receive it. For network cameras.

        Whoever may open packet sockets (root, CAP_NET_RAW) gets one from Aravis, which takes whatever comes to this
        machine for packets of images until its filter is set: images that no camera sent, or none any more.
        """
        self._aravis.arv_gv_device_set_stream_options(self._device, STREAM_BY_UDP_ALONE)

    def hold(self) -> None:
        """Keep the camera until `release`, even if it is closed: for a thread that uses it."""
        self._aravis.g_object_ref(self.handle)

    def release(self) -> None:
        """Undo `hold`."""
        self._aravis.g_object_unref(self.handle)

    def ping(self) -> None:
        """Read a register. Takes up to 3 s where nobody answers.

        Raises:
            AravisError: If the camera does not answer, or has been restarted or taken by another program.
        """
        value = ctypes.c_uint32()
        address = _CONTROL_CHANNEL if self.is_gige else _GENCP_VERSION
        call("arv_device_read_register", self._device, address, ctypes.byref(value))
        if self.is_gige and value.value == 0:
            raise AravisError("it was restarted, or another program took it")

    def _node(self, feature: str) -> int:
        node = self._aravis.arv_device_get_feature(self._device, feature.encode())
        if not node:
            raise AravisError("it has no such feature")
        return int(node)
