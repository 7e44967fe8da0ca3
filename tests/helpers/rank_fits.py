"""Fits of PatchCore and PaDiM, alone or as one of several processes; a script for `rank_processes`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from patchcore_fits import patchcore_config
from tiny_dataset import training_images

from flawscope.config import build_config
from flawscope.progress import no_progress
from flawscope.training.detectors.padim import fit_padim
from flawscope.training.detectors.patchcore import fit_patchcore
from flawscope.training.features.backbone import build_backbone
from flawscope.training.loop.ranks import Ranks, ranks


def fit_all(root: Path, scratch: Path, here: Ranks) -> dict[str, Any]:
    """Return the tensors of a fit of each method."""
    config = patchcore_config(batch_size=2)
    padim, _ = build_config("padim", {"resize": 64, "stages": [1, 2], "channels": 12, "batch_size": 2})
    backbone = build_backbone(config.features, None)[0]
    images = training_images(root)[:7]
    return {
        **fit_patchcore(config, backbone, images, scratch, no_progress, here).tensors,
        **fit_padim(padim, backbone, images, no_progress, here).tensors,
    }


if __name__ == "__main__":
    root, out = map(Path, sys.argv[1:])
    np.savez(out / f"{ranks().rank}.npz", **fit_all(root, out, ranks()))
