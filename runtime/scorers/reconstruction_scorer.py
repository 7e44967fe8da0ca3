"""Scorer of reconstruction methods (ddad, dsad): one session per network, and the diffusion's sampling on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array, only_output
from flawscope.bundle import Bundle, ReconstructionHead
from flawscope.diffusion.reconstruction import Reconstructed, finish_maps, score_reconstructions, signed
from flawscope.diffusion.schedule import Sampling, noises_needed, plan_steps
from flawscope.errors import ArgumentError, BundleError
from flawscope.imaging.edges import canny_edges
from flawscope.runtime.backends import Session, open_together
from flawscope.runtime.scorers.graph_scorer import share_of_scale
from flawscope.runtime.scorers.scorer import Part, ScorerOptions, check_graph_path


class SessionNetworks:
    """The networks of a bundle as sessions; see `flawscope.diffusion.reconstruction.Networks` for the contract.

    Args:
        sessions: Graph name → session: `denoise`, `compare`, and with latents `encode` and `decode`.
        edges: Whether `encode` is given Canny's edges beside the images.
    """

    def __init__(self, sessions: Mapping[str, Session], edges: bool) -> None:
        self._sessions, self._edges = sessions, edges

    def encode(self, images: UInt8Array) -> tuple[Float32Array, Mapping[str, Float32Array]]:
        """Return the input of the diffusion and the conditions: the other outputs of the graph, by name."""
        if "encode" not in self._sessions:
            return signed(images), {}  # diffusion of pixels: no autoencoder, no conditions
        outputs = self._sessions["encode"].run(self.encoder_inputs(images))
        return outputs.pop("latents"), outputs

    def encoder_inputs(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Return the inputs of the graph `encode` for images."""
        # Canny is computed outside the graph, by OpenCV: ONNX has no operator for it.
        return {"image": images, **({"edges": canny_edges(images)} if self._edges else {})}

    def denoise(self, x: Float32Array, timestep: int, conditions: Mapping[str, Float32Array]) -> Float32Array:
        """Return the noise that the network finds in x."""
        timesteps = np.full(len(x), timestep, np.int64)  # int64, as the graphs were exported
        return only_output(self._sessions["denoise"].run({"x": x, "timestep": timesteps, **conditions}))

    def decode(self, x: Float32Array) -> Float32Array:
        """Return images float32 [N, 3, H, W] in [-1, 1]."""
        if "decode" not in self._sessions:
            # A graph `decode` clips by itself; a reconstruction outside of the range is not an image either way.
            return np.clip(x, np.float32(-1), np.float32(1))
        return only_output(self._sessions["decode"].run({"latents": x}))

    def compare(self, images: UInt8Array, reconstructions: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Return the maps of pixel and of feature differences."""
        outputs = self._sessions["compare"].run({"image": images, "reconstruction": reconstructions})
        return outputs["pixel_map"], outputs["feature_map"]


class ReconstructionScorer:
    """All graphs of a reconstruction bundle on one backend; see `Scorer` for the contract.

    The sampling loop runs on the host, and each step copies no more than an image to the device and back; on the device
    where the backend has the kernel for it.

    Args:
        bundle: The opened bundle.
        options: Precision of the graphs, and what opens their sessions.

    Raises:
        ArgumentError: If the bundle lacks the precision.
        BackendError: If the backend cannot take a graph.
        BundleError: If the bundle has too little noise for its sampling.
    """

    path = "graph"

    def __init__(self, bundle: Bundle, options: ScorerOptions) -> None:
        self.reconstructor = self
        self.least_score = share_of_scale(bundle)
        head = bundle.manifest.head
        assert isinstance(head, ReconstructionHead)  # the table names this scorer for these heads alone
        # The noise is stored and not drawn: a random generator would give other scores on another NumPy version.
        noise = bundle.tensors().get("noise")
        needed = noises_needed(head.sampling)
        if noise is None or noise.ndim != 4 or len(noise) < needed:
            got = "none" if noise is None else list(noise.shape)
            raise BundleError(f"{bundle.path}: noise: expected {needed} arrays, got {got}. Export the bundle again.")
        self._bundle, self._precision = bundle, options.precision
        self._head, self._noise = head, noise.astype(np.float32, copy=False)
        self._sampling = head.sampling
        # Before the loop, so that `close` can release those that were opened when one fails.
        self._sessions: dict[str, Session] = {}
        self._engines: Any = None  # where the graphs share a device
        self._on_device: Any = None
        try:
            self._open(bundle, options)
        except BaseException:
            self.close()
            raise
        self._networks = SessionNetworks(self._sessions, head.edges == "canny")

    def _open(self, bundle: Bundle, options: ScorerOptions) -> None:
        graphs = tuple(bundle.manifest.graphs_of(options.precision))
        # On a device the sampling runs there too, if the backend has the kernel for it.
        self._engines = open_together(bundle, graphs, options.precision, options.backend)
        if self._engines is None:
            for graph in graphs:
                self._sessions[graph] = options.session(bundle, graph)
            return
        from flawscope.runtime.scorers.reconstruction_device import DeviceReconstruction  # the CPU needs none of it

        self._sessions.update(self._engines.sessions)
        channels, height, width = self._noise.shape[1:]
        manifest = bundle.manifest
        self._on_device = DeviceReconstruction(
            self._engines, (channels, height, width), manifest.input.size, manifest.max_batch
        )
        self._on_device.make_ready(self._sampling, len(self._noise))

    def reconstruct(self, images: UInt8Array) -> Reconstructed:
        """Return reconstructions, maps and scores of images uint8 [N, H, W, 3].

        Raises:
            DeviceError: If the device fails.
        """
        if self._on_device is not None:
            inputs = self._networks.encoder_inputs(images)
            found = self._on_device.run(images, inputs, self._sampling, self._noise)
            maps, scores = finish_maps(found.pixel, found.feature, self._head.rule)
            networks = self._networks
            return Reconstructed(
                maps,
                scores,
                found.reconstructions,
                lambda: networks.decode(networks.encode(images)[0]),
                found.pixel,
                found.feature,
            )
        return score_reconstructions(images, self._networks, self._sampling, self._noise, self._head.rule)

    def resample(self, sampling: Sampling) -> None:
        """Use another sampling from now on.

        Raises:
            ArgumentError: If the bundle has too little noise for it.
        """
        needed = noises_needed(sampling)
        if needed > len(self._noise):
            raise ArgumentError(
                f"sampling: expected one that takes up to {len(self._noise)} arrays of noise, as the bundle has, got "
                f"{needed} (steps={sampling.steps}, eta={sampling.eta:g}). Take fewer steps or eta=0, or "
                "export a run that was trained with these settings."
            )
        self._sampling = sampling

    def score(self, images: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores."""
        reconstructed = self.reconstruct(images)
        return reconstructed.maps, reconstructed.scores

    def outputs(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Return maps and scores; the arrays that are copied within the sampling are left out."""
        maps, scores = self.score(images)
        return {"anomaly_map": maps, "score": scores}

    def parts(self, images: UInt8Array) -> list[Part]:
        """Return every graph, with inputs as in a sampling."""
        # `encode` and `decode` are run here, because their outputs are inputs of the other two.
        clean, conditions = self._networks.encode(images)
        reconstructions = self._networks.decode(clean)
        timestep = plan_steps(self._sampling)[0].timestep
        inputs: dict[str, dict[str, npt.NDArray[Any]]] = {
            "encode": self._networks.encoder_inputs(images),
            "denoise": {"x": clean, "timestep": np.full(len(images), timestep, np.int64), **conditions},
            "decode": {"latents": clean},
            "compare": {"image": images, "reconstruction": reconstructions},
        }
        return [
            Part(name, self._bundle.model(name, self._precision), self._sessions[name], arrays)
            for name, arrays in inputs.items()
            if name in self._sessions
        ]

    def describe(self) -> str:
        """Return what computes maps and scores."""
        where = "host" if self._on_device is None else "device"
        return f"the sampling, on the {where}; each network is run once here"

    def close(self) -> None:
        """Release the sessions; closing twice is harmless."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        if self._engines is not None:
            self._engines.close()


class ReconstructionMethod:
    """Opens bundles of methods that reconstruct images."""

    def open(self, bundle: Bundle, options: ScorerOptions) -> ReconstructionScorer:
        """Open the scorer of a bundle; see `open_scorer`."""
        check_graph_path(bundle, options.path)
        return ReconstructionScorer(bundle, options)


RECONSTRUCTION = ReconstructionMethod()
