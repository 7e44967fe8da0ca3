"""A worker process as its executor sees it: started, spoken with, ended, and why it has ended.

It is a fresh interpreter and no fork: a driver may have threads, and CUDA does not survive one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from flawscope.runtime.scale.executors.messages import FromWorker, decode_answer
from flawscope.runtime.scale.task import Task
from flawscope.text import encode_json, printable

_log = logging.getLogger(__name__)

# The path of modules comes from here: `python -m` would look for them in the current folder first.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1].split(chr(10)); "
    "from flawscope.runtime.scale.executors.worker_main import main; main(*map(int, sys.argv[2:]))"
)
_LINE_LENGTH = 500
_LAST_LINES = 50
_REAP_S = 5.0
_FATAL = "Fatal Python error"
"""How faulthandler begins; what follows is where each thread was, for the log alone."""


class WorkerProcess:
    """One worker process, from its start to its end.

    Args:
        name: What it is called.
        order: What it is to do, of `encode_order`.
        variables: Variables of its environment beside those of this process.

    Attributes:
        name: As given, with the number of its process.

    Raises:
        OSError: If the system refuses a process.
    """

    def __init__(self, name: str, order: bytes, variables: Mapping[str, str]) -> None:
        self._rest = b""
        self._said: deque[str] = deque(maxlen=_LAST_LINES)
        self._pipe, theirs = Pipe()
        try:
            # Standard output goes where errors go: on that of the driver only results are printed.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, "\n".join(sys.path), str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **variables},
            )
        except BaseException:
            self._pipe.close()
            raise
        finally:
            # Else it would not be the process alone that holds it, and its end would not show.
            theirs.close()
        self.name = f"{name} (process {self._process.pid})"
        output = self._process.stdout
        assert output is not None
        self._output = output
        os.set_blocking(output.fileno(), False)
        self._send(order)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def pipe(self) -> Connection:
        """What is ready when it has said something, or has ended."""
        return self._pipe

    @property
    def handles(self) -> list[Connection | int]:
        """What to wait for: its answers, its end, and what it prints."""
        return [self._pipe] if self._output.closed else [self._pipe, self._output.fileno()]

    def start(self, task: Task) -> None:
        """Give it a task; where it has ended already, `answer` tells."""
        self._send(encode_json(task))

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self._pipe.send_bytes(data)

    def answer(self) -> FromWorker | None:
        """Return what it says, waiting for it; None if it has ended."""
        try:
            return decode_answer(self._pipe.recv_bytes())
        # An OSError is the end in the middle of a message, or of one that it was sent and had not read.
        except (EOFError, OSError):
            return None

    def listen(self) -> None:
        """Read what it has printed. A full pipe would stop it."""
        if self._output.closed:
            return
        try:
            data = os.read(self._output.fileno(), 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data == b"":
            self._output.close()
        *lines, rest = (self._rest + (data or b"\n")).split(b"\n")
        # Without an end of line for ever, only its end is kept.
        self._rest = rest[-_LINE_LENGTH:]
        for line in lines:
            if text := printable(line[:_LINE_LENGTH].decode(errors="backslashreplace")).strip():
                _log.info("%s: %s", self.name, text)
                self._said.append(text)

    def let_go(self) -> None:
        """Let it end by itself, which has no task."""
        self._pipe.close()

    def kill(self) -> None:
        """End it by force."""
        self._process.kill()

    def end(self, grace_s: float) -> None:
        """Wait until it has ended, by force after so many seconds."""
        self.ending(grace_s)

    def ending(self, grace_s: float) -> str:
        """Wait until it has ended, by force after so many seconds, and return in words how it ended."""
        until = time.monotonic() + grace_s
        # It may have more to print than fits the pipe, and would not end before that is read.
        while self._process.poll() is None and time.monotonic() < until:
            self._drain(0.05)
        if forced := self._process.poll() is None:
            self._process.kill()
        # A process in the middle of a system call of a driver may not even be killed: it is not waited for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_REAP_S)
        self._drain(0.0)
        self._pipe.close()
        self._output.close()
        return _ending(None if forced else self._process.poll(), self._last_words())

    def _drain(self, timeout_s: float) -> None:
        if self._output.closed:
            time.sleep(timeout_s)
        while not self._output.closed and select.select([self._output], [], [], timeout_s)[0]:
            timeout_s = 0.0
            self.listen()

    def _last_words(self) -> str:
        fatal = [line for line in self._said if line.startswith(_FATAL)]
        return (fatal or [*self._said] or [""])[-1]


def _ending(status: int | None, last_words: str) -> str:
    said = f": {last_words}" if last_words else ""
    if status is None:
        return f"its process did not end and was killed{said}"
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        why = " (so the system ends it where memory is short)" if -status == signal.SIGKILL else ""
        return f"its process was ended by {name}{why}{said}"
    return f"its process ended with status {status}{said}"
