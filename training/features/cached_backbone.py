"""A backbone that computes the stages of an image once, however many fits and scores need them."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from flawscope.training.features.backbone import Backbone
from flawscope.training.features.wrapped_backbone import WrappedBackbone

_MOST_BYTES = 8 << 30
"""Most that is kept; the stages of further images are computed anew each time."""


class CachedBackbone(WrappedBackbone):
    """The same backbone, with the stages of every image that it has seen in a file.

    Images are known by their pixels, so that whatever a fit does to its images before the backbone (tiles, rotations)
    is kept as well, and so are images that were resized for another scale. Batches that are new as a whole are computed
    as a whole, with the same result as without a cache.

    Args:
        backbone: The backbone; weights, device and everything else are its own.
        file: Empty binary file, open for reading and writing.
    """

    def __init__(self, backbone: Backbone, file: BinaryIO) -> None:
        super().__init__(backbone)
        self._file, self._end = file, 0
        # Digest of an image -> where its stages begin in the file, and their shapes [C, h, w].
        self._places: dict[bytes, tuple[int, list[torch.Size]]] = {}

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the feature stages of a batch."""
        rows = image.cpu().numpy()
        keys = [hashlib.sha256(repr(row.shape).encode() + np.ascontiguousarray(row).tobytes()).digest() for row in rows]
        new = [index for index, key in enumerate(keys) if key not in self._places]
        if not new:
            return self._join([self._read(key) for key in keys], image.device)
        computed = self.inner(image if len(new) == len(keys) else image[new])
        if len(new) < len(keys):
            fresh = {index: [stage[place].cpu() for stage in computed] for place, index in enumerate(new)}
            stages = [fresh[index] if index in fresh else self._read(key) for index, key in enumerate(keys)]
            result = self._join(stages, image.device)
        else:
            result = computed
        for place, index in enumerate(new):
            self._write(keys[index], [stage[place] for stage in computed])
        return result

    def _write(self, key: bytes, stages: list[Tensor]) -> None:
        size = sum(4 * stage.numel() for stage in stages)
        if key in self._places or self._end + size > _MOST_BYTES:
            return
        self._file.seek(self._end)
        for stage in stages:
            self._file.write(np.ascontiguousarray(stage.cpu().numpy(), np.float32).tobytes())
        # After the last byte: should the disk be full, nothing is known that is not there.
        self._places[key] = self._end, [stage.shape for stage in stages]
        self._end += size

    def _read(self, key: bytes) -> list[Tensor]:
        start, shapes = self._places[key]
        self._file.seek(start)
        stages = []
        for shape in shapes:
            data = bytearray(self._file.read(4 * shape.numel()))
            stages.append(torch.frombuffer(data, dtype=torch.float32).reshape(shape))
        return stages

    @staticmethod
    def _join(images: list[list[Tensor]], device: torch.device) -> list[Tensor]:
        return [torch.stack(stages).to(device) for stages in zip(*images, strict=True)]
