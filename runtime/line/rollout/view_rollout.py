"""The releases of one view: what its tag names is pulled, verified, and goes through the steps of a swap, once."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import msgspec

from flawscope import __version__
from flawscope.bundle import Manifest, find_trusted_keys
from flawscope.errors import ArgumentError, FlawscopeError, StorageError
from flawscope.runtime.backends.table import ROWS
from flawscope.runtime.line.line_config import StationOptions, ViewOptions
from flawscope.runtime.line.measures import check_calibrated
from flawscope.runtime.line.rollout.kept import FINAL, Failed, Kept, State, kept_file, read_kept
from flawscope.runtime.line.rollout.place import Place, read_blob
from flawscope.runtime.line.rollout.pulling import pull
from flawscope.runtime.line.rollout.release import (
    Release,
    ReleaseRefused,
    SourceAway,
    digest_of,
    read_bundle_config,
    read_release,
)
from flawscope.runtime.line.rollout.rollout_status import RolloutStatus
from flawscope.runtime.line.rollout.table import RolloutOptions
from flawscope.runtime.line.state_record import write_record
from flawscope.runtime.line.swap.likeness import notes_on
from flawscope.runtime.line.swap.memory import check_room
from flawscope.runtime.line.swap.run import SwapRun
from flawscope.runtime.line.swap.services import SwapServices
from flawscope.runtime.line.swap.swaps import Swaps
from flawscope.runtime.line.swap.time_of_day import is_between

ACTOR = "rollout"
_JITTER = 0.1
_WAITS_S = 30.0
"""Longest time between two looks while a release waits for its time."""
_CLOCK_WAS_SET_S = 60.0
"""Difference of the two clocks by which the one of the day was set, and not only drawn to the right time."""
_MOST_BEGUN = 2
"""Swaps to one bundle that may end with the process: then the bundle is what ends it."""


_MOST_REFUSED = 64
_SURROUNDINGS = ("staged", "flip")
"""Steps of a swap that fail for what is around the bundle, such as a disk that is full."""


def _is_of_surroundings(run: SwapRun, backend: str) -> bool:
    """Return whether a swap failed for what is around the bundle: a server may be away, or not have its model yet."""
    row = ROWS.get(backend)
    is_remote = row is not None and row.remote
    return run.failed_step in _SURROUNDINGS or (is_remote and any(step.device_failed for step in run.steps))


class ViewRollout:
    """Follows the tag of one view. All but `status` is called by one thread.

    Args:
        line: Name of the line.
        timezone: Its time zone.
        station: The station.
        view: The view, which has a rollout.
        place: Where releases lie.
        services: What all stations of the line share.
        swaps: Swaps bundles.
        is_stopped: Whether the line is being stopped.
    """

    def __init__(
        self,
        line: str,
        timezone: str,
        station: StationOptions,
        view: ViewOptions,
        place: Place,
        services: SwapServices,
        swaps: Swaps,
        is_stopped: Callable[[], bool],
    ) -> None:
        assert view.rollout is not None
        self._options: RolloutOptions = view.rollout
        self._who, self._timezone = f"{line}/{station.name}/{view.name}", timezone
        self._station, self._view, self._place = station.name, view, place
        self._services, self._swaps, self._is_stopped = services, swaps, is_stopped
        self._label = f"station {station.name} view {view.name}"
        self._path: Path = kept_file(services.state, station.name, view.name)
        self._kept = Kept()
        self._run: SwapRun | None = None
        self._problem = ""
        self._next_ns = 0
        self._answered_ns = services.clock.mono_ns()
        # When this process saw the release first; None for one that was known at the start.
        self._seen_ns: int | None = None
        # Of releases that are refused before anything is pulled; a start asks again, as keys may have come.
        self._refused: dict[str, str] = {}
        self._config: tuple[str, bytes] = ("", b"")
        # Verified by this process: all hashes at each look would take time from the parts.
        self._is_here = ""
        self._partial: Path | None = None

    def begin(self) -> None:
        """Read what was done before; at the start of the line."""
        try:
            kept = read_kept(self._path)
        except StorageError as err:
            self._tell("rollout_file_broken", str(err))
            kept = Kept()
        if kept.state == "refused" and kept.failure(kept.release, kept.bundle, __version__) is None:
            kept = msgspec.structs.replace(kept, state="waiting", detail="is looked at again")
        self._kept = kept

    def turn(self) -> None:
        """Do what is to be done now; called twice a second."""
        now = self._services.clock.mono_ns()
        try:
            if (self._run is not None and not self._follow(self._run)) or now < self._next_ns:
                return
            # Whatever happens: not again at once.
            self._next_ns = now + round(self._options.every_s * 1e9)
            self._look()
        except SourceAway as err:
            if self._is_stopped():
                return  # it was broken off by the end of the line
            self._has_problem("rollout_away", str(err))
        except ReleaseRefused as err:
            self._has_problem("rollout_refused", str(err))
        except StorageError as err:
            self._has_problem("rollout_stuck", str(err))
        except Exception as err:
            self._has_problem("rollout_stuck", f"unexpected {type(err).__name__}: {err}")
            raise
        waits = self._kept.state not in FINAL and self._kept.state != "none"
        every_s = min(self._options.every_s, _WAITS_S) if waits and not self._problem else self._options.every_s
        # Not all lines at once; no cryptography.
        self._next_ns = now + round(every_s * random.uniform(1 - _JITTER, 1 + _JITTER) * 1e9)

    def status(self) -> RolloutStatus:
        """Return what is known now; from any thread."""
        kept, age_ns = self._kept, self._services.clock.mono_ns() - self._answered_ns
        return RolloutStatus(
            self._station,
            self._view.name,
            self._options.tag,
            kept.release,
            kept.bundle,
            kept.state,
            kept.detail,
            self._problem,
            round(age_ns / 1e9, 3),
        )

    def end(self) -> None:
        """Take note that the line ended a swap, and not its bundle the line; after the thread has ended."""
        if self._kept.state == "swapping" and self._kept.begun:
            with contextlib.suppress(StorageError):
                self._keep(msgspec.structs.replace(self._kept, begun=self._kept.begun - 1))

    @property
    def partials(self) -> tuple[Path, ...] | None:
        """Where what was pulled of its release lies; None where it is not known yet whether there is any."""
        if self._kept.state in FINAL:
            return ()
        return None if self._partial is None else (self._partial,)

    def _look(self) -> None:
        """Ask which release the tag names, and see to it."""
        data = self._place.manifest(self._options.tag)
        self._answered_ns = self._services.clock.mono_ns()
        digest = digest_of(data)
        if digest == self._kept.release and self._kept.state in FINAL:
            self._is_well()
            return
        try:
            self._see_to(digest, data)
        except ReleaseRefused as err:
            self._refuse(digest, str(err))
        self._is_well()

    def _see_to(self, digest: str, data: bytes) -> None:
        release = read_release(data)
        now_s = self._services.clock.utc_ns() / 1e9
        if digest != self._kept.release:
            self._seen_ns = self._services.clock.mono_ns()
            self._keep(self._kept.of_another(digest, now_s))
            self._tell("rollout_seen", f"the tag {self._options.tag} names another release", new=digest)
        manifest = self._checked(release)
        bundle = manifest.digest
        if bundle == self._swaps.in_force(self._station, self._view.name):
            self._end("done", "is in force already")
            return
        if failed := self._kept.failure(digest, bundle, __version__):
            self._refuse(digest, f"it failed before: {failed.reason}")
            return
        if self._kept.begun >= _MOST_BEGUN:
            self._fail("failed", f"the line ended {self._kept.begun} times while it was swapped in", bundle)
            return
        # What was in force is the way back: it must not wait for its turn.
        is_back = bundle in self._kept.before
        if not is_back and (waits_s := self._waits_s(digest, now_s)):
            self._wait(f"others are first; its turn comes in {waits_s:,.0f} s")
            return
        check_room(sum(entry.size for entry in manifest.files.values()))
        self._pull(release, manifest)
        between, utc_ns = self._options.between, self._services.clock.utc_ns()
        if between is not None and not is_back and not is_between(between, self._timezone, utc_ns):
            self._wait(f"is here, and waits for {between[0]} to {between[1]}")
            return
        self._begin_swap(bundle)

    def _checked(self, release: Release) -> Manifest:
        """Return the manifest of the bundle of a release that the view can take; before its layer is pulled.

        Raises:
            ReleaseRefused: If it cannot.
            StorageError: If there is too little memory now.
        """
        if (reason := self._refused.get(release.digest)) is not None:
            raise ReleaseRefused(reason)
        where = f"release {release.digest[:19]}…"
        most = self._services.options.upload_mb << 20
        if release.layer.size > most:
            raise ReleaseRefused(
                f"{where}: expected a bundle of at most {most >> 20:,} MiB, got {release.layer.size:,} bytes. Raise "
                "swap.upload_mb in the configuration."
            )
        try:
            # Each time: a key that is trusted no longer is none.
            trusted = find_trusted_keys(self._services.trusted_keys)
        except ArgumentError as err:
            raise SourceAway(str(err)) from err
        if self._config[0] != release.config.digest:
            self._config = (release.config.digest, read_blob(self._place, release.config))
        manifest = read_bundle_config(self._config[1], where, trusted)
        if manifest.digest != self._kept.bundle:
            self._keep(msgspec.structs.replace(self._kept, bundle=manifest.digest))
        try:
            check_calibrated(manifest, self._view, Path(where))
            notes_on(manifest, self._view, self._swaps.seen(self._station, self._view.name), allow_unlike=False)
        except StorageError:
            raise
        except FlawscopeError as err:
            raise ReleaseRefused(str(err)) from err
        return manifest

    def _waits_s(self, digest: str, now_s: float) -> float:
        """Return the seconds until it is the turn of this view; 0 where it is."""
        lot = int.from_bytes(hashlib.sha256(f"{digest} {self._who}".encode()).digest()[:8], "big") / 2**64
        if lot < self._options.first:
            return 0.0
        waited_s = now_s - self._kept.seen_s
        if self._seen_ns is not None:
            # A clock that is set, as after each start of a machine without a battery, must not end the wait.
            since_s = (self._services.clock.mono_ns() - self._seen_ns) / 1e9
            if abs(since_s - waited_s) > _CLOCK_WAS_SET_S:
                self._keep(msgspec.structs.replace(self._kept, seen_s=now_s - since_s))
            waited_s = since_s
        # One that was set back must not make it wait longer.
        return max(0.0, min(self._options.wait_s, self._options.wait_s - waited_s))

    def _pull(self, release: Release, manifest: Manifest) -> None:
        """Have the bundle in the store; it is pulled unless it is there and whole."""
        store = self._services.store
        if self._is_here == manifest.digest and store.has(manifest.digest):
            return
        try:
            with store.open(manifest.digest):
                self._is_here = manifest.digest
                return
        except FlawscopeError:
            pass  # not there, or not whole, or signed by another key: pulled anew
        self._partial = store.partial_of(release.layer.digest.removeprefix("sha256:"))

        def told(size: int) -> None:
            if self._is_stopped():
                raise SourceAway(f"{self._place.name}: the line is being stopped.")
            self._kept = msgspec.structs.replace(
                self._kept, state="pulling", detail=f"{size:,} of {release.layer.size:,} bytes"
            )

        try:
            digest = pull(self._place, release.layer, store, told)
            if digest != manifest.digest:
                raise ReleaseRefused(
                    f"release {release.digest[:19]}…: expected the bundle {manifest.digest[:12]}…, got {digest[:12]}…. "
                    "Publish it again."
                )
        except ReleaseRefused as err:
            # It has cost all of the transfer: not once more at the next start.
            self._keep(self._kept.with_failure(Failed(release.digest, "", str(err), __version__)))
            raise
        self._is_here = digest
        self._services.journal.event("bundle_added", actor=ACTOR, object=f"bundle {digest}", reason=self._label)

    def _begin_swap(self, bundle: str) -> None:
        before = self._swaps.in_force(self._station, self._view.name)
        kept = self._kept.with_before(before) if before else self._kept
        # Before: a bundle that ends the process must not be tried at each start.
        self._keep(msgspec.structs.replace(kept, state="swapping", detail="is swapped in", begun=kept.begun + 1))
        try:
            self._swaps.begin(self._station, self._view.name, bundle, self._options.shadow_parts, ACTOR)
        except ArgumentError as err:
            # Another swap is on its way.
            self._keep(msgspec.structs.replace(self._kept, begun=self._kept.begun - 1))
            self._wait(str(err))
            return
        run = self._swaps.last_run(self._station)
        self._run = run if run is not None and (run.digest, run.actor) == (bundle, ACTOR) else None

    def _follow(self, run: SwapRun) -> bool:
        """Take note of how a swap ended, and whether it was taken back since; return whether it has ended."""
        if not run.has_ended.is_set():
            self._kept = msgspec.structs.replace(self._kept, detail=f"step {run.current_step}")
            return False
        if run.state == "rolled_back" and self._kept.state in ("swapping", "done"):
            self._fail("rolled_back", run.reason, run.digest)
        elif self._kept.state == "swapping" and run.state == "done":
            self._end("done", run.step_of("flip").detail)
        elif (
            self._kept.state == "swapping"
            and _is_of_surroundings(run, self._view.backend)
            and not run.is_given_up.is_set()
        ):
            self._keep(msgspec.structs.replace(self._kept, begun=self._kept.begun - 1))
            self._wait(f"is tried again; {run.failed_step}: {run.reason}")
            self._has_problem("rollout_stuck", f"{run.failed_step}: {run.reason}")
        elif self._kept.state == "swapping":
            self._fail("failed", f"{run.failed_step or 'swap'}: {run.reason}", run.digest)
        if self._kept.state != "done":
            self._run = None
        return True

    def _wait(self, detail: str) -> None:
        if (self._kept.state, self._kept.detail) != ("waiting", detail):
            state: State = "waiting"
            self._kept = msgspec.structs.replace(self._kept, state=state, detail=detail)

    def _end(self, state: State, detail: str) -> None:
        self._keep(msgspec.structs.replace(self._kept, state=state, detail=detail, begun=0))
        self._tell(f"rollout_{state}", detail, new=self._kept.release)

    def _fail(self, state: State, reason: str, bundle: str) -> None:
        release = self._kept.release
        self._keep(self._kept.with_failure(Failed(release, bundle, reason, __version__)))
        self._end(state, reason)
        self._services.say(f"{self._label}: release {release[:19]}… {state}: {reason}")

    def _refuse(self, digest: str, reason: str) -> None:
        self._refused[digest] = reason
        if len(self._refused) > _MOST_REFUSED:
            del self._refused[next(iter(self._refused))]
        if digest != self._kept.release:
            now_s = self._services.clock.utc_ns() / 1e9
            self._keep(self._kept.of_another(digest, now_s))
        self._end("refused", reason)
        self._services.say(f"{self._label}: release {digest[:19]}… was refused: {reason}")

    def _keep(self, kept: Kept) -> None:
        """Write what is known. Raises StorageError; what could not be written is known all the same."""
        self._kept = kept
        write_record(self._path, kept)

    def _has_problem(self, action: str, reason: str) -> None:
        if not self._problem:  # once: its words may change with each attempt
            self._tell(action, reason)
        self._problem = reason

    def _is_well(self) -> None:
        if self._problem:
            self._problem = ""
            self._tell("rollout_back", "it goes on again")

    def _tell(self, action: str, reason: str, new: str = "") -> None:
        self._services.journal.event(action, actor=ACTOR, object=self._label, new=new, reason=reason)
