"""Load a bundle, score images, decide. The file to read first.

An image passes three stages: it is read and prepared (`_load`), scored by the scorer of the bundle's method (`infer`),
and judged by region, zones and thresholds (`flawscope.runtime.judge`), which gives the `Result`. One rule holds in
every stage: whatever goes wrong with an image is a `fault`, never an `accept`, and the images after it are still
inspected.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Bundle, InForce, Manifest, Thresholds, thresholds_in_force, trusted_bundle
from flawscope.diffusion.reconstruction import Reconstructed
from flawscope.diffusion.schedule import Sampling
from flawscope.errors import ArgumentError, BundleError, FlawscopeError
from flawscope.imaging.images import grey_as_rgb, prepare
from flawscope.imaging.learned_images import differences, look_of
from flawscope.imaging.tiles import MapBlender, Tiling
from flawscope.runtime.backends import Cores, OpenSession, check_cores, open_session
from flawscope.runtime.backends.choice import choose_for_bundle
from flawscope.runtime.image_sources import (
    Color,
    Source,
    check_color,
    in_groups,
    name_of,
    read_source_image,
    split_batch,
)
from flawscope.runtime.inspected_region import InspectedRegion
from flawscope.runtime.judge import Judge, LoadedImage
from flawscope.runtime.reading_ahead import load_ahead
from flawscope.runtime.ready_scorer import ReadyScorer
from flawscope.runtime.results import Result, fault_reason
from flawscope.runtime.scorers.scorer import Reconstructor, Scorer, ScorerOptions
from flawscope.time_limit import load_limit

_MOST_AHEAD = 64
"""Batches that are read ahead: more would only fill the memory."""

UNLIKE = "unlike the images that the bundle learned from"
"""How the reason begins of an image that is a fault for what it looks like, with `strict`."""


class Inspector:
    """A bundle made ready on one backend. Close it, or use it in `with`.

    Args:
        bundle: The opened bundle.
        is_candidate: The bundle is being made and may have no golden images yet; no overlay is looked for.

    All other arguments are those of `load`.

    Attributes:
        bundle: The opened bundle.
        precision: Precision of the graphs.
        thresholds: The thresholds in force for this precision and product, or None before calibration.
        in_force: Those of all products with their revision and where they come from.
        product: As in `load`.
    """

    # `inspector.threshold = 500` sets nothing, so it is an error.
    __slots__ = ("_is_closed", "_judge", "_ready", "_strict", "bundle", "precision")

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
        self._judge = Judge(bundle.manifest, in_force, product, bundle.path)
        cores = Cores(threads, streams)
        choice = choose_for_bundle(backend, bundle.manifest, precision, cores)
        check_cores(choice.name, cores)
        self.precision = precision
        self._is_closed = False
        self._strict = strict
        self._ready = ReadyScorer(
            bundle,
            ScorerOptions(choice.name, path, precision, open_session, cores),
            choice,
            limit_s=load_limit(timeout_s),
        )

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
        try:
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
        except BaseException as err:
            opened.close()
            if isinstance(err, FlawscopeError) or not isinstance(err, Exception):
                raise
            # A bundle can be whole and still hold numbers that nobody foresaw.
            raise BundleError(
                f"{opened.path}: could not be made ready: unexpected {type(err).__name__}: {err}. Export it again."
            ) from err

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
        """The thresholds by which it decides, None before calibration. They cannot be set: see `bundle threshold`."""
        return self.thresholds_for(None)

    def thresholds_for(self, product: str | None) -> Thresholds | None:
        """Return the thresholds of a product; for None those of the product it was loaded for, or the common ones.

        Raises:
            ArgumentError: If the bundle has no thresholds of this product.
        """
        return self._judge.thresholds_for(product)

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
    def __call__(self, image: Source, *, color: Color = "rgb", product: str | None = None) -> Result: ...

    @overload
    def __call__(
        self, image: list[Any] | tuple[Source, ...], *, color: Color = "rgb", product: str | None = None
    ) -> list[Result]: ...

    def __call__(
        self, image: Source | list[Any] | tuple[Source, ...], *, color: Color = "rgb", product: str | None = None
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
        sources: Iterable[Source],
        batch: int = 1,
        color: Color = "rgb",
        product: str | None = None,
        *,
        ahead: int = 0,
    ) -> Iterator[Result]:
        """Inspect images batch by batch; results come in the order of the sources.

        An image that cannot be read, and every image of a batch on which the device fails, is a `fault`; the stream
        goes on. Sources are taken as they are needed, so an endless iterable (a camera) is fine.

        Results are the same whatever `ahead` is; only their times are longer where both need the same cores.

        Args:
            sources: Files, their bytes, images of Pillow, or arrays; see `Source`.
            batch: Images per inference, 1 to the bundle's `max_batch`.
            color: Order of the channels of arrays: `rgb`, or `bgr` as OpenCV reads them.
            product: The product that they show; None for that of `load`, or the common thresholds.
            ahead: Batches that a thread reads and prepares while those before are inspected, 0 to 64. For files: their
                sources are taken that much earlier, so a camera's newest image would wait for the next ones, and an
                array must not change before its result is there.

        Raises:
            ArgumentError: If `batch`, `color` or `ahead` is out of range, or the bundle has no thresholds of the
                product.
        """
        self.check_batch(batch)
        if not isinstance(ahead, int) or not 0 <= ahead <= _MOST_AHEAD:
            raise ArgumentError(f"ahead: expected 0 to {_MOST_AHEAD} batches, got {ahead!r}.")
        check_color(color)
        self.thresholds_for(product)
        if isinstance(sources, str | bytes | Path):
            raise ArgumentError(f"sources: expected several images, got {type(sources).__name__}. Pass a list of them.")
        tiling = self.manifest.tiling
        # Tiles of one image fill the batch by themselves, so images are taken one at a time.
        groups = in_groups(sources, batch if tiling is None else 1)

        def load(group: list[tuple[int, Source]]) -> list[LoadedImage | Result]:
            return [self._load(source, position, color, product) for position, source in group]

        with contextlib.closing(load_ahead(groups, load, ahead)) as loaded_groups:
            for loaded in loaded_groups:
                if tiling is None:
                    yield from self._inspect_batch(loaded)
                else:
                    yield self._inspect_tiles(loaded[0], tiling)

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
                "Leave --pictures out."
            )
        return reconstructor

    def _inspect_batch(self, loaded: Sequence[LoadedImage | Result]) -> Iterator[Result]:
        """Inspect images in one inference; those that could not be read leave the batch and keep their place."""
        ready = [image for image in loaded if isinstance(image, LoadedImage)]
        maps = scores = None
        failure = ""
        started = time.perf_counter()
        if ready:  # np.stack refuses an empty list
            try:
                # A single image is not copied.
                one = ready[0].prepared[None]
                maps, scores = self.infer(one if len(ready) == 1 else np.stack([image.prepared for image in ready]))
            except Exception as err:  # not only DeviceError: see `fault_reason`
                failure = fault_reason(err)
        share_ms = 1e3 * (time.perf_counter() - started) / max(len(ready), 1)
        row = 0  # row of the batch, which counts only the images that were read
        for image in loaded:
            if isinstance(image, Result):
                yield image
                continue
            if maps is None or scores is None:
                yield Result(image.name, "fault", reason=failure, notes=image.notes)
                continue
            yield self._judge.judge(image, maps[row], float(scores[row]), share_ms)
            row += 1

    def _inspect_tiles(self, loaded: LoadedImage | Result, tiling: Tiling) -> Result:
        """Inspect one image in tiles, a batch of tiles at a time, so that memory does not grow with their number."""
        if isinstance(loaded, Result):
            return loaded
        image, max_batch = loaded.prepared, self.manifest.max_batch
        blender = MapBlender(loaded.source_size, tiling)
        score = -np.inf  # below every score: the image's score is that of its worst tile
        started = time.perf_counter()
        try:
            corners = tiling.corners(*loaded.source_size)
            for start in range(0, len(corners), max_batch):
                batch = corners[start : start + max_batch]
                tiles = [prepare(tiling.cut(image, corner), self.manifest.input) for corner in batch]
                maps, scores = self.infer(np.stack(tiles))
                for corner, tile_map in zip(batch, maps, strict=True):
                    blender.add(corner, tile_map)
                # Not Python's max(), which drops NaN: a tile without a valid score must make the image a fault.
                score = float(np.maximum(score, scores.max()))
        except Exception as err:
            return Result(loaded.name, "fault", reason=fault_reason(err), notes=loaded.notes)
        infer_ms = 1e3 * (time.perf_counter() - started)
        return self._judge.judge(loaded, blender.finish(), score, infer_ms)

    def _load(self, source: Source, position: int, color: Color, product: str | None) -> LoadedImage | Result:
        """Return an image read and prepared, or the fault that says why it cannot be."""
        name, manifest = name_of(source, position), self.manifest
        notes: tuple[str, ...] = ()
        started = time.perf_counter()
        try:
            image, bits = read_source_image(source, name, color, manifest.input.bits)
            read_at = time.perf_counter()
            if manifest.learned is not None:
                notes = differences(look_of(image, bits), manifest.learned)
                if notes and self._strict:
                    reason = f"{UNLIKE}: {'; '.join(notes)}"
                    return Result(name, "fault", reason=reason, notes=notes)
            shift = None if self.region is None else self.region.shift_of(image)
            # Tiles are cut from the pixels of the source and prepared one by one.
            prepared = prepare(image, manifest.input) if manifest.tiling is None else grey_as_rgb(image)
        except Exception as err:
            return Result(name, "fault", reason=fault_reason(err, f"{name}: "), notes=notes)
        timings = {"read": 1e3 * (read_at - started), "prepare": 1e3 * (time.perf_counter() - read_at)}
        return LoadedImage(name, prepared, (image.shape[0], image.shape[1]), timings, notes, shift, product)

    def deciding_by(self, in_force: InForce) -> Inspector:
        """Return one of other thresholds that shares this one's scorer and is closed with it. Raises as `Judge`."""
        other = copy.copy(self)
        other._judge = Judge(self.manifest, in_force, self.product, self.bundle.path)
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
        self._ready.close()
        self.bundle.close()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
