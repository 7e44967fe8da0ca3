"""What a swap does, a step after the other, beside the line that goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from flawscope.bundle import Manifest
from flawscope.errors import BundleError, DeviceError, FlawscopeError
from flawscope.runtime.line.line_config import ViewOptions
from flawscope.runtime.line.measures import check_calibrated
from flawscope.runtime.line.station.view import Measure, View
from flawscope.runtime.line.swap.challenge import ChallengeFailed, challenge_folder, parts_of, run_challenge
from flawscope.runtime.line.swap.dropping import Dropping
from flawscope.runtime.line.swap.likeness import notes_on
from flawscope.runtime.line.swap.memory import check_room
from flawscope.runtime.line.swap.run import Step, SwapRun
from flawscope.runtime.line.swap.services import SwapServices, manifest_of
from flawscope.runtime.line.swap.shadow import Shadow
from flawscope.runtime.line.swap.station_bundles import StationBundles

_PAUSE_S = 0.05
"""Longest time that an image of a challenge or a shadow waits for parts that are open: they need the same cores."""


class SwapSteps:
    """Does the steps of one swap.

    Args:
        services: What all stations share.
        bundles: The bundles of the station.
        run: The swap.
        tidy: Closes the bundles that nobody uses.
    """

    def __init__(self, services: SwapServices, bundles: StationBundles, run: SwapRun, tidy: Callable[[], None]) -> None:
        self._services, self._bundles, self._run = services, bundles, run
        self._dropping = Dropping(services, bundles, run, tidy)
        self._name = bundles.options.name
        self._view: ViewOptions = bundles.view(run.view)
        self._wait = threading.Event()
        self._bytes = 0

    def swap(self) -> None:
        """Do all steps, the flip at the end.

        Raises:
            FlawscopeError: If one fails; the old bundle goes on, and is loaded again where it was dropped.
        """
        run = self._run
        with run.step("staged") as step:
            self._staged(step)
        with run.step("verified") as step:
            self._verified(step)
        if not run.stops:
            self._loaded()
            return
        try:
            with run.step("dropped") as step:
                step.detail = self._dropping.drop()
                step.detail += f"; {check_room(self._bytes, is_dropped=True)}"
            self._loaded()
        except BaseException as err:
            self._dropping.bring_back(str(err) or type(err).__name__)
            raise

    def _loaded(self) -> None:
        """Load the bundle, test it, and put it in force."""
        run = self._run
        with run.step("warm") as step:
            measure = self._warm(step)
        with run.step("golden") as step:
            golden = manifest_of(measure).golden_of(self._view.precision)
            step.detail = f"{len(golden)} golden images gave their scores when the bundle was loaded"
        with run.step("challenge") as step:
            if "swap" in self._bundles.options.challenge.at:
                self._challenge(step, measure)
            else:
                step.skip("not asked for (`at`)")
        if not run.stops:
            with run.step("shadow") as step:
                self._shadow(step, measure)
        with run.step("flip") as step:
            generation = self._bundles.flip(run, measure)
            step.detail = f"generation {generation}"

    def challenge(self) -> None:
        """Challenge the bundle that is in force.

        Raises:
            FlawscopeError: If it decides a part wrongly.
        """
        with self._run.step("challenge") as step:
            while not self._has_challenged(step):
                pass

    def _has_challenged(self, step: Step) -> bool:
        """Challenge the bundle in force; return whether it decides by the same thresholds now as then."""
        measure = self._bundles.station.measures[self._view.name]
        try:
            self._challenge(step, measure)
        except FlawscopeError:
            if self._bundles.station.measures[self._view.name] is measure:
                raise
        return self._bundles.station.measures[self._view.name] is measure

    def _staged(self, step: Step) -> None:
        with self._services.store.open(self._run.digest) as bundle:
            step.detail = f"{bundle.manifest.name}, {bundle.manifest.method}"

    def _verified(self, step: Step) -> None:
        """Check hashes, signature, thresholds, input and memory."""
        path = self._services.store.path_of(self._run.digest)
        with self._services.store.open(self._run.digest) as bundle:
            manifest = bundle.manifest
            check_calibrated(manifest, self._view, path)
            self._bytes = _bytes_of(manifest)
            room = "" if self._run.stops else check_room(self._bytes)
            signed = "signed" if bundle.signature_bytes is not None else "not signed"
        seen = self._bundles.station.views[self._view.name].seen
        notes = notes_on(manifest, self._view, seen, allow_unlike=self._run.allow_unlike)
        unlike = (
            [f"NOTE: the images of this view are unlike those that it learned from: {'; '.join(notes)}"]
            if notes
            else []
        )
        step.detail = "; ".join(text for text in (f"hashes right, {signed}", room, *unlike) if text)

    def _warm(self, step: Step) -> Measure:
        measure = self._services.load(self._name, self._view, self._run.digest)
        step.detail = f"up to {manifest_of(measure).max_batch} images at once; thresholds revision {measure.revision}"
        return measure

    def _challenge(self, step: Step, measure: Measure) -> None:
        options, state = self._bundles.options, self._services.state
        parts = parts_of(options, self._view.name, state)
        if not parts:
            step.skip(f"no challenge parts in {challenge_folder(options, state)}")
            return
        with _server_there(measure):
            step.detail = run_challenge(parts, self._judge(measure), self._pause)

    def _shadow(self, step: Step, measure: Measure) -> None:
        run = self._run
        if not run.shadow:
            step.skip("not asked for")
            return

        def told(parts: int) -> None:
            step.detail = f"{parts} of {run.shadow} parts"

        shadow = Shadow(self._judge(measure), run.shadow)
        self._bundles.shadow = shadow
        try:
            with _server_there(measure):
                step.detail = shadow.run(self._pause, run.disagreements.append, told)
        finally:
            self._bundles.shadow = None

    def _judge(self, measure: Measure) -> View:
        return self._bundles.station.views[self._view.name].judged_by(measure)

    def _pause(self) -> None:
        """Let parts that are open go first, and end where nobody wants the swap any more."""
        self._run.check()
        for _ in range(10):
            if not self._bundles.station.counters.now().open:
                return
            self._wait.wait(_PAUSE_S / 10)


@contextlib.contextmanager
def _server_there(measure: Measure) -> Iterator[None]:
    """Tell a failure of the bundle from one of its server, which went away meanwhile."""
    try:
        yield
    except (ChallengeFailed, BundleError) as err:
        if measure.scoring.comes_back and measure.scoring.problem:
            raise DeviceError(measure.scoring.problem) from err
        raise


def _bytes_of(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files.values())
