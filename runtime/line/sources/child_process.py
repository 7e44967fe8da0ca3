"""A child process of a source as its line sees it: started, spoken with, measured, killed.

It is a fresh interpreter and no fork: the line has threads and engines, which do not survive one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import msgspec

from flawscope.open_files import SETTINGS_BYTES, read_regular
from flawscope.runtime.line.sources.child_messages import MESSAGE_BYTES, FromChild, Message, Order
from flawscope.runtime.line.sources.ring import Ring, make_memory
from flawscope.text import encode_json, printable

_log = logging.getLogger(__name__)

# The path of modules comes from here: `python -m` would look for them in the current folder first.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1].split(chr(10)); "
    "from flawscope.runtime.line.sources.child_main import main; main(*map(int, sys.argv[2:]))"
)
_LINE_LENGTH = 500
_REAP_S = 5.0
_FATAL = "Fatal Python error"
"""How faulthandler begins; what follows is where each thread was, for the log alone."""


class ChildProcess:
    """One child process, from its start to its end. One thread starts, receives and ends it; any thread may send.

    Args:
        order: What it is to do.

    Attributes:
        ring: Where its images are.
        last_line: What it last said on its standard error; empty for nothing.

    Raises:
        OSError: If the system refuses a process or memory.
    """

    def __init__(self, order: Order) -> None:
        self.last_line = ""
        self._name = f"{order.station}/{order.view}"
        self._closed = False
        self._rest = b""
        self._lock = threading.Lock()
        self._outgoing: deque[bytes] = deque()
        self._decoder = msgspec.json.Decoder(FromChild)
        with contextlib.ExitStack() as stack:
            memory = make_memory(order.slots, order.slot_bytes)
            stack.callback(os.close, memory)
            self.ring = Ring(memory, order.slots, order.slot_bytes)
            told = os.memfd_create("flawscope-order")
            stack.callback(os.close, told)
            os.pwrite(told, encode_json(order), 0)
            self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(theirs.close)
            fds = (theirs.fileno(), memory, told)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM, "\n".join(sys.path), *map(str, fds)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    pass_fds=fds,
                )
            except BaseException:
                self._line.close()
                self.ring.close()
                raise
        self._line.setblocking(False)
        stderr = self._process.stderr
        assert stderr is not None
        self._stderr = stderr
        os.set_blocking(stderr.fileno(), False)
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Send a message; returns at once. What a stopped child does not take waits here, and is gone with it."""
        with self._lock:
            if self._closed:
                return
            self._outgoing.append(encode_json(message))
            self._flush()
            if self._outgoing:
                self._rouse()

    def _flush(self) -> None:
        while self._outgoing:
            try:
                self._line.send(self._outgoing[0])
            except BlockingIOError:
                return
            except OSError:  # it has ended; `receive` finds out
                self._outgoing.clear()
                return
            self._outgoing.popleft()

    def wake(self) -> None:
        """Let `receive` return early."""
        with self._lock:
            if not self._closed:
                self._rouse()

    def _rouse(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is awake already
            os.write(self._woken, b"!")

    def receive(self, timeout_s: float) -> list[FromChild] | None:
        """Return what it has sent, waiting for the first message; None if it has ended."""
        poll = select.poll()
        with self._lock:
            poll.register(self._line, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        if not self._stderr.closed:
            poll.register(self._stderr, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(timeout_s * 1000)}
        if self._wake in ready:
            with contextlib.suppress(OSError):
                os.read(self._wake, 4096)
        if not self._stderr.closed and self._stderr.fileno() in ready:
            self._listen()
        with self._lock:
            self._flush()
        return self._messages() if self._line.fileno() in ready else []

    def _messages(self) -> list[FromChild] | None:
        found: list[FromChild] = []
        # Bounded: a child that sends without end must not keep its line from looking at it.
        for _ in range(1000):
            try:
                data = self._line.recv(MESSAGE_BYTES)
            except BlockingIOError:
                return found
            except ConnectionResetError:
                # It ended without reading all that it was sent; what it said before, its reason above all, is still
                # there, behind this error.
                continue
            except OSError:
                return found or None
            if not data:
                return found or None
            found.append(self._decoder.decode(data))
        return found

    def _listen(self) -> None:
        """Read its standard error, which goes to the log."""
        try:
            data = self._stderr.read(1 << 16)
        except OSError:
            data = b""
        if data == b"":
            self._stderr.close()
        *lines, rest = (self._rest + (data or b"\n")).split(b"\n")
        # Without an end of line for ever, only its end is kept.
        self._rest = rest[-_LINE_LENGTH:]
        for line in lines:
            if text := printable(line[:_LINE_LENGTH].decode(errors="backslashreplace")).strip():
                _log.warning("source %s: %s", self._name, text)
                if not self.last_line.startswith(_FATAL):
                    self.last_line = text

    def resident_mb(self) -> float:
        """Return the memory of its own in MiB, without the ring; 0 where it has ended."""
        try:
            text = read_regular(Path(f"/proc/{self.pid}/status"), SETTINGS_BYTES).decode(errors="replace")
        except OSError:
            return 0.0
        for line in text.splitlines():
            # Not VmRSS: the ring is in that, too.
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
        return 0.0

    def end(self, grace_s: float) -> str:
        """End it, by force after a time, and return in words how it ended. The ring stays open.

        Args:
            grace_s: Seconds that it has to end by itself.
        """
        forced = False
        until = time.monotonic() + grace_s
        while (status := self._process.poll()) is None and not forced:
            forced = time.monotonic() >= until
            if forced:
                self._process.kill()
            else:
                self._drain(min(0.05, max(0.0, until - time.monotonic())))
        if status is None:
            # A process in the middle of a system call of a driver may not even be killed: it is not waited for.
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(_REAP_S)
        self._drain(0.0)
        with self._lock:
            self._closed = True
            self._line.close()
            for descriptor in (self._wake, self._woken):
                os.close(descriptor)
        if not self._stderr.closed:
            self._stderr.close()
        return _ending(None if forced else status, self.last_line)

    def _drain(self, timeout_s: float) -> None:
        """Read what is left of its standard error, waiting for the first of it."""
        if self._stderr.closed:
            time.sleep(timeout_s)
            return
        poll = select.poll()
        poll.register(self._stderr, select.POLLIN)
        while not self._stderr.closed and poll.poll(timeout_s * 1000):
            timeout_s = 0.0
            self._listen()


def _ending(status: int | None, last_line: str) -> str:
    said = f": {last_line}" if last_line else ""
    if status is None:
        return f"its process was killed{said}"
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"its process was ended by {signal.Signals(-status).name}{said}"
    return f"its process ended with status {status}{said}"
