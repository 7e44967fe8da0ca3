"""Text encoder of a generator, with learned embeddings in place of placeholder tokens."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class TextEncoder(nn.Module):
    """Tokens in, cross-attention context of the UNet out.

    `forward` takes tokens int64 [N, L], vectors float32 [N, L, W] and placed float32 [N, L], and returns the last
    hidden state float32 [N, L, D] as the pipelines of diffusers use it. Where `placed` is 1, the token's embedding is
    replaced by the vector before positions are added (arXiv:2208.01618): as if it were a row of the token table, but
    different for each text. Where `placed` is 0, the result is that of the library's model, bit for bit.

    Args:
        model: A CLIPTextModel of transformers, or an LDMBertModel of diffusers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    @property
    def table(self) -> Tensor:
        """The embeddings of all tokens, float32 [tokens, W]."""
        return cast(Tensor, self._embedding.weight)

    @property
    def width(self) -> int:
        """Width W of a token's embedding."""
        return int(self.table.shape[1])

    @property
    def length(self) -> int:
        """Largest number of tokens of a text."""
        return int(self.model.config.max_position_embeddings)

    def forward(self, tokens: Tensor, vectors: Tensor, placed: Tensor) -> Tensor:
        """Return the context for the UNet's cross-attention."""
        is_placed = placed[..., None] > 0.5

        def place(_module: nn.Module, _arguments: object, embedded: Tensor) -> Tensor:
            return torch.where(is_placed, vectors, embedded)

        # A hook on the token table, because what surrounds the table differs between the two libraries, and in
        # transformers between versions. torch's exporter traces through hooks.
        hook = self._embedding.register_forward_hook(place)
        try:
            return cast(Tensor, self.model(tokens, return_dict=False)[0])
        finally:
            hook.remove()

    @property
    def _embedding(self) -> Any:
        return self.model.get_input_embeddings()
