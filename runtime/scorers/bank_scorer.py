"""Scorer of methods with a memory bank: patches from a graph and distances from `cpp_ext`, or one graph for both."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import BankHead, Bundle, Head, Manifest
from flawscope.cpp_ext import HAVE_NATIVE, Bank, Gaussians, WindowBank, implementation, separable_maps
from flawscope.cpp_ext.checks import default_threads
from flawscope.errors import BundleError
from flawscope.imaging.map_upsampling import map_matrices
from flawscope.runtime.backends import Session
from flawscope.runtime.backends.session import DeviceHead
from flawscope.runtime.backends.table import backend_row, bank_problem
from flawscope.runtime.scorers.graph_scorer import GraphScorer
from flawscope.runtime.scorers.scorer import ZERO_SHARE, Part, Reconstructor, Scorer, ScorerOptions, check_no_members
from flawscope.runtime.scorers.timed import Mark, no_mark

# One log for all that is not shared: executors pass on what a worker says there.
_log = logging.getLogger("flawscope.runtime.scorers.shared_banks")

Tensors = Mapping[str, npt.NDArray[Any]]
"""The bank's arrays by name."""


# Of the process and not of a thread: a bundle is loaded in a thread of its own.
_shared: Path | None = None


def share_banks(folder: Path | None) -> None:
    """Have the banks that this process packs from now on in common with other processes of this machine.

    Args:
        folder: A private folder, which lives as long as the processes do; None, as from the beginning, shares nothing.
    """
    global _shared
    _shared = folder


def packed_bank(rows: Float32Array) -> Bank:
    """Return the bank of some rows; where banks are shared (`share_banks`), `Bank.rows` are not `rows` themselves.

    Args:
        rows: float32 [M, D], finite; see `Bank`.

    Raises:
        ArgumentError: As `Bank`.
    """
    if _shared is None:
        return Bank(rows)
    # Lazy: one process by itself, which most are, starts without it.
    from flawscope.runtime.scorers.shared_banks import shared_bank

    return shared_bank(rows, _shared)


def packed_window_bank(rows: Float32Array, places: npt.NDArray[Any], grid: tuple[int, int], radius: int) -> WindowBank:
    """Return a bank with windows; where banks are shared, `WindowBank.rows` are not `rows` themselves.

    Args:
        rows: float32 [M, D], finite; see `WindowBank`, and so are the others.
        places: integers [M, 2].
        grid: Rows and columns of the patch grid.
        radius: Cells of the grid.

    Raises:
        ArgumentError: As `WindowBank`.
    """
    if _shared is None:
        return WindowBank(rows, places, grid, radius)
    from flawscope.runtime.scorers.shared_banks import shared_window_bank

    return shared_window_bank(rows, places, grid, radius, _shared)


def say_not_shared(why: str) -> None:
    """Log that a bank is this process's own where banks are shared (`share_banks`), and why; else do nothing."""
    if _shared is not None:
        _log.warning("bank: %s; this process has it for itself, which takes more memory.", why)


def packed_gaussians(mean: Float32Array, triangles: npt.NDArray[Any]) -> Gaussians:
    """Return Gaussians of upper triangles, those of other processes too where banks are shared (`share_banks`).

    Args:
        mean: float32 [P, D].
        triangles: float32 or float16 [P, D·(D + 1)/2]; see `Gaussians.of_triangles`.

    Raises:
        ArgumentError: As `Gaussians.of_triangles`.
    """
    if _shared is None:
        return Gaussians.of_triangles(mean, triangles)
    from flawscope.runtime.scorers.shared_banks import shared_gaussians

    return shared_gaussians(mean, triangles, _shared)


class NativeHead(Protocol):
    """The head of a method as a function on patches."""

    def __call__(self, patches: Float32Array, mark: Mark = no_mark) -> tuple[Float32Array, Float32Array]:
        """Return anomaly maps float32 [N, H, W] and scores float32 [N] of patches float32 [N, P, D].

        `mark` is called after the search and after the maps; see `TimedScorer`.
        """


