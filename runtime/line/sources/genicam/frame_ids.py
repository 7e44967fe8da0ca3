"""The camera's numbers of its images: what they say about images that nobody received."""

from __future__ import annotations

from flawscope.runtime.line.sources.grabber import SourceLost

_LARGEST_16 = 65535
_FAR = 32767
"""A step beyond half of the 16-bit range is one backwards, or no step at all."""


class FrameIds:
    """Counts images that are missing between those that arrive.

    GigE Vision 1 numbers images with 16 bits and leaves 0 out: 1 follows 65535. GigE Vision 2 and USB3 Vision have 64.
    """

    def __init__(self) -> None:
        self._last: int | None = None
        self._unknown = 0

    def step(self, frame_id: int, *, is_whole: bool) -> tuple[int | None, int]:
        """Take the number of the next image.

        A buffer whose first packet was lost still has the number of the image that it held before, which lies behind
        the last one; or 0, if it held none. Such an image has no number, and fills one of the next gap.

        Args:
            frame_id: The number.
            is_whole: Whether all of the image arrived.

        Returns:
            Its number, or None where it has none that can be trusted; and how many are missing before it.

        Raises:
            SourceLost: If a whole image has a number behind the last one, or far from it: the camera counts anew, and
                nobody can say how many are missing.
        """
        if self._last is None:
            if is_whole or frame_id > 0:
                self._last = frame_id
                return frame_id, 0
            return None, 0
        ahead = self._ahead(self._last, frame_id)
        if not 1 <= ahead <= _FAR:
            if is_whole:
                raise SourceLost(
                    f"camera: expected an image with a number after {self._last}, got {frame_id}: it counts anew, as "
                    "after a restart. It is opened again."
                )
            self._unknown += 1
            return None, 0
        missing = max(ahead - 1 - self._unknown, 0)
        self._last, self._unknown = frame_id, 0
        return frame_id, missing

    @staticmethod
    def _ahead(last: int, frame_id: int) -> int:
        """Return how far a number lies ahead; below 1 if it lies behind."""
        if frame_id <= last <= _LARGEST_16 and frame_id > 0:
            wrapped = frame_id - last + _LARGEST_16
            return wrapped if wrapped <= _FAR else frame_id - last
        return frame_id - last
