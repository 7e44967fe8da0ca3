"""Base model of the defect generators: a latent text-to-image model, small and of normal parts, or Stable Diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from torch import nn

from flawscope.diffusion.prompts import PromptRules, Prompts
from flawscope.diffusion.schedule import Sampling
from flawscope.errors import RunError
from flawscope.open_files import RECORD_BYTES, read_regular
from flawscope.runs import RECORD, WEIGHTS
from flawscope.training.diffusion.autoencoder import Normalization
from flawscope.training.diffusion.autoencoder_network import fill_autoencoder
from flawscope.training.diffusion.diffusers_folder import SAMPLING, identity_of, import_transformers, read_base_folder
from flawscope.training.diffusion.diffusers_networks import import_diffusers
from flawscope.training.loop.network_state import load_state
from flawscope.training.synthesis.generator_run import TOKENIZER, SynthesisRun, read_synthesis_run
from flawscope.training.synthesis.text_encoder import TextEncoder
from flawscope.unfinished import check_finished

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass(frozen=True)
class SynthesisBase:
    """A text-to-image model, frozen and in inference mode.

    Attributes:
        autoencoder: An AutoencoderKL of diffusers; its settings have the `scaling_factor` of latents.
        normalization: Normalization of its input images.
        unet: A UNet2DConditionModel of diffusers. It takes latents float32 [N, C, h, w], for inpainting [N, 2C+1, h, w]
            (latents, mask, latents of the masked image), timesteps int64 [N] and context float32 [N, L, D].
        text: The text encoder.
        tokenizer: Content of `tokenizer.json`.
        prompts: Turns prompts into tokens.
        sampling: Noise levels and sampling.
        size: Height and width in pixels of the images it was trained on.
        licence: Licence of its weights.
        identity: SHA-256 over its files.
        is_small: Whether it is a run of `train base`, which has seen normal images alone.
    """

    autoencoder: AutoencoderKL
    normalization: Normalization
    unet: nn.Module
    text: TextEncoder
    tokenizer: bytes
    prompts: Prompts
    sampling: Sampling
    size: tuple[int, int]
    licence: str
    identity: str
    is_small: bool = False

    @property
    def latents(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents of an image."""
        autoencoder: Any = self.autoencoder
        halvings = len(autoencoder.config.block_out_channels) - 1  # every level but the last halves the image
        return int(autoencoder.config.latent_channels), self.size[0] >> halvings, self.size[1] >> halvings

    @property
    def is_inpainting(self) -> bool:
        """Whether the UNet also takes a mask and the latents of the masked image."""
        unet: Any = self.unet
        return bool(unet.config.in_channels == 2 * self.latents[0] + 1)


class BaseSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings from which the networks of a run of `train base` are built: `networks` of its record.

    Attributes:
        unet: Settings of the UNet2DConditionModel.
        text: Settings of the CLIPTextModel.
        autoencoder: Settings of the AutoencoderKL without its scaling factor.
        scaling: Scaling factor of the latents.
        normalization: Normalization of the autoencoder's input images.
        length: Tokens of every text.
        pad: Padding token.
    """

    unet: dict[str, Any]
    text: dict[str, Any]
    autoencoder: dict[str, Any]
    scaling: float
    normalization: Normalization
    length: int
    pad: int


def open_base(path: Path, placeholder: str = "*") -> SynthesisBase:
    """Read a base model; nothing is downloaded, and no pickle is read.

    Args:
        path: A run of `train base`; or a folder of Stable Diffusion 1 or 2, for drawing or for inpainting, or of LDM
            text-to-image, as diffusers writes them, with weights in safetensors.
        placeholder: Word that stands for a learned embedding in prompts.

    Raises:
        MissingExtra: If a package is not installed.
        RunError: If it is none of these, broken, or predicts something else than the noise.
    """
    check_finished(path)
    if (path / RECORD).is_file():
        return restore_base(read_synthesis_run(path), placeholder)
    parts = read_base_folder(path)
    rules = PromptRules(parts.length, parts.pad, placeholder)
    sides = parts.unet.config.sample_size
    rows, columns = (sides, sides) if isinstance(sides, int) else sides  # of latents; diffusers allows both forms
    halvings = len(parts.autoencoder.config.block_out_channels) - 1
    return SynthesisBase(
        autoencoder=parts.autoencoder,
        normalization="signed",
        unet=parts.unet,
        text=TextEncoder(parts.text).requires_grad_(False).eval(),
        tokenizer=parts.tokenizer,
        prompts=Prompts(parts.tokenizer, rules, str(path / "tokenizer")),
        sampling=parts.sampling,
        size=(rows << halvings, columns << halvings),
        licence=parts.licence,
        identity=parts.identity,
    )


def restore_base(run: SynthesisRun, placeholder: str = "*") -> SynthesisBase:
    """Return the base model in a run of `train base`.

    Raises:
        MissingExtra: If a package is not installed.
        RunError: If the run is of another kind, or its weights do not fit.
    """
    if run.record.kind != "base":
        raise RunError(f"{run.path}: expected a run of train base, got one of train {run.record.kind}. Name its base.")
    try:
        settings = msgspec.convert(run.record.networks, BaseSettings)
        tokenizer = read_regular(run.path / TOKENIZER, RECORD_BYTES)
    except (msgspec.ValidationError, OSError) as err:
        raise RunError(f"{run.path}: expected a complete run of train base, got {err}. Train again.") from err
    # Groups that the file lacks become empty dicts, which the strict loaders refuse by the names of missing tensors.
    autoencoder = fill_autoencoder(
        settings.autoencoder,
        run.tensors.get("autoencoder", {}),
        settings.scaling,
        f"{run.path / WEIGHTS}: autoencoder",
    )
    unet, text = build_networks(settings, run.path)
    # Strict: a tensor that the run lacks would otherwise stay at its random start.
    load_state(unet, run.tensors.get("unet", {}), f"{run.path}: unet")
    load_state(text.model, run.tensors.get("text", {}), f"{run.path}: text")
    return SynthesisBase(
        autoencoder=autoencoder,
        normalization=settings.normalization,
        unet=unet,
        text=text.requires_grad_(False).eval(),
        tokenizer=tokenizer,
        prompts=Prompts(tokenizer, PromptRules(settings.length, settings.pad, placeholder), str(run.path / TOKENIZER)),
        sampling=SAMPLING,  # a run stores none: `train base` has one schedule
        size=run.record.config.preprocessing.size,
        licence=run.record.licence,
        identity=identity_of(run.path, (run.path / name for name in (RECORD, WEIGHTS, TOKENIZER))),
        is_small=True,
    )


def build_networks(settings: BaseSettings, origin: Path | str = "base") -> tuple[nn.Module, TextEncoder]:
    """Return UNet and text encoder with random weights.

    Args:
        settings: Their settings.
        origin: Where the settings come from, for the message of an error.

    Raises:
        MissingExtra: If a package is not installed.
        RunError: If the settings do not fit such networks.
    """
    diffusers, transformers = import_diffusers(), import_transformers()
    # UNet before text encoder: both draw their weights from torch's global generator, which the caller has seeded.
    try:
        unet: nn.Module = diffusers.UNet2DConditionModel(**settings.unet)
        text: nn.Module = transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings.text))
    except Exception as err:  # both libraries raise whatever a setting leads to
        first = next(iter(str(err).splitlines()), "no message")
        raise RunError(f"{origin}: expected settings of a UNet and a text encoder, got {first}. Train again.") from err
    return unet, TextEncoder(text)
