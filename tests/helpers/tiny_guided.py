"""Guided denoisers of a few thousand parameters, what goes into them, and what their UNet says by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flawscope.config import DsadConfig, from_flat
from flawscope.training.diffusion.semantic_guidance import GuidedDenoiser, build_guided_denoiser

SIDE, LATENT = 16, 8
TINY: dict[str, Any] = {
    "resize": (SIDE, SIDE),
    "widths": (8, 16),
    "layers": 1,
    "heads": 2,
    "context": 6,
    "hint_widths": (4, 6),
}


def tiny_guided(**settings: Any) -> GuidedDenoiser:
    """Build one at random."""
    return build_guided_denoiser(from_flat(DsadConfig, {**TINY, **settings}), 4, (LATENT, LATENT))


def inputs(count: int = 2, latent: int = LATENT) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return latents, timesteps, images and sketches, the same for the same count."""
    drawn = torch.Generator().manual_seed(count)
    return (
        torch.randn((count, 4, latent, latent), generator=drawn),
        torch.randint(0, 1000, (count,), generator=drawn),
        torch.randn((count, 3, 2 * latent, 2 * latent), generator=drawn),
        torch.rand((count, 1, 2 * latent, 2 * latent), generator=drawn),
    )


def predict(model: GuidedDenoiser, count: int = 2, latent: int = LATENT) -> Tensor:
    """Return what it predicts for the inputs."""
    x, t, image, sketch = inputs(count, latent)
    hint = model.encode_hint(image, None if model.sketch_encoder is None else sketch)
    predicted: Tensor = model(x, t, hint)
    return predicted


def randomise(module: nn.Module) -> None:
    """Give what starts at zero something to say."""
    drawn = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if float(parameter.abs().max()) == 0.0:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=drawn))


def unet_alone(model: GuidedDenoiser, count: int = 2, latent: int = LATENT) -> Tensor:
    """Return what its UNet predicts for them without guidance."""
    x, t, _, _ = inputs(count, latent)
    unet: Any = model.unet
    predicted: Tensor = unet(x, t, model.get_buffer("context").expand(count, -1, -1)).sample
    return predicted
