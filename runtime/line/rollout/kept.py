"""What a view did with releases: a small file in the state folder, so that no start tries again what failed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from flawscope.ranges import Count
from flawscope.runtime.line.state_record import read_record

State = Literal["none", "waiting", "pulling", "swapping", "done", "refused", "failed", "rolled_back"]

FINAL: frozenset[State] = frozenset({"done", "refused", "failed", "rolled_back"})
"""What is known of a release then is not asked again."""

_MOST_FAILED = 64


class Failed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A release that this version of flawscope does not try again.

    Attributes:
        release: Its digest.
        bundle: Digest of its bundle, where it was the bundle that failed: then in no other release either.
        reason: Why.
        version: Version that tried it.
    """

    release: str
    bundle: str
    reason: str
    version: str


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `rollout/STATION/VIEW.json`.

    Attributes:
        release: Digest of the release that the tag was last seen at; empty for none.
        bundle: Digest of its bundle, where it is known.
        state: How far it is.
        detail: The same in words.
        seen_s: When it was first seen, seconds since 1970.
        begun: How many swaps to it were begun and had no end: the process ended first.
        failed: Releases that are not tried again.
        before: Digests of bundles that were in force before a release: the way back to them waits for nothing.
        schema: Version of this struct.
    """

    release: str = ""
    bundle: str = ""
    state: State = "none"
    detail: str = ""
    seen_s: float = 0.0
    begun: Count = 0
    failed: tuple[Failed, ...] = ()
    before: tuple[str, ...] = ()
    schema: Literal[1] = 1

    def failure(self, release: str, bundle: str, version: str) -> Failed | None:
        """Return why a release, or its bundle, is not tried; None where it is."""
        rows = (row for row in self.failed if row.version == version)
        return next((row for row in rows if row.release == release or (bundle and row.bundle == bundle)), None)

    def of_another(self, release: str, seen_s: float) -> Kept:
        """Return what is known when the tag names another release."""
        return Kept(release=release, state="waiting", seen_s=seen_s, failed=self.failed, before=self.before)

    def with_before(self, bundle: str) -> Kept:
        """Return the same with a bundle that was in force; of many the last ones."""
        others = tuple(digest for digest in self.before if digest != bundle)
        return msgspec.structs.replace(self, before=(*others, bundle)[-_MOST_FAILED:])

    def with_failure(self, failed: Failed) -> Kept:
        """Return the same with a release that is not tried again; of very many the last ones."""
        return msgspec.structs.replace(self, failed=(*self.failed, failed)[-_MOST_FAILED:])


def kept_file(state: Path, station: str, view: str) -> Path:
    """Return the path of a view's file below the state folder of its line."""
    return state / "rollout" / station / f"{view}.json"


def read_kept(path: Path) -> Kept:
    """Return what a file says; nothing where there is none. Raises StorageError if it is broken or cannot be read."""
    then = "It begins anew: a release that failed may be tried once more."
    return read_record(path, Kept, "what was done with releases", then) or Kept()
