"""An image with what its caller knows of it: an id, and when it was taken."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from flawscope.errors import ArgumentError
from flawscope.runtime.image_sources import Source
from flawscope.runtime.results import Seen


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Frame:
    """An image with an id and a time, which its result then has.

    Attributes:
        image: The image; see `Source`.
        id: Serial number, place in a magazine, anything that the caller knows the part by; None for none.
        time: When it was taken, with its zone (`datetime.now(timezone.utc)`); None for when it is read.

    Raises:
        ArgumentError: If the id is no text or empty, the time is none, has no zone or is none in UTC, or the image is a
            frame.
    """

    image: Source
    id: str | None = None
    time: datetime | None = None

    def __post_init__(self) -> None:
        """Check id and time."""
        if isinstance(self.image, Frame):
            raise ArgumentError("image: expected an image, got a frame around one. Pass that frame.")
        if self.id is not None and (not isinstance(self.id, str) or not self.id.strip()):
            raise ArgumentError(
                f"id: expected a text that is not empty, got {self.id!r}. Pass str(id), or leave it out."
            )
        if self.time is None:
            return
        if not isinstance(self.time, datetime):
            raise ArgumentError(f"time: expected a datetime, got {type(self.time).__name__}.")
        if self.time.utcoffset() is None:
            # Taken for that of this machine, it would be wrong by hours elsewhere.
            raise ArgumentError(
                f"time: expected one with its zone, got {self.time.isoformat()}. Use datetime.now(timezone.utc)."
            )
        try:
            self.time.astimezone(timezone.utc)
        except OverflowError as err:  # the first and the last hours that there are
            raise ArgumentError(
                f"time: expected one that UTC has too, got {self.time.isoformat()}. Use datetime.now(timezone.utc)."
            ) from err


def as_seen(source: Source | Frame, position: int) -> tuple[Source, Seen]:
    """Return an image, and what its result says of it; the time is now where none was given.

    Args:
        source: The image.
        position: Its place in the stream, which is its name where it has no other.
    """
    frame = source if isinstance(source, Frame) else Frame(source)
    image = frame.image
    path = Path(image) if isinstance(image, Path | str) else None
    name = str(image) if path is not None else frame.id or f"image {position}"
    time = datetime.now(timezone.utc) if frame.time is None else frame.time.astimezone(timezone.utc)
    return image, Seen(name, frame.id, time, path)
