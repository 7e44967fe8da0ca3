"""Scorer of LafitE: features from a graph, edited by the kernels of `cpp_ext`, denoised by a graph and a loop here."""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array, only_output
from flawscope.bundle import Bundle, LafiteHead
from flawscope.cpp_ext import implementation, separable_maps
from flawscope.cpp_ext.checks import default_threads
from flawscope.diffusion.feature_editing import row_weights
from flawscope.diffusion.schedule import noises_needed, plan_steps, reconstruct
from flawscope.errors import BundleError
from flawscope.imaging.map_upsampling import map_matrices, window_matrix
from flawscope.runtime.backends import Session, open_together
from flawscope.runtime.scorers.bank_scorer import Tensors, need, packed_bank
from flawscope.runtime.scorers.graph_scorer import share_of_scale
from flawscope.runtime.scorers.scorer import Part, Reconstructor, ScorerOptions, check_graph_path


class FeatureEditor:
    """Puts the bank rows nearest to a patch in its place; see `flawscope.diffusion.feature_editing`.

    Args:
        rows: The bank, float32 [M, D].
        head: Its neighbours, temperature and mix.
    """

    def __init__(self, rows: Float32Array, head: LafiteHead) -> None:
        self._bank, self._head = packed_bank(rows), head
        # Those of the bank: where it is shared they lie there, and the others are let go of.
        self._rows = rows if self._bank.rows is None else self._bank.rows
        self._count = min(head.neighbors, len(rows))

    @property
    def channels(self) -> int:
        """Channels of a row."""
        return int(self._rows.shape[1])

    def __call__(self, features: Float32Array) -> Float32Array:
        """Return the edited features of a batch, float32 [N, D, h, w], as they came."""
        count, channels, height, width = features.shape
        patches = np.ascontiguousarray(features.transpose(0, 2, 3, 1)).reshape(-1, channels)
        # One more than is taken: by how much nearer the others are determines the weights.
        squared, found = self._bank.nearest(patches, min(self._count + 1, len(self._rows)))
        weights = row_weights(squared, self._count, channels, self._head.temperature)
        edited = np.zeros_like(patches)
        # Row by row and not as one array [P, K, D], which would be K times the features.
        for number in range(self._count):
            edited += weights[:, number, None] * self._rows[found[:, number]]
        if self._head.mix < 1.0:
            mix = np.float32(self._head.mix)
            edited = mix * edited + (np.float32(1.0) - mix) * patches
        return np.ascontiguousarray(edited.reshape(count, height, width, channels).transpose(0, 3, 1, 2))


def finish_features(
    changed: Float32Array, features: Float32Array, head: LafiteHead, size: tuple[int, int]
) -> tuple[Float32Array, Float32Array]:
    """Return anomaly maps float32 [N, H, W] and scores float32 [N] of changed and original features [N, D, h, w]."""
    distances = np.sqrt(np.square(changed - features).sum(axis=1))
    maps = separable_maps(np.ascontiguousarray(distances), *_matrices(head.grid, size, head.sigma))
    above, beside = (_windows(side, head.score_window) for side in size)
    # Image by image: BLAS may sum in another order for another shape, and a score must not depend on its batch.
    return maps, np.array([(above @ image_map @ beside.T).max() for image_map in maps], np.float32)


@functools.lru_cache(maxsize=16)
def _matrices(grid: tuple[int, int], size: tuple[int, int], sigma: float) -> tuple[Float32Array, Float32Array]:
    return map_matrices(grid, size, sigma)


@functools.lru_cache(maxsize=16)
def _windows(size: int, window: int) -> Float32Array:
    return window_matrix(size, window)


