"""The child process of a source: opens it, grabs images into the ring, and ends with the line.

Whatever a library of cameras does in here (hang, leak, crash) takes this process alone with it. It is started by
`child_process` and imports little: neither ONNX Runtime nor what serves HTTP.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from flawscope.errors import FlawscopeError
from flawscope.parent_process import end_with_parent
from flawscope.runtime.line.sources.child_messages import (
    MESSAGE_BYTES,
    TEXT_LENGTH,
    Beat,
    Done,
    Free,
    FromLine,
    Lost,
    Message,
    Noted,
    Order,
    Ready,
    Stop,
    Trigger,
    Up,
    decode_options,
)
from flawscope.runtime.line.sources.grabber import Grabber, SourceLost, SourcePlace
from flawscope.runtime.line.sources.ring import Ring
from flawscope.runtime.line.sources.source import Frame
from flawscope.text import encode_json

BEAT_S = 0.25
"""Seconds between two signs of life."""

_GRAB_S = 0.1
_ASKED_S = 0.02
_STALE_NS = 10**9
"""A trigger that waited for longer is dropped: its part is over, and its image would be taken for another part's."""

_AWAIT_NS = 2 * 10**9
"""How long after a trigger its image is looked for without a pause."""


class _LineGone(Exception):
    """The line has ended, or wants this process to end."""


class _Child:
    """Grabs images until it is told to stop.

    Args:
        line: Socket to the line.
        ring: Where images go.
        grabber: Where they come from.
    """

    def __init__(self, line: socket.socket, ring: Ring, grabber: Grabber) -> None:
        self._line, self._ring, self._grabber = line, ring, grabber
        self._poll = select.poll()
        self._poll.register(line, select.POLLIN)
        self._free = deque(range(ring.slots))
        self._dones: list[str] = []
        self._triggers: list[int] = []
        self._asked_ns: deque[int] = deque()
        self._beaten = 0.0
        self._sequence = 0
        self._decode = msgspec.json.Decoder(FromLine)

    def run(self) -> None:
        """Open the source and grab; returns only by an exception.

        Raises:
            _LineGone: If the line has ended, or says so.
            SourceLost: If the source does not work.
        """
        self._grabber.open()
        self._send(Up())
        while True:
            self._act(0.0)
            frame = self._next()
            if frame is None:
                continue
            self._hand_over(frame)
            if frame.is_last:
                while True:
                    self._act(_GRAB_S)

    def _next(self) -> Frame | None:
        if not self._grabber.is_triggered:
            return self._grabber.grab(_GRAB_S)
        while self._asked_ns and time.monotonic_ns() - self._asked_ns[0] > _AWAIT_NS:
            self._asked_ns.popleft()
        if self._asked_ns:
            frame = self._grabber.grab(_ASKED_S)
        else:
            # A trigger must not wait for the end of a grab, and an image that nobody asked for must be noticed.
            self._act(_ASKED_S)
            frame = self._grabber.grab(0.0)
        if frame is not None and self._asked_ns:
            self._asked_ns.popleft()
        return frame

    def _act(self, timeout_s: float) -> None:
        """Take messages of the line, waiting for the first one, and do what they say."""
        self._beat()
        self._receive(timeout_s)
        for source in self._dones:
            self._grabber.done(source)
            self._send(Noted(source))
        self._dones.clear()
        for asked_ns in self._triggers:
            if time.monotonic_ns() - asked_ns > _STALE_NS:
                _say("a trigger came too late and was dropped")
            else:
                self._grabber.trigger()
                self._asked_ns.append(asked_ns)
        self._triggers.clear()

    def _receive(self, timeout_s: float) -> None:
        while self._poll.poll(timeout_s * 1000):
            timeout_s = 0.0
            try:
                data = self._line.recv(MESSAGE_BYTES)
            except OSError as err:
                raise _LineGone from err
            if not data:
                raise _LineGone
            match self._decode.decode(data):
                case Free(slot):
                    self._free.append(slot)
                case Trigger(mono_ns):
                    self._triggers.append(mono_ns)
                case Done(source):
                    self._dones.append(source)
                case Stop():
                    raise _LineGone

    def _hand_over(self, frame: Frame) -> None:
        while not self._free:
            self._act(_GRAB_S)
        slot = self._free.popleft()
        self._sequence += 1
        written = self._ring.write(slot, frame, self._sequence)
        self._send(
            Ready(slot, self._sequence, written.source, written.frame_id, written.lost, written.is_last),
        )

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._beaten >= BEAT_S:
            self._beaten = now
            self._send(Beat())

    def _send(self, message: Message) -> None:
        _send(self._line, message)


def _send(line: socket.socket, message: Message) -> None:
    try:
        line.send(encode_json(message))
    except OSError as err:
        raise _LineGone from err


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the line, which logs what its children say, may be gone
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _made(order: Order) -> Grabber:
    options = decode_options(order.options, _load(order.options_type))
    place = SourcePlace(order.station, order.view, Path(order.state), order.slot_bytes, order.in_flight, order.last_id)
    grabber: Grabber = _load(order.grabber)(options, place)
    told, own = (order.policy, order.is_triggered), (grabber.policy, grabber.is_triggered)
    if told != own:
        raise TypeError(f"{order.grabber}: expected the policy and trigger of its options {told}, got {own}.")
    return grabber


def _live_with_the_line(line: socket.socket) -> None:
    """Die when the line dies, and not before it: signals to the whole group of processes are for the line alone."""
    # Of the thread that made this process; that one waits for it.
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # It may have died before; then its end of the socket is closed.
    if select.select([line], [], [], 0)[0] and not line.recv(1, socket.MSG_PEEK):
        raise _LineGone


def main(line_fd: int, memory_fd: int, order_fd: int) -> None:
    """Do what the order says until the line ends or says stop; ends the process.

    Args:
        line_fd: File descriptor of the socket to the line.
        memory_fd: File descriptor of the ring.
        order_fd: File descriptor of the order.
    """
    faulthandler.enable()
    line = socket.socket(fileno=line_fd)
    status = 0
    grabber = None
    try:
        _live_with_the_line(line)
        with os.fdopen(order_fd, "rb") as file:
            order = msgspec.json.decode(file.read(), type=Order)
        ring = Ring(memory_fd, order.slots, order.slot_bytes)
        grabber = _made(order)
        _Child(line, ring, grabber).run()
    except _LineGone:
        pass
    except (SourceLost, FlawscopeError) as err:
        _tell(line, str(err))
    except BaseException:
        # The last line of it becomes the reason that people read.
        traceback.print_exc()
        status = 1
    if grabber is not None:
        try:
            grabber.close()
        except Exception:
            traceback.print_exc()
    sys.stderr.flush()
    # Not sys.exit: threads of libraries may never end.
    os._exit(status)


def _tell(line: socket.socket, reason: str) -> None:
    try:
        _send(line, Lost(reason[:TEXT_LENGTH]))
    except _LineGone:
        _say(reason)
