"""Patches of a set of images, computed by several processes, in the order of the images on rank 0."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from flawscope.arrays import Float32Array
from flawscope.config import FittedConfig
from flawscope.imaging.fitting_views import View
from flawscope.imaging.tiles import ImageSource
from flawscope.progress import Progress, no_progress
from flawscope.training.features.patch_extraction import iterate_patches, to_numpy
from flawscope.training.features.patch_features import PatchFeatures
from flawscope.training.loop.ranks import Ranks


def own_images(paths: Sequence[ImageSource], batch_size: int, here: Ranks) -> Sequence[ImageSource]:
    """Return the images of every `world`-th batch, which this process computes.

    Whole batches: they are those of one process, so that networks whose numbers depend on the batch give the same.
    """
    if here.world == 1:
        return paths
    batches = here.share(math.ceil(len(paths) / batch_size))
    return [path for batch in batches for path in paths[batch * batch_size : (batch + 1) * batch_size]]


def gathered_patches(
    features: PatchFeatures,
    paths: Sequence[ImageSource],
    shape: tuple[int, int],
    config: FittedConfig,
    stage: str,
    progress: Progress,
    here: Ranks,
    view: View | None = None,
) -> Iterator[Float32Array]:
    """Yield the patches of all images on rank 0, float32 [N, P, D], in the order of the images; nothing elsewhere.

    Every rank enters, and has to take all: there is a collective for every `world` batches, which is as much as rank 0
    holds.

    Args:
        features: Gives the patches.
        paths: The images.
        shape: P and D.
        config: Settings.
        stage: Names the work, for progress.
        progress: Receives progress.
        here: This process.
        view: View of the images, or None as they are.

    Raises:
        DataError: If the network gives NaN or infinity for an image of this process.
    """
    if here.world == 1:
        for batch in iterate_patches(features, paths, config, stage, progress, view):
            yield to_numpy(batch)
        return
    size, done = config.patches.batch_size, 0
    own = iterate_patches(features, own_images(paths, size, here), config, stage, no_progress, view)
    progress(stage, 0, len(paths))
    for start in range(0, len(paths), size * here.world):
        patches = next(own, None)
        rows = np.empty((0, *shape), np.float32) if patches is None else to_numpy(patches)
        # Images of this round, counted within it.
        first = here.rank * size
        gathered = here.gather_rows(rows, np.arange(first, first + len(rows)))
        if gathered is not None:
            yield gathered
        done = min(start + size * here.world, len(paths))
        progress(stage, done, len(paths))


def shared_transform(transform: Tensor | None, here: Ranks) -> Tensor | None:
    """Return rank 0's transform of patches: other processors may round theirs otherwise. Every rank enters."""
    if transform is None or here.world == 1:
        return transform
    on_cpu = transform.cpu().contiguous()
    return here.broadcast_tensor(on_cpu).to(transform.device)
