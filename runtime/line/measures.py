"""The bundles of a line, loaded once each: views that decide by the same one share its inspector."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flawscope.arrays import Float32Array
from flawscope.bundle import InForce, Manifest, trusted_bundle
from flawscope.bundle.opening import made_ready
from flawscope.errors import ArgumentError, BundleError, DeviceError
from flawscope.runtime.backends.table import backend_row
from flawscope.runtime.image_sources import Source
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.line.gallery.keeper import Heat
from flawscope.runtime.line.line_config import ViewOptions
from flawscope.runtime.line.selftest import golden_check
from flawscope.runtime.line.station.view import Measure
from flawscope.runtime.results import Result
from flawscope.runtime.shared_scoring import SharedScoring

_MOST_DECIDING = 64
"""Sets of thresholds for which an inspector is kept: one a view is in use, and those of parts that are open."""


class _Batches:
    """An inspector as `SharedScoring` uses it."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._deciding: dict[InForce, Inspector] = {}
        # Tiles of one image fill the batch by themselves.
        self._max_batch = 1 if inspector.manifest.tiling is not None else inspector.manifest.max_batch

    @property
    def max_batch(self) -> int:
        """Most images of one inference."""
        return self._max_batch

    @property
    def device_failed(self) -> bool:
        """Whether the device failed at the last images, and has not worked since."""
        return self._inspector.device_failed

    def score(self, sources: list[Source], color: str, in_force: InForce | None) -> list[Result]:
        """Return the results of images, in their order; by other thresholds where there are some."""
        inspector = self._inspector if in_force in (None, self._inspector.in_force) else self._deciding_by(in_force)
        return list(inspector.stream(sources, len(sources), "bgr" if color == "bgr" else "rgb"))

    def warm(self, batch: int) -> None:
        """Run the graphs once on so many blank images."""
        self._inspector.infer(np.zeros((batch, *self._inspector.manifest.input.size, 3), np.uint8))

    def _deciding_by(self, in_force: InForce) -> Inspector:
        if in_force not in self._deciding:
            if len(self._deciding) >= _MOST_DECIDING:
                self._deciding.clear()
            self._deciding[in_force] = self._inspector.deciding_by(in_force)
        return self._deciding[in_force]


class _NoInspector:
    """Stands where no bundle could be loaded: each image is a fault that says why."""

    max_batch = 1
    device_failed = False

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def score(self, sources: list[Source], color: str, in_force: InForce | None) -> list[Result]:
        """Fail."""
        raise BundleError(self._reason)

    def warm(self, batch: int) -> None:
        """Fail."""
        raise BundleError(self._reason)


class _Loaded(NamedTuple):
    inspector: Inspector | None
    scoring: SharedScoring


