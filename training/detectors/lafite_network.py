"""Networks of LafitE: the stages of a backbone as one feature on one grid, and the denoiser of such features."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from flawscope.config import LafiteConfig
from flawscope.imaging.map_upsampling import resampling_matrix
from flawscope.training.diffusion.unet import recompute_blocks, unet_network
from flawscope.training.features.backbone import Backbone, stages_of


class JoinedFeatures(nn.Module):
    """Stages on one grid, side by side, each channel with mean 0 and deviation 1 over normal images.

    `forward` takes uint8 [N, H, W, 3] and returns float32 [N, C, h, w].

    Args:
        backbone: Gives the stages.
        grid: Rows h and columns w.
        size: Height and width of the images in pixels.
        offset: Mean of every channel, float32 [C]; None leaves features as they are.
        factor: One over the deviation of every channel, float32 [C]; None leaves features as they are.
    """

    def __init__(
        self,
        backbone: Backbone,
        grid: tuple[int, int],
        size: tuple[int, int],
        offset: Tensor | None = None,
        factor: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        stages = stages_of(backbone, size)
        self.channels = sum(stage.shape[1] for stage in stages)
        # As matrix products: the same numbers in torch, ONNX Runtime and TensorRT, whose ways to resize differ.
        for number, stage in enumerate(stages):
            rows, columns = (
                torch.from_numpy(resampling_matrix(source, target)).float()
                for source, target in zip(stage.shape[2:], grid, strict=True)
            )
            self.register_buffer(f"rows{number}", rows, persistent=False)
            self.register_buffer(f"columns{number}", columns.T.contiguous(), persistent=False)
        self.register_buffer("offset", torch.zeros(self.channels) if offset is None else offset, persistent=False)
        self.register_buffer("factor", torch.ones(self.channels) if factor is None else factor, persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the features of a batch."""
        joined = torch.cat(
            [
                self.get_buffer(f"rows{number}") @ stage @ self.get_buffer(f"columns{number}")
                for number, stage in enumerate(self.backbone(image))
            ],
            dim=1,
        )
        shape = (1, -1, 1, 1)
        return (joined - self.get_buffer("offset").reshape(shape)) * self.get_buffer("factor").reshape(shape)


class FeatureDenoiser(nn.Module):
    """A UNet (arXiv:2006.11239) on features, with random weights.

    `forward` takes noisy features float32 [N, C, h, w] and timesteps int64 [N] and returns the noise in them, float32
    [N, C, h, w].

    Args:
        config: Grid, widths, layers and attention.
        channels: C.
    """

    def __init__(self, config: LafiteConfig, channels: int) -> None:
        super().__init__()
        self.network: nn.Module = unet_network(
            config.grid, channels, config.widths, config.layers, config.attention, config.head_width
        )
        recompute_blocks(self.network, config.denoising.gradient_checkpointing)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Return the predicted noise."""
        return cast(Tensor, self.network(x, timestep, return_dict=False)[0])
