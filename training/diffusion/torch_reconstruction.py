"""Reconstruction by torch networks: for previews, for the map scales after training, and as reference for parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.diffusion.reconstruction import MapRule, Reconstructed, score_reconstructions, signed, unsigned
from flawscope.diffusion.schedule import Sampling
from flawscope.imaging.edges import canny_edges
from flawscope.imaging.png import write_png
from flawscope.training.diffusion.comparison import Comparison


class TorchNetworks:
    """Networks of a reconstruction in torch; see `flawscope.diffusion.reconstruction.Networks` for the contract.

    Args:
        denoise: Takes x, timesteps int64 [N] and the conditions; returns the noise.
        compare: Returns both maps.
        encode: Images uint8 [N, H, W, 3] → latents, and the conditions in the order in which `denoise` takes them; None
            reconstructs the pixels.
        decode: Latents → images float32 [N, 3, H, W] in [-1, 1]; None with pixels.
        edges: Whether Canny edges are a second input of `encode`.
    """

    def __init__(
        self,
        denoise: nn.Module,
        compare: Comparison,
        encode: nn.Module | None = None,
        decode: nn.Module | None = None,
        *,
        edges: bool = False,
    ) -> None:
        self.edges = edges
        self.modules: dict[str, nn.Module] = {"denoise": denoise, "compare": compare}
        if encode is not None and decode is not None:
            self.modules |= {"encode": encode, "decode": decode}

    def to(self, device: torch.device | str) -> TorchNetworks:
        """Move all networks to a device."""
        for module in self.modules.values():
            module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """The device of the denoiser."""
        return next(self.modules["denoise"].parameters()).device

    def encode(self, images: UInt8Array) -> tuple[Float32Array, Mapping[str, Float32Array]]:
        """Return the input of the diffusion and the conditions."""
        if "encode" not in self.modules:
            return signed(images), {}
        # The order of the conditions is that of `denoise`'s arguments, and of the exported graph's inputs.
        clean, *conditions = self._run("encode", images, *([canny_edges(images)] if self.edges else []))
        return clean, {f"condition_{index}": value for index, value in enumerate(conditions)}

    def denoise(self, x: Float32Array, timestep: int, conditions: Mapping[str, Float32Array]) -> Float32Array:
        """Return the noise in x."""
        return self._run("denoise", x, np.full(len(x), timestep, np.int64), *conditions.values())[0]

    def decode(self, x: Float32Array) -> Float32Array:
        """Return images."""
        return self._run("decode", x)[0] if "decode" in self.modules else np.clip(x, np.float32(-1), np.float32(1))

    def compare(self, images: UInt8Array, reconstructions: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Return both maps."""
        pixel, feature = self._run("compare", images, reconstructions)
        return pixel, feature

    def _run(self, name: str, *arrays: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> list[Float32Array]:
        device, module = self.device, self.modules[name]
        modes = [(part, part.training) for part in module.modules()]
        module.eval()
        with torch.inference_mode():
            result = module(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))
        # Restored for every part by itself, not by `train()`: networks share parts, and frozen ones stay in inference
        # mode.
        for part, was_training in modes:
            part.training = was_training
        outputs: Sequence[Tensor] = result if isinstance(result, tuple | list) else [result]
        return [value.float().cpu().numpy() for value in outputs]


class Reconstruction:
    """A trained detector that reconstructs images.

    Args:
        networks: The networks.
        sampling: Steps, start and conditioning of the diffusion.
        noise: Noise of the sampling, float32 [K, C, h, w].
        rule: How differences become a map.
    """

    def __init__(self, networks: TorchNetworks, sampling: Sampling, noise: Float32Array, rule: MapRule) -> None:
        self.networks, self.sampling, self.noise, self.rule = networks, sampling, noise, rule

    def to(self, device: torch.device | str) -> Reconstruction:
        """Move all networks to a device."""
        self.networks.to(device)
        return self

    def __call__(self, images: UInt8Array) -> Reconstructed:
        """Reconstruct and score images uint8 [N, H, W, 3]."""
        return score_reconstructions(images, self.networks, self.sampling, self.noise, self.rule)


def write_strips(path: Path, images: UInt8Array, reconstructed: Reconstructed) -> None:
    """Write a PNG with a row for each image: image, reconstruction, map; all maps on one scale."""
    highest = float(reconstructed.maps.max()) or 1.0  # maps that are zero everywhere stay black
    rows = [
        np.hstack(
            [
                cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
                cv2.cvtColor(reconstruction, cv2.COLOR_RGB2BGR),
                cv2.applyColorMap((255 * np.clip(values / highest, 0, 1)).astype(np.uint8), cv2.COLORMAP_INFERNO),
            ]
        )
        for image, reconstruction, values in zip(
            images, unsigned(reconstructed.reconstructions), reconstructed.maps, strict=True
        )
    ]
    write_png(path, np.vstack(rows), is_bgr=True)
