"""The network that predicts noise in images, and how networks of diffusers save memory while they learn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flawscope.config import DdadConfig
from flawscope.training.diffusion.diffusers_networks import group_count, head_width, import_diffusers


class Denoiser(nn.Module):
    """A UNet (arXiv:2006.11239) from random weights.

    `forward` takes noisy images float32 [N, 3, H, W] and timesteps int64 [N] and returns the noise in them, float32
    [N, 3, H, W].

    Args:
        config: Widths, layers, attention, dropout and the size of images.
    """

    def __init__(self, config: DdadConfig) -> None:
        super().__init__()
        widths = config.unet_widths
        size = config.preprocessing.size
        sides = [max(size) // 2**level for level in range(len(widths))]
        attends = [side in config.attention for side in sides]
        self.network: nn.Module = import_diffusers().UNet2DModel(
            sample_size=size,
            in_channels=3,
            out_channels=3,
            layers_per_block=config.layers,
            block_out_channels=widths,
            down_block_types=tuple("AttnDownBlock2D" if attended else "DownBlock2D" for attended in attends),
            up_block_types=tuple("AttnUpBlock2D" if attended else "UpBlock2D" for attended in reversed(attends)),
            attention_head_dim=head_width(config.head_width, widths),
            norm_num_groups=group_count(widths),
            dropout=config.dropout,
        )
        recompute_blocks(self.network, config.denoising.gradient_checkpointing)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Return the predicted noise."""
        return cast(Tensor, self.network(x, timestep, return_dict=False)[0])


def recompute_blocks(
    network: nn.Module,
    wanted: bool,
    again: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> None:
    """Enable gradient checkpointing: recompute block activations in the backward pass.

    This is gradient checkpointing (arXiv:1604.06174). Nothing changes where no gradients are wanted. What was drawn at
    random in a block, as dropout is, is the same again; and so is autocast.

    Args:
        network: A UNet, ControlNet or AutoencoderKL of diffusers.
        wanted: False keeps what the blocks gave, whatever was asked for before.
        again: Called with every block, in whose context it is computed again: what holds around the network's own
            forward pass is over by then.
    """

    def block(module: nn.Module, *given: Any) -> Any:
        # Not the reentrant way, which gives no gradients where only the context has some, as with learned words.
        return checkpoint(
            module.__call__, *given, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), again())
        )

    known: Any = network
    if wanted:
        known.enable_gradient_checkpointing(block)
    else:
        known.disable_gradient_checkpointing()


def signed_images(images: Tensor) -> Tensor:
    """Return images uint8 [N, H, W, 3] as float32 [N, 3, H, W] in [-1, 1]."""
    return (images.to(torch.float32) * (1.0 / 127.5) - 1.0).permute(0, 3, 1, 2)
