"""The UNet that predicts noise in images or features, and gradient checkpointing for diffusers networks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flawscope.config import DdadConfig
from flawscope.training.diffusion.diffusers_networks import group_count, head_width, import_diffusers


class Denoiser(nn.Module):
    """A UNet (arXiv:2006.11239) with random weights.

    `forward` takes noisy images float32 [N, 3, H, W] and timesteps int64 [N] and returns the noise in them, float32
    [N, 3, H, W].

    Args:
        config: Widths, layers, attention, dropout and the size of the images.
    """

    def __init__(self, config: DdadConfig) -> None:
        super().__init__()
        self.network: nn.Module = unet_network(
            config.preprocessing.size,
            3,
            config.unet_widths,
            config.layers,
            config.attention,
            config.head_width,
            config.dropout,
        )
        recompute_blocks(self.network, config.denoising.gradient_checkpointing)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Return the predicted noise."""
        return cast(Tensor, self.network(x, timestep, return_dict=False)[0])


def unet_network(
    size: tuple[int, int],
    channels: int,
    widths: Sequence[int],
    layers: int,
    attention: Sequence[int],
    most_head_width: int,
    dropout: float = 0.0,
) -> nn.Module:
    """Return a UNet2DModel of diffusers with random weights.

    Args:
        size: Height and width of its inputs.
        channels: Channels of its inputs, and of the noise that it predicts.
        widths: Channels per level, finest first.
        layers: Residual blocks per level.
        attention: Sides at which levels have self-attention; of oblong inputs the longer side counts.
        most_head_width: Most channels of an attention head.
        dropout: Dropout rate in training.
    """
    sides = [max(size) // 2**level for level in range(len(widths))]
    attends = [side in attention for side in sides]
    network: nn.Module = import_diffusers().UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=layers,
        block_out_channels=tuple(widths),
        down_block_types=tuple("AttnDownBlock2D" if attended else "DownBlock2D" for attended in attends),
        up_block_types=tuple("AttnUpBlock2D" if attended else "UpBlock2D" for attended in reversed(attends)),
        attention_head_dim=head_width(most_head_width, widths),
        norm_num_groups=group_count(widths),
        dropout=dropout,
    )
    return network


def recompute_blocks(
    network: nn.Module,
    enabled: bool,
    again: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> None:
    """Switch gradient checkpointing (arXiv:1604.06174): activations of blocks are recomputed in the backward pass.

    Passes without gradients are unaffected. Random numbers of a block (dropout) and autocast are the same when it is
    recomputed.

    Args:
        network: A UNet, ControlNet or AutoencoderKL of diffusers.
        enabled: Whether to recompute; False keeps the activations, whatever was set before.
        again: Makes a context in which each block is recomputed. Contexts around the forward pass have ended by then.
    """

    def recomputed(module: nn.Module, *inputs: Any) -> Any:
        # Not reentrant: that variant gives no gradients when only the context needs some, as with learned embeddings.
        return checkpoint(
            module.__call__, *inputs, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), again())
        )

    blocks: Any = network  # the methods are of diffusers' ModelMixin
    if enabled:
        blocks.enable_gradient_checkpointing(recomputed)
    else:
        blocks.disable_gradient_checkpointing()


def signed_images(images: Tensor) -> Tensor:
    """Return images uint8 [N, H, W, 3] as float32 [N, 3, H, W] in [-1, 1]."""
    return (images.to(torch.float32) * (1.0 / 127.5) - 1.0).permute(0, 3, 1, 2)
