"""What a scorer is: the thing that makes anomaly maps and scores of prepared images. `Inspector` holds one.

Who it is, is a question to the table of methods (`flawscope.methods`); nobody else asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from flawscope import methods
from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Bundle, head_tag
from flawscope.diffusion.reconstruction import Reconstructed
from flawscope.diffusion.schedule import Sampling
from flawscope.errors import ArgumentError, BundleError
from flawscope.runtime.backends import Session

PATHS = ("auto", "graph", "kernel")
"""How a map is made: by `score.onnx` alone, or by `features.onnx` and the kernels of `cpp_ext`; `auto` takes the
kernels where the bundle has features, the kernels are native and the backend is the CPU, and the graph elsewhere."""

MEMBERS = "members"
"""What `auto` is for an ensemble: every member takes the path that it would take alone."""

ZERO_SHARE = 1e-2
"""Share of an ordinary distance below which a score counts as zero: errors are then relative to that share, because a
distance to a row that is (almost) the patch itself is rounding alone."""


@dataclass(frozen=True)
class ScorerOptions:
    """How a scorer is opened.

    Attributes:
        backend: Name of a backend, resolved: never `auto`.
        path: One of `PATHS`, or `MEMBERS`.
        precision: Precision of the graphs.
    """

    backend: str
    path: str = "auto"
    precision: str = "fp32"


@dataclass(frozen=True)
class Part:
    """A graph that a scorer runs: its name and file, its session, and inputs of the kind that it gets."""

    name: str
    graph: Path
    session: Session
    inputs: Mapping[str, npt.NDArray[Any]]


class Reconstructor(Protocol):
    """What a scorer offers beside scores that rebuilds images."""

    def reconstruct(self, images: UInt8Array) -> Reconstructed:
        """Return everything that comes of images uint8 [N, H, W, 3], their reconstructions among it."""

    def resample(self, sampling: Sampling) -> None:
        """Reconstruct in another way from now on."""


class Scorer(Protocol):
    """A bundle's method made ready on one backend.

    Attributes:
        path: `graph` or `kernel`, whichever was taken; `members` where each member of an ensemble takes its own.
        reconstructor: The same object where it rebuilds images, or None.
    """

    path: str
    reconstructor: Reconstructor | None

    def score(self, images: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return anomaly maps float32 [N, H, W] and scores float32 [N] of prepared images uint8 [N, H, W, 3].

        Raises:
            DeviceError: If the device fails.
        """

    def outputs(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Return what comes back from the sessions for prepared images: the arrays that cross from the device."""

    def parts(self, images: UInt8Array) -> list[Part]:
        """Return the graphs that are run for prepared images, with what each is given."""

    def describe(self) -> str:
        """Return in words who makes maps and scores of what the graphs give."""

    def close(self) -> None:
        """Release the sessions; closing twice is harmless."""


class ScorerKind(Protocol):
    """What the table of methods names as the scorer of a method."""

    def open(self, bundle: Bundle, options: ScorerOptions) -> Scorer:
        """Make a bundle ready; see `open_scorer`."""

    def least_score(self, bundle: Bundle) -> float:
        """Return the size below which a score counts as zero: differences of golden scores are relative to it there."""


def open_scorer(bundle: Bundle, options: ScorerOptions) -> Scorer:
    """Make the method of a bundle ready.

    Raises:
        ArgumentError: If the path is no known name, or the bundle lacks the precision.
        BackendError: If the backend cannot take a graph.
        BundleError: If the method has no such path, or the bundle lacks what it needs.
    """
    if options.path not in PATHS and options.path != MEMBERS:
        raise ArgumentError(f"path: expected one of {', '.join(PATHS)}, got {options.path!r}.")
    return scorer_kind(bundle).open(bundle, options)


def scorer_kind(bundle: Bundle) -> ScorerKind:
    """Return what the table of methods knows of the scorer of a bundle."""
    kind: ScorerKind = methods.scorer_of(head_tag(bundle.manifest.head))
    return kind


def check_graph_path(bundle: Bundle, path: str) -> str:
    """Return the path `graph` for a method that has no other.

    Raises:
        BundleError: If another path was asked for.
    """
    check_no_members(bundle, path)
    check_no_kernel(bundle, path)
    return "graph"


def check_no_kernel(bundle: Bundle, path: str) -> None:
    """Raise BundleError where the path of methods with a bank is asked of another method."""
    if path == "kernel":
        method = bundle.manifest.method
        raise BundleError(f"path kernel: expected a method with a bank, got {method}. Leave --path out.")


def check_no_members(bundle: Bundle, path: str) -> None:
    """Raise BundleError where the path of ensembles is asked of another method."""
    if path == MEMBERS:
        raise BundleError(f"path members: expected an ensemble, got {bundle.manifest.method}. Leave --path out.")
