"""Backbones: the built-in scattering network, or the stages of any timm model."""

from __future__ import annotations

import difflib
import logging
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from flawscope.config import FeatureSettings
from flawscope.errors import ArgumentError, MissingExtra, RunError
from flawscope.files import sha256_file
from flawscope.open_files import regular_path
from flawscope.runs import BackboneSource
from flawscope.training.features.scattering import Scattering

SCATTERING = "scattering"
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


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

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the feature stages of a batch."""
        # The cast comes first: TensorRT rejects a transpose of uint8.
        normalised = image.to(torch.float32) * self.get_buffer("scale") + self.get_buffer("offset")
        stages: list[Tensor] = self.network(normalised.permute(0, 3, 1, 2))
        return stages


def stages_of(backbone: Backbone, size: tuple[int, int]) -> list[Tensor]:
    """Return the feature stages of a black image of size (H, W), from which channels and grids are read.

    Raises:
        ArgumentError: If the backbone cannot take images of this size.
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
            "Choose a larger --image-size or finer stages."
        ) from err
    return stages


def build_backbone(settings: FeatureSettings, weights: Path | None) -> tuple[Backbone, BackboneSource]:
    """Build the backbone that settings name, with its weights.

    Args:
        settings: Name the backbone, its stages and options.
        weights: A safetensors file with timm's names, or None for the model hub.

    Raises:
        ArgumentError: If the backbone or one of its stages does not exist.
        RunError: If the weights are of another architecture or cannot be downloaded.
    """
    backbone = untrained_backbone(settings)
    if settings.backbone == SCATTERING:
        if weights is not None:
            raise ArgumentError(
                f"weights: the backbone {SCATTERING} has fixed filters and takes no file, got {weights}. "
                "Leave --weights out or name the file's --backbone."
            )
        return backbone, BackboneSource(SCATTERING, "none: fixed filters", "Apache-2.0")
    if weights is None:
        return backbone, _download(backbone.network, settings.backbone)
    _load_file(backbone.network, settings.backbone, weights)
    # Licence and origin of a file are its owner's to know: its hash identifies it.
    return backbone, BackboneSource(settings.backbone, f"file sha256:{sha256_file(weights)}", "as the file's")


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


def untrained_backbone(settings: FeatureSettings) -> Backbone:
    """Build the backbone that settings name, its parameters drawn at random and frozen, in inference mode.

    Raises:
        ArgumentError: If the backbone or one of its stages does not exist.
    """
    if settings.backbone == SCATTERING:
        if not set(settings.stages) <= {1, 2, 3, 4}:
            raise ArgumentError(f"stages: {SCATTERING} has the stages 1,2,3,4, got {list(settings.stages)}.")
        network: nn.Module = Scattering(settings.stages)
        mean = std = (0.5, 0.5, 0.5)  # pixels in [-1, 1]: the fixed filters have no statistics of their own
    else:
        network = _timm_network(settings)
        defaults = getattr(network, "default_cfg", None) or {}
        mean = tuple(defaults.get("mean", _IMAGENET_MEAN))
        std = tuple(defaults.get("std", _IMAGENET_STD))
    backbone = Backbone(network, settings.mean or mean, settings.std or std)
    # Inference mode is part of the contract: in training mode batch norm would change its statistics while features
    # are read.
    backbone.eval().requires_grad_(False)
    return backbone


