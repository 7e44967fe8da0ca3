"""Load a bundle, score pictures, decide. The file to read first."""

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
from flawscope.bundle import (
    Bundle,
    DdadHead,
    DsadHead,
    EnsembleHead,
    EnsembleMember,
    Manifest,
    PadimHead,
    PatchcoreHead,
    open_bundle,
)
from flawscope.cpp_ext import HAVE_NATIVE
from flawscope.diffusion.reconstruction import Reconstructed
from flawscope.diffusion.schedule import Sampling
from flawscope.errors import ArgumentError, BackendError, BundleError, DeviceError, FlawscopeError
from flawscope.imaging.images import check_image, prepare, read_image
from flawscope.imaging.tiles import MapBlender, Tiling
from flawscope.runtime.backends import Session, choose_backend, open_session
from flawscope.runtime.decision import decide, find_boxes
from flawscope.runtime.device_arrays import CudaArray, DlpackArray, on_host
from flawscope.runtime.results import Box, Result
from flawscope.runtime.scorers.bank_scorer import build_head, distance_scale
from flawscope.runtime.scorers.ensemble_scorer import EnsembleSession
from flawscope.runtime.scorers.reconstruction_scorer import ReconstructionSession

Source = Path | str | npt.NDArray[np.uint8] | CudaArray | DlpackArray
"""A picture: a file, or uint8 [H, W, 3] RGB of NumPy, on a CUDA device, or behind DLPack."""

PATHS = ("auto", "graph", "kernel")
"""How a map is made: by `score.onnx` alone, or by `features.onnx` and the kernels of `cpp_ext`; `auto` takes the
kernels where the bundle has features, the kernels are native and the backend is the CPU, and the graph elsewhere."""

MEMBERS = "members"
"""What `auto` is for an ensemble: every member takes the path that it would take alone."""

GOLDEN_TOLERANCE = 1e-3
"""Largest relative difference of a golden image's score and map maximum at load: far above float32 noise between
processors, far below what a wrong resize or colour order does."""

DEVICE_TOLERANCES = {"fp32": GOLDEN_TOLERANCE, "fp16": 1e-2, "int8": 3e-2}
"""The same on a device, by precision: golden scores are those of the CPU, where sums of FP16 and INT8 are wider."""

ZERO_SHARE = 1e-2
"""Share of an ordinary distance below which a score counts as zero: errors are then relative to that share, because a
distance to a row that is (almost) the patch itself is rounding alone."""


