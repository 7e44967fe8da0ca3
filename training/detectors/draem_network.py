"""The networks of DRAEM (arXiv:2108.07610): one rebuilds the image as it were without defects, one compares the two."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from flawscope.training.segmentation.evidence import evidence

_DEVIATION = 0.02
"""Standard deviation of all initial weights, as published."""


class UNet(nn.Module):
    """Encoder and decoder: two 3 x 3 convolutions at every depth, sides halved and doubled between.

    `forward` takes float32 [N, inputs, H, W] and returns float32 [N, outputs, H, W]. Sides need not be powers of two.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        width: Channels at the full size; they double with every halving, up to eight times as many.
        depth: Halvings.
        skips: Give the decoder what the encoder saw at each depth. What rebuilds an image must not have it: the defect
            would pass by the bottleneck.
    """

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, *, skips: bool) -> None:
        super().__init__()
        self._skips = skips
        widths = [width * min(2**level, 8) for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _convolutions(before, after) for before, after in zip([inputs, *widths], widths, strict=False)
        )
        self.grow = nn.ModuleList(_convolution(after, before) for before, after in itertools.pairwise(widths))
        self.up = nn.ModuleList(_convolutions(2 * count if skips else count, count) for count in widths[:-1])
        self.last = nn.Conv2d(width, outputs, 3, padding=1)
        self.apply(_draw_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs of a batch."""
        value, levels = images, []
        for number, block in enumerate(self.down):
            value = block(value if number == 0 else functional.max_pool2d(value, 2))
            levels.append(value)
        for number in reversed(range(len(self.up))):
            height, width = levels[number].shape[-2:]
            # To the very size of the encoder's level, not twice as large: an odd side was halved downwards.
            larger = functional.interpolate(value, size=(int(height), int(width)), mode="bilinear", align_corners=False)
            value = self.grow[number](larger)
            value = self.up[number](torch.cat([value, levels[number]], dim=1) if self._skips else value)
        result: Tensor = self.last(value)
        return result


def _convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def _convolutions(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(_convolution(inputs, outputs), _convolution(outputs, outputs))


def _draw_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, _DEVIATION)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, _DEVIATION)


class DraemNetworks(nn.Module):
    """Both networks: pixels in, the rebuilt image and the logit of a defect out.

    `forward` takes float32 [N, 3, H, W] in [0, 1]; it returns the rebuilt images, of that shape, and logits
    float32 [N, 1, H, W]: the difference of the two classes, whose sigmoid is their softmax.

    Args:
        width: Channels of the network that rebuilds, at the full size.
        depth: Its halvings.
        segmentation_width: Channels of the network that compares, at the full size.
        segmentation_depth: Its halvings.
    """

    def __init__(self, width: int, depth: int, segmentation_width: int, segmentation_depth: int) -> None:
        super().__init__()
        self.reconstruction = UNet(3, 3, width, depth, skips=False)
        self.segmentation = UNet(6, 2, segmentation_width, segmentation_depth, skips=True)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return rebuilt images and logits."""
        rebuilt = self.reconstruction(pixels)
        classes = self.segmentation(torch.cat([rebuilt, pixels], dim=1))
        return rebuilt, classes[:, 1:] - classes[:, :1]


class DraemNetwork(nn.Module):
    """The detector: image in, anomaly map and score out.

    `forward` takes uint8 [N, H, W, 3] and returns the map float32 [N, H, W], `evidence` of the logits, and the score
    float32 [N], the largest mean of the map over a window of `score_window` pixels; at the border the window is cut.

    Args:
        networks: Both networks.
        score_window: Side of the window in pixels, odd.
    """

    def __init__(self, networks: DraemNetworks, score_window: int) -> None:
        super().__init__()
        self.networks, self._window = networks, score_window
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps and scores of a batch."""
        _, logits = self.networks(pixels_of(image))
        anomaly_map = evidence(logits)
        half = self._window // 2
        # A mean over rows, then over columns: the same as over the square, with a tenth of the sums. Without the zeros
        # beyond the border, where a defect would count half.
        rows = functional.avg_pool2d(anomaly_map, (self._window, 1), 1, (half, 0), count_include_pad=False)
        means = functional.avg_pool2d(rows, (1, self._window), 1, (0, half), count_include_pad=False)
        return anomaly_map[:, 0], means.amax(dim=(1, 2, 3))


def pixels_of(image: Tensor) -> Tensor:
    """Return images uint8 [N, H, W, 3] as float32 [N, 3, H, W] in [0, 1]."""
    # The cast comes first: TensorRT rejects a transpose of uint8.
    return (image.to(torch.float32) * (1.0 / 255.0)).permute(0, 3, 1, 2)
