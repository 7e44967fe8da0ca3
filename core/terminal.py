"""What all commands share: printing text from strangers, guarded streams, progress, command lines of records."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TextIO

import msgspec

from flawscope.errors import StorageError
from flawscope.text import encode_json, printable, printable_json, storable


def command_line() -> str:
    """Return the running command line, quoted so that it can be typed again."""
    name = "flawscope" if os.path.basename(sys.argv[0]) in ("flawscope", "__main__.py") else sys.argv[0]  # noqa: PTH119
    # It becomes part of manifests and records, which are UTF-8.
    return storable(shlex.join([name, *sys.argv[1:]]))


@dataclass
class _Reporting:
    is_quiet: bool = False
    is_json: bool = False
    has_progress: bool = True


_reporting = _Reporting()  # of the process, not of a thread: notes come from threads of libraries too

LEVELS = ("error", "fault", "warning", "note", "estimate", "progress", "info")
"""What a line on stderr is; `info` is all that begins with none of the other words."""
_IN_QUIET = frozenset({"error", "fault", "warning"})


@contextlib.contextmanager
def default_reporting() -> Iterator[None]:
    """Report as text, all of it, until the command says otherwise by `report_as`; afterwards as before."""
    before = dataclasses.replace(_reporting)
    shown, last_resort = warnings.showwarning, logging.lastResort
    _take(_Reporting())
    try:
        yield
    finally:
        _take(before)
        warnings.showwarning, logging.lastResort = shown, last_resort


def _take(other: _Reporting) -> None:
    for field in dataclasses.fields(_Reporting):
        setattr(_reporting, field.name, getattr(other, field.name))


def report_as(*, quiet: bool | None = None, json: bool | None = None, progress: bool | None = None) -> None:
    """Choose how lines on stderr look, until the end of `default_reporting`; what is None stays.

    Args:
        quiet: Leave out all but errors, faults and warnings.
        json: Write one JSON object a line: `time` (UTC, ISO 8601), `level` (one of `LEVELS`), `message`, and what
            `report` was given.
        progress: Show bars, or lines of progress.
    """
    _reporting.is_quiet = _reporting.is_quiet if quiet is None else quiet
    _reporting.is_json = _reporting.is_json if json is None else json
    _reporting.has_progress = _reporting.has_progress if progress is None else progress
    if _reporting.is_quiet or _reporting.is_json:
        # Libraries warn in Python's way, over two lines of text that no reader of JSON expects.
        warnings.showwarning = _show_warning
        logging.lastResort = _NoteHandler(logging.WARNING)


def is_json() -> bool:
    """Return whether lines on stderr are JSON."""
    return _reporting.is_json


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    report("note", " ".join(f"{category.__name__}: {message}".split()))


def report(level: str, message: str, **facts: Any) -> None:
    """Write one line to stderr, unless `--quiet` leaves it out.

    Args:
        level: One of `LEVELS`.
        message: One line for people; control characters are escaped.
        facts: The same for programs: they stand in a line of JSON only.
    """
    if _reporting.is_quiet and level not in _IN_QUIET:
        return
    if not _reporting.is_json:
        _write(printable(message if level == "info" else f"{level}: {message}"), sys.stderr)
        return
    time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    data = encode_json({"time": time, "level": level, "message": message, **facts})
    _write(printable_json(data, getattr(sys.stderr, "encoding", None) or "utf-8"), sys.stderr)


def echo(text: str, *, err: bool = False) -> None:
    """Print one line to stdout or stderr, control characters escaped: names of files come from strangers.

    On stderr the first word says what the line is (`note: ...`), for `--quiet` and `--log-format json`.
    """
    if not err:
        _write(printable(text), sys.stdout)
        return
    level, _, message = text.partition(": ")
    if level in LEVELS:
        report(level, message)
    else:
        report("info", text)


def echo_json(value: Any, *, indent: int = 0, enc_hook: Callable[[Any], Any] | None = None) -> None:
    """Print a value as JSON to stdout, in one line or, with `indent`, in several."""
    data = encode_json(value, enc_hook=enc_hook)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    _write(printable_json(msgspec.json.format(data, indent=indent) if indent else data, encoding), sys.stdout)


def _write(text: str, stream: TextIO | None) -> None:
    # None where a process without the guard below was started with the stream closed.
    if stream is not None:
        stream.write(f"{text}\n")
        stream.flush()


class _NoteHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # A log that cannot be written must not end the thread that had something to say.
        with contextlib.suppress(OSError, ValueError):
            report("note", record.getMessage())


@contextlib.contextmanager
def notes_on_stderr() -> Iterator[None]:
    """Print what the package reports by `logging` as notes, a line each, whatever a library set up for its own."""
    logger, handler = logging.getLogger("flawscope"), _NoteHandler(logging.WARNING)
    propagates = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


class _GuardedStream:
    """A text stream whose failures do not become tracebacks; all else is the stream's own.

    Args:
        stream: The stream, or None where the process was started with it closed.
        name: What it is called in messages; None where a failure is passed over.
    """

    def __init__(self, stream: TextIO | None, name: str | None) -> None:
        self.is_broken = False
        self._stream = stream
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def buffer(self) -> _GuardedBytes:
        """The stream of bytes below, guarded too: click writes completions to it."""
        return _GuardedBytes(self)

    def isatty(self) -> bool:
        """Return whether somebody reads along."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        """Write a text; what the encoding lacks is written as escapes."""
        if not isinstance(text, str):  # click asks so whether a stream takes bytes
            raise TypeError(f"expected text, got {type(text).__name__}")
        if not text:
            return 0
        # A Latin-1 terminal cannot show every name, which must not end the loop over images.
        self.attempt(lambda stream: stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding)))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self.attempt(lambda stream: stream.flush())

    def attempt(self, action: Callable[[TextIO], object]) -> None:
        """Do something with the stream, unless it failed before.

        Raises:
            StorageError: If it fails and has a name.
        """
        if self.is_broken:
            return
        try:
            if self._stream is None:
                raise OSError(0, "it is closed")
            action(self._stream)
        except (OSError, ValueError) as err:  # ValueError: closed by somebody else
            self.is_broken = True
            if self._name is not None:
                reason = getattr(err, "strerror", None) or str(err)
                raise StorageError(
                    f"{self._name}: could not be written: {reason}. Give it room or a reader and run the command again."
                ) from err


class _GuardedBytes:
    def __init__(self, stream: _GuardedStream) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        self._stream.attempt(lambda stream: stream.buffer.write(data))
        return len(data)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Guard stdout and stderr: a full disk or a closed pipe behind stdout is a StorageError, behind stderr nothing.

    Notes and progress go to stderr; scoring goes on without them. What goes to stdout is what the command is for.
    """
    streams = sys.stdout, sys.stderr
    guards = _GuardedStream(sys.stdout, "standard output"), _GuardedStream(sys.stderr, None)
    sys.stdout, sys.stderr = guards
    try:
        yield
    finally:
        # Python flushes both when it ends: what a broken stream still holds would be a second message and another
        # exit status.
        sys.stdout, sys.stderr = (
            open(os.devnull, "w", encoding="utf-8") if guard.is_broken else stream  # noqa: PTH123, SIM115
            for guard, stream in zip(guards, streams, strict=True)
        )


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback (task, completed, total): bars on a terminal, else a line every few seconds, both on stderr.

    With `--quiet` and `--no-progress` it shows nothing.
    """
    if _reporting.is_quiet or not _reporting.has_progress:
        yield lambda task, completed, total: None
        return
    # Here and not at the top: listing verbs needs none of it.
    from flawscope import progress_display

    is_watched = sys.stderr.isatty() and not is_json()
    with progress_display.bars(report) if is_watched else progress_display.lines(report) as show:
        yield show
