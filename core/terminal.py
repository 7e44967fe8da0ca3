"""What all commands share: printing text from strangers, guarded streams, progress bars, command lines of records."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import msgspec

from flawscope.errors import StorageError
from flawscope.text import encode_json, printable, printable_json, storable


def command_line() -> str:
    """Return the running command line, quoted so that it can be typed again."""
    name = "flawscope" if os.path.basename(sys.argv[0]) in ("flawscope", "__main__.py") else sys.argv[0]  # noqa: PTH119
    # It becomes part of manifests and records, which are UTF-8.
    return storable(shlex.join([name, *sys.argv[1:]]))


def echo(text: str, *, err: bool = False) -> None:
    """Print one line to stdout or stderr, control characters escaped: names of files come from strangers."""
    _write(printable(text), sys.stderr if err else sys.stdout)


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
            echo(f"note: {record.getMessage()}", err=True)


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
    """Yield a callback (task, completed, total) that draws bars on stderr, or nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda task, completed, total: None
        return
    # Here and not at the top: rich costs start-up time, and where stderr is no terminal nobody sees its bars.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, object] = {}

        def report(task: str, completed: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total)
            bars.update(tasks[task], completed=completed, total=total)  # type: ignore[arg-type]

        yield report
