"""The process that is killed: it runs a command, and ends itself before the n-th event that changes a file."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from killing.commands import run_command

_PR_SET_PDEATHSIG = 1
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Audit events of what changes files; ctypes.dlsym is how `flawscope.scratch` comes to renameat2.
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
_CHANGES += ("fcntl.flock", "tempfile.mkdtemp", "tempfile.mkstemp", "shutil.rmtree", "ctypes.dlsym", "fsync")


@dataclass(frozen=True)
class Kill:
    """How a command is ended.

    Attributes:
        signal: SIGKILL or SIGTERM.
        event: Before which event it is sent, from 1 on; 0 for by time.
        after_s: After which time, where it is not by event.
    """

    signal: int
    event: int = 0
    after_s: float = 0.0

    def __str__(self) -> str:
        when = f"before event {self.event}" if self.event else f"after {self.after_s:.3f} s"
        return f"{signal.Signals(self.signal).name} {when}"


class _Counter:
    """Counts the events of this process that change files in some folders, with their times."""

    def __init__(self, folders: tuple[Path, ...], kill: Kill | None) -> None:
        self._folders, self._kill = tuple(map(str, folders)), kill
        self._started = time.monotonic()
        self.events: list[tuple[float, str]] = []
        real = os.fsync

        def fsync(descriptor: Any) -> None:
            self.hear("fsync", ())  # Python tells no hook of it
            real(descriptor)

        os.fsync = fsync
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & _WRITING or not isinstance(path, str | bytes):
                return
            named = os.fsdecode(path)
        elif event in _CHANGES:
            named = os.fsdecode(arguments[0]) if arguments and isinstance(arguments[0], str | bytes) else ""
        else:
            return
        # Relative: the process works in the first of the folders.
        if named.startswith("/") and not named.startswith(self._folders):
            return
        self.events.append((time.monotonic() - self._started, f"{event} {named}"))
        if self._kill is not None and len(self.events) == self._kill.event:
            os.kill(os.getpid(), self._kill.signal)


def fork(arguments: tuple[str, ...], data: Path, folder: Path, scratch: Path, log: Path, kill: Kill | None) -> int:
    """Fork a process that runs a command in a folder; return its number.

    Args:
        arguments: The command.
        data: The dataset.
        folder: Where it works.
        scratch: Its folder of temporary files.
        log: File for what it prints; beside it, its events are written as JSON if it ends by itself.
        kill: How it ends itself, or None.
    """
    number = os.fork()
    if number:
        return number
    status = 70
    try:
        end_with_parent()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.chdir(folder)
        os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
        counter = _Counter((folder, scratch), kill if kill is not None and kill.event else None)
        status = run_command(arguments, data)
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(os.open(log.with_suffix(".events"), os.O_WRONLY | os.O_CREAT), json.dumps(counter.events).encode())
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        # Neither finalizers nor what the parent process had registered for its own end.
        os._exit(status)


def end_with_parent() -> None:
    """Let the system kill this process when its parent is dead: nobody would look at it any more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def ended(number: int) -> int:
    """Wait for a process; return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
