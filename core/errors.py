"""Exceptions of flawscope.

    FlawscopeError
    ├── ArgumentError (also ValueError)      a value, option or array the caller gave is wrong
    ├── DataError                            a dataset or its files cannot be used
    │   └── ImageError                       one image cannot be read
    ├── RunError                             a training run is broken or does not fit
    ├── BundleError                          a bundle is broken, tampered with or too new
    ├── BackendError                         a backend was requested and is not available
    │   ├── DeviceError                      a device failed while it was working
    │   │   └── DeviceLost                   it can only be used again by a new process
    │   └── LoadTimeout                      a bundle was not ready in time
    ├── QueueFull                            an image was submitted while too many had no result yet
    ├── MissingExtra (also ImportError)      an optional dependency is not installed
    ├── StorageError                         writing failed (disk full, read-only, no permission)
    └── GateError                            a measured check failed; exit status 1, all others 2

Every message says what is wrong, what was expected, what was found, and what to do.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "BackendError",
    "BundleError",
    "DataError",
    "DeviceError",
    "DeviceLost",
    "FlawscopeError",
    "GateError",
    "ImageError",
    "LoadTimeout",
    "MissingExtra",
    "QueueFull",
    "RunError",
    "StorageError",
]

_LONGEST = 8000
"""Characters of a message that are shown; two paths of the longest kind fit."""


def shortened(text: str) -> str:
    """Return a message, its middle left out where it is too long to be read, as texts of strangers can be."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} … {text[-half:]}"


def refused_by_the_system(err: OSError) -> str:
    """Return the message for a file or folder that the system refuses; the error names it."""
    return f"{err.filename}: {err.strerror or err}. Check that it is there and may be read or written."


class FlawscopeError(Exception):
    """Base of all errors that flawscope raises on purpose."""

    # As click's own usage errors.
    exit_status = 2

    def __str__(self) -> str:
        """Return the message, shortened."""
        return shortened(super().__str__())


# Also a ValueError: msgspec turns those of __post_init__ into a ValidationError that names the field.
class ArgumentError(FlawscopeError, ValueError):
    """A value, option or array given by the caller is wrong."""


class DataError(FlawscopeError):
    """A dataset cannot be used as it is."""


class ImageError(DataError):
    """One image cannot be read or is outside the limits."""


class RunError(FlawscopeError):
    """A run folder is broken, incomplete or of another kind."""


class BundleError(FlawscopeError):
    """A bundle is broken, tampered with, or written by a newer version."""


class BackendError(FlawscopeError):
    """A backend was requested and cannot be used here."""


class DeviceError(BackendError):
    """A device failed while it was working."""


class DeviceLost(DeviceError):
    """A device failed so that this process cannot use it any more: it has to be started again."""


class LoadTimeout(BackendError):
    """A bundle was not ready in time; the thread that loads it could not be ended and was left behind."""


class QueueFull(FlawscopeError):
    """An image was submitted while too many had no result yet; it was not taken."""


class MissingExtra(FlawscopeError, ImportError):
    """An optional dependency is not installed.

    Args:
        feature: What the caller wanted to do, as a noun phrase.
        package: The distribution that could not be imported.
        extra: The extra of flawscope that installs it.
    """

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package {package}, which is not installed. "
            f'Install it with: pip install "flawscope[{extra}]"'
        )


class StorageError(FlawscopeError):
    """Writing a file or folder failed; nothing half-written was left."""


class GateError(FlawscopeError):
    """A measured check failed (parity, accuracy, verification)."""

    # Scripts tell a failed check (1) from a wrong request (2) by this.
    exit_status = 1