class Measures:
    """Loads the bundles of a line and keeps them ready. Close it, or use it in `with`.

    Args:
        trusted_keys: Public keys: with them, bundles that none of them has signed are refused.
        say: Told what is being loaded, a sentence at a time.
    """

    def __init__(self, trusted_keys: Path | None, say: Callable[[str], None]) -> None:
        self._trusted_keys, self._say = trusted_keys, say
        self._lock = threading.Lock()
        self._loaded: dict[tuple[object, ...], _Loaded] = {}

    def measure_of(
        self, view: ViewOptions, bundle: Path | None = None, name: str = "", *, may_be_away: bool = False
    ) -> Measure:
        """Return the measure of a view; its bundle is loaded, verified and warmed if no other view has it.

        Args:
            view: The view.
            bundle: Another bundle than that of its configuration.
            name: What that one is called in messages.
            may_be_away: Whether a server that is away is no error: it is looked for, and images are faults meanwhile.

        Raises:
            FlawscopeError: As `Inspector.load`.
            ArgumentError: If the bundle is not calibrated: nothing would be accepted.
            DeviceError: If a server is away that may not be.
        """
        path = view.bundle if bundle is None else bundle
        key = _key(view, path)
        with self._lock:
            loaded = self._loaded.get(key)
        if loaded is None:
            # Without the lock, as it may take minutes. One thread loads: that of the start, then that of the swaps.
            loaded = self._load(view, path, name or path.name, may_be_away=may_be_away)
            with self._lock:
                self._loaded[key] = loaded
        inspector, scoring = loaded.inspector, loaded.scoring
        assert inspector is not None
        if scoring.comes_back and scoring.problem and not may_be_away:
            # Another view has waited for it since its start.
            raise DeviceError(scoring.problem)
        manifest = inspector.manifest
        return Measure(
            scoring,
            manifest.digest,
            manifest.input.bits,
            manifest,
            inspector.in_force,
            heat_of(inspector),
            partial(golden_check, inspector),
        )

    def none(self, view: str, reason: str) -> Measure:
        """Return a measure that makes a fault of each image, for a view without a bundle that can be used."""
        scoring = SharedScoring(_NoInspector(reason), f"none for {view}")
        with self._lock:
            self._loaded[("none", scoring)] = _Loaded(None, scoring)
        return Measure(scoring, "", None)

    def inspector_of(self, view: ViewOptions) -> Inspector:
        """Return the inspector of a view, for `check`; as `measure_of`."""
        self.measure_of(view)
        inspector = self._loaded[_key(view, view.bundle)].inspector
        assert inspector is not None
        return inspector

    def keep_only(self, used: Collection[SharedScoring]) -> int:
        """Close all bundles but those that are used, and return how many; call it where bundles are loaded."""
        with self._lock:
            unused = {key: loaded for key, loaded in self._loaded.items() if loaded.scoring not in used}
            for key in unused:
                del self._loaded[key]
        for loaded in unused.values():
            _close(loaded)
        return len(unused)

    def close(self) -> None:
        """Release all bundles; one whose inspector hangs in foreign code is left behind."""
        self.keep_only(())

    def _load(self, view: ViewOptions, bundle: Path, name: str, *, may_be_away: bool) -> _Loaded:
        self._say(f"{name}: loading")
        opened = trusted_bundle(bundle, self._trusted_keys)
        with made_ready(opened):
            inspector = Inspector(
                opened,
                view.backend,
                precision=view.precision,
                strict=view.strict,
                product=view.product,
                threads=view.threads,
                may_be_away=may_be_away,
            )
        away = inspector.scorer.describe() if inspector.device_failed else ""
        comes_back = backend_row(inspector.backend).remote
        scoring: SharedScoring | None = None
        try:
            check_calibrated(inspector.manifest, view, bundle)
            scoring = SharedScoring(_Batches(inspector), name, comes_back=comes_back, away=away)
            if not away:
                scoring.measure()
        except BaseException:
            if scoring is not None:
                scoring.close()
            inspector.close()
            raise
        if away:
            self._say(f"{name}: not ready yet; the server is looked for: {away}")
        else:
            self._say(f"{name}: ready on {inspector.backend} ({inspector.backend_reason})")
        return _Loaded(inspector, scoring)


def check_calibrated(manifest: Manifest, view: ViewOptions, bundle: Path) -> None:
    """Refuse a bundle that cannot decide for a view.

    Raises:
        ArgumentError: If it does not score images, or has no thresholds of the view's precision.
    """
    if manifest.kind != "score":
        raise ArgumentError(f"{bundle}: expected a bundle that scores images, got one that draws defects.")
    if manifest.thresholds_of(view.precision) is None:
        raise ArgumentError(
            f"{bundle}: expected a bundle with thresholds, got one without: it cannot accept anything. "
            "Run flawscope calibrate."
        )


def heat_of(inspector: Inspector) -> Callable[[InForce | None, Float32Array], Heat]:
    """Return how the maps of an inspector are drawn: the pixel threshold in force has one colour in all of them."""

    def heat(in_force: InForce | None, anomaly_map: Float32Array) -> Heat:
        # One of its own: zones keep what they were asked last, and another thread scores.
        judge = inspector.deciding_by(inspector.in_force if in_force is None else in_force)
        return Heat(inspector.manifest.map_spec, judge.pixel_thresholds(anomaly_map))

    return heat


def _key(view: ViewOptions, bundle: Path) -> tuple[object, ...]:
    return (bundle.resolve(), view.backend, view.precision, view.product, view.threads, view.strict)


def _close(loaded: _Loaded) -> None:
    has_ended = loaded.scoring.close()
    if loaded.inspector is None:
        return
    if has_ended:
        loaded.inspector.close()
    else:
        # The engine stays with the thread that hangs in it; the file of the bundle need not.
        loaded.inspector.bundle.close()
