"""Errors of the stand-in for a GPU: codes of the driver, and the classes that PyCUDA makes of them."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import Any

NAMES = {
    0: "SUCCESS",
    1: "INVALID_VALUE",
    2: "OUT_OF_MEMORY",
    100: "NO_DEVICE",
    201: "INVALID_CONTEXT",
    400: "INVALID_HANDLE",
    700: "ILLEGAL_ADDRESS",
    719: "LAUNCH_FAILED",
    900: "STREAM_CAPTURE_UNSUPPORTED",
    901: "STREAM_CAPTURE_INVALIDATED",
    906: "STREAM_CAPTURE_IMPLICIT",
}
CUresult: Any = enum.IntEnum(
    "CUresult", {("CUDA_" if code == 0 else "CUDA_ERROR_") + name: code for code, name in NAMES.items()}
)


class Error(Exception):
    """PyCUDA's base."""


class MemoryError_(Error):
    """PyCUDA's out of memory. It is none of Python's: `DECLARE_EXC(MemoryError, CudaError.get())`."""


class LogicError(Error):
    """PyCUDA's most common class."""


class LaunchError(Error):
    """PyCUDA's class for launches."""


def error_of(code: int, call: str) -> Error:
    """Return what PyCUDA raises for a code; the code itself is lost."""
    kind = {2: MemoryError_, 719: LaunchError}.get(code, LogicError)
    return kind(f"{call} failed: {NAMES[code].lower().replace('_', ' ')}")


class Refused(Exception):
    """A call that the driver answers with a code; PyCUDA makes an exception of it, the bindings return it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def answering_into(module: Any, results: int) -> Callable[[Callable[..., Any]], Callable[..., tuple[Any, ...]]]:
    """Make a function of the bindings in a module: a refusal is a status, with nothing in place of the results."""

    def decorate(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        @functools.wraps(function)
        def answer(*arguments: Any) -> tuple[Any, ...]:
            try:
                value = function(*arguments)
            except Refused as err:
                return (CUresult(err.code), *[None] * results)
            return (CUresult(0), *([] if results == 0 else [value] if results == 1 else value))

        setattr(module, function.__name__, answer)
        return answer

    return decorate
