"""Handing over the images of parts to whoever keeps them; nothing of it may cost a part its verdict."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from flawscope.runtime.line.gallery.keeper import KeepsImages, Kept
from flawscope.runtime.line.parts import PartRecord, worst_view
from flawscope.runtime.line.station.part_in_work import PartInWork

_log = logging.getLogger(__name__)


class Keeping:
    """Hands over the images of one station, each part's once.

    Args:
        station: Name of the station.
        keeper: Who keeps them; None for nobody.
    """

    def __init__(self, station: str, keeper: KeepsImages | None) -> None:
        self._station, self._keeper = station, keeper

    def planned(self, part: PartInWork, images: Sequence[Kept]) -> tuple[Kept, ...]:
        """Return the images of a part, whose records now name the files that they are stored in."""
        if self._keeper is None:
            return tuple(images)
        try:
            verdict = worst_view(tuple(image.record for image in images)).verdict
            paths = self._keeper.plan(part.seq, part.utc_ns, verdict, images)
            named = tuple(
                replace(image, record=msgspec.structs.replace(image.record, image=path)) if path else image
                for image, path in zip(images, paths, strict=True)
            )
        except Exception:
            _log.exception("part %d: its images are not kept.", part.seq)
            return tuple(images)
        part.put_images(named)
        return named

    def keep(self, part: PartInWork, record: PartRecord | None) -> None:
        """Hand over the images of a part that has its verdict; without a record they were inspected too late."""
        images = part.take_images()
        if self._keeper is None or not images:
            return
        try:
            self._keeper.keep(part.seq, self._station, images, record if record is not None and record.views else None)
        except Exception:
            _log.exception("part %d: its images were not kept.", part.seq)
