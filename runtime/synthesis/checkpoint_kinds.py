"""What a file of tensors is, told from their names: models, adapters and learned words that are read, and others."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from flawscope.tensor_files import TensorEntry

UNET, AUTOENCODER, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
"""Prefixes of the parts in a checkpoint of latent diffusion."""


class Kind(Enum):
    """Kinds of files that are read."""

    STABLE_DIFFUSION = "Stable Diffusion 1"
    TEXT_TO_IMAGE = "LDM text-to-image"
    AUTOENCODER = "an autoencoder"
    LORA = "a LoRA"
    WORD = "a learned embedding"


# In this order: what comes first decides. A part of a name is enough, since models are also saved without their prefix.
_OTHERS = (
    ("conditioner.embedders.", "an SDXL checkpoint"),
    ("diffusion_model.label_emb.", "an SDXL checkpoint"),
    ("add_embedding.linear_1.", "an SDXL checkpoint"),
    ("double_blocks.", "a Flux checkpoint"),
    ("single_transformer_blocks.", "a Flux checkpoint"),
    ("joint_blocks.", "a Stable Diffusion 3 checkpoint"),
    ("joint_transformer_blocks.", "a Stable Diffusion 3 checkpoint"),
    ("cond_stage_model.model.", "a Stable Diffusion 2 checkpoint"),
    ("control_model.", "a ControlNet checkpoint"),
    ("controlnet_cond_embedding.", "a ControlNet checkpoint"),
    ("quantize.embedding.", "an autoencoder of the VQ kind"),
    ("motion_modules.", "an AnimateDiff checkpoint"),
    ("cond_stage_model.transformer.encoder.block.", "a checkpoint with a T5 text encoder"),
    ("diffusion_model.transformer_blocks.", "a diffusion transformer"),
)
_ADAPTERS = (
    ("lora_te1_", "a LoRA of SDXL"),
    ("lora_te2_", "a LoRA of SDXL"),
    ("text_encoder_2.", "a LoRA of SDXL"),
    ("lora_unet_input_blocks_", "a LoRA of SDXL"),
    ("lora_unet_double_blocks_", "a LoRA of Flux"),
    ("lora_unet_single_blocks_", "a LoRA of Flux"),
    ("lora_unet_joint_blocks_", "a LoRA of Stable Diffusion 3"),
    ("transformer.single_transformer_blocks.", "a LoRA of Flux"),
    ("transformer.transformer_blocks.", "a LoRA of Flux or Stable Diffusion 3"),
    (".hada_", "a LoHa adapter of LyCORIS"),
    (".lokr_", "a LoKr adapter of LyCORIS"),
    (".lora_mid.", "a LoCon adapter of LyCORIS with Tucker cores"),
    (".dora_scale", "a DoRA adapter"),
    (".lora_magnitude_vector", "a DoRA adapter"),
    (".oft_", "an OFT adapter"),
    (".ia3_", "an IA3 adapter"),
    (".w_norm", "a norm adapter of LyCORIS"),
    (".b_norm", "a norm adapter of LyCORIS"),
)
_LORA = (
    *(f".lora_{side}." for side in ("A", "B", "down", "up")),
    *(f"{start}.{side}." for start in ("_lora", ".lora", ".lora_linear_layer") for side in ("down", "up")),
)
_WORDS = 16  # tensors of a file of learned words; a network has more
_AXES_OF_A_WORD = (1, 2)


def kind_of(tensors: Mapping[str, TensorEntry]) -> Kind | str:
    """Return what tensors are by their names and shapes: a kind that is read, or words for what it is instead."""
    for part, words in _ADAPTERS:
        if any(part in name for name in tensors):
            return words
    if any(name.endswith((".diff", ".diff_b")) for name in tensors):
        return "an adapter of whole differences"
    if any(part in name for name in tensors for part in _LORA):
        return Kind.LORA
    for part, words in _OTHERS:
        if any(part in name for name in tensors):
            return words
    if any(name.startswith(UNET) for name in tensors):
        return _latent_diffusion(tensors)
    first = {name.partition(".")[0] for name in tensors}
    if {"encoder", "decoder", "post_quant_conv"} <= first and "encoder.conv_in.weight" in tensors:
        old_names = any(name.startswith("encoder.down.") for name in tensors)
        return Kind.AUTOENCODER if old_names else "an autoencoder as diffusers names it, without its folder"
    if any(name.startswith(AUTOENCODER) for name in tensors):
        return Kind.AUTOENCODER
    if {"down_blocks", "mid_block", "up_blocks"} <= first:
        return "a UNet as diffusers names it, without its folder"
    if {"clip_g", "clip_l"} & first:
        return "a learned embedding of SDXL"
    if any("text_model.encoder." in name for name in tensors):
        return "a text encoder"
    if 0 < len(tensors) <= _WORDS and all(
        len(entry.shape) in _AXES_OF_A_WORD and entry.dtype.kind == "f" for entry in tensors.values()
    ):
        return Kind.WORD
    return f"a file of {len(tensors)} other tensors (the first is {min(tensors, default='none')})"


def _latent_diffusion(tensors: Mapping[str, TensorEntry]) -> Kind | str:
    if any(name.startswith(f"{TEXT}text_model.") for name in tensors):
        return Kind.STABLE_DIFFUSION
    if any(name.startswith(f"{TEXT}attn_layers.") for name in tensors):
        return Kind.TEXT_TO_IMAGE
    if not any(name.startswith(AUTOENCODER) for name in tensors):
        return "a UNet alone, without autoencoder and text encoder"
    return "a latent-diffusion checkpoint without a text encoder of CLIP or BERT"
