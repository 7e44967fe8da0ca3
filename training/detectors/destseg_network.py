"""The networks of DeSTSeg (arXiv:2211.11317): a frozen teacher, a student that denoises, and a head that segments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flawscope.training.detectors.draem_network import pixels_of
from flawscope.training.features.backbone import Backbone, stages_of
from flawscope.training.segmentation.evidence import evidence

_DILATIONS = (6, 12, 18)
"""Of the head's branches, in cells of its grid, as in DeepLab v3 (arXiv:1706.05587)."""
_PRIOR = 0.01  # probability of a defect before anything is learned


class Student(nn.Module):
    """Encoder and decoder: pixels in, the features that the teacher has of the image without its defect.

    `forward` takes float32 [N, 3, H, W] in [0, 1] and returns float32 [N, C, h, w] for every stage of the teacher. No
    skips: a defect has to pass a bottleneck one halving below the teacher's coarsest stage. The encoder is of its own,
    and not a copy of the teacher's network, so that any backbone may be the teacher, one without weights too.

    Args:
        shapes: Channels, height and width of each stage of the teacher, finest first.
        size: Height and width of the image in pixels.
        width: Channels at stride 4; they double with every halving, up to eight times as many.
        blocks: Residual blocks at every stride.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]], size: tuple[int, int], width: int, blocks: int) -> None:
        super().__init__()
        self._grids = [(height, columns) for _, height, columns in shapes]
        # Stages lie between powers of two where a network has strides of its own, as a ViT's 14.
        self._levels = [max(2, round(math.log2(size[0] / height))) for height, _ in self._grids]
        deepest, finest = max(self._levels) + 1, min(self._levels)
        widths = {level: width * min(2 ** (level - 2), 8) for level in range(2, deepest + 1)}
        self.stem = nn.Sequential(*_convolution(3, width, side=7, stride=2))
        self.down = nn.ModuleList(
            _blocks(widths.get(level - 1, width), widths[level], blocks, stride=2) for level in range(2, deepest + 1)
        )
        self.up = nn.ModuleList(
            _blocks(widths[level + 1], widths[level], blocks) for level in reversed(range(finest, deepest))
        )
        self.last = nn.ModuleList(
            nn.Conv2d(widths[level], channels, 1) for level, (channels, _, _) in zip(self._levels, shapes, strict=True)
        )
        self._deepest = deepest

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the features of a batch."""
        value = self.stem(pixels)
        sides: dict[int, tuple[int, int]] = {}
        for level, block in enumerate(self.down, 2):
            value = block(value)
            sides[level] = int(value.shape[-2]), int(value.shape[-1])
        decoded: dict[int, Tensor] = {}
        for level, block in zip(reversed(range(self._deepest)), self.up, strict=False):
            value = block(_enlarge(value, sides[level]))
            decoded[level] = value
        return [
            _enlarge(layer(decoded[level]), grid)
            for layer, level, grid in zip(self.last, self._levels, self._grids, strict=True)
        ]


