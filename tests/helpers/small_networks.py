"""Networks of timm made small by their own options, and files of their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch

from flawscope.config import FeatureSettings

State = dict[str, torch.Tensor]

SMALL: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"depth": 4, "embed_dim": 32, "num_heads": 2},
    "vit_small_patch14_reg4_dinov2": {"depth": 4, "embed_dim": 32, "num_heads": 2},
    "vit_small_patch16_dinov3": {"depth": 4, "embed_dim": 32, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"depths": [1, 1, 1, 1], "embed_dim": 8, "num_heads": [1, 1, 2, 2]},
    "swinv2_tiny_window8_256": {"depths": [1, 1, 1, 1], "embed_dim": 8, "num_heads": [1, 1, 2, 2]},
    "hiera_tiny_224": {"stages": [1, 1, 1, 1], "embed_dim": 8},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
    "mobilenetv2_035": {},
}
"""Network -> options that make it small."""


def small_settings(name: str, **settings: Any) -> FeatureSettings:
    """Return settings of a small network."""
    options = {**SMALL[name], **settings.pop("backbone_options", {})}
    return FeatureSettings(backbone=name, backbone_options=options, **settings)


def plain_network(name: str, **options: Any) -> torch.nn.Module:
    """Return the whole small network as timm builds it, in inference mode."""
    arguments = {**SMALL[name], **options}
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    network: torch.nn.Module = timm.create_model(name, pretrained=False, **arguments)
    return network.eval()


def small_state(name: str, seed: int = 0, **options: Any) -> State:
    """Return a whole state dict of a small network, in timm's names and with random values everywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = plain_network(name, **options).state_dict()
        noise = {key: 0.05 * torch.randn(value.shape) for key, value in state.items() if value.is_floating_point()}
    drawn = {key: value + noise[key] if key in noise else value.clone() for key, value in state.items()}
    return {
        key: (value.abs() + 0.1 if key.endswith("running_var") else value).contiguous() for key, value in drawn.items()
    }


def save(state: State, path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write a state as a safetensors file; return its path."""
    safetensors.torch.save_file(state, path, metadata)
    return path
