"""Numbers and texts of a line's configuration, with their ranges."""

from __future__ import annotations

from typing import Annotated

import msgspec

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]
"""Name of a line, station or view: it becomes part of file names, topics and labels."""

HostName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?\Z")]
"""Name of a machine, without port."""

Milliseconds = Annotated[float, msgspec.Meta(gt=0.0, le=3.6e6)]

Seconds = Annotated[float, msgspec.Meta(gt=0.0, le=86400.0)]

Moment = Annotated[str, msgspec.Meta(pattern=r"^(start|swap|camera|([01][0-9]|2[0-3]):[0-5][0-9])\Z")]
"""When something is done: at an occasion, or at a time of day."""

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]

Secret = Annotated[str, msgspec.Meta(pattern=r"^(env|file):.+$")]
"""Where a password or token is: `env:VARIABLE` or `file:PATH`. It is never written in a configuration itself."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parts of a configuration: keyword arguments alone, and unknown keys are errors."""
