"""Changing bundles and thresholds while the line runs: what the HTTP interface, and with it people, may ask for."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from flawscope.bundle import open_bundle
from flawscope.errors import ArgumentError, FlawscopeError
from flawscope.runtime.line.line_config import StationOptions
from flawscope.runtime.line.station.station import Station
from flawscope.runtime.line.swap.active import Active
from flawscope.runtime.line.swap.challenges import Challenges
from flawscope.runtime.line.swap.run import CHALLENGE, STEPS, STOP_STEPS, SwapRun
from flawscope.runtime.line.swap.services import SwapServices
from flawscope.runtime.line.swap.station_bundles import StationBundles
from flawscope.runtime.line.swap.steps import SwapSteps
from flawscope.runtime.line.swap.store import Receiving, StoredBundle
from flawscope.runtime.line.swap.what_if import WhatIf, what_if

_CLOSE_S = 5.0
_log = logging.getLogger(__name__)


class Swaps:
    """The bundles and thresholds of all stations. Calls come from any thread; one thread of its own loads bundles.

    Args:
        services: What all stations share.
        timezone: Time zone of the line.

    Attributes:
        challenges: The challenges of bundles that are in force.
    """

    def __init__(self, services: SwapServices, timezone: str) -> None:
        self._services = services
        self.challenges = Challenges(services, timezone)
        self._stations: dict[str, StationBundles] = {}
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._is_closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="swaps", daemon=True)
        self._thread.start()

    def attach(self, options: StationOptions, station: Station, active: Active) -> None:
        """Take care of a station; before it starts."""
        bundles = self._stations[options.name] = StationBundles(self._services, options, station, active)
        self.challenges.attach(bundles)

    def turn(self) -> None:
        """Do what is done once a second: let go of bundles that nobody needs any longer."""
        for bundles in self._stations.values():
            bundles.turn()
        self.challenges.turn()
        if self._jobs.empty():
            self._jobs.put(self._tidy)

    def close(self) -> None:
        """End: a swap on its way is given up. One that loads in foreign code is left behind."""
        self._is_closed = True
        for bundles in self._stations.values():
            if bundles.last_run is not None:
                bundles.last_run.is_given_up.set()
        self._jobs.put(None)
        self.challenges.close()
        self._thread.join(_CLOSE_S)

    def bundles(self) -> list[dict[str, Any]]:
        """Return the bundles of the store, and by which stations and views each is used."""
        used: dict[str, list[str]] = {}
        for name, bundles in self._stations.items():
            for view, measure in bundles.station.measures.items():
                used.setdefault(measure.bundle, []).append(f"{name}/{view}")
        return [_shown(bundle, used.get(bundle.digest, [])) for bundle in self._services.store.bundles()]

    def add(self, path: Path, actor: str = "line", role: str = "") -> str:
        """Copy a bundle, folder or packed file, into the store; returns its digest.

        Raises:
            FlawscopeError: If it is not whole, or not signed by a trusted key where there are any.
        """
        with (
            self._audited(str(path), actor, role),
            open_bundle(path, trusted_keys=self._services.trusted_keys) as bundle,
        ):
            digest = self._services.store.keep(bundle)
        self._added(digest, actor, role)
        return digest

    @contextlib.contextmanager
    def receiving(self, actor: str, role: str) -> Iterator[Receiving]:
        """Yield what takes a packed bundle piece by piece; what is not finished leaves nothing behind."""
        with (
            self._audited("of an upload", actor, role),
            self._services.store.receiving(self._services.options.upload_mb << 20) as receiving,
        ):
            yield receiving

    def received(self, receiving: Receiving, actor: str, role: str) -> str:
        """Verify and keep what was received; returns its digest."""
        digest = receiving.finish()
        self._added(digest, actor, role)
        return digest

    def begin(
        self,
        station: str,
        view: str | None,
        digest: str,
        shadow: int | None = None,
        actor: str = "line",
        role: str = "",
        *,
        allow_unlike: bool = False,
        stop: bool = False,
    ) -> dict[str, Any]:
        """Begin a swap; it goes on by itself, and `state` says how far it is.

        Args:
            station: Name of the station.
            view: Name of the view; None for the only one.
            digest: Digest of the new bundle, which is in the store.
            shadow: Parts that both bundles score before; None for what the configuration says.
            actor: Who asks.
            role: His role.
            allow_unlike: Whether the bundle may have learned from images unlike those of the view: else it is taken
                for that of another part, and refused.
            stop: Whether the bundle in force is dropped before the new one is loaded, for memory that does not do for
                two: the station is not ready meanwhile, and there is no shadow.

        Raises:
            ArgumentError: If there is no such station, view or bundle; it is in force already; or a swap is on its way.
        """
        bundles = self._bundles(station)
        name = bundles.view(view).name
        if stop and shadow:
            raise ArgumentError(
                f"shadow: expected no parts for a swap with `stop`, got {shadow}. Leave one of them out."
            )
        if shadow is None:
            shadow = 0 if stop else self._services.options.shadow_parts
        if not 0 <= shadow <= 10_000:
            raise ArgumentError(f"shadow: expected 0 to 10000 parts, got {shadow}.")
        if not self._services.store.has(digest):
            raise ArgumentError(f"digest: expected a bundle of this line, got {digest[:64]!r}. Add it first.")
        old = bundles.station.measures[name].bundle
        if old == digest:
            raise ArgumentError(f"station {station}: expected another bundle, got the one in force, {digest[:12]}….")
        steps = STOP_STEPS if stop else STEPS
        run = SwapRun(name, digest, old, shadow, actor, role, steps, allow_unlike=allow_unlike)
        self._enter(bundles, run)
        # First: what follows of it is on record behind it.
        self._event("swap_begun", bundles, run, f"shadow {shadow}" if shadow else "")
        self._jobs.put(lambda: self._swap(bundles, run))
        return run.to_json()

    def challenge(self, station: str, view: str | None = None, actor: str = "line", role: str = "") -> dict[str, Any]:
        """Challenge the bundle in force with the site's own parts; what a failure does, the configuration says.

        Raises:
            ArgumentError: If there is no such station or view, or a swap is on its way.
        """
        bundles = self._bundles(station)
        name = bundles.view(view).name
        digest = bundles.station.measures[name].bundle
        run = SwapRun(name, digest, digest, 0, actor, role, (CHALLENGE,))
        self._enter(bundles, run)
        self._jobs.put(lambda: self._challenge(bundles, run))
        return run.to_json()

    def state(self, station: str) -> dict[str, Any]:
        """Return how far the last swap of a station is, and whether it can be taken back.

        Raises:
            ArgumentError: If there is no such station.
        """
        bundles = self._bundles(station)
        run, kept = bundles.last_run, bundles.kept
        idle: dict[str, Any] = {"state": "idle", "steps": [], "disagreements": []}
        previous = {} if kept is None else {name: measure.bundle for name, measure in kept.measures.items()}
        return {**(idle if run is None else run.to_json()), "previous": previous}

    def in_force(self, station: str, view: str) -> str:
        """Return the digest of the bundle by which a view decides; empty for none."""
        return self._bundles(station).station.measures[view].bundle

    def seen(self, station: str, view: str) -> tuple[tuple[int, ...], int] | None:
        """Return shape and bits of the last image of a view; None before the first."""
        return self._bundles(station).station.views[view].seen

    def last_run(self, station: str) -> SwapRun | None:
        """Return the last swap of a station, whether it runs or is over; None before the first."""
        return self._bundles(station).last_run

    def rollback(self, station: str, actor: str = "line", role: str = "", reason: str = "") -> dict[str, Any]:
        """Put back what was in force before the last swap, from the next part on, and give up the swap that runs.

        Returns:
            As `state`, with what was `done`, in words.

        Raises:
            ArgumentError: If there is no such station, or nothing to put back or to give up.
        """
        done = self._bundles(station).roll_back(actor, role, reason or "asked for")
        return {**self.state(station), "done": done}

    def set_threshold(
        self, station: str, view: str | None, image: float, reason: str, actor: str = "line", role: str = ""
    ) -> dict[str, Any]:
        """Decide by another threshold from the next part on, within the limits of the bundle.

        Raises:
            ArgumentError: If it is outside of them; each refusal is on record.
            StorageError: If it cannot be written; the old one stays.
        """
        bundles = self._bundles(station)
        try:
            measure = bundles.set_threshold(view, image, reason, actor, role)
        except FlawscopeError as err:
            self._services.journal.event(
                "threshold_refused",
                actor=actor,
                role=role,
                object=f"station {station}" + (f" view {view}" if view else ""),
                new=f"{image:.6g}",
                reason=str(err),
            )
            raise
        return {"threshold": measure.threshold, "threshold_revision": measure.revision}

    def what_if(self, station: str, view: str | None, image: float, last: int) -> WhatIf:
        """Return what another threshold would have said of the last parts that the bundle in force has scored.

        Raises:
            ArgumentError: If there is no such station or view, or it has no bundle.
        """
        bundles = self._bundles(station)
        name = bundles.view(view).name
        records = self._services.parts(0, last, station, newest_first=True)
        return what_if(records, bundles.station.measures[name], bundles.view(name), image)

    def _bundles(self, station: str) -> StationBundles:
        if station not in self._stations:
            raise ArgumentError(f"station: expected one of {', '.join(self._stations)}, got {station!r}. Name another.")
        return self._stations[station]

    def _enter(self, bundles: StationBundles, run: SwapRun) -> None:
        with self._lock:
            if bundles.is_running or self._is_closed:
                last = bundles.last_run
                is_left = last is not None and last.is_given_up.is_set()
                what = "Wait for the one that was given up: it has not ended yet" if is_left else "Wait for it"
                raise ArgumentError(
                    f"station {bundles.options.name}: expected one swap at a time, got another. {what}, or "
                    f"{'start the line again' if is_left else 'roll it back'}."
                )
            bundles.last_run = run

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # a fault of ours must not end the thread that the next swap needs
                _log.exception("swaps")

    def _swap(self, bundles: StationBundles, run: SwapRun) -> None:
        self._guarded(bundles, run, SwapSteps(self._services, bundles, run, self._tidy).swap)
        if run.has_flipped and (step := run.step_of(CHALLENGE)).state == "ok":
            self.challenges.note(bundles, run.view, run.digest, "passed", step.detail, "before its swap")
        result = f"failed in step {run.failed_step}: {run.reason}" if run.state == "failed" else run.state
        self._services.say(f"station {bundles.options.name}: swap to {run.digest[:12]}…: {result}")
        if run.state == "failed":
            self._event("swap_failed", bundles, run, f"{run.failed_step or 'swap'}: {run.reason}")

    def _challenge(self, bundles: StationBundles, run: SwapRun) -> None:
        self._guarded(bundles, run, SwapSteps(self._services, bundles, run, self._tidy).challenge)
        (step,) = run.steps
        state = {"ok": "passed", "skipped": "skipped"}.get(step.state, "failed")
        if run.is_given_up.is_set():
            state = "given_up"
        self.challenges.ended(bundles, run.view, state, step.detail, "by hand", run.actor, run.role)

    def _guarded(self, bundles: StationBundles, run: SwapRun, work: Callable[[], None]) -> None:
        failure = "it ended without a word"
        try:
            work()
            failure = ""
        except Exception as err:  # whatever it is: the old bundle goes on, and the reason is on record
            failure = str(err) if isinstance(err, FlawscopeError) else f"unexpected {type(err).__name__}: {err}"
            failure = failure or type(err).__name__
        finally:
            bundles.end(run, failure)

    def _tidy(self) -> None:
        """Close what nobody uses; where bundles are loaded, so that none is closed that has just come."""
        for bundles in self._stations.values():
            bundles.write_again()
        used = {scoring for bundles in self._stations.values() for scoring in bundles.used()}
        if self._stations:
            self._services.measures.keep_only(used)

    @contextlib.contextmanager
    def _audited(self, what: str, actor: str, role: str) -> Iterator[None]:
        try:
            yield
        except FlawscopeError as err:
            self._services.journal.event(
                "bundle_refused", actor=actor, role=role, object=f"bundle {what}", reason=str(err)
            )
            raise

    def _added(self, digest: str, actor: str, role: str) -> None:
        self._services.journal.event("bundle_added", actor=actor, role=role, object=f"bundle {digest}")

    def _event(self, action: str, bundles: StationBundles, run: SwapRun, reason: str) -> None:
        self._services.journal.event(
            action,
            actor=run.actor,
            role=run.role,
            object=f"station {bundles.options.name} view {run.view}",
            old=run.old,
            new=run.digest,
            reason=reason,
        )


def _shown(bundle: StoredBundle, used: list[str]) -> dict[str, Any]:
    return {**msgspec.to_builtins(bundle), "used_by": used}
