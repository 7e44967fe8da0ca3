"""The thread of a line that follows the tags of its views: one pull at a time, beside everything else."""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path

from flawscope.errors import StorageError
from flawscope.runtime.line.line_config import LineConfig
from flawscope.runtime.line.rollout.place import Place, open_place
from flawscope.runtime.line.rollout.rollout_status import RolloutStatus
from flawscope.runtime.line.rollout.view_rollout import ViewRollout
from flawscope.runtime.line.swap.services import SwapServices
from flawscope.runtime.line.swap.swaps import Swaps

_TURN_S = 0.5
_CLOSE_S = 5.0
_log = logging.getLogger(__name__)


class Rollouts:
    """The releases of all views of a line that follow a tag.

    Args:
        config: The configuration of the line.
        services: What all stations share.
        swaps: Swaps bundles.

    Raises:
        ArgumentError: If a source cannot be used as it is configured; one that does not answer may later.
    """

    def __init__(self, config: LineConfig, services: SwapServices, swaps: Swaps) -> None:
        self._store = services.store
        self._stopping = threading.Event()
        self._places: list[Place] = []
        self._views: list[ViewRollout] = []
        for station in config.stations:
            for view in station.views:
                if view.rollout is None:
                    continue
                place = open_place(view.rollout.source)
                self._places.append(place)
                self._views.append(
                    ViewRollout(
                        config.line.name,
                        config.line.timezone,
                        station,
                        view,
                        place,
                        services,
                        swaps,
                        self._stopping.is_set,
                    )
                )
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)

    def start(self) -> None:
        """Begin, where a view follows a tag; after the stations have their bundles."""
        for view in self._views:
            view.begin()
        if self._views:
            self._thread.start()

    def stop(self) -> None:
        """End: a pull on its way is broken off, and gone on with at the next start; a hanging disk is left behind."""
        self._stopping.set()
        for place in self._places:
            place.close()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)
        for view in self._views:
            view.end()

    def state(self) -> tuple[RolloutStatus, ...]:
        """Return what is known of all views that follow a tag."""
        return tuple(view.status() for view in self._views)

    def _run(self) -> None:
        kept: set[Path] | None = None
        while not self._stopping.wait(_TURN_S):
            known = [view.partials for view in self._views]
            # Not before all are known: a pull that a restart has ended is gone on with.
            if None not in known and (wanted := {path for paths in known for path in paths or ()}) != kept:
                kept = wanted
                with contextlib.suppress(StorageError):
                    self._store.forget_partials(wanted)
            for view in self._views:
                if self._stopping.is_set():
                    return
                try:
                    view.turn()
                except Exception:  # a fault of ours must not end the thread: other views, and the next release, need it
                    _log.exception("rollouts")