class SegmentationHead(nn.Module):
    """How alike teacher and student are, channel by channel, in; the logit of a defect out.

    `forward` takes float32 [N, C, h, w] and returns float32 [N, 1, h, w]: two residual blocks, then branches of other
    reach (one cell, three dilations, the whole image) side by side.

    Args:
        channels: Channels in.
        width: Channels within.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(_Residual(channels, width, 1), _Residual(width, width, 1))
        self.branches = nn.ModuleList(
            [nn.Sequential(*_convolution(width, width, side=1))]
            + [nn.Sequential(*_convolution(width, width, dilation=dilation)) for dilation in _DILATIONS]
        )
        # Without batch norm: over one value of an image there is nothing to normalise, in a batch of one at all.
        self.whole = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1, bias=False))
        self.join = nn.Conv2d((len(_DILATIONS) + 1) * width, width, 1, bias=False)
        logit = nn.Conv2d(width, 1, 1)
        # The prior of rare defects (arXiv:1708.02002): else the many normal pixels dominate the first steps.
        nn.init.normal_(logit.weight, std=0.01)
        assert logit.bias is not None
        nn.init.constant_(logit.bias, -math.log((1.0 - _PRIOR) / _PRIOR))
        self.last = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), *_convolution(width, width), logit)

    def forward(self, likeness: Tensor) -> Tensor:
        """Return the logits of a batch."""
        value = self.residual(likeness)
        joined = self.join(torch.cat([branch(value) for branch in self.branches], dim=1))
        # Added, not laid over the grid and joined: the same sum of products, and no shape of the batch in the graph.
        logits: Tensor = self.last(joined + self.whole(value.mean(dim=(2, 3), keepdim=True)))
        return logits


class DestsegNetworks(nn.Module):
    """What is trained: student and head.

    `forward` takes images and the teacher's features of them; it returns the student's features, and the head's logits
    float32 [N, 1, h, w] on the grid of the finest stage. No gradient of the logits reaches the student: it learns to
    denoise alone, as published.

    Args:
        teacher: The frozen backbone, for the shapes of its stages.
        size: Height and width of the image in pixels.
        width: Of `Student`.
        blocks: Of `Student`.
        head_width: Of `SegmentationHead`.
    """

    def __init__(self, teacher: Backbone, size: tuple[int, int], width: int, blocks: int, head_width: int) -> None:
        super().__init__()
        stages = stages_of(teacher, size)
        shapes = [(int(stage.shape[1]), int(stage.shape[2]), int(stage.shape[3])) for stage in stages]
        self.student = Student(shapes, size, width, blocks)
        self.head = SegmentationHead(sum(channels for channels, _, _ in shapes), head_width)

    def forward(self, image: Tensor, expected: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the student's features and the logits of a batch."""
        # Not in the student: its operators are those that a reduced precision computes, and the cast of the image, that
        # the teacher shares, has to stay out of them.
        features = self.student(pixels_of(image))
        return features, self.head(likeness(expected, [stage.detach() for stage in features]))


def likeness(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Return the products of the normalised features, of all stages on the grid of the finest, [N, C, h, w].

    Their sum over the channels of a stage is the cosine of teacher and student at a position.
    """
    grid = int(teacher[0].shape[-2]), int(teacher[0].shape[-1])
    products = [_unit(first) * _unit(second) for first, second in zip(teacher, student, strict=True)]
    return torch.cat([_enlarge(product, grid) for product in products], dim=1)


class DestsegNetwork(nn.Module):
    """The detector: image in, anomaly map and score out.

    `forward` takes uint8 [N, H, W, 3] and returns the map float32 [N, H, W], `evidence` of the logits, which are
    enlarged to the image first, and the score float32 [N], the mean of the map's `top` highest pixels.

    Args:
        teacher: The frozen backbone with its weights.
        networks: Student and head.
        size: Height and width of the map in pixels.
        top: Pixels that make the score; if an image has fewer, all do.
    """

    def __init__(self, teacher: Backbone, networks: DestsegNetworks, size: tuple[int, int], top: int) -> None:
        super().__init__()
        self.teacher, self.networks, self.size = teacher, networks, size
        self._top = min(top, size[0] * size[1])
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps and scores of a batch."""
        _, logits = self.networks(image, self.teacher(image))
        anomaly_map = evidence(_enlarge(logits, self.size))[:, 0]
        return anomaly_map, anomaly_map.flatten(1).topk(self._top, dim=1).values.mean(dim=1)


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(inputs, outputs, stride=stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        is_same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity()
            if is_same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, value: Tensor) -> Tensor:
        return functional.relu(self.body(value) + self.shortcut(value))


def _blocks(inputs: int, outputs: int, count: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        _Residual(inputs, outputs, stride), *(_Residual(outputs, outputs, 1) for _ in range(count - 1))
    )


def _convolution(
    inputs: int, outputs: int, *, side: int = 3, stride: int = 1, dilation: int = 1
) -> tuple[nn.Module, nn.Module, nn.Module]:
    padding = dilation * (side // 2)
    return (
        nn.Conv2d(inputs, outputs, side, stride=stride, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _unit(features: Tensor) -> Tensor:
    # Not `functional.normalize`, which expands the length to the features' shape: a graph would ask the image for its
    # batch before the cast, and TensorRT takes images of uint8 by a cast alone.
    lengths: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / lengths.clamp_min(1e-12)


def _enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if (int(maps.shape[-2]), int(maps.shape[-1])) == size:
        return maps
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
