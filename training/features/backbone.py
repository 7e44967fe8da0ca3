"""Backbones: the built-in scattering network, or the stages of any timm model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from flawscope.config import FeatureSettings
from flawscope.errors import ArgumentError, RunError
from flawscope.files import sha256_file
from flawscope.runs import BackboneSource
from flawscope.training.features.model_hub import fetch_weights
from flawscope.training.features.scattering import SCATTERING as SCATTERING
from flawscope.training.features.scattering import Scattering
from flawscope.training.features.timm_network import (
    check_stages,
    configuration_of,
    create_network,
    describe_network,
    is_channels_last,
    resolve_network,
    size_advice,
    takes_option,
)
from flawscope.training.features.weight_conditions import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    apply_conditions,
    read_conditions,
)
from flawscope.training.features.weights_file import load_network


class Backbone(nn.Module):
    """uint8 image in, feature stages out; cast, normalisation and layout are part of the graph.

    `forward` takes uint8 [N, H, W, 3] RGB and returns one float32 [N, C, h, w] per stage, finest first.

    Attributes:
        mean: Per-channel mean on [0, 1].
        std: Per-channel deviation on [0, 1].
    """

    def __init__(self, network: nn.Module, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.network = network
        self.mean = mean
        self.std = std
        # One product and one sum; folded in float64, so that each constant is rounded once.
        scale = 1.0 / (255.0 * torch.tensor(std, dtype=torch.float64))
        # Not persistent: they come from the settings, and the run's weights are the network's alone.
        self.register_buffer("scale", scale.float(), persistent=False)
        offset = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self.register_buffer("offset", offset.float(), persistent=False)
        self._is_channels_last = is_channels_last(network)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the feature stages of a batch."""
        # The cast comes first: TensorRT rejects a transpose of uint8.
        normalised = image.to(torch.float32) * self.get_buffer("scale") + self.get_buffer("offset")
        stages: list[Tensor] = self.network(normalised.permute(0, 3, 1, 2))
        if self._is_channels_last:  # Swin and its kind: rows would be taken for channels
            stages = [stage.permute(0, 3, 1, 2) for stage in stages]
        return stages

    def check(self, stages: Sequence[Tensor], size: tuple[int, int]) -> None:
        """Refuse stages of an image of size (H, W) that are not what timm says of the network; see `check_stages`."""
        check_stages(self.network, stages, size)


def stages_of(backbone: Backbone, size: tuple[int, int]) -> list[Tensor]:
    """Return the feature stages of a black image of size (H, W), from which channels and grids are read.

    Raises:
        ArgumentError: If the backbone cannot take images of this size, or its stages are not what timm says of them.
    """
    device = backbone.get_buffer("scale").device
    try:
        with torch.inference_mode():
            stages: list[Tensor] = backbone(torch.zeros((1, *size, 3), dtype=torch.uint8, device=device))
    # timm's networks refuse a size in their own ways: padding, window sizes, position tables.
    except (RuntimeError, ValueError, AssertionError) as err:
        raise ArgumentError(
            f"image size: expected one that the backbone's stages can take, got {size[0]}x{size[1]} pixels "
            f"({str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__}). "
            f"{size_advice(backbone.network)}"
        ) from err
    backbone.check(stages, size)
    return stages


def build_backbone(
    settings: FeatureSettings, weights: Path | None, size: tuple[int, int] | None = None
) -> tuple[Backbone, BackboneSource]:
    """Build the backbone that settings name, with its weights; as `prepare_backbone`, without the settings.

    Args:
        settings: Name the backbone, its stages and options.
        weights: A safetensors file, or None for the model hub.
        size: Height and width in pixels of its images; None checks and sets none.
    """
    _, backbone, source = prepare_backbone(settings, weights, size)
    return backbone, source


