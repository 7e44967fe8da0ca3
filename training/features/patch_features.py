"""Patches from the stages of a backbone: the torch module that is exported as `features.onnx`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flawscope.config import FittedConfig
from flawscope.imaging.grid_places import GridPlaces
from flawscope.training.features.alignment import StageAlignment
from flawscope.training.features.backbone import Backbone, stages_of
from flawscope.training.features.scaled_backbone import scaled_backbone
from flawscope.training.features.unit_length import unit_length
from flawscope.training.loop.fit_result import FitResult


class PatchFeatures(nn.Module):
    """Pool, upsample and join the stages of a backbone into patches.

    `forward` takes uint8 [N, H, W, 3] and returns float32 [N, P, D] with P = h·w of the finest stage, row by row.

    Args:
        backbone: Gives the stages, the one with the patch grid first; see `ScaledBackbone` for several scales.
        pool: Average every stage over 3×3 neighbours first (PatchCore, section 3.1); the zero padding counts.
        upsample: How coarser stages reach the finest grid: `nearest` or `bilinear`.
        channels: Indices of the joined channels to keep (PaDiM), ascending, or None for all.
        transform: Patches are multiplied with it: a factor per kept channel, float32 [D], a matrix, float32 [C, D]
            for C kept channels, or None.
        unit: Patches are divided by their length, after the transform (the metric `cosine`).
        layer_widths: Channels of every stage, where the stages are layers that are kept apart: each is transformed by
            its block on the diagonal of `transform` and divided by its own length, and a patch is all of them side by
            side. None joins the stages into one.
        alignment: Resamples coarser stages at their true places, in place of `upsample`; None: stages are centred.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        pool: bool,
        upsample: str,
        channels: Sequence[int] | None = None,
        transform: Tensor | None = None,
        unit: bool = False,
        layer_widths: Sequence[int] | None = None,
        alignment: StageAlignment | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        self.upsample = upsample
        self.unit = unit
        self.layer_widths = None if layer_widths is None else tuple(layer_widths)
        self.alignment = alignment
        self.channels = None if channels is None else [int(index) for index in channels]
        # A buffer, so that it moves with the module; not persistent, since a run stores it by its own name.
        blocks = [transform] if self.layer_widths is None else _blocks(transform, self.layer_widths)
        for number, block in enumerate(blocks):
            self.register_buffer(_transform_name(number), block, persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the patches of a batch."""
        stages = self.backbone(image)
        # The finest of scale 1 first: its grid is the patch grid. `start` counts the joined channels in this order.
        grid = stages[0].shape[-2:]
        joined, start = [], 0
        for number, stage in enumerate(stages):
            width = stage.shape[1]
            if self.channels is not None:
                # Chosen before the upsampling, so that dropped channels are not enlarged.
                inside = [index - start for index in self.channels if start <= index < start + width]
                stage = stage.index_select(1, torch.tensor(inside, dtype=torch.int64, device=stage.device))
            start += width
            if stage.shape[1] == 0:  # none of its channels is kept
                continue
            if self.pool:
                stage = functional.avg_pool2d(stage, 3, stride=1, padding=1)
            if self.alignment is not None:
                joined.append(self.alignment(stage, number))
                continue
            if stage.shape[-2:] != grid:
                # torch refuses `align_corners` with `nearest`, even False.
                corners = False if self.upsample == "bilinear" else None
                stage = functional.interpolate(stage, size=grid, mode=self.upsample, align_corners=corners)
            joined.append(stage)
        if self.layer_widths is None:
            joined = [torch.cat(joined, dim=1 if self.alignment is None else 2)]
        if self.alignment is None:
            joined = [layer.flatten(2).transpose(1, 2) for layer in joined]
        layers = [self._finished(layer, number) for number, layer in enumerate(joined)]
        return layers[0] if len(layers) == 1 else torch.cat(layers, dim=2)

    def _finished(self, patches: Tensor, number: int) -> Tensor:
        """Return the patches [N, P, D] of a layer, transformed and of length 1 where that is asked for."""
        transform = self._buffers[_transform_name(number)]  # not `get_buffer`, whose type has no None
        if transform is not None:
            patches = patches * transform if transform.ndim == 1 else patches @ transform
        return unit_length(patches) if self.unit else patches

    def layout(self, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
        """Return the patch grid (h, w) and the number of all joined channels, for an input size (H, W).

        Raises:
            ArgumentError: If the backbone cannot take images of this size.
        """
        grid, widths = stage_layout(self.backbone, size)
        return grid, sum(widths)

    def widths(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Return the channels of a patch as `forward` gives it, layer by layer: one number where layers are joined.

        Raises:
            ArgumentError: If the backbone cannot take images of this size.
        """
        before = self.layer_widths or (self.layout(size)[1],)
        transforms = (self._buffers[_transform_name(number)] for number in range(len(before)))
        return tuple(
            width if transform is None else transform.shape[-1]
            for width, transform in zip(before, transforms, strict=True)
        )

    @property
    def device(self) -> torch.device:
        """The device of the backbone."""
        return self.backbone.get_buffer("scale").device


def stage_layout(backbone: Backbone, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return the patch grid (h, w), that of the finest stage, and the channels of every stage, for images (H, W).

    Raises:
        ArgumentError: If the backbone cannot take images of this size.
    """
    stages = stages_of(backbone, size)
    height, width = stages[0].shape[-2:]
    return (height, width), tuple(stage.shape[1] for stage in stages)


def _transform_name(number: int) -> str:
    return "transform" if number == 0 else f"transform_{number}"


def _blocks(transform: Tensor | None, widths: Sequence[int]) -> list[Tensor | None]:
    """Return the transform of every layer: a part of the factors, or the block on the diagonal of the matrix."""
    blocks: list[Tensor | None] = []
    start = column = 0
    for width in widths:
        if transform is None:
            blocks.append(None)
            continue
        rows = transform[start : start + width]
        start += width
        if transform.ndim == 1:
            blocks.append(rows.clone())
            continue
        # Columns of a block have something in its rows alone; of those that whitening kept none is zero.
        columns = int((rows != 0).any(dim=0).sum())
        blocks.append(rows[:, column : column + columns].clone())
        column += columns
    return blocks


def build_features(config: FittedConfig, backbone: Backbone, fit_result: FitResult) -> PatchFeatures:
    """Return the feature module of a fitted detector."""
    backbone = scaled_backbone(backbone, config)
    return PatchFeatures(
        backbone,
        pool=config.pools,
        upsample=config.patches.upsample,
        channels=fit_result.channels,
        transform=None if fit_result.transform is None else torch.from_numpy(fit_result.transform),
        unit=config.unit,
        layer_widths=layer_widths(config, backbone),
        alignment=build_alignment(config, backbone, fit_result.places),
    )


def layer_widths(config: FittedConfig, backbone: Backbone) -> tuple[int, ...] | None:
    """Return the channels of every stage where the settings keep stages apart, or None where they join them.

    Raises:
        ArgumentError: If the backbone cannot take images of the size that the settings have.
    """
    if config.banks == 1:
        return None
    return stage_layout(backbone, config.preprocessing.size)[1]


def build_alignment(
    config: FittedConfig, backbone: Backbone, places: Sequence[GridPlaces] | None
) -> StageAlignment | None:
    """Return what resamples the stages of a detector, or None where they are taken as centred."""
    if places is None:
        return None
    grids = [(int(stage.shape[-2]), int(stage.shape[-1])) for stage in stages_of(backbone, config.preprocessing.size)]
    return StageAlignment(places, grids, config.patches.upsample)
