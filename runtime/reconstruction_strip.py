"""Input, reconstruction and anomaly maps of one image as PNG files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.diffusion.reconstruction import Reconstructed, unsigned
from flawscope.imaging.png import write_png


def write_reconstruction(
    folder: Path, name: str, image: UInt8Array, reconstructed: Reconstructed, reference: float
) -> None:
    """Write input, reconstruction and maps of one image.

    `NAME-strip.png` shows input, reconstruction and heat map side by side; `NAME-input`, `-reconstruction` (without
    diffusion), `-samples` (with it), `-features` and `-heatmap` are one panel each.

    Args:
        folder: Folder of the files; it must exist.
        name: Prefix of the file names.
        image: The prepared image, uint8 [H, W, 3].
        reconstructed: The result for this image, a batch of one.
        reference: Map value in the middle of the colour scale: the same scale for every image.
    """
    samples = unsigned(reconstructed.reconstructions)[0]
    heat = _coloured(reconstructed.maps[0], reference)
    images = {
        "strip": np.hstack([image, samples, heat]),
        "input": image,
        # Encoded and decoded only (DDAD without latents: the input): shows what the autoencoder loses by itself.
        "reconstruction": unsigned(reconstructed.unsampled())[0],
        "samples": samples,
        # The one panel with a scale of its own: features have no threshold to refer to.
        "features": np.repeat(
            _grey_levels(reconstructed.feature[0], float(reconstructed.feature.max()))[:, :, None], 3, axis=2
        ),
        "heatmap": cv2.addWeighted(image, 0.5, heat, 0.5, 0.0),
    }
    for kind, panel in images.items():
        write_png(folder / f"{name}-{kind}.png", panel.astype(np.uint8, copy=False))


def _grey_levels(values: Float32Array, top: float) -> UInt8Array:
    """Return values from 0 to `top` as grey levels; values above are white."""
    # Clipped before the conversion: astype(np.uint8) wraps 256 around to black.
    levels: UInt8Array = np.rint(255.0 * np.clip(values / max(top, 1e-12), 0.0, 1.0)).astype(np.uint8)
    return levels


def _coloured(values: Float32Array, reference: float) -> UInt8Array:
    colours = cv2.applyColorMap(_grey_levels(values, 2.0 * reference), cv2.COLORMAP_TURBO)
    return cv2.cvtColor(colours, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
