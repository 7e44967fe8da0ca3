"""All engines of a bundle on one device: one stream and one memory, so that arrays stay there between engines.

Written against TensorRT's and PyCUDA's interfaces, not run on a GPU.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from flawscope.errors import DeviceError
from flawscope.runtime.backends.device import Device, SharedDevice
from flawscope.runtime.backends.tensorrt import TensorrtSession
from flawscope.runtime.engines.capture_lock import CAPTURES


class OnDevice(Protocol):
    """What is made on the device beside the engines."""

    def release(self) -> None:
        """Release it; the device's context is current."""

    def made(self) -> object:
        """Return all that it has made on the device."""


class DeviceEngines:
    """The engines of a bundle on one device.

    Args:
        names: Names of the graphs.
        open_engine: `(graph, shared device) -> session`.
        index: Number of the device.

    Attributes:
        sessions: Graph → session. All compute in the same memory, one after the other.

    Raises:
        BackendError: If there is no device, or an engine cannot be loaded.
        DeviceError: If the device fails, or has not memory enough.
    """

    def __init__(
        self, names: Sequence[str], open_engine: Callable[[str, SharedDevice], TensorrtSession], index: int = 0
    ) -> None:
        self.sessions: dict[str, TensorrtSession] = {}
        self._others: list[OnDevice] = []
        self._device: Device | None = Device(index)
        self._shared = SharedDevice(self._device, threading.RLock())
        try:
            for name in names:
                self.sessions[name] = open_engine(name, self._shared)
            with self.using() as device:
                with CAPTURES.disturbing():
                    scratch = device.allocate(max(session.scratch_bytes for session in self.sessions.values()))
                for session in self.sessions.values():
                    session.make_ready(scratch)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def using(self) -> Iterator[Device]:
        """Give the device to this thread alone, with its context current.

        Raises:
            DeviceError: If it is closed, or something in the `with` block fails on the device.
        """
        with self._shared.turn:
            if self._device is None:
                raise DeviceError("backend tensorrt: the engines are closed. Load the bundle again.")
            with self._device.current():
                yield self._device

    def add(self, other: OnDevice) -> None:
        """Take over what was made on the device: it is released with the engines, before them."""
        self._others.append(other)

    def close(self) -> None:
        """Release the engines and the device's memory; closing twice is harmless."""
        with self._shared.turn:
            device, self._device = self._device, None
            if device is None:
                return
            for session in self.sessions.values():
                session.close()
            device.close(self._release, self._made)

    def _made(self) -> object:
        return tuple(part.made() for part in (*self._others, *self.sessions.values()))

    def _release(self) -> None:
        for part in (*self._others, *self.sessions.values()):
            part.release()
        self._others.clear()
        self.sessions.clear()
