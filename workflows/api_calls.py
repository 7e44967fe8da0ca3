"""What the calls of the Python API share: their errors, their notes, and how they stand in records."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flawscope.errors import FlawscopeError, MissingExtra, refused_by_the_system
from flawscope.text import storable

_log = logging.getLogger("flawscope")


@contextlib.contextmanager
def same_errors() -> Iterator[None]:
    """Raise what the command line would report as a FlawscopeError with the same text.

    Raises:
        FlawscopeError: In place of an OSError that names a file or folder of the caller's.
    """
    try:
        yield
    except OSError as err:
        # MissingExtra is an ImportError, not one of these; an OSError without a name is a fault of ours.
        if err.filename is None:
            raise
        raise FlawscopeError(refused_by_the_system(err)) from err


@contextlib.contextmanager
def needs(feature: str, extra: str) -> Iterator[None]:
    """Turn the missing package of an import inside of the block into a MissingExtra."""
    try:
        yield
    except ModuleNotFoundError as err:
        raise MissingExtra(feature, str(err.name), extra) from err


def say(notes: Iterable[str]) -> None:
    """Say what limits a result, as the command line does on stderr: by the logger `flawscope`, as warnings."""
    for note in notes:
        _log.warning("%s", note)


def written_call(owner: str, function: Callable[..., object], given: Mapping[str, Any]) -> str:
    """Return a call as records have it: it can be typed again, and arguments with their defaults are left out.

    Args:
        owner: What the function is called on, as it is typed.
        function: The function.
        given: Name of each of its parameters -> the argument.
    """
    written = []
    for name, parameter in inspect.signature(function).parameters.items():
        value, default = given[name], parameter.default
        if name in ("self", "progress") or (type(value) is type(default) and value == default):
            continue
        text = repr(str(value) if isinstance(value, Path) else value)
        written.append(text if default is parameter.empty else f"{name}={text}")
    return storable(f"{owner}.{function.__name__}({', '.join(written)})")
