"""The network of the segmenter: a frozen backbone, and a U-shaped decoder to one logit per cell.

U-shaped (arXiv:1505.04597): the backbone gives features at several strides, and the decoder joins them from the
coarsest to the finest: lateral 1x1 convolutions, doubling, 3x3 convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from flawscope.arrays import UInt8Array
from flawscope.imaging.map_upsampling import map_matrices
from flawscope.training.features.backbone import Backbone, stages_of
from flawscope.training.segmentation.evidence import evidence

GROUPS = 8
"""Groups of the group normalisation; the width of a decoder is a multiple of it."""

_PRIOR = 0.01  # probability of a defect before anything is learned (arXiv:1708.02002, section 4.1)


class Segmenter(nn.Module):
    """Image in, logits of a defect out.

    `forward` takes uint8 [N, H, W, 3] RGB and returns float32 [N, 1, h, w] on the grid of the finest stage; `enlarge`
    upsamples it to the image. Features are standardised with the figures of `standardise`.

    Args:
        encoder: Backbone with its weights; always in inference mode, so that statistics of its batch norm stay fixed.
        size: Height and width of the images in pixels.
        width: Channels of the decoder, a multiple of 8.
        train_encoder: Whether the backbone learns too.
    """

    def __init__(self, encoder: Backbone, size: tuple[int, int], width: int, *, train_encoder: bool = False) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(train_encoder)
        channels = [int(stage.shape[1]) for stage in stages_of(encoder, size)]
        # Persistent: the figures of `standardise` are part of the trained state.
        for index, count in enumerate(channels):
            self.register_buffer(f"center{index}", torch.zeros((1, count, 1, 1)))
            self.register_buffer(f"scale{index}", torch.ones((1, count, 1, 1)))
        self.laterals = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.blocks = nn.ModuleList(_block(width) for _ in channels)
        self.head = nn.Conv2d(width, 1, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        assert self.head.bias is not None
        # The prior of rare defects: else the many normal pixels dominate the first steps.
        nn.init.constant_(self.head.bias, -math.log((1.0 - _PRIOR) / _PRIOR))

    def train(self, mode: bool = True) -> Segmenter:
        """Set the decoder's mode; the encoder stays in inference mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def standardise(self, batches: Iterator[UInt8Array]) -> None:
        """Measure mean and deviation of every feature channel on batches of images, uint8 [N, H, W, 3]."""
        sums: list[tuple[Tensor, Tensor]] = []
        cells: list[int] = []
        with torch.inference_mode():
            for images in batches:
                # float64: a variance from sums of squares cancels in float32.
                stages = [stage.double() for stage in self.encoder(torch.from_numpy(images))]
                parts = [(stage.sum(dim=(0, 2, 3)), stage.square().sum(dim=(0, 2, 3))) for stage in stages]
                sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, parts, strict=True)] if sums else parts
                counts = [stage.shape[0] * stage.shape[2] * stage.shape[3] for stage in stages]
                cells = [a + b for a, b in zip(cells, counts, strict=True)] if cells else counts
        for index, ((total, squares), count) in enumerate(zip(sums, cells, strict=True)):
            mean = total / count
            deviation = (squares / count - mean.square()).clamp(min=0.0).sqrt()
            # Bounded: a channel that hardly varies on normal images would be amplified to the size of the others.
            least = max(0.05 * float(deviation.mean()), 1e-6)
            self.get_buffer(f"center{index}").copy_(mean.reshape(1, -1, 1, 1))
            self.get_buffer(f"scale{index}").copy_(1.0 / deviation.clamp(min=least).reshape(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of a batch."""
        stages = self.encoder(image)
        joined: Tensor | None = None
        for index in reversed(range(len(stages))):
            centred = (stages[index] - self.get_buffer(f"center{index}")) * self.get_buffer(f"scale{index}")
            lateral = self.laterals[index](centred)
            size = (int(lateral.shape[2]), int(lateral.shape[3]))
            joined = lateral if joined is None else lateral + enlarge(joined, size)
            joined = self.blocks[index](joined)
        logits: Tensor = self.head(joined)
        return logits.float()


def _block(width: int) -> nn.Module:
    # Group normalisation: batches are small, and it acts alike in training and inference.
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(GROUPS, width), nn.ReLU())


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps [N, C, h, w] at another size, bilinearly."""
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


class SegmenterScores(nn.Module):
    """A trained segmenter as a detector: image in, anomaly map and score out.

    `forward` takes uint8 [N, H, W, 3] and returns the map float32 [N, H, W] and the score float32 [N]. The map is the
    `evidence` of the logits, upsampled bilinearly and smoothed by a Gaussian if `sigma` is above 0. The score is the
    mean of its `top` highest pixels.

    Args:
        segmenter: The segmenter.
        size: Height and width of the map in pixels.
        sigma: Standard deviation of the Gaussian in pixels.
        top: Pixels whose mean is the score.
    """

    def __init__(self, segmenter: Segmenter, size: tuple[int, int], sigma: float, top: int) -> None:
        super().__init__()
        self.segmenter, self.top = segmenter, top
        grid = stages_of(segmenter.encoder, size)[0].shape[-2:]
        # Matrix products: the same numbers in torch, ONNX Runtime and TensorRT.
        rows, columns = map_matrices((int(grid[0]), int(grid[1])), size, sigma)
        self.register_buffer("rows", torch.from_numpy(rows), persistent=False)
        self.register_buffer("columns", torch.from_numpy(columns), persistent=False)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps and scores of a batch."""
        logits = self.get_buffer("rows") @ self.segmenter(image)[:, 0] @ self.get_buffer("columns")
        maps = evidence(logits)
        return maps, maps.flatten(1).topk(self.top, dim=1).values.mean(dim=1)
