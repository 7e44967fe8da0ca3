"""What may happen while a stranger's file is tried, and what is a finding.

Allowed are a success, and an error of flawscope in one line. A finding is any other exception, a file opened or changed
outside, a process or connection begun, an output of a library, something left behind, memory or time without bound. A
crash or a hang is seen from outside: see `fuzzing.campaign`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flawscope
from flawscope.errors import FlawscopeError
from flawscope.resident_memory import peak_kib
from fuzzing.cases import INPUT, OPTIONS

LIMIT_S = 5.0
"""Processor time that a case may take, in seconds."""
MEMORY_BYTES = 1 << 30
"""Memory that a case may take beside what the process had, in bytes."""
_ADDRESS_SPACE_BYTES = 3 << 30
_OF_LIBRARIES = ("/proc/self/statm", "/proc/self/status", "/dev/urandom", "/usr/lib/os-release")  # what imports look at
_IN_OPEN, _IN_NONBLOCK = 0x20, 0x800

# Events of Python's audit hooks whose first argument is a path that is changed.
_CHANGING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
_FORBIDDEN = ("subprocess.", "socket.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.startfile", "pickle.")


class Finding(Exception):
    """What a case must not do: the kind in one word, and what happened.

    Attributes:
        kind: In one word.
        text: What happened, also a traceback.
        place: What findings of one cause have in common.
    """

    def __init__(self, kind: str, text: str, place: str = "") -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.text, self.place = kind, text, place or text


class Guard:
    """Watches one process that tries cases. There may be one in a process, because an audit hook cannot be removed.

    Args:
        case: Folder that the case lies in.
        scratch: Folder of temporary files, which must be the process's own.
        bait: Folder outside, of which nothing may be opened.
        output: The file that the descriptors 1 and 2 of the process write to.
        limit_s: Processor time that a case may take, in seconds.
    """

    def __init__(self, case: Path, scratch: Path, bait: Path, output: Path, limit_s: float = LIMIT_S) -> None:
        self._case, self._scratch, self._output = case.resolve(), scratch.resolve(), output
        self._limit_s = limit_s
        self._seen: list[str] = []
        self._is_watching = False
        # What Python itself opens, for modules that are imported late.
        paths = sysconfig.get_paths()
        self._libraries = tuple(
            {*map(os.path.realpath, (sys.prefix, sys.base_prefix, *paths.values(), *sys.path))} - {"/"}
        )
        self._libraries += (str(Path(flawscope.__file__).resolve().parents[1]),)  # a tree of links names it elsewhere
        library = ctypes.CDLL(None, use_errno=True)
        self._notices = library.inotify_init1(_IN_NONBLOCK)
        if self._notices < 0 or library.inotify_add_watch(self._notices, os.fsencode(bait), _IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        sys.addaudithook(self._hear)
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def check(self, work: Callable[[], None]) -> bool:
        """Do the work on a case; return whether it succeeded and was not refused.

        Raises:
            Finding: If something happened that may not.
        """
        # No size: what an earlier case printed was told of.
        printed = self._output.stat().st_size
        memory, started = _peak_bytes(), time.process_time()
        self._seen.clear()
        self._is_watching = True
        refusal: BaseException | None = None
        try:
            work()
        except FlawscopeError as err:
            refusal = err
        except Finding:
            raise
        except BaseException as err:
            self._is_watching = False
            self._check_seen()
            raise Finding("exception", traceback.format_exc(), _place(err)) from err
        finally:
            self._is_watching = False
        taken = time.process_time() - started
        self._check_seen()
        with contextlib.suppress(BlockingIOError):
            os.read(self._notices, 1 << 16)
            raise Finding("escape", "a file outside was opened by a library", "library")
        if refusal is not None:
            _check_message(refusal)
        there = sorted(entry.name for folder in (self._case, self._scratch) for entry in folder.iterdir())
        left = [name for name in there if name not in (INPUT, OPTIONS)]
        if left:
            raise Finding("leftover", f"left behind: {left[:5]}", "leftover")
        if (grown := _peak_bytes() - memory) > MEMORY_BYTES:
            raise Finding("memory", f"took {grown >> 20} MiB, then {refusal or 'success'}", f"memory {_place(refusal)}")
        if taken > self._limit_s:
            raise Finding("slow", f"took {taken:.1f} s, then {refusal or 'success'}", f"slow {_place(refusal)}")
        # A library may say why it refuses; what it complains about must not be taken as good.
        if refusal is None and (size := self._output.stat().st_size) > printed:
            with self._output.open("rb") as file:
                file.seek(printed)
                lines = file.read(size - printed).decode(errors="replace").splitlines()
            raise Finding("noise", f"a library printed: {lines[:20]}", f"noise {lines[0][:40]}")
        return refusal is None

    def _check_seen(self) -> None:
        if self._seen:
            raise Finding("escape", "; ".join(self._seen[:5]), self._seen[0].split(" ")[0])

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_watching:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            if isinstance(path, str | bytes) and not self._may_open(os.path.realpath(os.fsdecode(path)), writes):
                self._seen.append(f"open {path!r} {mode!r}")
        elif event in _CHANGING:
            if isinstance(arguments[0], str | bytes) and not self._is_ours(os.path.realpath(os.fsdecode(arguments[0]))):
                self._seen.append(f"{event} {arguments[0]!r}")
        elif event.startswith(_FORBIDDEN):
            self._seen.append(f"{event} {arguments!r}")

    def _is_ours(self, path: str) -> bool:
        return path == str(self._scratch) or path.startswith(f"{self._scratch}/")

    def _may_open(self, path: str, writes: bool) -> bool:
        if self._is_ours(path):
            return True
        if writes:
            return False
        if path == str(self._case) or path.startswith(f"{self._case}/"):
            return True
        is_code = path.endswith((".py", ".pyc", ".so", ".json", ".pyi")) and path.startswith(self._libraries)
        return is_code or path in _OF_LIBRARIES


def _check_message(err: BaseException) -> None:
    # Line breaks in names of strangers are escaped where a message is shown.
    text = str(err)
    if not text or len(text) > 10_000:
        raise Finding("message", f"expected a short message, got {text[:500]!r}", f"message {_place(err)}")


def _place(err: BaseException | None) -> str:
    """Return type and deepest place in flawscope's own code of an exception."""
    if err is None:
        return ""
    frames = traceback.extract_tb(err.__traceback__)
    ours = [frame for frame in frames if "flawscope" in frame.filename or "/core/" in frame.filename] or frames
    where = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else ""
    return f"{type(err).__name__} {where}"


def _peak_bytes() -> int:
    # Not ru_maxrss, which begins at the peak of whoever started this process.
    return (peak_kib() or 0) << 10
