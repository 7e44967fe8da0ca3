"""Denoiser of DSAD: Stable Diffusion's UNet with semantic guidance (as ControlNet) from the input image.

The guidance is a trainable copy of the UNet's encoder (ControlNet, arXiv:2302.05543, as used by DiAD, arXiv:2312.06607)
that also gets the image and its sketch. It is connected to the UNet by convolutions that start at zero, so training
begins with the UNet's own prediction. DSAD's article and sketch code are not public: both fusions follow its abstract.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flawscope.config import DsadConfig
from flawscope.errors import ArgumentError, RunError
from flawscope.training.diffusion.autoencoder_network import refuse_file, variant_of
from flawscope.training.diffusion.diffusers_folder import (
    called,
    check_prediction,
    import_transformers,
    load_network,
    loaded,
)
from flawscope.training.diffusion.diffusers_networks import group_count, import_diffusers

_QUIET_STD = 1e-3
"""Deviation of the sketch branch's initial weights: hardly disturbs the copied encoder, yet lets gradients flow."""

_PLAIN: Mapping[str, object] = {
    "addition_embed_type": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_class_embeds": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
"""Settings of the UNets of Stable Diffusion 1 and 2; the guidance's forward pass supports no others."""


class GuidedDenoiser(nn.Module):
    """Predicts the noise in the latents of an image that is also its input.

    `forward` takes latents float32 [N, C, h, w], timesteps int64 [N] and the image's hint float32 [N, width, h, w],
    and returns the noise float32 [N, C, h, w]. The hint comes from `encode_hint` and is the same for all steps of an
    image. Both can be exported to ONNX.

    Args:
        unet: A UNet2DConditionModel of diffusers, as Stable Diffusion 1 and 2 have it; the guidance starts as a copy.
        config: Widths of the hint encoder, kind of fusion, guided levels, and whether there is a sketch.
        context: Embedding of the empty text, float32 [L, context].

    Attributes:
        unet: The UNet.
        guidance: A ControlNetModel of diffusers, whose parts are called one by one.
        sketch_encoder: Hint encoder of the sketch, or None.
        sketch_fusion: Fuses the hints of image and sketch, or None.
        fusion: Fuses features of the second coarsest level into the coarsest.

    Raises:
        MissingExtra: If diffusers is not installed.
    """

    def __init__(self, unet: nn.Module, config: DsadConfig, context: Tensor) -> None:
        super().__init__()
        diffusers = import_diffusers()
        self.unet = unet
        self.guidance: Any = diffusers.ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=config.hint_widths
        )
        self.sketch_encoder: nn.Module | None = None
        self.sketch_fusion: SketchFusion | None = None
        width = self.guidance.conv_in.out_channels
        if config.sketch != "none":
            encoder: Any = type(self.guidance.controlnet_cond_embedding)(
                conditioning_embedding_channels=width,
                conditioning_channels=1,
                block_out_channels=config.hint_widths,
            )
            # diffusers initialises this layer with zeros; with more zero layers behind it, gradients would reach the
            # sketch late.
            nn.init.kaiming_normal_(encoder.conv_out.weight)
            self.sketch_encoder, self.sketch_fusion = encoder, SketchFusion(width)
        # Parts are built in this order with one random stream: another order gives other initial weights.
        levels = _levels(self.guidance)
        self._is_live = config.fusion == "live"
        self.fusion = MultiScaleFusion(levels[-2], levels[-1], live=self._is_live)
        count = sum(map(len, levels))
        self._coarsest = range(count - len(levels[-1]), count)
        self._second = range(self._coarsest.start - len(levels[-2]), self._coarsest.start)
        self._guided = self._coarsest if config.control == "coarse" else range(count)
        # Persistent: a run must open without the text encoder that made it.
        self.register_buffer("context", context.detach().to(torch.float32).clone())

    def encode_hint(self, image: Tensor, sketch: Tensor | None = None) -> Tensor:
        """Return the hint of an image: features of it and of its sketch.

        Args:
            image: Normalised image, float32 [N, 3, H, W].
            sketch: Its sketch, float32 [N, 1, H, W] in [0, 1]; None without a sketch branch.

        Returns:
            Float32 [N, width, h, w], of the size of the latents.

        Raises:
            ArgumentError: If there is a sketch but no branch for it, or the reverse.
        """
        semantic: Tensor = self.guidance.controlnet_cond_embedding(image)
        if self.sketch_encoder is None or self.sketch_fusion is None:
            if sketch is not None:
                raise ArgumentError("sketch: expected none, for a network without a sketch branch, got one.")
            return semantic
        if sketch is None:
            raise ArgumentError("sketch: expected one, for a network with a sketch branch, got none.")
        fused: Tensor = self.sketch_fusion(semantic, self.sketch_encoder(sketch))
        return fused

    def forward(self, x: Tensor, t: Tensor, hint: Tensor) -> Tensor:
        """Return the noise in latents."""
        if hint.shape[-2:] != x.shape[-2:]:
            # Checked, since a side of 1 would be broadcast without an error.
            raise ArgumentError(
                f"hint: expected the latents' size {list(x.shape[-2:])}, got {list(hint.shape[-2:])}. Every hint width "
                "after the first halves the image: give as many as the autoencoder has levels."
            )
        context = self.get_buffer("context").expand(x.shape[0], -1, -1)
        features, middle = self._features(x, t, hint, context)
        predicted: Tensor = self.unet(
            x,
            t,
            context,
            down_block_additional_residuals=self._residuals(features),
            mid_block_additional_residual=self.guidance.controlnet_mid_block(middle),
            return_dict=False,
        )[0]
        return predicted

    def trainable(self, train_decoder: bool) -> list[nn.Parameter]:
        """Freeze all parameters but the trainable ones, and return those.

        Trainable are the guidance, its fusions and the sketch encoder, except zero convolutions whose output is not
        used. The UNet's encoder and middle are always frozen.

        Args:
            train_decoder: Train the UNet's decoder and last layers too.
        """
        self.requires_grad_(False)
        trained = [self.guidance, self.fusion, self.sketch_encoder, self.sketch_fusion]
        if train_decoder:
            trained += [self.unet.up_blocks, self.unet.conv_norm_out, self.unet.conv_out]
        for module in trained:
            if isinstance(module, nn.Module):  # without a sketch two of them are None
                module.requires_grad_(True)
        # An unused parameter has no gradient, which distributed training reports as an error.
        used = {*self._guided, *(() if self._is_live else self._second)}
        for index, convolution in enumerate(self.guidance.controlnet_down_blocks):
            convolution.requires_grad_(index in used)
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def _features(self, x: Tensor, t: Tensor, hint: Tensor, context: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the outputs of the guidance's encoder, finest first, and the output of its middle."""
        # ControlNetModel.forward, taken apart: the fusions lie between its encoder and its zero convolutions.
        guidance = self.guidance
        embedded = guidance.time_embedding(guidance.time_proj(t).to(x.dtype))
        state = guidance.conv_in(x) + hint
        features = [state]
        for block in guidance.down_blocks:
            state, outputs = block(hidden_states=state, temb=embedded, **_attended(block, context))
            features += outputs
        return features, guidance.mid_block(state, embedded, **_attended(guidance.mid_block, context))

    def _residuals(self, features: list[Tensor]) -> list[Tensor]:
        """Return what is added to each of the UNet's skip connections: a scalar zero for those that are not guided."""
        zero_convolutions = self.guidance.controlnet_down_blocks
        coarsest, second = self._coarsest, self._second
        if self._is_live:
            fused = self.fusion([features[index] for index in coarsest], [features[index] for index in second])
            features = [*features[: coarsest.start], *fused]
            residuals = {index: zero_convolutions[index](features[index]) for index in self._guided}
        else:
            # As in DiAD's public code: behind the zero convolutions.
            used = sorted({*self._guided, *second})
            residuals = {index: zero_convolutions[index](features[index]) for index in used}
            fused = self.fusion([residuals[index] for index in coarsest], [residuals[index] for index in second])
            residuals.update(zip(coarsest, fused, strict=True))
        # The UNet demands a residual for every skip connection; a scalar is broadcast and costs no memory.
        zero = features[0].new_zeros(())
        return [residuals[index] if index in self._guided else zero for index in range(len(features))]


class SketchFusion(nn.Module):
    """DSAD's semantic and sketch feature fusion (SSFF).

    `forward` takes semantic features a and sketch features s, float32 [N, width, h, w], and returns
    a + out(mix([a, g ⊙ s])) of the same shape. The gate g = sigmoid(gate([mean a, mean s])) weights the channels of the
    sketch; `gate`, `mix` and `out` are 1 x 1 convolutions.

    `out` starts near zero, not at zero: the guidance's own zero convolutions follow, and through two in a row the first
    two steps would have no gradient for the sketch. At the start the UNet's prediction is unchanged all the same.

    Args:
        width: Channels of a and of s.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(2 * width, width, 1)
        self.mix = nn.Conv2d(2 * width, width, 1)
        self.out = nn.Conv2d(width, width, 1)
        nn.init.normal_(self.out.weight, std=_QUIET_STD)
        nn.init.zeros_(_bias(self.out))

    def forward(self, semantic: Tensor, sketch: Tensor) -> Tensor:
        """Return the hint."""
        means = torch.cat([semantic, sketch], dim=1).mean(dim=(2, 3), keepdim=True)
        gate = torch.sigmoid(self.gate(means))
        mixed: Tensor = self.out(self.mix(torch.cat([semantic, gate * sketch], dim=1)))
        return semantic + mixed


class MultiScaleFusion(nn.Module):
    """Fuses the features of a finer level into those of the next coarser one: DiAD's spatial-aware feature fusion.

    `forward` takes the coarser features o_k, float32 [N, C_k, h, w], and the finer ones o_j of twice the sides, and
    returns SiLU(o_k + Σ_j SiLU(norm(f_kj(o_j)))) for every k; f_kj are 3 x 3 convolutions of stride 2 without bias, and
    norm is instance normalisation.

    Args:
        finer: Channels of every o_j.
        coarser: Channels of every o_k.
        live: Initialise f at random; else with zeros, as in the public code. There the o_j are zero at the start as
            well, so where they have no other path to the loss, neither ever gets a gradient.
    """

    def __init__(self, finer: Sequence[int], coarser: Sequence[int], live: bool) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(source, target, 3, stride=2, padding=1, bias=False) for source in finer)
            for target in coarser
        )
        for parameter in self.parameters():
            if live:
                nn.init.kaiming_normal_(parameter)
            else:
                nn.init.zeros_(parameter)

    def forward(self, coarser: list[Tensor], finer: list[Tensor]) -> list[Tensor]:
        """Return the coarser features, fused with the finer ones."""
        fused = []
        for state, convolutions in zip(coarser, self.convolutions, strict=True):
            assert isinstance(convolutions, nn.ModuleList)
            for source, convolution in zip(finer, convolutions, strict=True):
                state = state + functional.silu(functional.instance_norm(convolution(source)))
            fused.append(functional.silu(state))
        return fused


def build_guided_denoiser(config: DsadConfig, latent_channels: int, latent_size: tuple[int, int]) -> GuidedDenoiser:
    """Build a guided denoiser with random parameters, the same for the same seed.

    Args:
        config: Settings; `base` is ignored.
        latent_channels: Channels of the autoencoder's latents.
        latent_size: Their height and width.

    Raises:
        ArgumentError: If the settings contradict each other or the latents.
        MissingExtra: If diffusers is not installed.
    """
    widths, heads = config.widths, config.heads
    if latent_channels < 1 or any(width % heads for width in widths):
        raise ArgumentError(
            f"widths: expected multiples of heads={heads}, and latents of 1 channel or more, got {list(widths)} and "
            f"{latent_channels}."
        )
    check_sizes(config, latent_size, len(widths))
    diffusers = import_diffusers()
    # Levels as in Stable Diffusion: attention on all but the coarsest, where the middle block has it.
    attended = len(widths) - 1
    # Forked, so that the caller's random state does not depend on the size of the network. `devices=[]`: parameters are
    # drawn on the CPU, and saving the state of every GPU would initialise CUDA.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=latent_size,
            in_channels=latent_channels,
            out_channels=latent_channels,
            down_block_types=("CrossAttnDownBlock2D",) * attended + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attended,
            block_out_channels=widths,
            layers_per_block=config.layers,
            norm_num_groups=group_count(widths),
            cross_attention_dim=config.context,
            attention_head_dim=heads,  # diffusers' name for the number of heads
        )
        return GuidedDenoiser(unet, config, torch.zeros((1, config.context))).eval()


def load_guided_denoiser(folder: Path, config: DsadConfig) -> GuidedDenoiser:
    """Build a guided denoiser from the UNet and the empty prompt of Stable Diffusion; nothing is downloaded.

    The parts that Stable Diffusion does not have (fusions, encoders of image and sketch) start with random weights, the
    same for the same seed.

    Args:
        folder: Stable Diffusion 1 or 2 as diffusers writes it, with `unet`, `text_encoder` and `tokenizer`; weights in
            safetensors files.
        config: Settings; the UNet's own come from the folder.

    Raises:
        ArgumentError: If the widths of the hint encoder do not suit the size of the images.
        MissingExtra: If diffusers or transformers is not installed.
        RunError: If the folder is not a Stable Diffusion folder, or its UNet does not predict the noise.
    """
    refuse_file(folder)
    for name in ("unet", "text_encoder", "tokenizer"):
        if not (folder / name).is_dir():
            raise RunError(
                f"{folder}: expected a Stable Diffusion folder as diffusers writes it, got none with a folder {name}. "
                "Check base."
            )
    check_prediction(folder)
    diffusers = import_diffusers()
    unet = load_network(folder / "unet", diffusers, diffusers.UNet2DConditionModel)
    _check_plain(folder, unet.config)
    context = _empty_text(folder)
    if context.shape[-1] != unet.config.cross_attention_dim:
        raise RunError(
            f"{folder}: expected texts of width {unet.config.cross_attention_dim}, which the UNet takes, got "
            f"{context.shape[-1]}. Are unet and text_encoder of one model?"
        )
    shrink = 2 ** (len(config.hint_widths) - 1)
    rows, columns = (side // shrink for side in config.preprocessing.size)
    check_sizes(config, (rows, columns), len(unet.config.block_out_channels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return GuidedDenoiser(unet, config, context).eval()


def check_sizes(config: DsadConfig, latent_size: tuple[int, int], levels: int) -> None:
    """Check that the hint has the size of the latents, and that the coarsest level has more than one position.

    Args:
        config: Settings.
        latent_size: Height and width of the latents.
        levels: Levels of the UNet.

    Raises:
        ArgumentError: If one of them does not hold.
    """
    shrink = 2 ** (len(config.hint_widths) - 1)
    image = config.preprocessing.size
    required = tuple(shrink * side for side in latent_size)
    if image != required:
        raise ArgumentError(
            f"hint_widths: expected one more than the autoencoder halves the sides, got {list(config.hint_widths)}, "
            f"which bring {list(required)} to the latents' {list(latent_size)}, for images of {list(image)}."
        )
    coarsest = [math.ceil(side / 2 ** (levels - 1)) for side in latent_size]
    if coarsest == [1, 1]:
        # Instance normalisation over a single position gives zero for everything.
        raise ArgumentError(
            f"widths: expected a coarsest level of more than one position, got {levels} levels for latents of "
            f"{list(latent_size)}. Take fewer widths or larger images."
        )


def _levels(guidance: Any) -> list[list[int]]:
    """Return the channels of the encoder's outputs by level, finest first."""
    # The same order as `_features`: the input convolution, then per level its blocks and its downsampler, whose output
    # already belongs to the next level.
    levels = [[int(guidance.conv_in.out_channels)]]
    for block in guidance.down_blocks:
        levels[-1] += [int(resnet.out_channels) for resnet in block.resnets]
        if block.downsamplers is not None:
            levels.append([int(block.downsamplers[-1].out_channels)])
    return levels


def _attended(block: Any, context: Tensor) -> dict[str, Tensor]:
    # As in diffusers' own forward passes: only blocks with cross attention get the context.
    return {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}


def _bias(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None
    return convolution.bias


def _check_plain(folder: Path, settings: Mapping[str, Any]) -> None:
    for name, plain in _PLAIN.items():
        if settings.get(name, plain) != plain:
            raise RunError(
                f"{folder / 'unet'}: expected a UNet as of Stable Diffusion 1 or 2, with {name}={plain}, got "
                f"{settings[name]}. Take another base."
            )
    if settings["in_channels"] != settings["out_channels"] or len(settings["block_out_channels"]) < 2:
        raise RunError(
            f"{folder / 'unet'}: expected as many channels in as out, and two levels or more, got "
            f"{settings['in_channels']}, {settings['out_channels']} and {len(settings['block_out_channels'])}. "
            "Networks for inpainting and the like do not fit: take another base."
        )


def _empty_text(folder: Path) -> Tensor:
    """Return the embedding of the empty prompt, padded to the full length, float32 [L, context]."""
    transformers = import_transformers()
    encoder = loaded(
        folder / "text_encoder",
        transformers,
        lambda part: transformers.CLIPTextModel.from_pretrained(
            part, local_files_only=True, use_safetensors=True, output_loading_info=True, variant=variant_of(part)
        ),
    )
    tokenizer = called(
        folder / "tokenizer",
        transformers,
        lambda part: transformers.CLIPTokenizer.from_pretrained(part, local_files_only=True),
    )
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    if int(tokens.max()) >= encoder.config.vocab_size:
        raise RunError(f"{folder}: expected tokens that text_encoder knows, got others. Are both of one model?")
    with torch.inference_mode():
        embedded: Tensor = encoder.to(torch.float32).eval()(tokens)[0][0]
    return embedded
