"""Input, reconstruction and anomaly maps of one image as PNG files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.diffusion.reconstruction import Reconstructed, unsigned
from flawscope.imaging.png import write_png


def write_reconstruction(folder: Path, name: str, image: UInt8Array, found: Reconstructed, reference: float) -> None:
    """Write input, reconstruction and maps of one image.

    `NAME-strip.png` has input, reconstruction and heat map side by side; `NAME-input`, `-reconstruction` (without
    diffusion), `-samples` (with it), `-features` and `-heatmap` have them apart.

    Args:
        folder: Where they are written.
        name: How their names begin.
        image: The prepared image, uint8 [H, W, 3].
        found: What came of it, a batch of one.
        reference: Value of a map that stands in the middle of its scale: the same scale for every image.
    """
    samples = unsigned(found.reconstructions)[0]
    heat = _coloured(found.maps[0], reference)
    images = {
        "strip": np.hstack([image, samples, heat]),
        "input": image,
        "reconstruction": unsigned(found.unsampled())[0],
        "samples": samples,
        # Saturated, not wrapped around: what is above the scale stays white.
        "features": np.repeat(_level(found.feature[0], float(found.feature.max()))[:, :, None], 3, axis=2),
        "heatmap": cv2.addWeighted(image, 0.5, heat, 0.5, 0.0),
    }
    for kind, panel in images.items():
        write_png(folder / f"{name}-{kind}.png", panel.astype(np.uint8, copy=False))


def _level(values: Float32Array, top: float) -> UInt8Array:
    """Return values from 0 to `top` as grey levels."""
    level: UInt8Array = np.rint(255.0 * np.clip(values / max(top, 1e-12), 0.0, 1.0)).astype(np.uint8)
    return level


def _coloured(values: Float32Array, reference: float) -> UInt8Array:
    colours = cv2.applyColorMap(_level(values, 2.0 * reference), cv2.COLORMAP_TURBO)
    return cv2.cvtColor(colours, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
