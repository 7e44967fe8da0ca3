"""Features of a camera: which are written, and when one that was read back is the one that was written."""

from __future__ import annotations

from typing import TypeAlias

from flawscope.errors import ArgumentError
from flawscope.runtime.line.sources.pixel_formats import pixel_format
from flawscope.runtime.line.sources.table import CameraSource

Value: TypeAlias = "bool | int | float | str"

OPTIONAL = ("AcquisitionMode", "TriggerSelector")
"""Features that are written where a camera has them: one without them knows no other way than what is asked for."""

_CLOSE = 1e-3
"""Share by which a number with a fraction may differ when it is read back: cameras round to their own steps."""


def settings_of(options: CameraSource) -> dict[str, Value]:
    """Return all features that are written, in their order.

    Raises:
        ArgumentError: If the pixel format is unknown, or `features` writes what another option does.
    """
    pixel_format(options.pixel_format)
    own: dict[str, Value] = {"PixelFormat": options.pixel_format, "AcquisitionMode": "Continuous"}
    trigger: dict[str, Value] = {"TriggerMode": "Off" if options.trigger == "free" else "On"}
    if options.trigger == "software":
        trigger["TriggerSource"] = "Software"
    twice = sorted({*own, *trigger} & {*options.features})
    if twice:
        raise ArgumentError(
            f"features: expected none that other options write, got {', '.join(twice)}. Set pixel_format and trigger."
        )
    # The selector before the features, which may set the line and the edge of the trigger that it selects.
    selector: dict[str, Value] = {} if "TriggerSelector" in options.features else {"TriggerSelector": "FrameStart"}
    return {**own, **selector, **options.features, **trigger}


def shown(value: Value) -> str:
    """Return a value as GenICam writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def hint(value: Value) -> str:
    """Return what may be wrong with a value, beginning with a space; empty where nothing is known."""
    # YAML 1.1 reads On, Off, Yes and No without quotes as true and false.
    return ' Write On and Off in quotes ("Off").' if isinstance(value, bool) else ""


def is_same(value: Value, got: str) -> bool:
    """Return whether a text that was read back is what was written.

    Numbers with a fraction may differ by a thousandth, all others not at all.
    """
    if isinstance(value, bool):
        return got in (("true", "1") if value else ("false", "0"))
    if isinstance(value, str):
        return got == value
    try:
        number = float(got)
    except ValueError:
        return False
    if isinstance(value, int) and got.lstrip("-").isdecimal():
        return int(got) == value
    return abs(number - value) <= _CLOSE * abs(value)
