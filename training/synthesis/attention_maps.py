"""Cross-attention of a UNet's decoder to a learned embedding, with gradients, for a loss on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class AttentionMaps:
    """Keeps queries and keys of the cross-attentions in the up blocks of a UNet, from its latest forward pass.

    They are taken by hooks on the projections and the weights are computed again from them: the fused kernels of the
    attention itself give none.

    Args:
        unet: A UNet2DConditionModel of diffusers, with or without LoRA; hooks are added to it.
    """

    def __init__(self, unet: nn.Module) -> None:
        blocks: Any = unet
        self._layers: list[Any] = [
            module for name, module in blocks.up_blocks.named_modules() if name.endswith("attn2")
        ]
        self._queries: dict[int, Tensor] = {}
        self._keys: dict[int, Tensor] = {}
        for number, layer in enumerate(self._layers):
            layer.to_q.register_forward_hook(self._keep(self._queries, number))
            layer.to_k.register_forward_hook(self._keep(self._keys, number))

    def take(self, placed: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the attention of every latent cell to the learned embedding, float32 [N, 1, *size]; forget the pass.

        It is the probability of all tokens of the embedding together, averaged over heads, and then, enlarged
        bilinearly, over layers (DefectFill, arXiv:2503.13985).

        Args:
            placed: 1 at the tokens of the embedding, else 0, float32 [N, L].
            size: Height and width of the latents.
        """
        maps = []
        for number, layer in enumerate(self._layers):
            query, key = self._queries.pop(number), self._keys.pop(number)
            # float(): under autocast both are in half precision, in which a softmax over many tokens loses digits.
            query, key = (
                part.reshape(*part.shape[:2], layer.heads, -1).transpose(1, 2).float() for part in (query, key)
            )
            weights = (query @ key.transpose(2, 3) * layer.scale).softmax(dim=3)  # [N, heads, cells, L]
            attended = torch.einsum("nhcl,nl->nc", weights, placed) / layer.heads
            maps.append(enlarged(attended, size))
        return torch.stack(maps).mean(dim=0)

    @staticmethod
    def _keep(kept: dict[int, Tensor], number: int) -> Any:
        def hook(_module: nn.Module, _arguments: object, output: Tensor) -> None:
            kept[number] = output

        return hook


def enlarged(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Return values of the cells of a level, float32 [N, h · w], at the size of the latents, [N, 1, H, W].

    Args:
        cells: Row by row; each level has half the sides of the one above it, rounded up.
        size: Height and width of the latents.
    """
    height, width = size
    while height * width > cells.shape[1]:
        height, width = -(-height // 2), -(-width // 2)
    return functional.interpolate(cells.reshape(-1, 1, height, width), size, mode="bilinear", align_corners=False)
