"""The layout of latent diffusion's own checkpoints (arXiv:2112.10752), as parts of a diffusers folder.

Which tensors a part must have follows from its widths, levels and layers, which are read from the shapes. All of them
must be there and no others, so that nothing is left at random or dropped. Numbers of attention heads are in no shape:
8 in the UNet and in BERT, and one for every 64 channels in CLIP, as in all published models of this layout.

Facts of the layout: github.com/CompVis/latent-diffusion. The tests compare the names with those of the converter in
diffusers, which needs torch and all weights in memory, drops what it does not know, and has no BERT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawscope.errors import DataError
from flawscope.tensor_files import TensorEntry, shaped

_HEADS, _CLIP_HEAD, _GROUPS = 8, 64, 32

Tensors = Mapping[str, TensorEntry]


@dataclass(frozen=True)
class ModelPart:
    """One part of a diffusers folder.

    Attributes:
        config: Its `config.json`.
        tensors: Name in diffusers or transformers -> tensor.
    """

    config: dict[str, Any]
    tensors: dict[str, TensorEntry]


def unet_part(path: Path, names: Tensors, sample_size: int) -> ModelPart:
    """Return the UNet.

    Args:
        path: The checkpoint, for messages.
        names: Its tensors, named as below `model.diffusion_model`.
        sample_size: Side of the latents it was trained on.

    Raises:
        DataError: If tensors are missing or left over.
    """
    widths: list[int] = []
    attends: list[bool] = []
    layers, number = 0, 1
    # Input blocks: per level its layers, then one that halves the sides.
    while (block := f"input_blocks.{number}") and f"{block}.0.in_layers.0.weight" in names:
        count = 0
        while f"{block}.0.in_layers.0.weight" in names:
            width, attention = _rows(names, f"{block}.0.out_layers.3.weight"), f"{block}.1.norm.weight" in names
            count, number = count + 1, number + 1
            block = f"input_blocks.{number}"
        widths.append(width)
        attends.append(attention)
        layers = layers or count
        number += 1
    levels = len(widths)
    table = _Table(path, "UNet", names)
    for ldm, name in (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2")):
        table.pair(ldm, name)
    table.pair("input_blocks.0.0", "conv_in")
    table.pair("out.0", "conv_norm_out")
    table.pair("out.2", "conv_out")
    for level in range(levels):
        for layer in range(layers):
            place = f"input_blocks.{1 + level * (layers + 1) + layer}"
            _resnet(table, f"{place}.0", f"down_blocks.{level}.resnets.{layer}")
            if attends[level]:
                _attention(table, f"{place}.1", f"down_blocks.{level}.attentions.{layer}")
        if level < levels - 1:
            table.pair(f"input_blocks.{(level + 1) * (layers + 1)}.0.op", f"down_blocks.{level}.downsamplers.0.conv")
    _resnet(table, "middle_block.0", "mid_block.resnets.0")
    _attention(table, "middle_block.1", "mid_block.attentions.0")
    _resnet(table, "middle_block.2", "mid_block.resnets.1")
    for block_number, attention in enumerate(reversed(attends)):
        for layer in range(layers + 1):
            place = f"output_blocks.{block_number * (layers + 1) + layer}"
            _resnet(table, f"{place}.0", f"up_blocks.{block_number}.resnets.{layer}")
            if attention:
                _attention(table, f"{place}.1", f"up_blocks.{block_number}.attentions.{layer}")
        if block_number < levels - 1:
            table.pair(f"{place}.{1 + attention}.conv", f"up_blocks.{block_number}.upsamplers.0.conv")
    tensors = table.finished()
    if any(width % _GROUPS for width in widths):
        raise DataError(f"{path}: expected a UNet with widths in multiples of {_GROUPS}, got {widths}.")
    context = tensors["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape[-1]
    config = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": _HEADS,
        "block_out_channels": widths,
        "center_input_sample": False,
        "cross_attention_dim": context,
        "down_block_types": ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": tensors["conv_in.weight"].shape[1],
        "layers_per_block": layers,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": _GROUPS,
        "out_channels": tensors["conv_out.weight"].shape[0],
        "sample_size": sample_size,
        "up_block_types": ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
    }
    return ModelPart(config, tensors)


def autoencoder_part(path: Path, names: Tensors, sample_size: int, scaling: float) -> ModelPart:
    """Return the autoencoder.

    Args:
        path: The checkpoint, for messages.
        names: Its tensors, named as below `first_stage_model`.
        sample_size: Side of the images it was trained on.
        scaling: Factor of the latents.

    Raises:
        DataError: If tensors are missing or left over.
    """
    widths: list[int] = []
    while (first := f"encoder.down.{len(widths)}.block.0.conv1.weight") in names:
        widths.append(_rows(names, first))
    layers = 0
    while f"encoder.down.0.block.{layers}.conv1.weight" in names:
        layers += 1
    table = _Table(path, "autoencoder", names)
    table.pair("quant_conv", "quant_conv")
    table.pair("post_quant_conv", "post_quant_conv")
    for half in ("encoder", "decoder"):
        table.pair(f"{half}.conv_in", f"{half}.conv_in")
        table.pair(f"{half}.norm_out", f"{half}.conv_norm_out")
        table.pair(f"{half}.conv_out", f"{half}.conv_out")
        for number in (1, 2):
            _autoencoder_resnet(table, f"{half}.mid.block_{number}", f"{half}.mid_block.resnets.{number - 1}")
        ldm, attention = f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0"
        table.pair(f"{ldm}.norm", f"{attention}.group_norm")
        for old, new in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
            # Convolutions of 1 x 1 there, matrices here.
            table.pair(f"{ldm}.{old}", f"{attention}.{new}", lambda entry: shaped(entry, entry.shape[:2]))
    for level in range(len(widths)):
        up = len(widths) - 1 - level  # the decoder counts its levels from the finest, diffusers from the coarsest
        for layer in range(layers):
            _autoencoder_resnet(
                table, f"encoder.down.{level}.block.{layer}", f"encoder.down_blocks.{level}.resnets.{layer}"
            )
        for layer in range(layers + 1):
            _autoencoder_resnet(table, f"decoder.up.{up}.block.{layer}", f"decoder.up_blocks.{level}.resnets.{layer}")
        if level < len(widths) - 1:
            table.pair(f"encoder.down.{level}.downsample.conv", f"encoder.down_blocks.{level}.downsamplers.0.conv")
            table.pair(f"decoder.up.{up}.upsample.conv", f"decoder.up_blocks.{level}.upsamplers.0.conv")
    tensors = table.finished()
    config = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "latent_channels": tensors["post_quant_conv.weight"].shape[0],
        "layers_per_block": layers,
        "norm_num_groups": _GROUPS,
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "sample_size": sample_size,
        "scaling_factor": scaling,
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
    }
    return ModelPart(config, tensors)


def clip_part(path: Path, names: Tensors) -> ModelPart:
    """Return the text encoder of Stable Diffusion 1.

    Args:
        path: The checkpoint, for messages.
        names: Its tensors, named as below `cond_stage_model.transformer`.

    Raises:
        DataError: If tensors are missing or left over.
    """
    # Older files store the positions 0 to 76, which newer versions of transformers compute.
    names = {name: entry for name, entry in names.items() if not name.endswith("position_ids")}
    table = _Table(path, "text encoder", names)
    for name in ("token_embedding", "position_embedding"):
        table.one(f"text_model.embeddings.{name}.weight", f"text_model.embeddings.{name}.weight")
    table.pair("text_model.final_layer_norm", "text_model.final_layer_norm")
    layers = 0
    while (place := f"text_model.encoder.layers.{layers}") and f"{place}.mlp.fc1.weight" in names:
        parts = [f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")]
        for part in (*parts, "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"):
            table.pair(f"{place}.{part}", f"{place}.{part}")
        layers += 1
    tensors = table.finished()
    vocabulary, width = tensors["text_model.embeddings.token_embedding.weight"].shape
    config = {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": width,
        "intermediate_size": tensors["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0] if layers else 0,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": tensors["text_model.embeddings.position_embedding.weight"].shape[0],
        "model_type": "clip_text_model",
        "num_attention_heads": max(width // _CLIP_HEAD, 1),
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": width,
        "vocab_size": vocabulary,
    }
    return ModelPart(config, tensors)


def bert_part(path: Path, names: Tensors) -> ModelPart:
    """Return the text encoder of LDM text-to-image, a BERT of x-transformers.

    Args:
        path: The checkpoint, for messages.
        names: Its tensors, named as below `cond_stage_model.transformer`.

    Raises:
        DataError: If tensors are missing or left over.
    """
    table = _Table(path, "text encoder", names)
    table.one("token_emb.weight", "model.embed_tokens.weight")
    table.one("pos_emb.emb.weight", "model.embed_positions.weight")
    table.pair("norm", "model.layer_norm")
    table.pair("to_logits", "to_logits")
    layers = 0
    while (place := f"attn_layers.layers.{2 * layers}") and f"{place}.1.to_q.weight" in names:
        name, after = f"model.layers.{layers}", f"attn_layers.layers.{2 * layers + 1}"
        table.pair(f"{place}.0", f"{name}.self_attn_layer_norm")
        for part in "qkv":
            table.one(f"{place}.1.to_{part}.weight", f"{name}.self_attn.{part}_proj.weight")
        table.pair(f"{place}.1.to_out", f"{name}.self_attn.out_proj")
        table.pair(f"{after}.0", f"{name}.final_layer_norm")
        table.pair(f"{after}.1.net.0.0", f"{name}.fc1")
        table.pair(f"{after}.1.net.2", f"{name}.fc2")
        layers += 1
    tensors = table.finished()
    vocabulary, width = tensors["model.embed_tokens.weight"].shape
    first = {name: tensors[f"model.layers.0.{name}.weight"].shape[0] for name in ("self_attn.q_proj", "fc1") if layers}
    config = {
        "activation_function": "gelu",
        "architectures": ["LDMBertModel"],
        "d_model": width,
        "encoder_attention_heads": _HEADS,
        "encoder_ffn_dim": first.get("fc1", 0),
        "encoder_layers": layers,
        "head_dim": first.get("self_attn.q_proj", 0) // _HEADS,
        "max_position_embeddings": tensors["model.embed_positions.weight"].shape[0],
        "model_type": "ldmbert",
        "pad_token_id": 0,
        "scale_embedding": False,
        "vocab_size": vocabulary,
    }
    return ModelPart(config, tensors)


class _Table:
    """Tensors by their new names; `finished` checks that all were there and none is left."""

    def __init__(self, path: Path, what: str, names: Tensors) -> None:
        self._path, self._what, self._names = path, what, names
        self._tensors: dict[str, TensorEntry] = {}
        self._used: set[str] = set()

    def one(self, ldm: str, name: str, change: Callable[[TensorEntry], TensorEntry] | None = None) -> None:
        if ldm not in self._names:
            raise DataError(
                f"{self._path}: expected a whole {self._what} of latent diffusion, got one without {ldm}. Is it "
                "another model's, or cut short?"
            )
        entry = self._names[ldm]
        self._used.add(ldm)
        self._tensors[name] = entry if change is None or len(entry.shape) < 2 else change(entry)

    def pair(self, ldm: str, name: str, change: Callable[[TensorEntry], TensorEntry] | None = None) -> None:
        for end in ("weight", "bias"):
            self.one(f"{ldm}.{end}", f"{name}.{end}", change)

    def rows_differ(self, ldm: str) -> bool:
        shape = self._names[ldm].shape if ldm in self._names else ()
        return len(shape) > 1 and shape[0] != shape[1]

    def finished(self) -> dict[str, TensorEntry]:
        left = sorted(self._names.keys() - self._used)
        if left:
            raise DataError(
                f"{self._path}: expected the {self._what} of Stable Diffusion 1 or LDM text-to-image, got {len(left)} "
                f"tensors more (the first is {left[0]}). Is it another model's?"
            )
        return self._tensors


def _resnet(table: _Table, ldm: str, name: str) -> None:
    for old, new in (
        ("in_layers.0", "norm1"),
        ("in_layers.2", "conv1"),
        ("emb_layers.1", "time_emb_proj"),
        ("out_layers.0", "norm2"),
        ("out_layers.3", "conv2"),
    ):
        table.pair(f"{ldm}.{old}", f"{name}.{new}")
    if table.rows_differ(f"{ldm}.in_layers.2.weight"):
        table.pair(f"{ldm}.skip_connection", f"{name}.conv_shortcut")


def _attention(table: _Table, ldm: str, name: str) -> None:
    for part in ("norm", "proj_in", "proj_out"):
        table.pair(f"{ldm}.{part}", f"{name}.{part}")
    block = "transformer_blocks.0"
    for attention in ("attn1", "attn2"):
        for part in ("to_q", "to_k", "to_v"):
            table.one(f"{ldm}.{block}.{attention}.{part}.weight", f"{name}.{block}.{attention}.{part}.weight")
        table.pair(f"{ldm}.{block}.{attention}.to_out.0", f"{name}.{block}.{attention}.to_out.0")
    for part in ("ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"):
        table.pair(f"{ldm}.{block}.{part}", f"{name}.{block}.{part}")


def _autoencoder_resnet(table: _Table, ldm: str, name: str) -> None:
    for part in ("norm1", "conv1", "norm2", "conv2"):
        table.pair(f"{ldm}.{part}", f"{name}.{part}")
    if table.rows_differ(f"{ldm}.conv1.weight"):
        table.pair(f"{ldm}.nin_shortcut", f"{name}.conv_shortcut")


def _rows(names: Tensors, name: str) -> int:
    shape = names[name].shape if name in names else ()
    return shape[0] if shape else 0