class LafiteScorer:
    """The graphs of a LafitE bundle on one backend, and its bank on the host; see `Scorer` for the contract.

    The sampling runs on the device where the backend has the kernel for it, else on the host.

    Args:
        bundle: The opened bundle.
        options: Precision of the graphs, threads, and what opens their sessions.

    Raises:
        ArgumentError: If the bundle lacks the precision.
        BackendError: If the backend cannot take a graph.
        BundleError: If the bundle lacks its bank, noise or a graph, or they do not fit each other.
    """

    path = "graph"
    reconstructor: Reconstructor | None = None

    def __init__(self, bundle: Bundle, options: ScorerOptions) -> None:
        self.least_score = share_of_scale(bundle)
        # The table names this scorer for these heads alone.
        head = cast("LafiteHead", bundle.manifest.head)
        tensors = bundle.tensors()
        check_tensors(head, tensors)
        self._bundle, self._precision, self._head = bundle, options.precision, head
        self._size, self._threads = bundle.manifest.input.size, options.cores.threads
        self._noise = tensors.get("noise")
        self._edit = FeatureEditor(tensors["bank"], head) if head.neighbors else None
        # Before they are opened, so that `close` can release those that were when one fails.
        self._sessions: dict[str, Session] = {}
        self._engines: Any = None  # where the graphs share a device
        self._on_device: Any = None
        try:
            self._open(bundle, options)
        except BaseException:
            self.close()
            raise

    def _open(self, bundle: Bundle, options: ScorerOptions) -> None:
        sampling = self._head.sampling
        if sampling is None:
            self._sessions["encode"] = options.session(bundle, "encode")
            return
        graphs = ("encode", "denoise")
        # On a device the sampling runs there too, if the backend has the kernel for it.
        self._engines = open_together(bundle, graphs, options.precision, options.backend)
        if self._engines is None:
            for graph in graphs:
                self._sessions[graph] = options.session(bundle, graph)
            return
        from flawscope.runtime.scorers.lafite_device import DeviceDenoising  # the CPU needs none of it

        self._sessions.update(self._engines.sessions)
        assert self._noise is not None, "refused by `check_tensors`"
        count, channels, height, width = self._noise.shape
        self._on_device = DeviceDenoising(self._engines, (channels, height, width), bundle.manifest.max_batch)
        self._on_device.make_ready(sampling, count)

    def score(self, images: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores."""
        with default_threads(self._threads):
            return self._score(images)

    def _score(self, images: UInt8Array) -> tuple[Float32Array, Float32Array]:
        features = self._features(images)
        changed = features if self._edit is None else self._edit(features)
        sampling = self._head.sampling
        if sampling is not None:
            assert self._noise is not None, "refused by `check_tensors`"
            if self._on_device is not None:
                changed = self._on_device.run(changed, self._noise, sampling)
            else:
                changed = reconstruct(changed, self._noise, sampling, self._denoise)
        return finish_features(changed, features, self._head, self._size)

    def _features(self, images: UInt8Array) -> Float32Array:
        features = only_output(self._sessions["encode"].run({"image": images}))
        channels = None if self._edit is None else self._edit.channels
        if features.shape[2:] != self._head.grid or channels not in (None, features.shape[1]):
            raise BundleError(
                f"{self._bundle.path}: expected features of {channels or 'any'} channels on a grid of "
                f"{list(self._head.grid)}, got {list(features.shape[1:])}. Export the bundle again."
            )
        return features

    def _denoise(self, x: Float32Array, timestep: int) -> Float32Array:
        timesteps = np.full(len(x), timestep, np.int64)  # int64, as the graph was exported
        return only_output(self._sessions["denoise"].run({"x": x, "timestep": timesteps}))

    def outputs(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Return maps and scores; the arrays that are copied within the sampling are left out."""
        maps, scores = self.score(images)
        return {"anomaly_map": maps, "score": scores}

    def parts(self, images: UInt8Array) -> list[Part]:
        """Return every graph, with inputs as in a sampling."""
        inputs: dict[str, dict[str, npt.NDArray[Any]]] = {"encode": {"image": images}}
        if self._head.sampling is not None:
            timestep = plan_steps(self._head.sampling)[0].timestep
            inputs["denoise"] = {"x": self._features(images), "timestep": np.full(len(images), timestep, np.int64)}
        return [
            Part(name, self._bundle.model(name, self._precision), self._sessions[name], arrays)
            for name, arrays in inputs.items()
        ]

    def describe(self) -> str:
        """Return what computes maps and scores."""
        edits = [] if self._edit is None else [f"the editing, {implementation()}"]
        where = "host" if self._on_device is None else "device"
        samples = [f"the sampling, on the {where}; each network is run once here"]
        return "; ".join([*edits, *(samples if self._head.sampling is not None else [])])

    def close(self) -> None:
        """Release the sessions; closing twice is harmless."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        if self._engines is not None:
            self._engines.close()


def check_tensors(head: LafiteHead, tensors: Tensors) -> None:
    """Raise BundleError unless the bundle has the bank and the noise that its head needs, fitting each other."""
    channels: list[int] = []
    if head.neighbors:
        channels.append(need(tensors, "bank", 2, np.float32).shape[1])
    if head.sampling is not None:
        # The noise is stored and not drawn: a random generator would give other scores on another NumPy version.
        noise, needed = need(tensors, "noise", 4, np.float32), noises_needed(head.sampling)
        if len(noise) < needed or noise.shape[2:] != head.grid:
            raise BundleError(
                f"noise: expected {needed} arrays on a grid of {list(head.grid)}, got {list(noise.shape)}. "
                "Export the bundle again."
            )
        channels.append(noise.shape[1])
    if len(set(channels)) > 1:
        raise BundleError(
            f"bank: expected rows of the noise's {channels[1]} channels, got {channels[0]}. Export the bundle again."
        )


class LafiteMethod:
    """Opens bundles of LafitE."""

    def open(self, bundle: Bundle, options: ScorerOptions) -> LafiteScorer:
        """Open the scorer of a bundle; see `open_scorer`."""
        check_graph_path(bundle, options.path)
        return LafiteScorer(bundle, options)


LAFITE = LafiteMethod()