class Inspector:
    """A bundle made ready on one backend. Close it, or use it in `with`.

    Attributes:
        bundle: The opened bundle.
        backend: Name of the backend in use.
        backend_reason: Why it was taken.
        path: `graph` or `kernel`, whichever was taken; `members` where each member of an ensemble takes its own.
        precision: Precision of the graphs.
        thresholds: The thresholds in force, or None before calibration.
    """

    def __init__(self, bundle: Bundle, backend: str = "auto", path: str = "auto", precision: str = "fp32") -> None:
        if path not in PATHS and path != MEMBERS:
            raise ArgumentError(f"path: expected one of {', '.join(PATHS)}, got {path!r}.")
        if bundle.manifest.kind != "score":
            raise BundleError(
                f"{bundle.path}: expected a bundle that scores, got one that draws defects. Use flawscope synth "
                "generate."
            )
        choice = choose_backend(backend)
        self.bundle = bundle
        self.backend = choice.name
        self.backend_reason = choice.reason
        self.path = _resolve_path(path, choice.name, bundle.manifest)
        self.precision = precision
        self.thresholds = self.manifest.thresholds_of(precision)
        tensors = bundle.tensors()  # also for the graph, which reads the same file: refuses NaN and an empty bank
        self._lost = False
        try:
            self._session = self._open()
        except BackendError as err:
            if backend != "auto" or self.backend == "cpu":
                raise
            # Offered, but not working: the choice was left to us, so the CPU is taken, and said.
            self.backend, self.backend_reason = "cpu", f"auto: {err}"
            self._session = self._open()
        has_maps = "anomaly_map" in self._session.outputs
        self._head = None if has_maps else build_head(self.manifest.head, tensors, self.manifest.input.size)
        # In an ensemble 0 is where good pictures lie: differences there are those of the terms, not small at all.
        share = 1.0 if isinstance(self.manifest.head, EnsembleHead) else ZERO_SHARE
        self._check_golden(share * distance_scale(self.manifest.head, tensors))

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

    @overload
    def __call__(self, image: Source) -> Result: ...

    @overload
    def __call__(self, image: list[Any] | tuple[Source, ...]) -> list[Result]: ...

    def __call__(self, image: Source | list[Any] | tuple[Source, ...]) -> Result | list[Result]:
        """Inspect one picture, or several (a list, a tuple, or uint8 [N, H, W, 3]) in batches."""
        if isinstance(image, list | tuple):
            return list(self.stream(image, batch=self.manifest.max_batch))
        rows = _rows(image)
        return next(self.stream([image])) if rows is None else list(self.stream(rows, batch=self.manifest.max_batch))

    def stream(self, sources: Iterable[Source], batch: int = 1) -> Iterator[Result]:
        """Inspect pictures one batch after the other, results in order.

        A picture that cannot be read, and a batch the device fails on, become `fault` results; the rest goes on.

        Args:
            sources: Files or arrays.
            batch: Pictures per inference, 1 to the bundle's `max_batch`.

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
        """Raise ArgumentError unless the bundle's graphs take `batch` pictures at once."""
        if not 1 <= batch <= self.manifest.max_batch:
            raise ArgumentError(f"batch: expected 1 to {self.manifest.max_batch}, got {batch}.")

    def infer(self, prepared: UInt8Array) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return anomaly maps float32 [N, H, W] and scores float32 [N] for prepared pictures uint8 [N, H, W, 3].

        After a device has failed the next call makes the session anew, once; a device that stays lost fails again.

        Raises:
            DeviceError: If the device fails.
        """
        if self._lost:
            self._session = self._open()
            self._lost = False
        try:
            outputs = self._session.infer(prepared)
        except DeviceError:
            self._lost = True
            self._session.close()
            raise
        if self._head is not None:
            return self._head(outputs["patches"])
        return outputs["anomaly_map"], outputs["score"]

    def reconstruct(self, prepared: UInt8Array) -> Reconstructed:
        """Return what a bundle that reconstructs makes of prepared pictures uint8 [N, H, W, 3], pictures and maps.

        Raises:
            ArgumentError: If the bundle's method does not reconstruct.
            DeviceError: If the device fails.
        """
        return self.check_reconstructs().reconstruct(prepared)

    def resample(self, sampling: Sampling) -> None:
        """Let a bundle that reconstructs do it in another way from now on; scores are then others.

        Raises:
            ArgumentError: If the bundle's method does not reconstruct, or it has too little noise.
        """
        if not isinstance(self._session, ReconstructionSession):
            raise ArgumentError(
                f"{self.bundle.path}: expected a bundle that reconstructs (ddad, dsad), got {self.manifest.method}."
            )
        self._session.resample(sampling)

    def check_reconstructs(self) -> ReconstructionSession:
        """Return the session of a bundle that reconstructs.

        Raises:
            ArgumentError: If the bundle's method does not reconstruct, or its pictures are cut into tiles.
        """
        if not isinstance(self._session, ReconstructionSession) or self.manifest.tiling is not None:
            got = f"one of {self.manifest.method}" if self.manifest.tiling is None else "one that cuts them into tiles"
            raise ArgumentError(
                f"{self.bundle.path}: expected a bundle that reconstructs pictures as a whole (ddad, dsad), got {got}. "
                "Leave --pictures out."
            )
        return self._session

    def _open(self) -> Session:
        head = self.manifest.head
        if isinstance(head, DdadHead | DsadHead):
            return ReconstructionSession(self.bundle, self.precision, self.backend)
        if isinstance(head, EnsembleHead):
            return EnsembleSession(head, self._open_member)
        name = "features" if self.path == "kernel" else "score"
        return open_session(self.bundle, name, self.precision, self.backend)

    def _open_member(self, member: EnsembleMember) -> Inspector:
        path = "auto" if self.path == MEMBERS else self.path
        return Inspector(self.bundle.member(member.name), self.backend, path, self.precision)

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
            except FlawscopeError as err:
                failure = str(err)
            except Exception as err:
                # Whatever goes wrong with one batch must neither stop the line nor pass as good.
                failure = f"unexpected {type(err).__name__}: {err}"
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
        """Inspect one picture in tiles, a batch of them at a time: memory does not grow with their number."""
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
        except FlawscopeError as err:
            return Result(loaded.name, "fault", reason=str(err))
        except Exception as err:
            # Whatever goes wrong with one picture must neither stop the line nor pass as good.
            return Result(loaded.name, "fault", reason=f"unexpected {type(err).__name__}: {err}")
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

    def _check_golden(self, least: float) -> None:
        for golden in self.manifest.golden_of(self.precision):
            image = prepare(read_image(self.bundle.file(golden.file)), self.manifest.input)
            maps, scores = self.infer(image[None])
            tolerance = GOLDEN_TOLERANCE if self.backend == "cpu" else DEVICE_TOLERANCES[self.precision]
            for what, got, stored in (("score", scores[0], golden.score), ("map", maps[0].max(), golden.map_max)):
                if not abs(float(got) - stored) <= tolerance * max(abs(stored), least):
                    raise BundleError(
                        f"{self.bundle.path}: golden image {golden.file}: expected {what} {stored:.6g} as at export, "
                        f"got {float(got):.6g} on {self.backend}. This installation computes something else: "
                        "see flawscope doctor."
                    )

    def close(self) -> None:
        """Release the session and the bundle."""
        self._session.close()
        self.bundle.close()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _resolve_path(path: str, backend: str, manifest: Manifest) -> str:
    if path == "kernel" and not isinstance(manifest.head, PatchcoreHead | PadimHead):
        raise BundleError(f"path kernel: expected a method with a bank, got {manifest.method}. Leave --path out.")
    if path == MEMBERS and not isinstance(manifest.head, EnsembleHead):
        raise BundleError(f"path members: expected an ensemble, got {manifest.method}. Leave --path out.")
    if path != "auto":
        return path
    if isinstance(manifest.head, EnsembleHead):
        return MEMBERS
    return "kernel" if HAVE_NATIVE and backend in ("cpu", "tensorrt") and "features" in manifest.graphs else "graph"


class _Loaded:
    """A picture on its way: its name, prepared pixels, source size and timings."""

    def __init__(
        self, name: str, prepared: UInt8Array, source_size: tuple[int, int], timings: dict[str, float]
    ) -> None:
        self.name = name
        self.prepared = prepared
        self.source_size = source_size
        self.timings_ms = timings


def _rows(image: Any) -> list[Source] | None:
    """Return the pictures of an array [N, H, W, 3], or None if it is no such array."""
    shape: tuple[int, ...] = getattr(image, "shape", ())
    return [image[row] for row in range(shape[0])] if len(shape) == 4 else None


def _load(source: Source, position: int, manifest: Manifest) -> _Loaded | Result:
    name = str(source) if isinstance(source, Path | str) else f"image {position}"
    started = time.perf_counter()
    try:
        image = read_image(Path(source)) if isinstance(source, Path | str) else check_image(on_host(source, name), name)
        read = time.perf_counter()
        prepared = prepare(image, manifest.input) if manifest.tiling is None else image  # tiles are prepared one by one
    except FlawscopeError as err:
        return Result(name, "fault", reason=str(err))
    except Exception as err:
        # Whatever goes wrong with one picture must neither stop the line nor pass as good.
        return Result(name, "fault", reason=f"{name}: unexpected {type(err).__name__}: {err}")
    done = time.perf_counter()
    timings = {"read": 1e3 * (read - started), "prepare": 1e3 * (done - read)}
    return _Loaded(name, prepared, (image.shape[0], image.shape[1]), timings)
