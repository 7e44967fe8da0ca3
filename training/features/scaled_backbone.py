"""A backbone that sees an image at several scales (MuRF): the stages of each are further stages of one image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flawscope.config import PatchSettings
from flawscope.config.method_settings import MethodConfig
from flawscope.config.setting_parts import find_part
from flawscope.errors import ArgumentError
from flawscope.ranges import MAX_SIDE
from flawscope.training.features.backbone import Backbone, stages_of
from flawscope.training.features.timm_network import coarsest_stride, is_built_for_one_size
from flawscope.training.features.wrapped_backbone import WrappedBackbone


class ScaledBackbone(WrappedBackbone):
    """Stages of an image at several scales: those of scale 1 first, then those of the others, by rising scale.

    The image is resized in the graph, by two matrices. It is averaged where it shrinks, so that no detail of the image
    folds into another one, and interpolated linearly where it grows.

    Args:
        backbone: Gives the stages of one image.
        scales: The scales, rising, 1 among them.
        size: Height and width of the images of scale 1.

    Attributes:
        scales: The scales in the order of the stages, 1 first.
        sizes: Height and width of the image at each of them.

    Raises:
        ArgumentError: If the backbone cannot take an image of one of the sizes, two of them are the same, or one is
            larger than the image for a scale below 1, or smaller for one above.
    """

    def __init__(self, backbone: Backbone, scales: Sequence[float], size: tuple[int, int]) -> None:
        super().__init__(backbone)
        step = coarsest_stride(backbone.network)
        self.scales = tuple(sorted(scales, key=lambda scale: (scale != 1.0, scale)))
        self.sizes = tuple(size if scale == 1.0 else _rounded(scale, size, step) for scale in self.scales)
        for number, (scale, seen) in enumerate(zip(self.scales, self.sizes, strict=True)):
            if seen in self.sizes[:number]:
                other = self.scales[self.sizes.index(seen)]
                raise ArgumentError(
                    f"scales: expected sizes that differ, got {_pixels(seen)} for both {other:g} and {scale:g} (sides "
                    f"are rounded to multiples of {step} pixels, the stride of the coarsest stage). Leave one out."
                )
            # Near 1 the rounding may go the other way: 1.02 of 70 pixels would be 64.
            if any((side - whole) * (scale - 1) < 0 for side, whole in zip(seen, size, strict=True)):
                raise ArgumentError(
                    f"scales: expected sizes {'below' if scale < 1 else 'above'} {_pixels(size)} for {scale:g}, got "
                    f"{_pixels(seen)} (sides are rounded to multiples of {step} pixels, the stride of the coarsest "
                    "stage). Choose a scale further from 1, or an --image-size of whole multiples."
                )
        for scale, seen in zip(self.scales[1:], self.sizes[1:], strict=True):
            _check_taken(backbone, scale, seen)
        self.resizing = nn.ModuleList(Resizing(size, seen) for seen in self.sizes[1:])
        self.to(backbone.get_buffer("scale").device)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the feature stages of a batch."""
        stages = list(self.inner(image))
        for resizing in self.resizing:
            # Pixels, not yet normalised: a cache inside knows images by them.
            stages += self.inner(resizing(image))
        return stages

    def parts(self, stages: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Return the stages of each scale, in the order of `scales`."""
        count = len(stages) // len(self.scales)
        return [stages[number * count : (number + 1) * count] for number in range(len(self.scales))]

    def check(self, stages: Sequence[Tensor], size: tuple[int, int]) -> None:
        """Refuse stages that are not what timm says of the network; see `Backbone.check`."""
        for part, seen in zip(self.parts(stages), self.sizes, strict=True):
            self.inner.check(part, seen)

    @property
    def line(self) -> str:
        """What the network sees at each scale, for the record of a run."""
        parts = sorted(zip(self.scales, self.sizes, strict=True))
        return f"scales: {', '.join(f'{scale:g} ({_pixels(seen)})' for scale, seen in parts)}"


class Resizing(nn.Module):
    """Resizes images, [N, H, W, 3] to float32 [N, h, w, 3], by a triangle filter: wider where they shrink.

    Args:
        source: Height and width of the images.
        target: Height and width to bring them to.
    """

    def __init__(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = (_filter(before, after) for before, after in zip(source, target, strict=True))
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns.T.contiguous(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the resized images."""
        # The cast comes first: TensorRT rejects a transpose of uint8. Two constant matrices: the same numbers in torch,
        # ONNX Runtime and TensorRT, whose resizing differs (and TensorRT has none that averages).
        channels_first = image.to(torch.float32).permute(0, 3, 1, 2)
        resized = self.get_buffer("rows") @ (channels_first @ self.get_buffer("columns"))
        return resized.permute(0, 2, 3, 1)


def scaled_backbone(backbone: Backbone, config: MethodConfig) -> Backbone:
    """Return a backbone that sees images at the scales of settings; the same one where that is 1 alone.

    Raises:
        ArgumentError: If the backbone cannot take an image of one of the sizes, or two of them are the same.
    """
    scales = scales_of(config)
    return backbone if scales == (1.0,) else ScaledBackbone(backbone, scales, config.preprocessing.size)


def scales_of(config: MethodConfig) -> tuple[float, ...]:
    """Return the scales that settings ask for: 1 alone for a method that has no such setting."""
    settings = find_part(config, PatchSettings)
    return (1.0,) if settings is None else settings.scales


def _rounded(scale: float, size: tuple[int, int], step: int) -> tuple[int, int]:
    """Return a size at a scale, in whole steps."""
    # In whole positions of each stage: networks pad the rest of a position in ways of their own, and transformers take
    # whole patches alone.
    height, width = (round(scale * side / step) * step for side in size)
    if min(height, width) < step:
        got = _pixels((round(scale * size[0]), round(scale * size[1])))
        raise ArgumentError(
            f"scales: expected at least {step} pixels along each side, the stride of the coarsest stage, got {got} for "
            f"{scale:g}. Choose a larger scale or --image-size, or finer stages."
        )
    if max(height, width) > MAX_SIDE:
        raise ArgumentError(
            f"scales: expected at most {MAX_SIDE} pixels along each side, got {_pixels((height, width))} for "
            f"{scale:g}. Choose a smaller scale or --image-size."
        )
    return height, width


def _check_taken(backbone: Backbone, scale: float, seen: tuple[int, int]) -> None:
    try:
        stages_of(backbone, seen)
    except ArgumentError as err:
        # The cause is what the network itself said.
        reason = (str(err.__cause__ or err).strip().splitlines() or ["no reason given"])[0].rstrip(".")
        advice = (
            "It is built for images of one size: leave scales out, or choose another backbone."
            if is_built_for_one_size(backbone.network)
            else "Choose other scales, or another --image-size."
        )
        raise ArgumentError(
            f"scales: expected a backbone that takes images of {_pixels(seen)} pixels, those of scale {scale:g}, got "
            f"one that does not ({reason}). {advice}"
        ) from err


def _filter(source: int, target: int) -> Tensor:
    """Return the matrix float32 [target, source] of a resize along one axis."""
    # What torch makes of an identity matrix is its filter. float64, so that each weight is rounded once.
    identity = torch.eye(source, dtype=torch.float64)[None, None]
    resized = functional.interpolate(
        identity, size=(target, source), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0, 0].float()


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