def prepare_backbone(
    settings: FeatureSettings, weights: Path | None, size: tuple[int, int] | None, *, resizes: bool = False
) -> tuple[FeatureSettings, Backbone, BackboneSource]:
    """Build the backbone that settings name, with its weights, and fill in what the settings leave open.

    The settings that come back name stages, image size, mean and deviation: with them, and the backbone's weights,
    `restore_backbone` builds the same again, whatever timm's defaults are by then.

    Args:
        settings: Name the backbone; what they say wins over what the weights say.
        weights: A safetensors file, or None for the model hub.
        size: Height and width in pixels of its images; None checks and sets none.
        resizes: Whether it will see images of other sizes too (`scaled_backbone`).

    Raises:
        ArgumentError: If the backbone or one of its stages does not exist, it cannot take such images, or the licence
            of its weights forbids commercial use and is not accepted.
        RunError: If the weights are of another architecture or cannot be downloaded.
    """
    if settings.backbone == SCATTERING:
        if weights is not None:
            raise ArgumentError(
                f"weights: the backbone {SCATTERING} has fixed filters and takes no file, got {weights}. "
                "Leave --weights out or name the file's --backbone."
            )
        settings = _resolved_scattering(settings)
        return settings, untrained_backbone(settings), BackboneSource(SCATTERING, "none: fixed filters", "Apache-2.0")
    configuration = describe_network(settings).configuration
    conditions, where = (None, "") if weights is None else read_conditions(weights)
    in_force = apply_conditions(
        settings,
        conditions,
        where,
        # Of the tag that the weights name, where they name one.
        describe_network(msgspec.structs.replace(settings, backbone=conditions.architecture)).configuration
        if conditions is not None and "." in conditions.architecture and "." not in settings.backbone
        else configuration,
        is_published=weights is None,
        takes_padding=takes_option(settings, "pad_type", "same"),
    )
    settings = resolve_network(in_force.settings, size, resizes=resizes)
    path, place = (weights, "file") if weights is not None else fetch_weights(settings.backbone, configuration)
    backbone = _frozen(load_network(settings, path, size), settings)
    if size is not None:
        stages_of(backbone, size)
    # Licence and origin of a file are its owner's to know: its hash identifies it.
    origin = f"; {conditions.source}" if conditions is not None and conditions.source else ""
    source = BackboneSource(
        settings.backbone,
        f"{place} sha256:{sha256_file(path)}{origin}",
        in_force.licence or ("as the file's" if weights is not None else "not stated by timm"),
        in_force.lines,
    )
    return settings, backbone, source


def restore_backbone(settings: FeatureSettings, state: dict[str, Tensor]) -> Backbone:
    """Build the backbone that settings name with the weights of a run.

    Raises:
        RunError: If the weights are of another architecture.
    """
    backbone = untrained_backbone(settings)
    try:
        backbone.network.load_state_dict(state)
    except RuntimeError as err:
        expected = backbone.network.state_dict()  # torch's own message lists every one of hundreds of tensors
        matching = sum(key in state and state[key].shape == value.shape for key, value in expected.items())
        raise RunError(
            f"the run's weights are not those of {settings.backbone}: expected its {len(expected)} tensors, got "
            f"{len(state)}, of which {matching} fit. Train again."
        ) from err
    return backbone


def empty_backbone() -> tuple[Backbone, BackboneSource]:
    """Return what stands for the backbone of a method that has none: without weights, in inference mode."""
    return Backbone(nn.Identity(), (0.0,) * 3, (1.0,) * 3).eval(), BackboneSource(
        "none", "the method has no backbone", "none needed"
    )


def untrained_backbone(settings: FeatureSettings) -> Backbone:
    """Build the backbone that settings name, its parameters drawn at random and frozen, in inference mode.

    Raises:
        ArgumentError: If the backbone or one of its stages does not exist.
    """
    if settings.backbone == SCATTERING:
        settings = _resolved_scattering(settings)
        return _frozen(Scattering(settings.stages or ()), settings)
    if settings.stages is None:
        settings = resolve_network(settings, None)
    return _frozen(create_network(settings), settings)


def _resolved_scattering(settings: FeatureSettings) -> FeatureSettings:
    # Of what null stands for it takes what it has: its finest filters are those of stride 4.
    stages = settings.stages or tuple(stage for stage in settings.AUTO_STAGES if stage >= 1)
    if not set(stages) <= {1, 2, 3, 4}:
        raise ArgumentError(f"stages: {SCATTERING} has the stages 1,2,3,4, got {list(stages)}.")
    if settings.final_norm or settings.accept_licence is not None:
        name = "final_norm" if settings.final_norm else "accept_licence"
        raise ArgumentError(
            f"{name}: {SCATTERING} has fixed filters, and nothing that it would apply to. Leave it out."
        )
    return msgspec.structs.replace(settings, stages=stages)


def _frozen(network: nn.Module, settings: FeatureSettings) -> Backbone:
    # Pixels in [-1, 1] for the fixed filters, which have no statistics of their own.
    is_fixed = settings.backbone == SCATTERING
    defaults = {"mean": (0.5,) * 3, "std": (0.5,) * 3} if is_fixed else configuration_of(network)
    mean = settings.mean or tuple(defaults.get("mean", IMAGENET_MEAN))
    std = settings.std or tuple(defaults.get("std", IMAGENET_STD))
    backbone = Backbone(network, mean, std)
    # Inference mode is part of the contract: in training mode batch norm would change its statistics while features
    # are read.
    backbone.eval().requires_grad_(False)
    return backbone