@dataclass(frozen=True)
class BankMethod:
    """What differs among the methods with a bank: how distances to it are measured, and how large they are.

    Attributes:
        check: `(head, tensors)` raises BundleError unless the bank has the tensors that the head needs.
        native: `(head, tensors, (H, W)) -> NativeHead`: the head as a function on patches, with the CPU's kernels.
        on_device: `(device, head, tensors, (H, W), max_batch) -> DeviceHead`: the same on a CUDA device.
        scale: `(tensors) -> float`: the size of an ordinary distance.
    """

    check: Callable[[Any, Tensors], None]
    native: Callable[[Any, Tensors, tuple[int, int]], NativeHead]
    on_device: Callable[[Any, Any, Tensors, tuple[int, int], int], DeviceHead]
    scale: Callable[[Tensors], float]

    def head(self, head: Head, tensors: Tensors, size: tuple[int, int]) -> NativeHead:
        """Return the head of a bundle as a function on patches.

        Args:
            head: The method's parameters.
            tensors: The bank.
            size: Height and width of the anomaly map in pixels.

        Raises:
            BundleError: If the bank lacks a tensor.
        """
        self.check(head, tensors)
        return self.native(head, tensors, size)

    def open(self, bundle: Bundle, options: ScorerOptions) -> Scorer:
        """Open the scorer of a bundle; see `open_scorer`.

        Raises:
            BundleError: If the bank lacks a tensor, or has a number that is not finite.
        """
        check_no_members(bundle, options.path)
        manifest, size = bundle.manifest, bundle.manifest.input.size
        # Before the choice of the path: `score.onnx` reads the same file as external data, and would accept NaN.
        tensors = bundle.tensors()
        self.check(manifest.head, tensors)
        least = ZERO_SHARE * self.scale(tensors)
        path = resolve_path(options, manifest)
        if path == "graph":
            session = options.session(bundle, "score")
            return GraphScorer(bundle, "score", session, path, options.precision, least)

        def on_device(device: Any, max_batch: int) -> DeviceHead:
            return self.on_device(device, manifest.head, tensors, size, max_batch)

        # `auto` may leave the bank on the host, and `describe` says why; asked for by name, what is missing is refused.
        # Backends without kernels for a device, and pools that share a graph, return patches in either case.
        problem = None if options.path == "kernel" else bank_problem(options.backend)
        session = options.session(bundle, "features", on_device if problem is None else None)
        if "anomaly_map" in session.outputs:  # the bank was put beside the graph, on the device
            return GraphScorer(bundle, "features", session, path, options.precision, least, "CUDA kernels")
        try:
            # Packs the bank, which can fail (a tensor is missing, memory is short) when the session is open already.
            with default_threads(options.cores.threads):
                head = self.head(manifest.head, tensors, size)
            return BankScorer(bundle, session, head, options, least, problem)
        except BaseException:
            session.close()
            raise


def need(tensors: Tensors, name: str, dimensions: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a tensor of the bank.

    Raises:
        BundleError: If it is missing, or has another type or number of dimensions.
    """
    if name not in tensors:
        raise BundleError(f"bank: expected the tensor {name}, got {sorted(tensors)}. Export the bundle again.")
    tensor = tensors[name]
    if tensor.ndim != dimensions or tensor.dtype != dtype:
        raise BundleError(
            f"bank: expected {np.dtype(dtype)} with {dimensions} dimensions in {name}, got {tensor.dtype} "
            f"{list(tensor.shape)}. Export the bundle again."
        )
    return tensor


def resolve_path(options: ScorerOptions, manifest: Manifest) -> str:
    """Return the path to take: `auto` takes the native kernels if the backend's row allows them and they can."""
    if options.path != "auto":
        return options.path
    # Without the extension NumPy takes its place, which is no match for a graph. On `cuda` the row says no: patches are
    # far more bytes to copy back than a map.
    row = backend_row(options.backend)
    has_kernels = HAVE_NATIVE and row.kernels and (row.any_head or manifest.head.fits_device)
    return "kernel" if has_kernels and "features" in manifest.graphs else "graph"


class BankScorer:
    """Patches from `features.onnx`, maps and scores from the CPU's kernels; see `Scorer` for the contract.

    Args:
        bundle: The opened bundle.
        session: Session of the graph `features`.
        head: Patches -> maps and scores.
        options: Precision of the graph, and threads of the head.
        least_score: Value of `Scorer.least_score`.
        problem: Why the bank does not lie on the backend's device, a sentence; None if nothing is missing there.
    """

    path = "kernel"
    reconstructor: Reconstructor | None = None

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        head: NativeHead,
        options: ScorerOptions,
        least_score: float,
        problem: str | None,
    ) -> None:
        self.least_score, self._problem = least_score, problem
        self._threads = options.cores.threads
        self._model = partial(bundle.model, "features", options.precision)
        self._session, self._head = session, head

    def score(self, images: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores."""
        return self.score_marked(images, no_mark)

    def score_marked(self, images: UInt8Array, mark: Mark) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores; see `TimedScorer`."""
        patches = self._session.infer(images)["patches"]
        mark("graph")
        with default_threads(self._threads):
            return self._head(patches, mark)

    def outputs(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Return the patches: map and score are computed from them outside the session."""
        return self._session.infer(images)

    def parts(self, images: UInt8Array) -> list[Part]:
        """Return the feature graph."""
        return [Part("features", self._model(), self._session, {"image": images})]

    def describe(self) -> str:
        """Return which kernels compute maps and scores, and why not those of the device."""
        return implementation() if self._problem is None else f"{implementation()}; not on the device: {self._problem}"

    def close(self) -> None:
        """Release the session."""
        self._session.close()


def smoother(head: BankHead, size: tuple[int, int]) -> Callable[[Float32Array], Float32Array]:
    """Return the function from distances float32 [N, P] to anomaly maps float32 [N, H, W] of a size (H, W)."""
    # Upsampling and blur are linear and separable: one matrix for rows and one for columns, computed once per bundle.
    rows, columns = map_matrices(head.grid, size, head.sigma, head.places)
    return lambda distances: separable_maps(distances.reshape(-1, *head.grid), rows, columns)
