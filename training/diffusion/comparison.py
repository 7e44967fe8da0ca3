"""Differences between an image and its reconstruction, in pixels and in features: the graph `compare`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from flawscope.training.diffusion.unet import signed_images
from flawscope.training.features.backbone import Backbone


class Comparison(nn.Module):
    """The two maps of DDAD (arXiv:2305.15956) before they are scaled, summed and smoothed.

    `forward` takes images uint8 [N, H, W, 3] and reconstructions float32 [N, 3, H, W] in [-1, 1] and returns the
    differences of pixels and of features, each float32 [N, H, W].

    The map of features is, summed over the stages, one minus the cosine similarity at a position, after a mean filter
    per channel, upsampled bilinearly with aligned corners.

    Args:
        backbone: Extractor of features.
        pixel_map: `squared`: the largest squared difference of the channels on [0, 1]; `absolute`: the mean absolute
            difference of the channels on [-1, 1].
        smoothing: Side of the mean filter in positions of the stage, odd; the border is padded with zeros.
    """

    def __init__(self, backbone: Backbone, pixel_map: Literal["squared", "absolute"], smoothing: int) -> None:
        super().__init__()
        self.backbone, self.pixel_map, self.smoothing = backbone, pixel_map, smoothing
        self.eval()

    def forward(self, image: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Return both maps of a batch."""
        difference = signed_images(image) - reconstruction
        is_squared = self.pixel_map == "squared"
        # Half of a difference on [-1, 1] is the difference on [0, 1].
        pixel = (0.5 * difference).square().amax(dim=1) if is_squared else difference.abs().mean(dim=1)
        stages = pair_features(self.backbone, image, reconstruction)
        feature = torch.stack([self._feature_map(first, second, pixel) for first, second in stages]).sum(dim=0)
        return pixel, feature

    def _feature_map(self, first: Tensor, second: Tensor, pixel: Tensor) -> Tensor:
        if self.smoothing > 1:
            first, second = (
                functional.avg_pool2d(stage, self.smoothing, stride=1, padding=self.smoothing // 2)
                for stage in (first, second)
            )
        cosine = (functional.normalize(first, dim=1) * functional.normalize(second, dim=1)).sum(dim=1, keepdim=True)
        # Plain numbers, so that the export has a constant size instead of a subgraph of shapes.
        size = [int(side) for side in pixel.shape[-2:]]
        return functional.interpolate(1.0 - cosine, size=size, mode="bilinear", align_corners=True)[:, 0]


def pair_features(backbone: Backbone, image: Tensor, reconstruction: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return for every stage the features of images and of reconstructions, each float32 [N, C, h, w].

    Args:
        backbone: Extractor of features.
        image: uint8 [N, H, W, 3].
        reconstruction: Float32 [N, 3, H, W] in [-1, 1].
    """
    # Not rounded to bytes, which would show as a difference.
    on_bytes_scale = (reconstruction.permute(0, 2, 3, 1) + 1.0) * 127.5
    # One batch, so that both halves go through the same kernels; those for another batch size may round otherwise.
    stages = backbone(torch.cat([image.to(torch.float32), on_bytes_scale]))
    pairs = []
    for stage in stages:
        halves = stage.unflatten(0, (2, -1))  # with -1 the batch size stays dynamic in the exported graph
        pairs.append((halves[0], halves[1]))
    return pairs
