"""Networks with the parts and names of latent diffusion's own code, for checkpoints as it wrote them.

The names follow from how the modules are nested, as in github.com/CompVis/latent-diffusion, and not from any table.
Only the text encoder can be computed; the others are compared with diffusers' own converter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model; the defaults make one of a few hundred thousand parameters with all names of the real ones."""

    base: int = 32
    multipliers: Sequence[int] = (1, 2, 4, 4)
    context: int = 128
    channels_in: int = 4
    autoencoder: int = 32
    text_layers: int = 12
    bert_layers: int = 3
    tokens: int = 14
    length: int = 7


REAL = Sizes(320, (1, 2, 4, 4), 768, 4, 128, 12, 32, 49408, 77)
"""Sizes of Stable Diffusion 1."""


class _Branches(nn.Module):
    """Modules by name; it computes nothing."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, module in branches.items():
            self.add_module(name, module)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width)


def _resnet(width_in: int, width: int, time: int) -> nn.Module:
    return _Branches(
        in_layers=nn.Sequential(_norm(width_in), nn.SiLU(), nn.Conv2d(width_in, width, 3)),
        emb_layers=nn.Sequential(nn.SiLU(), nn.Linear(time, width)),
        out_layers=nn.Sequential(_norm(width), nn.SiLU(), nn.Dropout(), nn.Conv2d(width, width, 3)),
        skip_connection=nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1),
    )


def _attention(width: int, context: int) -> nn.Module:
    def cross(inputs: int) -> nn.Module:
        return _Branches(
            to_q=nn.Linear(width, width, bias=False),
            to_k=nn.Linear(inputs, width, bias=False),
            to_v=nn.Linear(inputs, width, bias=False),
            to_out=nn.Sequential(nn.Linear(width, width), nn.Dropout()),
        )

    gate = _Branches(proj=nn.Linear(width, 8 * width))
    block = _Branches(
        attn1=cross(width),
        ff=_Branches(net=nn.Sequential(gate, nn.Dropout(), nn.Linear(4 * width, width))),
        attn2=cross(context),
        norm1=nn.LayerNorm(width),
        norm2=nn.LayerNorm(width),
        norm3=nn.LayerNorm(width),
    )
    return _Branches(
        norm=_norm(width),
        proj_in=nn.Conv2d(width, width, 1),
        transformer_blocks=nn.ModuleList([block]),
        proj_out=nn.Conv2d(width, width, 1),
    )


def unet(sizes: Sizes) -> nn.Module:
    """The UNet: two layers a level, attention on all levels but the last."""
    time, width = 4 * sizes.base, sizes.base
    inputs = [nn.ModuleList([nn.Conv2d(sizes.channels_in, width, 3)])]
    kept = [width]
    last = len(sizes.multipliers) - 1
    for level, multiplier in enumerate(sizes.multipliers):
        for _ in range(2):
            made = [_resnet(width, multiplier * sizes.base, time)]
            width = multiplier * sizes.base
            if level < last:
                made.append(_attention(width, sizes.context))
            inputs.append(nn.ModuleList(made))
            kept.append(width)
        if level < last:
            inputs.append(nn.ModuleList([_Branches(op=nn.Conv2d(width, width, 3))]))
            kept.append(width)
    middle = [_resnet(width, width, time), _attention(width, sizes.context), _resnet(width, width, time)]
    outputs = []
    for level, multiplier in reversed(list(enumerate(sizes.multipliers))):
        for layer in range(3):
            made = [_resnet(width + kept.pop(), multiplier * sizes.base, time)]
            width = multiplier * sizes.base
            if level < last:
                made.append(_attention(width, sizes.context))
            if level and layer == 2:
                made.append(_Branches(conv=nn.Conv2d(width, width, 3)))
            outputs.append(nn.ModuleList(made))
    return _Branches(
        time_embed=nn.Sequential(nn.Linear(sizes.base, time), nn.SiLU(), nn.Linear(time, time)),
        input_blocks=nn.ModuleList(inputs),
        middle_block=nn.ModuleList(middle),
        output_blocks=nn.ModuleList(outputs),
        out=nn.Sequential(_norm(width), nn.SiLU(), nn.Conv2d(width, 4, 3)),
    )


def autoencoder(sizes: Sizes) -> nn.Module:
    """The autoencoder kl-f8: two layers a level, three in the decoder, attention in the middle alone."""

    def resnet(width_in: int, width: int) -> nn.Module:
        parts: dict[str, nn.Module] = {"norm1": _norm(width_in), "conv1": nn.Conv2d(width_in, width, 3)}
        parts |= {"norm2": _norm(width), "conv2": nn.Conv2d(width, width, 3)}
        return _Branches(**parts, **({} if width_in == width else {"nin_shortcut": nn.Conv2d(width_in, width, 1)}))

    def middle(width: int) -> nn.Module:
        projections = {name: nn.Conv2d(width, width, 1) for name in ("q", "k", "v", "proj_out")}
        attention = _Branches(norm=_norm(width), **projections)
        return _Branches(block_1=resnet(width, width), attn_1=attention, block_2=resnet(width, width))

    widths = [multiplier * sizes.autoencoder for multiplier in (1, 2, 4, 4)]
    width, down = widths[0], []
    for level, wider in enumerate(widths):
        blocks = nn.ModuleList([resnet(width, wider), resnet(wider, wider)])
        width = wider
        ends = {"downsample": _Branches(conv=nn.Conv2d(width, width, 3))} if level < 3 else {}
        down.append(_Branches(block=blocks, attn=nn.ModuleList(), **ends))
    encoder = _Branches(
        conv_in=nn.Conv2d(3, widths[0], 3),
        down=nn.ModuleList(down),
        mid=middle(width),
        norm_out=_norm(width),
        conv_out=nn.Conv2d(width, 8, 3),
    )
    up: list[nn.Module] = []
    decoder_mid = middle(width)
    for level in (3, 2, 1, 0):
        blocks = nn.ModuleList([resnet(width if layer == 0 else widths[level], widths[level]) for layer in range(3)])
        width = widths[level]
        ends = {"upsample": _Branches(conv=nn.Conv2d(width, width, 3))} if level else {}
        up.insert(0, _Branches(block=blocks, attn=nn.ModuleList(), **ends))
    decoder = _Branches(
        conv_in=nn.Conv2d(4, widths[3], 3),
        mid=decoder_mid,
        up=nn.ModuleList(up),
        norm_out=_norm(width),
        conv_out=nn.Conv2d(width, 3, 3),
    )
    return _Branches(
        encoder=encoder, decoder=decoder, quant_conv=nn.Conv2d(8, 8, 1), post_quant_conv=nn.Conv2d(4, 4, 1)
    )


class BertOfXTransformers(nn.Module):
    """Encoder of x-transformers with normalisation before each layer, 8 heads, as LDM text-to-image has it."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, inner = sizes.context, 64 if sizes.context < 512 else 512
        layers: list[nn.Module] = []
        for _ in range(sizes.bert_layers):
            attention = _Branches(
                to_q=nn.Linear(width, inner, bias=False),
                to_k=nn.Linear(width, inner, bias=False),
                to_v=nn.Linear(width, inner, bias=False),
                to_out=nn.Linear(inner, width),
            )
            forward = nn.Sequential(
                nn.Sequential(nn.Linear(width, 4 * width), nn.GELU()), nn.Dropout(), nn.Linear(4 * width, width)
            )
            layers += [
                nn.ModuleList([nn.LayerNorm(width), attention, nn.Identity()]),
                nn.ModuleList([nn.LayerNorm(width), _Branches(net=forward), nn.Identity()]),
            ]
        self.token_emb = nn.Embedding(sizes.tokens, width)
        self.pos_emb = _Branches(emb=nn.Embedding(sizes.length, width))
        self.attn_layers = _Branches(layers=nn.ModuleList(layers))
        self.norm = nn.LayerNorm(width)
        self.to_logits = nn.Linear(width, sizes.tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the last hidden states [N, L, W] of tokens [N, L]."""
        parts: Any = self
        x = self.token_emb(tokens) + parts.pos_emb.emb.weight[: tokens.shape[1]]
        layers = list(parts.attn_layers.layers)
        for (norm, attention, _), (norm2, forward, _) in zip(layers[::2], layers[1::2], strict=True):
            split = [
                projected.reshape(*projected.shape[:2], 8, -1).transpose(1, 2)
                for projected in (getattr(attention, name)(norm(x)) for name in ("to_q", "to_k", "to_v"))
            ]
            weights = torch.softmax(split[0] @ split[1].transpose(2, 3) * split[0].shape[-1] ** -0.5, dim=-1)
            x = x + attention.to_out((weights @ split[2]).transpose(1, 2).flatten(2))
            x = x + forward.net[2](forward.net[0](norm2(x)))
        normed: Tensor = self.norm(x)
        return normed


def clip(sizes: Sizes) -> Any:
    """The text encoder of Stable Diffusion 1, which is the same class there: that of transformers."""
    import transformers

    settings = transformers.CLIPTextConfig(
        vocab_size=sizes.tokens,
        hidden_size=sizes.context,
        intermediate_size=4 * sizes.context,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.context // 64,
        max_position_embeddings=sizes.length,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return transformers.CLIPTextModel(settings)


def clip_state(model: nn.Module, length: int) -> dict[str, Tensor]:
    """Return its tensors as transformers 4 named and stored them."""
    state = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in model.state_dict().items()}
    return {"text_model.embeddings.position_ids": torch.arange(length)[None], **state}


def betas() -> Tensor:
    """Noise levels as they are stored: float32 of numbers computed in float64."""
    return (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).float()
