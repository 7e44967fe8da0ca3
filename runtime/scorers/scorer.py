"""The scorer interface: what computes anomaly maps and scores of prepared images. `Inspector` holds one scorer.

Which scorer a bundle gets is looked up in the table of methods (`flawscope.methods`), and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from flawscope import methods
from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Bundle, OnnxModel, head_tag
from flawscope.diffusion.reconstruction import Reconstructed
from flawscope.diffusion.schedule import Sampling
from flawscope.errors import ArgumentError, BundleError
from flawscope.runtime.backends import OWN_CHOICE, Cores, OpenSession, Session, open_session
from flawscope.runtime.backends.session import MakeDeviceHead

PATHS = ("auto", "graph", "kernel")
"""How a map is computed: by `score.onnx` alone, or by `features.onnx` and the kernels of `cpp_ext`. `auto` takes the
kernels if the bundle has features, the kernels are native and the backend's row allows them, else the graph."""

MEMBERS = "members"
"""What `auto` means for an ensemble: every member takes the path that it would take alone. Not in `PATHS`, because
nobody asks for it; it is accepted all the same, so that `Inspector.path` can be passed on to a new process."""

ZERO_SHARE = 1e-2
"""Share of an ordinary distance below which a score counts as zero: errors are then relative to that share, because the
distance to a row that (almost) equals the patch is nothing but rounding."""


@dataclass(frozen=True)
class ScorerOptions:
    """How a scorer is opened.

    Attributes:
        backend: Name of a backend; `auto` must have been resolved.
        path: One of `PATHS`, or `MEMBERS`.
        precision: Precision of the graphs.
        open_session: Opens the sessions; that of a pool gives bundles with an equal graph the same one.
        cores: Threads and streams of the sessions; so many threads have the kernels behind them.
    """

    backend: str
    path: str = "auto"
    precision: str = "fp32"
    open_session: OpenSession = open_session
    cores: Cores = OWN_CHOICE

    def session(self, bundle: Bundle, graph: str, make_head: MakeDeviceHead | None = None) -> Session:
        """Open the session of a graph; see `flawscope.runtime.backends.open_session`."""
        return self.open_session(bundle, graph, self.precision, self.backend, make_head, self.cores)


@dataclass(frozen=True)
class Part:
    """A graph that a scorer runs: its name and content, its session, and example inputs with realistic values."""

    name: str
    model: OnnxModel
    session: Session
    inputs: Mapping[str, npt.NDArray[Any]]


class Reconstructor(Protocol):
    """What a scorer of a reconstruction method offers beside scores."""

    def reconstruct(self, images: UInt8Array) -> Reconstructed:
        """Return reconstructions, maps and scores of images uint8 [N, H, W, 3]."""

    def resample(self, sampling: Sampling) -> None:
        """Use another sampling from now on."""


class Scorer(Protocol):
    """A bundle's method made ready on one backend.

    Attributes:
        path: `graph` or `kernel`, whichever is in use; `members` where each member of an ensemble chooses its own.
        least_score: Size below which a score counts as zero: smaller golden scores are compared relative to it.
        reconstructor: The scorer itself if its method reconstructs images, else None.
    """

    path: str
    least_score: float
    reconstructor: Reconstructor | None

    def score(self, images: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return anomaly maps float32 [N, H, W] and scores float32 [N] of prepared images uint8 [N, H, W, 3].

        Raises:
            DeviceError: If the device fails.
        """

    def outputs(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Return the sessions' outputs for prepared images: the arrays that are copied from the device."""

    def parts(self, images: UInt8Array) -> list[Part]:
        """Return the graphs that are run for prepared images, each with its inputs."""

    def describe(self) -> str:
        """Return in words what turns the graphs' outputs into maps and scores."""

    def close(self) -> None:
        """Release the sessions; closing twice is harmless."""


class ScorerKind(Protocol):
    """The scorer column of the table of methods."""

    def open(self, bundle: Bundle, options: ScorerOptions) -> Scorer:
        """Make a bundle ready; see `open_scorer`."""


def open_scorer(bundle: Bundle, options: ScorerOptions) -> Scorer:
    """Open the scorer of a bundle's method.

    Raises:
        ArgumentError: If the path is unknown, or the bundle lacks the precision.
        BackendError: If the backend cannot run a graph.
        BundleError: If the method has no such path, or the bundle lacks a tensor that the method needs.
    """
    if options.path not in PATHS and options.path != MEMBERS:
        raise ArgumentError(f"path: expected one of {', '.join(PATHS)}, got {options.path!r}.")
    kind: ScorerKind = methods.scorer_of(head_tag(bundle.manifest.head))
    return kind.open(bundle, options)


def check_graph_path(bundle: Bundle, path: str) -> str:
    """Return the path `graph` for a method that has no other path.

    Raises:
        BundleError: If another path was asked for.
    """
    check_no_members(bundle, path)
    check_no_kernel(bundle, path)
    return "graph"


def check_no_kernel(bundle: Bundle, path: str) -> None:
    """Raise BundleError if the path `kernel` was asked for; for methods without a memory bank."""
    if path == "kernel":
        method = bundle.manifest.method
        raise BundleError(f"path kernel: expected a method with a bank, got {method}. Leave --path out.")


def check_no_members(bundle: Bundle, path: str) -> None:
    """Raise BundleError if the path `members` was asked for; for all methods but ensembles."""
    if path == MEMBERS:
        raise BundleError(f"path members: expected an ensemble, got {bundle.manifest.method}. Leave --path out.")