def _timm_network(settings: FeatureSettings) -> nn.Module:
    try:
        import timm
    except ImportError as err:
        raise MissingExtra(f"the backbone {settings.backbone}", "timm", "train") from err
    if not timm.is_model(settings.backbone):
        close = difflib.get_close_matches(settings.backbone, timm.list_models(), 3)
        raise ArgumentError(
            f"backbone: expected {SCATTERING} or the name of a timm model, got {settings.backbone!r}. "
            + (f"Similar names: {', '.join(close)}." if close else "timm.list_models() has the names.")
        )
    # The last two win: they decide what `forward` returns, which PatchFeatures and the exporters rely on.
    arguments: dict[str, Any] = {**settings.backbone_options, "features_only": True, "out_indices": settings.stages}
    try:
        # `pretrained=True` would let timm fall back to a pickled file; weights are loaded from safetensors below.
        network: nn.Module = timm.create_model(settings.backbone, pretrained=False, **arguments)
    except (TypeError, AssertionError, IndexError, RuntimeError, ValueError) as err:
        raise ArgumentError(
            f"backbone: timm could not build {settings.backbone} with stages {list(settings.stages)} and options "
            f"{settings.backbone_options}: {type(err).__name__}: {err}. Check --set stages and backbone_options."
        ) from err
    return network


def _load_file(network: nn.Module, name: str, path: Path) -> None:
    """Load weights with timm's names; extra tensors (the classifier's) are ignored, missing ones are an error."""
    if not path.is_file():
        raise RunError(f"{path}: expected a weights file for {name}, got no such file. Check --weights.")
    try:
        state = safetensors.torch.load_file(regular_path(path))
    except (SafetensorError, OSError) as err:
        raise RunError(
            f"{path}: expected a safetensors file with timm's names, got {err}. "
            "Files that need unpickling (.pth, .bin) are not read: convert them to safetensors."
        ) from err
    expected = network.state_dict()
    # Counters of batch norm play no part in inference and are absent from many files.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    if missing:
        raise RunError(
            f"{path}: expected weights of {name}, got a file without {len(missing)} of its {len(expected)} tensors "
            f"(the first is {missing[0]}). Are they of another architecture?"
        )
    wrong = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if wrong:
        key = wrong[0]
        raise RunError(
            f"{path}: {key}: expected {list(expected[key].shape)} for {name}, got {list(state[key].shape)}. "
            "Are they of another architecture?"
        )
    if not all(bool(torch.isfinite(state[key]).all()) for key in expected if key in state):
        raise RunError(f"{path}: expected finite weights, got NaN or infinity. Get the file again.")
    # Not strict, for the counters alone: everything else has been compared above.
    network.load_state_dict({key: state[key] for key in expected if key in state}, strict=False)


def _download(network: nn.Module, name: str) -> BackboneSource:
    """Load timm's published safetensors file (never the pickled one) from the local cache, or else from the hub."""
    # Imported here: runs with the scattering backbone or a local file need no hub client.
    import huggingface_hub

    settings = getattr(network, "default_cfg", None) or {}
    repository = str(settings.get("hf_hub_id") or "")
    advice = f"Give a safetensors file with --weights FILE, or use --backbone {SCATTERING}, which needs none."
    if not repository:
        raise RunError(f"backbone: timm publishes no weights for {name}. {advice}")
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it logs a warning for every retry
    try:
        try:
            # The cache first: with it a machine without a network trains, and never waits for a timeout.
            path = huggingface_hub.hf_hub_download(repository, "model.safetensors", local_files_only=True)
        except OSError:
            _check_hub_is_there(huggingface_hub.constants.ENDPOINT)
            path = huggingface_hub.hf_hub_download(repository, "model.safetensors")
    except Exception as err:
        # The hub client raises its own and its HTTP library's families of errors; to the user they are one thing.
        raise RunError(
            f"backbone: the weights of {name} could not be downloaded from {repository} ({type(err).__name__}). "
            f"{advice}"
        ) from err
    _load_file(network, name, Path(path))
    return BackboneSource(name, f"hub {repository} sha256:{sha256_file(Path(path))}", str(settings.get("license")))


def _check_hub_is_there(endpoint: str) -> None:
    """Raise OSError at once if the hub's name cannot be resolved: its client would retry for most of a minute."""
    if urllib.request.getproxies():
        return  # behind a proxy local name resolution says nothing: the proxy resolves names
    socket.getaddrinfo(urllib.parse.urlsplit(endpoint).hostname, 443)
