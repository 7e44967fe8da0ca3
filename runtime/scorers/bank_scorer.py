"""Scorer of methods with a memory bank: patches from the feature graph and distances from `cpp_ext`, or one graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import BankHead, Bundle, Head, Manifest
from flawscope.cpp_ext import HAVE_NATIVE, implementation, separable_maps
from flawscope.errors import BundleError
from flawscope.imaging.map_upsampling import map_matrices
from flawscope.runtime.backends import Session, open_session
from flawscope.runtime.backends.base import DeviceHead
from flawscope.runtime.backends.table import backend_row
from flawscope.runtime.scorers.base import ZERO_SHARE, Part, Reconstructor, Scorer, ScorerOptions, check_no_members
from flawscope.runtime.scorers.graph_scorer import GraphScorer

Tensors = Mapping[str, npt.NDArray[Any]]
"""The bank: name -> array."""

NativeHead = Callable[[Float32Array], tuple[Float32Array, Float32Array]]
"""patches float32 [N, P, D] -> anomaly maps float32 [N, H, W], scores float32 [N]."""


@dataclass(frozen=True)
class BankMethod:
    """What is a method's own among those with a bank: how distances to it are measured, and how large they are.

    Attributes:
        needed: `(head) -> names` of the tensors that the bank must have.
        native: `(head, tensors, (H, W)) -> NativeHead`: the head as a function on patches, by the kernels of the CPU.
        on_device: `(device, head, tensors, (H, W), max_batch) -> DeviceHead`: the same on a CUDA device.
        scale: `(tensors) -> float`: the size of an ordinary distance.
    """

    needed: Callable[[Any], tuple[str, ...]]
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
        self._check(head, tensors)
        return self.native(head, tensors, size)

    def _check(self, head: Head, tensors: Tensors) -> None:
        for name in self.needed(head):
            if name not in tensors:
                raise BundleError(f"bank: expected the tensor {name}, got {sorted(tensors)}. Export the bundle again.")

    def open(self, bundle: Bundle, options: ScorerOptions) -> Scorer:
        """Make a bundle ready; see `open_scorer`.

        Raises:
            BundleError: If the bank lacks a tensor, or has a number that is not finite.
        """
        check_no_members(bundle, options.path)
        manifest, size = bundle.manifest, bundle.manifest.input.size
        tensors = bundle.tensors()  # also for the graph, which reads the same file: refuses NaN and an empty bank
        path = resolve_path(options, manifest)
        if path == "graph":
            session = open_session(bundle, "score", options.precision, options.backend)
            return GraphScorer(bundle, "score", session, path, options.precision)
        session = open_session(
            bundle,
            "features",
            options.precision,
            options.backend,
            lambda device, max_batch: self.on_device(device, manifest.head, tensors, size, max_batch),
        )
        if "anomaly_map" in session.outputs:  # the bank lies beside the graph
            return GraphScorer(bundle, "features", session, path, options.precision, "CUDA kernels")
        try:
            return BankScorer(bundle, session, self.head(manifest.head, tensors, size), options.precision)
        except BaseException:
            session.close()
            raise

    def least_score(self, bundle: Bundle) -> float:
        """Return a share of the size of an ordinary distance.

        Raises:
            BundleError: If the bank lacks a tensor.
        """
        tensors = bundle.tensors()
        self._check(bundle.manifest.head, tensors)
        return ZERO_SHARE * self.scale(tensors)


def resolve_path(options: ScorerOptions, manifest: Manifest) -> str:
    """Return the path that is taken: `auto` takes native kernels where the backend has room for them."""
    if options.path != "auto":
        return options.path
    has_kernels = HAVE_NATIVE and backend_row(options.backend).kernels
    return "kernel" if has_kernels and "features" in manifest.graphs else "graph"


class BankScorer:
    """Patches from `features.onnx`, maps and scores from the kernels of the CPU; see `Scorer` for the contract.

    Args:
        bundle: The opened bundle.
        session: The graph `features` made ready.
        head: Patches -> maps and scores.
        precision: Precision of the graph.
    """

    path = "kernel"
    reconstructor: Reconstructor | None = None

    def __init__(self, bundle: Bundle, session: Session, head: NativeHead, precision: str) -> None:
        self._file = bundle.graph("features", precision)
        self._session, self._head = session, head

    def score(self, images: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores."""
        return self._head(self._session.infer(images)["patches"])

    def outputs(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Return the patches: map and score are made of them outside the session."""
        return self._session.infer(images)

    def parts(self, images: UInt8Array) -> list[Part]:
        """Return the feature graph."""
        return [Part("features", self._file, self._session, {"image": images})]

    def describe(self) -> str:
        """Return which kernels make maps and scores."""
        return implementation()

    def close(self) -> None:
        """Release the session."""
        self._session.close()


def smoother(head: BankHead, size: tuple[int, int]) -> Callable[[Float32Array], Float32Array]:
    """Return the function from distances float32 [N, P] to anomaly maps float32 [N, H, W] of a size (H, W)."""
    rows, columns = map_matrices(head.grid, size, head.sigma)
    return lambda distances: separable_maps(distances.reshape(-1, *head.grid), rows, columns)
