"""A Stable Diffusion folder of a few thousand parameters, as diffusers and transformers write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny_guided import randomise, tiny_guided

LENGTH, TEXT_WIDTH = 7, 6
"""Tokens of a text, and the width of their embedding."""


def write_stable_diffusion(folder: Path) -> Path:
    """Write UNet, autoencoder (which halves the sides once), text encoder and tokenizer; return the folder."""
    import diffusers
    import transformers

    torch.manual_seed(11)
    unet: Any = tiny_guided().unet
    randomise(unet)
    unet.save_pretrained(folder / "unet")
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    vae.save_pretrained(folder / "vae")
    words = ["<|startoftext|>", "<|endoftext|>", *(f"{letter}{end}" for letter in "ab" for end in ("", "</w>"))]
    written = folder / "words"
    written.mkdir()
    (written / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}), "utf-8")
    (written / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(written, local_files_only=True, model_max_length=LENGTH)
    tokenizer.save_pretrained(folder / "tokenizer")
    settings = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    transformers.CLIPTextModel(settings).save_pretrained(folder / "text_encoder")
    return folder
