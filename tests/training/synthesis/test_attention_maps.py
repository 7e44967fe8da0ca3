"""Attention of a UNet's decoder to a learned embedding, and DefectFill's losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_base import tiny_base

from flawscope.config import build_config
from flawscope.training.synthesis.attention_maps import AttentionMaps, enlarged
from flawscope.training.synthesis.inpainting_losses import attention_loss, defect_loss, inpainting_loss, random_mask
from flawscope.training.synthesis.lora import AdaptedUnet, WholeUnet

# ---- Attention -------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("adapt", ["lora", "full"])
def test_maps_are_what_the_library_s_own_weights_give(adapt: str) -> None:
    base = tiny_base(inpainting=True)
    config: Any = build_config("inpainting", {"adapt": adapt})[0]
    network: Any = (AdaptedUnet if adapt == "lora" else WholeUnet)(base.unet, config)
    plain: Any = network.inner if adapt == "lora" else network.unet
    generator = torch.Generator().manual_seed(2)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=generator)
    seen: list[tuple[Any, torch.Tensor, torch.Tensor]] = []
    for name, module in plain.up_blocks.named_modules():
        if name.endswith("attn2"):
            module.register_forward_pre_hook(
                lambda layer, given, named: seen.append((layer, given[0], named["encoder_hidden_states"])),
                with_kwargs=True,
            )
    maps = AttentionMaps(plain)
    x, levels = torch.randn((2, 9, 8, 8), generator=generator), torch.tensor([3, 700])
    context = torch.randn((2, 5, 8), generator=generator)
    placed = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    network(x, levels, context)
    got = maps.take(placed, (8, 8))
    expected = []
    for layer, hidden, encoded in seen:
        query, key = layer.head_to_batch_dim(layer.to_q(hidden)), layer.head_to_batch_dim(layer.to_k(encoded))
        weights = layer.get_attention_scores(query, key, None)  # [N · heads, cells, L]
        of_image = weights.unflatten(0, (2, layer.heads)).mean(dim=1)
        expected.append(enlarged((of_image * placed[:, None]).sum(dim=2), (8, 8)))
    assert len(expected) >= 2
    torch.testing.assert_close(got, torch.stack(expected).mean(dim=0))
    assert got.shape == (2, 1, 8, 8)
    got.sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
@settings(deadline=None)
def test_cells_of_every_level_find_their_rows_and_columns(height: int, width: int, level: int) -> None:
    rows, columns = height, width
    for _ in range(level):
        rows, columns = -(-rows // 2), -(-columns // 2)
    # Rows alone differ: with rows and columns confused the values would differ along both.
    cells = torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, columns).reshape(1, -1)
    full = enlarged(cells, (height, width))
    assert full.shape == (1, 1, height, width)
    torch.testing.assert_close(full, full[..., :1].expand_as(full))
    assert (full[0, 0, :, 0].diff() >= -1e-5).all()


# ---- Losses ----------------------------------------------------------------------------------------------------------


def test_the_defect_counts_alone_or_with_a_share_of_the_ground() -> None:
    predicted, noise = torch.zeros((1, 2, 2, 2)), torch.zeros((1, 2, 2, 2))
    predicted[0, 0, 0, 0], predicted[0, 1, 1, 1] = 3.0, 2.0  # squares 9 at the defect and 4 beside it
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    weights = torch.tensor([0.5])
    assert defect_loss(predicted, noise, mask, weights).tolist() == [0.5 * 9 / 8]
    assert defect_loss(predicted, noise, mask, weights, 0.5).tolist() == [0.5 * (9 + 0.25 * 4) / 8]
    assert defect_loss(predicted, noise, mask, weights, 1.0).equal(
        inpainting_loss(predicted, noise, mask, weights, 0.0)
    )


def test_attention_is_compared_with_the_mask_where_there_is_an_embedding() -> None:
    attention = torch.tensor([[[[0.5, 0.0], [0.0, 1.0]]]] * 2)
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]] * 2)
    placed = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert attention_loss(attention, mask, placed).tolist() == [(0.25 + 1.0) / 4, 0.0]


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 2**32 - 1))
def test_random_masks_hide_some_and_repeat_with_their_seed(height: int, width: int, seed: int) -> None:
    mask = random_mask((height, width), np.random.default_rng(seed))
    assert mask.shape == (height, width)
    assert mask.any()
    assert (mask == random_mask((height, width), np.random.default_rng(seed))).all()
