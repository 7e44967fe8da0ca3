"""Load a bundle, score images, decide. The file to read first.

An image passes three stages: it is read and prepared (`flawscope.runtime.image_loading`), scored by the scorer of the
bundle's method (`infer`), and judged by region, zones and thresholds (`flawscope.runtime.judge`), which gives the
`Result`; `flawscope.runtime.image_stages` joins them. One rule holds in every stage: whatever goes wrong with an image
is a `fault`, never an `accept`, and the images after it are still inspected.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, overload

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Bundle, InForce, Manifest, Thresholds, thresholds_in_force, trusted_bundle
from flawscope.bundle.opening import made_ready
from flawscope.bundle.threshold_overlay import thresholds_set
from flawscope.diffusion.reconstruction import Reconstructed
from flawscope.diffusion.schedule import Sampling
from flawscope.errors import ArgumentError, BundleError
from flawscope.runtime.backends import Cores, OpenSession, check_cores, open_session
from flawscope.runtime.backends.choice import Choice, choose_for_bundle
from flawscope.runtime.frame import Frame, as_seen
from flawscope.runtime.image_loading import ImageLoader
from flawscope.runtime.image_sources import Color, Source, as_several, check_color, in_groups, split_batch
from flawscope.runtime.image_stages import ImageStages, check_taken_early
from flawscope.runtime.inspected_region import InspectedRegion
from flawscope.runtime.judge import Judge
from flawscope.runtime.origin import Origin
from flawscope.runtime.ready_scorer import ReadyScorer
from flawscope.runtime.results import Result, fault_of
from flawscope.runtime.scorers.scorer import Reconstructor, Scorer, ScorerOptions
from flawscope.runtime.submitted import Submissions
from flawscope.time_limit import load_limit


class Inspector:
    """A bundle made ready on one backend. Close it, or use it in `with`.

    Args:
        bundle: The opened bundle.
        is_candidate: The bundle is being made and may have no golden images yet; no overlay is looked for.
        choice: The backend that was chosen already; None chooses it by `backend`.
        may_be_away: Whether an inference server that is away is no error: images are faults until it is there.

    All other arguments are those of `load`.

    Attributes:
        bundle: The opened bundle.
        precision: Precision of the graphs.
        thresholds: The thresholds in force for this precision and product, or None before calibration.
        in_force: Those of all products with their revision and where they come from.
        product: As in `load`.
    """

    # `inspector.threshold = 500` sets nothing, so it is an error.
    __slots__ = ("_for_submitted", "_is_closed", "_judge", "_loader", "_ready", "_submitted", "bundle", "precision")

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "auto",
        path: str = "auto",
        precision: str = "fp32",
        *,
        strict: bool = False,
        is_candidate: bool = False,
        timeout_s: float | None = None,
        threshold_overlay: Path | str | None = None,
        use_overlay: bool = True,
        product: str | None = None,
        threads: int | None = None,
        streams: int | None = None,
        open_session: OpenSession = open_session,
        choice: Choice | None = None,
        may_be_away: bool = False,
    ) -> None:
        if bundle.manifest.kind != "score":
            raise BundleError(
                f"{bundle.path}: expected a bundle that scores, got one that draws defects. Use flawscope synth "
                "generate."
            )
        if not (is_candidate or bundle.manifest.golden_of(precision)):
            raise BundleError(f"{bundle.path}: expected golden images for {precision}, got none. Export it again.")
        in_force = thresholds_in_force(
            bundle.path,
            bundle.manifest,
            precision,
            threshold_overlay=threshold_overlay,
            use_overlay=use_overlay and not is_candidate,
        )
        self.bundle = bundle
        judge = Judge(bundle.manifest, in_force, product, bundle.path)
        cores = Cores(threads, streams)
        choice = choice or choose_for_bundle(backend, bundle.manifest, precision, cores)
        check_cores(choice.name, cores)
        self.precision = precision
        self._is_closed = False
        self._loader = ImageLoader(bundle.manifest, strict=strict)
        self._ready = ReadyScorer(
            bundle,
            ScorerOptions(choice.name, path, precision, open_session, cores),
            choice,
            limit_s=load_limit(timeout_s),
            may_be_away=may_be_away,
        )
        self._judge = self._with_origin(judge)
        self._submitted = Submissions(self._ready, bundle.manifest.input.size, str(bundle.path))
        self._for_submitted: Inspector | None = None

    def _with_origin(self, judge: Judge) -> Judge:
        where, backend = self.bundle.path, self.backend
        judge.origin = Origin(self.manifest, judge.in_force, judge.product, where, self.precision, backend)
        return judge

    @classmethod
    def load(
        cls,
        bundle: Bundle | Path | str,
        backend: str = "auto",
        path: str = "auto",
        precision: str = "fp32",
        *,
        strict: bool = False,
        timeout_s: float | None = None,
        trusted_keys: Path | str | None = None,
        threshold_overlay: Path | str | None = None,
        use_overlay: bool = True,
        product: str | None = None,
        threads: int | None = None,
        streams: int | None = None,
        open_session: OpenSession = open_session,
    ) -> Inspector:
        """Open and verify a bundle and make it ready; its golden images must reproduce their stored scores.

        Args:
            bundle: A bundle, which the inspector then owns and closes, or the path of one.
            backend: `auto`, `cpu`, `cuda`, `tensorrt` or `openvino` (also `openvino:gpu`, `openvino:npu`). A
                backend that is named but not available is an error. `auto` takes CUDA where it is there, else of those
                that the bundle's thresholds and gates allow the one that is measured to be faster; `backend_reason`
                says why. `FLAWSCOPE_AUTO` limits it.
            path: `graph` runs `score.onnx`; `kernel` runs `features.onnx` and the kernels of `cpp_ext`; `auto` takes
                the faster of the two, see `PATHS`.
            precision: Precision of the graphs, one that the bundle has.
            strict: An image unlike all those that the bundle learned from (size, shape, colours, bits, brightness) is
                a fault; otherwise the difference is a note of its result.
            timeout_s: Seconds until it must be ready, without the building of engines; 0 for no limit. None takes
                `FLAWSCOPE_LOAD_TIMEOUT`, or 300. The same holds when a device that failed is opened again.
            trusted_keys: File or folder of public keys, in place of those that are set on this machine: a bundle that
                none of them signed is refused.
            threshold_overlay: Threshold overlay in place of the one beside the bundle (`NAME.flaw.thresholds.json`).
            use_overlay: Whether an overlay counts; False decides by the bundle's own thresholds.
            product: Product whose own thresholds hold, of a bundle that has them by product; None for the common ones.
            threads: Threads of graph and kernels, for the backends `cpu` and `openvino`; None for all cores that the
                process may use. `flawscope bench --find-settings` measures which number is best.
            streams: Images of a batch that `openvino` infers at once, each on its part of the threads; None lets it
                choose.
            open_session: Opens the sessions of its graphs; a `Router` gives that of its pool.

        Raises:
            ArgumentError: If backend or path is unknown, the bundle lacks the precision or thresholds of the product,
                the backend has no such threads or streams, or trusted keys are set and cannot be used.
            BundleError: If the bundle is broken, does not reproduce its golden scores, or is not signed by a trusted
                key where there are any; if its overlay is broken, of another bundle, or outside of its limits.
            BackendError: If the backend is not available or cannot run the graph.
            LoadTimeout: If it is not ready in time. The thread that loads it cannot be ended and is left behind.
        """
        opened = trusted_bundle(bundle, trusted_keys)
        with made_ready(opened):
            return cls(
                opened,
                backend,
                path,
                precision,
                strict=strict,
                timeout_s=timeout_s,
                threshold_overlay=threshold_overlay,
                use_overlay=use_overlay,
                product=product,
                threads=threads,
                streams=streams,
                open_session=open_session,
            )

    @property
    def in_force(self) -> InForce:
        """The thresholds by which it decides, and where they come from."""
        return self._judge.in_force

    @property
    def product(self) -> str | None:
        """The product whose thresholds hold; None for the common ones."""
        return self._judge.product

    @property
    def thresholds(self) -> Thresholds | None:
        """The thresholds by which it decides, None before calibration; see `set_thresholds`."""
        return self.thresholds_for(None)

    def thresholds_for(self, product: str | None) -> Thresholds | None:
        """Return the thresholds of a product; for None those of the product it was loaded for, or the common ones.

        Raises:
            ArgumentError: If the bundle has no thresholds of this product.
        """
        return self._judge.thresholds_for(product)

    def set_thresholds(
        self, image: float | None = None, pixel: float | None = None, *, min_area_px: int | None = None
    ) -> None:
        """Decide by other thresholds from the next image that is judged on, in this inspector alone.

        They must lie within the limits of the manifest, as those of a threshold overlay must. Nothing is written: the
        bundle and its overlay stay, `flawscope bundle threshold` makes a change that lasts. No bound on false rejects
        holds for them. Results state the threshold, that a program set it (`threshold_source`), and no revision.

        Args:
            image: Threshold on the score; None keeps the one in force, as for the others.
            pixel: Threshold on the pixels of the anomaly map.
            min_area_px: Smallest region that gets a box, in pixels of the map.

        Raises:
            ArgumentError: If nothing is given, a value is no number or outside of the limits; the bundle has no
                thresholds, states no limits, or has zones; or the inspector decides by the thresholds of a product.
        """
        in_force = thresholds_set(
            self.bundle.path,
            self.manifest,
            self.precision,
            self.in_force,
            image=image,
            pixel=pixel,
            min_area_px=min_area_px,
        )
        self._judge = self._with_origin(Judge(self.manifest, in_force, self.product, self.bundle.path))

    @property
    def region(self) -> InspectedRegion | None:
        """The bundle's region of interest, or None where all of an image counts."""
        return self._judge.region

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return self._ready.options.backend

    @property
    def cores(self) -> Cores:
        """Threads and streams that were set."""
        return self._ready.options.cores

    @property
    def backend_reason(self) -> str:
        """Why this backend is used."""
        return self._ready.reason

    @property
    def scorer(self) -> Scorer:
        """Computes maps and scores; another one after the device failed."""
        return self._ready.scorer

    @property
    def device_failed(self) -> bool:
        """Whether the device failed at the last inference; the next one opens it again first."""
        return self._ready.device_failed

    @property
    def asked_path(self) -> str:
        """The path that was asked for, perhaps `auto`."""
        return self._ready.options.path

    @property
    def path(self) -> str:
        """`graph` or `kernel`, whichever is in use; `members` where each member of an ensemble chooses its own."""
        return self.scorer.path

    @overload
    def __call__(self, image: Source | Frame, *, color: Color = "rgb", product: str | None = None) -> Result: ...

    @overload
    def __call__(
        self, image: list[Any] | tuple[Source | Frame, ...], *, color: Color = "rgb", product: str | None = None
    ) -> list[Result]: ...

    def __call__(
        self,
        image: Source | Frame | list[Any] | tuple[Source | Frame, ...],
        *,
        color: Color = "rgb",
        product: str | None = None,
    ) -> Result | list[Result]:
        """Inspect one image, or several (a list, a tuple, or an array [N, H, W, 3]) in batches; see `stream`."""
        if isinstance(image, list | tuple):
            return list(self.stream(image, self.manifest.max_batch, color, product))
        images = split_batch(image)
        # `is None` and not falsy: an array [0, H, W, 3] is a batch of no images, not one broken image.
        if images is None:
            return next(self.stream([image], 1, color, product))
        return list(self.stream(images, self.manifest.max_batch, color, product))

    def stream(
        self,
        sources: Iterable[Source | Frame],
        batch: int = 1,
        color: Color = "rgb",
        product: str | None = None,
        *,
        ahead: int = 0,
        in_flight: int = 1,
    ) -> Iterator[Result]:
        """Inspect images batch by batch; results come in the order of the sources.

        An image that cannot be read, and every image of a batch on which the device fails, is a `fault`; the stream
        goes on. Sources are taken as they are needed, so an endless iterable (a camera) is fine.

        Results are the same whatever `ahead` and `in_flight` are; only times are longer where all need the same cores.

        Args:
            sources: Files, their bytes, images of Pillow, or arrays (see `Source`), or a `Frame` around one.
            batch: Images per inference, 1 to the bundle's `max_batch`.
            color: Order of the channels of arrays: `rgb`, or `bgr` as OpenCV reads them.
            product: The product that they show; None for that of `load`, or the common thresholds.
            ahead: Batches that a thread reads and prepares while those before are inspected, 0 to 64. For files: their
                sources are taken that much earlier, so a camera's newest image would wait for the next ones, and an
                array must not change before its result is there.
            in_flight: Batches that are inferred at once, 1 to 64; more than one on the backend `triton` alone, whose
                server takes several requests. Their sources are taken that much earlier, as with `ahead`.

        Raises:
            ArgumentError: If `batch`, `color`, `ahead` or `in_flight` is out of range, `sources` is one image, or the
                bundle has no thresholds of the product.
        """
        self.check_batch(batch)
        check_taken_early(ahead, in_flight, self.backend)
        check_color(color)
        self.thresholds_for(product)
        # Tiles of one image fill the batch by themselves, so images are taken one at a time.
        groups = in_groups(as_several(sources), batch if self.manifest.tiling is None else 1)
        yield from self._inspect(groups, color, product, ahead, in_flight)

    def _inspect(
        self,
        groups: Iterable[list[tuple[int, Source | Frame]]],
        color: Color,
        product: str | None,
        ahead: int = 0,
        in_flight: int = 1,
    ) -> Iterator[Result]:
        """Return the results of groups of images, each with its position."""
        stages = ImageStages(self.manifest, self._loader, self.infer, lambda: self._judge, in_flight)
        return stages.run(groups, color, product, ahead)

    def submit(
        self, image: Source | Frame, *, color: Color = "rgb", product: str | None = None, most_pending: int = 8
    ) -> Future[Result]:
        """Hand over an image to be inspected by a thread of this inspector; any thread may, at any time.

        Images are inspected one after the other, in their order, by the thresholds that were in force when they came.
        Whatever goes wrong with one is a fault, also where the inspector is closed before its turn. An array must not
        change before its result is there. `asyncio.wrap_future` makes the result awaitable.

        Args:
            image: The image, or a `Frame` around it.
            color: Order of the channels of an array.
            product: The product that it shows, as in `stream`.
            most_pending: Most images without a result, this one included.

        Returns:
            The result to come. `cancel` leaves out an image whose turn has not come. What `add_done_callback` adds is
            called by the thread that inspects, and holds up the next image.

        Raises:
            ArgumentError: If `color`, `product` or `most_pending` is wrong.
            BundleError: If the inspector was closed.
            QueueFull: If `most_pending` images have no result yet: this one is not taken.
        """
        self._check_open()
        check_color(color)
        self.thresholds_for(product)
        deciding = self._for_submitted
        if deciding is None or deciding.in_force is not self.in_force:
            deciding = self._for_submitted = self.deciding_by(self.in_force)
        number = self._submitted.next_number()
        source, seen = as_seen(image, number)
        inspect = partial(deciding._one, Frame(source, seen.id, seen.time), number, color, product)
        fault = partial(fault_of, seen, origin=deciding._judge.origin)
        return self._submitted.submit(inspect, fault, most_pending)

    def _one(self, frame: Frame, position: int, color: Color, product: str | None) -> Result:
        return next(self._inspect([[(position, frame)]], color, product))

    def check_batch(self, batch: int) -> None:
        """Raise ArgumentError unless the bundle's graphs take `batch` images at once."""
        if not isinstance(batch, int) or not 1 <= batch <= self.manifest.max_batch:
            raise ArgumentError(f"batch: expected 1 to {self.manifest.max_batch}, got {batch}.")

    def infer(self, prepared: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return anomaly maps float32 [N, H, W] and scores float32 [N] for prepared images uint8 [N, H, W, 3].

        After the device failed, the next call opens the scorer again, once; a device that stays lost fails again. The
        new scorer comes from the memory that the first one came from, and must reproduce the golden scores too.

        Raises:
            BundleError: If the inspector was closed; a reopened device computes something else; or maps or scores do
                not have the shape and type that the bundle promises.
            DeviceError: If the device fails.
        """
        self._check_open()
        return self._ready.score(prepared)

    def _check_open(self) -> None:
        if self._is_closed:
            raise BundleError(f"{self.bundle.path}: the inspector was closed. Load the bundle again.")

    def reconstruct(self, prepared: UInt8Array) -> Reconstructed:
        """Return the reconstructions and maps of prepared images uint8 [N, H, W, 3].

        Raises:
            ArgumentError: If the bundle's method does not reconstruct.
            BundleError: If the inspector was closed.
            DeviceError: If the device fails.
        """
        return self.check_reconstructs().reconstruct(prepared)

    def resample(self, sampling: Sampling) -> None:
        """Use another sampling in a reconstruction bundle from now on; its scores change too.

        Raises:
            ArgumentError: If the bundle's method does not reconstruct, or the bundle has too little noise.
        """
        if self.scorer.reconstructor is None:
            raise ArgumentError(
                f"{self.bundle.path}: expected a bundle that reconstructs (ddad, dsad), got {self.manifest.method}."
            )
        self._ready.resample(sampling)

    def check_reconstructs(self) -> Reconstructor:
        """Return the scorer's reconstructor.

        Raises:
            ArgumentError: If the bundle's method does not reconstruct, or its images are cut into tiles.
            BundleError: If the inspector was closed.
        """
        self._check_open()
        reconstructor = self.scorer.reconstructor
        if reconstructor is None or self.manifest.tiling is not None:
            got = f"one of {self.manifest.method}" if self.manifest.tiling is None else "one that cuts them into tiles"
            raise ArgumentError(
                f"{self.bundle.path}: expected a bundle that reconstructs images as a whole (ddad, dsad), got {got}. "
                "Leave --reconstructions out."
            )
        return reconstructor

    def deciding_by(self, in_force: InForce) -> Inspector:
        """Return one of other thresholds that shares this one's scorer and is closed with it. Raises as `Judge`."""
        other = copy.copy(self)
        other._judge = self._with_origin(Judge(self.manifest, in_force, self.product, self.bundle.path))
        other._for_submitted = None
        return other

    def pixel_thresholds(self, anomaly_map: Float32Array, product: str | None = None) -> float | Float32Array:
        """Return the threshold on the pixels of a map float32 [H, W]; with zones one for each, float32 [H, W].

        Args:
            anomaly_map: The map.
            product: The product that it shows; None for that of `load`, or the common thresholds.

        Raises:
            ArgumentError: If the bundle has no thresholds of this product.
            BundleError: If there are no thresholds.
        """
        return self._judge.pixel_thresholds(anomaly_map, product)

    def close(self) -> None:
        """Release the scorer and the bundle; every image after that is a fault. Closing twice is harmless."""
        self._is_closed = True
        # An engine that hangs stays with the thread that hangs in it; the file of the bundle need not.
        if self._submitted.close():
            self._ready.close()
        self.bundle.close()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
