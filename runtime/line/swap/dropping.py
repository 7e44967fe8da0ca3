"""Room for a new bundle where memory does not do for two: the one in force is dropped first.

Where the new one fails, that one is loaded again. Meanwhile the station is not ready, and its parts are faults.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from flawscope.errors import FlawscopeError, RunError
from flawscope.runtime.line.swap.run import SwapRun
from flawscope.runtime.line.swap.services import SwapServices
from flawscope.runtime.line.swap.station_bundles import StationBundles

_GRACE_S = 1.0
_LOOK_S = 0.02


class Dropping:
    """Drops the bundle of a view for one swap.

    Args:
        services: What all stations share.
        bundles: The bundles of the station.
        run: The swap.
        tidy: Closes the bundles that nobody uses.
    """

    def __init__(self, services: SwapServices, bundles: StationBundles, run: SwapRun, tidy: Callable[[], None]) -> None:
        self._services, self._bundles, self._run, self._tidy = services, bundles, run, tidy
        self._cause = f"bundle {run.view}"
        self._is_dropped = False

    def drop(self) -> str:
        """Take READY away, wait for open parts, and drop the bundle; returns what was done, in words.

        Raises:
            GivenUp: If the swap was given up.
            RunError: If parts stay open longer than their deadline.
        """
        run, station = self._run, self._bundles.station
        if not run.old:
            return "there was none"
        station.readiness.begin(self._cause, "is being exchanged; the one before is dropped first")
        until = time.monotonic() + self._bundles.options.deadline_ms / 1e3 + _GRACE_S
        pause = threading.Event()
        while station.counters.now().open:
            run.check()
            if time.monotonic() > until:
                raise RunError(
                    f"expected no open parts after their deadline, got {station.counters.now().open}. Swap again."
                )
            pause.wait(_LOOK_S)
        reason = f"bundle {run.old[:12]}… was dropped to make room for {run.digest[:12]}…"
        self._bundles.drop(run, self._services.measures.none(run.view, reason))
        self._is_dropped = True
        self._tidy()
        return f"bundle {run.old[:12]}…"

    def bring_back(self, failure: str) -> None:
        """Put in force again what was dropped; where it cannot be loaded the station stays in `error`.

        Args:
            failure: Why the swap failed, in words.
        """
        run, bundles = self._run, self._bundles
        if not run.old or run.has_flipped or bundles.station.readiness.state == "stopped":
            return
        if self._is_dropped:
            # The new one, if it was loaded: there is no room for both.
            self._tidy()
            try:
                view = bundles.view(run.view)
                measure = self._services.load(bundles.options.name, view, run.old, may_be_away=True)
            except Exception as err:  # whatever it is: the station has no bundle, and must say so
                reason = str(err) if isinstance(err, FlawscopeError) else f"unexpected {type(err).__name__}: {err}"
                bundles.station.readiness.forbid(
                    self._cause, f"the new one failed ({failure}), and the one before cannot be loaded again: {reason}"
                )
                return
            bundles.put_again(run.view, measure, f"the new one failed: {failure}")
        bundles.station.readiness.allow(self._cause)
