"""Load a bundle, score images, decide. The file to read first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from flawscope.arrays import UInt8Array
from flawscope.bundle import Bundle, Manifest, open_bundle
from flawscope.diffusion.reconstruction import Reconstructed
from flawscope.diffusion.schedule import Sampling
from flawscope.errors import ArgumentError, BackendError, BundleError, DeviceError, FlawscopeError
from flawscope.imaging.images import check_image, prepare, read_image
from flawscope.imaging.tiles import MapBlender, Tiling
from flawscope.runtime.backends import choose_backend
from flawscope.runtime.decision import decide, find_boxes
from flawscope.runtime.device_arrays import CudaArray, DlpackArray, on_host
from flawscope.runtime.results import Box, Result
from flawscope.runtime.scorers.base import Reconstructor, ScorerOptions, open_scorer
from flawscope.runtime.scorers.golden import check_golden

Source = Path | str | npt.NDArray[np.uint8] | CudaArray | DlpackArray
"""An image: a file, or uint8 [H, W, 3] RGB of NumPy, on a CUDA device, or behind DLPack."""


class Inspector:
    """A bundle made ready on one backend. Close it, or use it in `with`.

    Attributes:
        bundle: The opened bundle.
        backend_reason: Why the backend was taken.
        precision: Precision of the graphs.
        thresholds: The thresholds in force, or None before calibration.
        scorer: What makes maps and scores; another one after a device was lost.
    """

    def __init__(self, bundle: Bundle, backend: str = "auto", path: str = "auto", precision: str = "fp32") -> None:
        if bundle.manifest.kind != "score":
            raise BundleError(
                f"{bundle.path}: expected a bundle that scores, got one that draws defects. Use flawscope synth "
                "generate."
            )
        choice = choose_backend(backend)
        self.bundle = bundle
        self.backend_reason = choice.reason
        self.precision = precision
        self.thresholds = self.manifest.thresholds_of(precision)
        self._options = ScorerOptions(choice.name, path, precision)
        self._lost = False
        try:
            self.scorer = open_scorer(bundle, self._options)
        except BackendError as err:
            if backend != "auto" or self.backend == "cpu":
                raise
            # Offered, but not working: the choice was left to us, so the CPU is taken, and said. The path is resolved
            # anew there: what `auto` means depends on the backend.
            self.backend_reason = f"auto: {err}"
            self._options = ScorerOptions("cpu", path, precision)
            self.scorer = open_scorer(bundle, self._options)
        try:
            check_golden(bundle, self.scorer, self._options)
        except BaseException:
            self.scorer.close()
            raise

    @classmethod
    def load(
        cls, bundle: Bundle | Path | str, backend: str = "auto", path: str = "auto", precision: str = "fp32"
    ) -> Inspector:
        """Open and verify a bundle and make it ready; its golden images must give their stored scores.

        Args:
            bundle: A bundle, or the path of one.
            backend: `auto`, `cpu`, `cuda` or `tensorrt`. What is asked for by name and not there is an error.
            path: `graph` runs `score.onnx`; `kernel` runs `features.onnx` and the kernels of `cpp_ext`; `auto` takes
                the faster of the two, see `PATHS`.
            precision: Precision of the graphs, one that the bundle has.

        Raises:
            ArgumentError: If backend or path is no known name, or the bundle lacks the precision.
            BundleError: If the bundle is broken or does not reproduce its golden scores.
            BackendError: If the backend is not there or cannot take the graph.
        """
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        try:
            return cls(opened, backend, path, precision)
        except BaseException:
            opened.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return self._options.backend

    @property
    def path(self) -> str:
        """`graph` or `kernel`, whichever was taken; `members` where each member of an ensemble takes its own."""
        return self.scorer.path

    @overload
    def __call__(self, image: Source) -> Result: ...

    @overload
    def __call__(self, image: list[Any] | tuple[Source, ...]) -> list[Result]: ...

    def __call__(self, image: Source | list[Any] | tuple[Source, ...]) -> Result | list[Result]:
        """Inspect one image, or several (a list, a tuple, or uint8 [N, H, W, 3]) in batches."""
        if isinstance(image, list | tuple):
            return list(self.stream(image, batch=self.manifest.max_batch))
        rows = _rows(image)
        return next(self.stream([image])) if rows is None else list(self.stream(rows, batch=self.manifest.max_batch))

    def stream(self, sources: Iterable[Source], batch: int = 1) -> Iterator[Result]:
        """Inspect images one batch after the other, results in order.

        An image that cannot be read, and a batch the device fails on, become `fault` results; the rest goes on.

        Args:
            sources: Files or arrays.
            batch: Images per inference, 1 to the bundle's `max_batch`.

        Raises:
            ArgumentError: If `batch` is out of range.
        """
        self.check_batch(batch)
        remaining = iter(sources)
        position = 0
        while group := list(islice(remaining, batch)):
            yield from self._inspect(group, position)
            position += len(group)

    def check_batch(self, batch: int) -> None:
        """Raise ArgumentError unless the bundle's graphs take `batch` images at once."""
        if not 1 <= batch <= self.manifest.max_batch:
            raise ArgumentError(f"batch: expected 1 to {self.manifest.max_batch}, got {batch}.")

    def infer(self, prepared: UInt8Array) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return anomaly maps float32 [N, H, W] and scores float32 [N] for prepared images uint8 [N, H, W, 3].

        After a device has failed the next call makes the session anew, once; a device that stays lost fails again.

        Raises:
            DeviceError: If the device fails.
        """
        if self._lost:
            self.scorer = open_scorer(self.bundle, self._options)
            self._lost = False
        try:
            return self.scorer.score(prepared)
        except DeviceError:
            self._lost = True
            self.scorer.close()
            raise

    def reconstruct(self, prepared: UInt8Array) -> Reconstructed:
        """Return the reconstructions and maps of prepared images uint8 [N, H, W, 3].

        Raises:
            ArgumentError: If the bundle's method does not reconstruct.
            DeviceError: If the device fails.
        """
        return self.check_reconstructs().reconstruct(prepared)

    def resample(self, sampling: Sampling) -> None:
        """Change the sampling of a reconstruction bundle from now on; its scores change too.

        Raises:
            ArgumentError: If the bundle's method does not reconstruct, or it has too little noise.
        """
        if self.scorer.reconstructor is None:
            raise ArgumentError(
                f"{self.bundle.path}: expected a bundle that reconstructs (ddad, dsad), got {self.manifest.method}."
            )
        self.scorer.reconstructor.resample(sampling)

    def check_reconstructs(self) -> Reconstructor:
        """Return what rebuilds images.

        Raises:
            ArgumentError: If the bundle's method does not reconstruct, or its images are cut into tiles.
        """
        reconstructor = self.scorer.reconstructor
        if reconstructor is None or self.manifest.tiling is not None:
            got = f"one of {self.manifest.method}" if self.manifest.tiling is None else "one that cuts them into tiles"
            raise ArgumentError(
                f"{self.bundle.path}: expected a bundle that reconstructs images as a whole (ddad, dsad), got {got}. "
                "Leave --pictures out."
            )
        return reconstructor

    def _inspect(self, group: Sequence[Source], position: int) -> Iterator[Result]:
        if self.manifest.tiling is not None:
            for index, source in enumerate(group):
                yield self._inspect_tiles(source, position + index, self.manifest.tiling)
            return
        loaded = [_load(source, position + i, self.manifest) for i, source in enumerate(group)]
        ready = [item for item in loaded if isinstance(item, _Loaded)]
        maps = scores = None
        failure = ""
        started = time.perf_counter()
        if ready:
            try:
                maps, scores = self.infer(np.stack([item.prepared for item in ready]))
            except Exception as err:
                failure = _fault_reason(err)
        share_ms = 1e3 * (time.perf_counter() - started) / max(len(ready), 1)
        index = 0
        for item in loaded:
            if not isinstance(item, _Loaded):
                yield item
                continue
            if maps is None or scores is None:
                yield Result(item.name, "fault", reason=failure)
                continue
            yield self._result(item, maps[index], float(scores[index]), share_ms)
            index += 1

    def _inspect_tiles(self, source: Source, position: int, tiling: Tiling) -> Result:
        """Inspect one image in tiles, a batch of them at a time: memory does not grow with their number."""
        loaded = _load(source, position, self.manifest)
        if not isinstance(loaded, _Loaded):
            return loaded
        image, most = loaded.prepared, self.manifest.max_batch
        blender = MapBlender(loaded.source_size, tiling)
        score = -np.inf
        started = time.perf_counter()
        try:
            corners = tiling.corners(*loaded.source_size)
            for start in range(0, len(corners), most):
                batch = corners[start : start + most]
                tiles = [prepare(tiling.cut(image, corner), self.manifest.input) for corner in batch]
                maps, scores = self.infer(np.stack(tiles))
                for corner, one in zip(batch, maps, strict=True):
                    blender.add(corner, one)
                score = float(np.maximum(score, scores.max()))  # keeps NaN, which is a fault
        except Exception as err:
            return Result(loaded.name, "fault", reason=_fault_reason(err))
        infer_ms = 1e3 * (time.perf_counter() - started)
        return self._result(loaded, blender.finish(), score, infer_ms)

    def _result(self, item: _Loaded, anomaly_map: npt.NDArray[np.float32], score: float, infer_ms: float) -> Result:
        started = time.perf_counter()
        decision, reason = decide(score, anomaly_map, self.thresholds)
        boxes: tuple[Box, ...] = ()
        if self.thresholds is not None and decision != "fault":
            boxes = find_boxes(
                anomaly_map,
                self.thresholds.pixel.value,
                self.manifest.min_area_px,
                self.manifest.map_spec,
                item.source_size,
            )
        timings = {**item.timings_ms, "infer": infer_ms, "decide": 1e3 * (time.perf_counter() - started)}
        return Result(
            image=item.name,
            decision=decision,
            score=score if np.isfinite(score) else None,
            threshold=None if self.thresholds is None else self.thresholds.image.value,
            reason=reason,
            anomaly_map=anomaly_map,
            boxes=boxes,
            timings_ms={**timings, "total": sum(timings.values())},
        )

    def close(self) -> None:
        """Release the scorer and the bundle."""
        self.scorer.close()
        self.bundle.close()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _fault_reason(err: Exception, prefix: str = "") -> str:
    """Return what a fault says of whatever went wrong with an image: it must neither stop the line nor pass as normal.

    Our own errors name the image themselves; a stranger's message is led in by `prefix`.
    """
    return str(err) if isinstance(err, FlawscopeError) else f"{prefix}unexpected {type(err).__name__}: {err}"


class _Loaded:
    """An image on its way: its name, prepared pixels, source size and timings."""

    def __init__(
        self, name: str, prepared: UInt8Array, source_size: tuple[int, int], timings: dict[str, float]
    ) -> None:
        self.name = name
        self.prepared = prepared
        self.source_size = source_size
        self.timings_ms = timings


def _rows(image: Any) -> list[Source] | None:
    """Return the images of an array [N, H, W, 3], or None if it is no such array."""
    shape: tuple[int, ...] = getattr(image, "shape", ())
    return [image[row] for row in range(shape[0])] if len(shape) == 4 else None


def _load(source: Source, position: int, manifest: Manifest) -> _Loaded | Result:
    name = str(source) if isinstance(source, Path | str) else f"image {position}"
    started = time.perf_counter()
    try:
        image = read_image(Path(source)) if isinstance(source, Path | str) else check_image(on_host(source, name), name)
        read = time.perf_counter()
        prepared = prepare(image, manifest.input) if manifest.tiling is None else image  # tiles are prepared one by one
    except Exception as err:
        return Result(name, "fault", reason=_fault_reason(err, f"{name}: "))
    done = time.perf_counter()
    timings = {"read": 1e3 * (read - started), "prepare": 1e3 * (done - read)}
    return _Loaded(name, prepared, (image.shape[0], image.shape[1]), timings)
