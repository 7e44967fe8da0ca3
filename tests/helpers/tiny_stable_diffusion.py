"""Folders of Stable Diffusion and of LDM text-to-image of a few thousand parameters, as diffusers writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny_guided import randomise, tiny_guided

LENGTH, TEXT_WIDTH = 7, 6
"""Tokens of a text, and the width of their embedding."""


MERGES = ("d e", "de f", "def e", "defe c", "defec t</w>")


def write_stable_diffusion(folder: Path, *, inpainting: bool = False) -> Path:
    """Write UNet, autoencoder (which halves the sides once), text encoder and tokenizer; return the folder.

    The tokenizer knows the letters a and b, and the words `*` and `defect`.
    """
    import transformers

    torch.manual_seed(11)
    _tiny_unet(inpainting).save_pretrained(folder / "unet")
    _tiny_vae().save_pretrained(folder / "vae")
    words = ["<|startoftext|>", "<|endoftext|>", *(f"{letter}{end}" for letter in "ab" for end in ("", "</w>"))]
    words += ["*", "*</w>", *"defc", "t</w>", *(merge.replace(" ", "") for merge in MERGES)]
    written = folder / "words"
    written.mkdir()
    (written / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}), "utf-8")
    (written / "merges.txt").write_text("\n".join(("#version: 0.2", *MERGES)) + "\n", "utf-8")
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


def write_text_to_image(folder: Path) -> Path:
    """Write LDM text-to-image: UNet, autoencoder, LDMBert and the tokenizer of BERT; return the folder."""
    import transformers
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    torch.manual_seed(12)
    _tiny_unet(inpainting=False).save_pretrained(folder / "unet")
    _tiny_vae().save_pretrained(folder / "vqvae")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "*", "a", "b", "defect"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder, local_files_only=True, model_max_length=LENGTH)
    tokenizer.save_pretrained(folder / "tokenizer")
    settings = LDMBertConfig(
        vocab_size=len(words),
        max_position_embeddings=LENGTH,
        encoder_layers=2,
        encoder_ffn_dim=8,
        encoder_attention_heads=2,
        head_dim=3,
        d_model=TEXT_WIDTH,
    )
    LDMBertModel(settings).save_pretrained(folder / "bert")
    return folder


def _tiny_unet(inpainting: bool) -> Any:
    import diffusers

    unet: Any = tiny_guided().unet
    if inpainting:
        unet = diffusers.UNet2DConditionModel.from_config({**unet.config, "in_channels": 9})
    randomise(unet)
    return unet


def _tiny_vae() -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
