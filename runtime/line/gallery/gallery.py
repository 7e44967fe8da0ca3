"""All that a line keeps of images: the last parts in memory, stored files, and the disk that they fill."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from flawscope.files import storage_errors
from flawscope.runtime.line.clock import Clock
from flawscope.runtime.line.gallery.disk import GB, Disk, Level, Usage
from flawscope.runtime.line.gallery.keeper import Kept
from flawscope.runtime.line.gallery.paths import IMAGES, below, map_path
from flawscope.runtime.line.gallery.recent import RecentParts
from flawscope.runtime.line.gallery.retention import Batch, KnowsParts, Retention, words_of
from flawscope.runtime.line.gallery.store import ImageStore
from flawscope.runtime.line.journal.recorder import Recorder
from flawscope.runtime.line.line_config import ImageOptions
from flawscope.runtime.line.parts import PartRecord, Verdict
from flawscope.runtime.line.status import ImagesStatus

_PERIOD_S = 1.0
"""Between two looks at the disk."""

_AGAIN_S = 60.0
"""Until it is looked again for images that may be deleted, after there were none."""

_log = logging.getLogger(__name__)


class GalleryJournal(Recorder, KnowsParts, Protocol):
    """What is asked of the journal."""


class Gallery:
    """Keeps images of parts, from `start` to `stop`; see `KeepsImages`.

    Args:
        state: State folder of the line.
        stations: Names of its stations.
        options: What is kept.
        journal: Says what parts are, and is told what is deleted.
        clock: The clock.
        usage: Says what is free on the disk.
        has_readers: Whether anybody can ask for the parts in memory.
        period_s: Seconds between two looks at the disk.

    Attributes:
        state: As above.
        recent: The last parts.
        store: The stored images.
    """

    def __init__(
        self,
        state: Path,
        stations: Sequence[str],
        options: ImageOptions,
        journal: GalleryJournal,
        clock: Clock,
        *,
        usage: Usage = shutil.disk_usage,
        has_readers: bool = True,
        period_s: float = _PERIOD_S,
    ) -> None:
        self.state, self._options, self._journal = state, options, journal
        self._has_readers, self._period_s = has_readers, period_s
        self.recent = RecentParts(stations, options.recent_parts, round(options.recent_mb * (1 << 20)))
        self._disk = Disk(state, options, usage)
        self._retention = Retention(state, journal, options.min_days, clock.utc_ns, self._tell_stray)
        self.store = ImageStore(state, options, journal, self._has_room, self._stored)
        self._lock, self._looking = threading.Lock(), threading.Lock()
        # None until they are counted, which takes a while for millions of files.
        self._bytes: int | None = None
        self._deleted = 0
        self._problem = ""
        self._candidates: Iterator[Batch] | None = None
        self._not_before = float("-inf")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="image retention", daemon=True)
        # One of its own: among millions of images it takes minutes to find those that may be deleted.
        self._disk_thread = threading.Thread(target=self._watch_disk, name="disk", daemon=True)

    def start(self) -> None:
        """Look at the disk once, and begin.

        Raises:
            StorageError: If the folder of images cannot be made.
        """
        folder = self.state / IMAGES
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._look()
        self.store.start()
        self._disk_thread.start()
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write what waits, and end. Twice is harmless."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self.store.stop(timeout_s)
        end = time.monotonic() + timeout_s
        for thread in (self._thread, self._disk_thread):
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))

    @property
    def disk(self) -> Level:
        """What the disk has room for."""
        return self._disk.level

    @property
    def forbids(self) -> str:
        """Why no part may be judged, in words; empty where they may."""
        return self._disk.words() if self._disk.level == "fault" else ""

    def plan(self, seq: int, utc_ns: int, verdict: Verdict, images: Sequence[Kept]) -> tuple[str, ...]:
        """Return where images will be stored; see `KeepsImages`."""
        return self.store.plan(seq, utc_ns, verdict, images)

    def keep(self, seq: int, station: str, images: Sequence[Kept], record: PartRecord | None) -> None:
        """Take the images of a part; see `KeepsImages`."""
        if self._has_readers:
            self.recent.put(seq, station, images)
        if record is not None:
            self.store.put(seq, images)

    def drop(self, parts: Sequence[tuple[int, tuple[str, ...]]]) -> str:
        """Delete the stored images of parts whose rows are sealed and go next; whoever drops them calls it.

        Args:
            parts: Numbers of parts, and the paths of their images as the records name them.

        Returns:
            What could not be deleted, and stays; empty for nothing.
        """
        found: dict[int, list[Path]] = {}
        for seq, names in parts:
            paths = [below(self.state, path) for name in names for path in (name, map_path(name))]
            if there := [path for path in paths if path is not None and os.path.lexists(path)]:
                found[seq] = there
        if found:
            batch = Batch("sealed", tuple(sorted(found)), tuple(path for paths in found.values() for path in paths))
            try:
                self._delete(batch, "the rows of their parts are sealed")
            except OSError as err:
                return str(err)
        return ""

    def status(self) -> ImagesStatus:
        """Return what is known now."""
        counts, disk = self.store.counts, self._disk
        said = [disk.words(), counts.problem, self._problem]
        if disk.problem:
            said.append(f"the disk cannot be asked how full it is: {disk.problem}")
        return ImagesStatus(
            disk.level,
            round(disk.free / GB, 3),
            counts.stored,
            counts.left_out,
            counts.lost,
            self._deleted,
            counts.waiting,
            "; ".join(one for one in said if one),
        )

    def _has_room(self) -> bool:
        return self._disk.level in ("ok", "prune")

    def _stored(self, size: int) -> None:
        with self._lock:
            if self._bytes is not None:
                self._bytes += size

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
                self._problem = ""
            except Exception as err:  # whatever it is: the disk must be looked at again
                if not self._problem:
                    _log.exception("Old images could not be deleted.")
                self._problem = f"old images could not be deleted: {err}"
            self._stopping.wait(self._period_s)

    def _watch_disk(self) -> None:
        while not self._stopping.wait(self._period_s):
            try:
                self._look()
            except Exception:  # as above
                _log.exception("The disk could not be looked at.")

    def _turn(self) -> None:
        if self._options.quota_gb is not None and self._bytes is None:
            counted = self._retention.stored_bytes()
            with self._lock:
                self._bytes = counted
        while (reason := self._too_full()) and not self._stopping.is_set():
            if (batch := self._next()) is None:
                return
            self._delete(batch, reason)
            self._look()
        if not reason:
            self._candidates = None

    def _look(self) -> None:
        with self._looking:
            before = self._disk.level
            if (now := self._disk.look()) != before:
                self._journal.event("disk_level", object="disk", old=before, new=now, reason=self._disk.words())

    def _too_full(self) -> str:
        """Return why images have to be deleted; empty where they need not."""
        quota = self._options.quota_gb
        if quota is not None and self._bytes is not None and self._bytes > quota * GB:
            return f"{self._bytes / GB:.3g} GB of images are stored, quota_gb is {quota:g}"
        return self._disk.words()

    def _next(self) -> Batch | None:
        """Return what is deleted next; None where nothing may be."""
        if self._candidates is None:
            if time.monotonic() < self._not_before:
                return None
            # It goes on while more room is needed: each time from the oldest day would be a look at all files.
            self._candidates = self._retention.candidates()
        try:
            batch = next(self._candidates, None)
        except BaseException:
            self._candidates = None
            raise
        if batch is None:
            self._candidates, self._not_before = None, time.monotonic() + _AGAIN_S
        return batch

    def _tell_stray(self, path: Path) -> None:
        self._journal.event(
            "stray_image",
            object="images",
            new=str(path.relative_to(self.state)),
            reason="no part can have its number: it is no image of this line, and stays. Move it away.",
        )

    def _delete(self, batch: Batch, reason: str) -> None:
        # Before: what is gone must be on record, even if the line is killed in between.
        self._journal.event("images_deleted", object="images", new=words_of(batch), reason=reason)
        deleted = self._retention.delete(batch)
        with self._lock:
            self._deleted += deleted.files
            if self._bytes is not None:
                self._bytes -= deleted.bytes
        if deleted.problem:
            raise OSError(deleted.problem)
