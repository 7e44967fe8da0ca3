"""The bundles of a line, loaded once each: views that decide by the same one share its inspector."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from flawscope.errors import ArgumentError
from flawscope.runtime.image_sources import Source
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.line.line_config import ViewOptions
from flawscope.runtime.line.selftest import golden_check
from flawscope.runtime.line.station.scoring import SharedScoring
from flawscope.runtime.line.station.view import Measure
from flawscope.runtime.results import Result


class _Batches:
    """An inspector as `SharedScoring` uses it."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
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

    def score(self, sources: list[Source], color: str) -> list[Result]:
        """Return the results of images, in their order."""
        return list(self._inspector.stream(sources, len(sources), "bgr" if color == "bgr" else "rgb"))

    def warm(self, batch: int) -> None:
        """Run the graphs once on so many blank images."""
        self._inspector.infer(np.zeros((batch, *self._inspector.manifest.input.size, 3), np.uint8))


class Measures:
    """Loads the bundles of a line and keeps them ready. Close it, or use it in `with`.

    Args:
        trusted_keys: Public keys: with them, bundles that none of them has signed are refused.
        say: Told what is being loaded, a sentence at a time.
    """

    def __init__(self, trusted_keys: Path | None, say: Callable[[str], None]) -> None:
        self._trusted_keys, self._say = trusted_keys, say
        self._loaded: dict[tuple[object, ...], tuple[Inspector, SharedScoring]] = {}

    def measure_of(self, view: ViewOptions) -> Measure:
        """Return the measure of a view; its bundle is loaded, verified and warmed if no other view has it.

        Raises:
            FlawscopeError: As `Inspector.load`.
            ArgumentError: If the bundle is not calibrated: nothing would be accepted.
        """
        key = (view.bundle.resolve(), view.backend, view.precision, view.product, view.threads, view.strict)
        if key not in self._loaded:
            self._loaded[key] = self._load(view)
        inspector, scoring = self._loaded[key]
        manifest = inspector.manifest
        return Measure(scoring, manifest.digest, manifest.input.bits, golden=partial(golden_check, inspector))

    def inspector_of(self, view: ViewOptions) -> Inspector:
        """Return the inspector of a view, for `check`; as `measure_of`."""
        self.measure_of(view)
        key = (view.bundle.resolve(), view.backend, view.precision, view.product, view.threads, view.strict)
        return self._loaded[key][0]

    def close(self) -> None:
        """Release all bundles; one whose inspector hangs in foreign code is left behind."""
        for inspector, scoring in self._loaded.values():
            if scoring.close():
                inspector.close()
        self._loaded.clear()

    def _load(self, view: ViewOptions) -> tuple[Inspector, SharedScoring]:
        self._say(f"{view.bundle.name}: loading")
        inspector = Inspector.load(
            view.bundle,
            view.backend,
            precision=view.precision,
            strict=view.strict,
            product=view.product,
            threads=view.threads,
            trusted_keys=self._trusted_keys,
        )
        scoring: SharedScoring | None = None
        try:
            if inspector.thresholds is None:
                raise ArgumentError(
                    f"{view.bundle}: expected a bundle with thresholds, got one without: it cannot accept anything. "
                    "Run flawscope calibrate."
                )
            scoring = SharedScoring(_Batches(inspector), view.bundle.name)
            scoring.measure()
        except BaseException:
            if scoring is not None:
                scoring.close()
            inspector.close()
            raise
        self._say(f"{view.bundle.name}: ready on {inspector.backend} ({inspector.backend_reason})")
        return inspector, scoring
