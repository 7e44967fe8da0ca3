"""The autoencoder network: built, and loaded with the weights of a run or of a diffusers folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import msgspec
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from flawscope.errors import RunError
from flawscope.training.diffusion.diffusers_networks import group_count, import_diffusers

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

STOCK_SCALING = 0.18215
"""What Stable Diffusion multiplies latents with, and diffusers where a folder does not say."""

_CONFIG, _WEIGHTS, _PICKLED = "config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
_PART = "vae"  # of a Stable Diffusion folder
_FREE = ("sample_size", "scaling_factor", "force_upcast")
"""Settings of an AutoencoderKL that change nothing in the network."""

_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Parts of attention as diffusers called them when Stable Diffusion 1.5 was written, and as it does now."""

_Count = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
_Layers = Annotated[int, msgspec.Meta(ge=1, le=64)]


class _Sizes(msgspec.Struct, rename={"kind": "_class_name"}):
    """What of a `config.json` has to be there: other settings show in the tensors, the groups do not."""

    kind: Literal["AutoencoderKL"]
    block_out_channels: Annotated[list[_Count], msgspec.Meta(min_length=1, max_length=16)]
    layers_per_block: _Layers
    latent_channels: _Count
    norm_num_groups: _Count


def shape_settings(widths: Sequence[int], layers: int, latent: int) -> dict[str, Any]:
    """Return the settings of the one family of networks that we know: that of Stable Diffusion 1, 2 and XL.

    All of them follow from the shapes of the tensors, so that a state says which network it is of.
    """
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": list(widths),
        "layers_per_block": layers,
        "act_fn": "silu",
        "latent_channels": latent,
        "norm_num_groups": group_count(widths),
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
    }


def new_autoencoder(settings: Mapping[str, Any], scaling: float = STOCK_SCALING) -> AutoencoderKL:
    """Return a network from random weights.

    Raises:
        MissingExtra: If diffusers is not installed.
    """
    return cast("AutoencoderKL", import_diffusers().AutoencoderKL(**settings, scaling_factor=scaling))


def settings_of(autoencoder: AutoencoderKL) -> Mapping[str, Any]:
    """Return the settings that a network was made with."""
    return cast(Mapping[str, Any], cast(Any, autoencoder).config)


def settings_from_state(state: Mapping[str, Tensor], what: str) -> dict[str, Any]:
    """Return the settings of the network that the tensors of a state are of; `what` names them in errors.

    Raises:
        RunError: If they are not of an autoencoder.
    """
    outputs = {name: value.shape[0] for name, value in state.items() if value.ndim == 4}  # channels of convolutions
    widths: list[int] = []
    while (name := f"encoder.down_blocks.{len(widths)}.resnets.0.conv1.weight") in outputs:
        widths.append(outputs[name])
    layers = 0
    while f"encoder.down_blocks.0.resnets.{layers}.conv1.weight" in outputs:
        layers += 1
    latent = outputs.get("post_quant_conv.weight")
    if not widths or min(widths) == 0 or latent is None:
        raise RunError(f"{what}: expected the tensors of an autoencoder, got {len(state)} others. Train again.")
    return shape_settings(widths, layers, latent)


def read_folder(path: Path) -> AutoencoderKL:
    """Read what diffusers wrote, frozen and in inference mode; nothing is fetched and nothing unpickled.

    Args:
        path: Folder with `config.json` and weights in safetensors, or a Stable Diffusion folder, whose `vae` is taken.

    Raises:
        MissingExtra: If diffusers is not installed.
        RunError: If it is neither, broken, or of another kind of autoencoder.
    """
    home = path if (path / _CONFIG).is_file() else path / _PART
    if not (home / _CONFIG).is_file():
        raise RunError(
            f"{path}: expected a folder with {_CONFIG} and {_WEIGHTS}, or a Stable Diffusion folder with such a "
            f"{_PART}, got {'neither' if path.is_dir() else 'no such folder'}. Models are not fetched by name: "
            "download it first."
        )
    try:
        given = msgspec.json.decode((home / _CONFIG).read_bytes(), type=dict[str, Any])
        sizes = msgspec.convert(given, _Sizes)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as err:
        raise RunError(
            f"{home / _CONFIG}: expected the settings of an AutoencoderKL, got others: {err}. Name another folder."
        ) from err
    settings = shape_settings(sizes.block_out_channels, sizes.layers_per_block, sizes.latent_channels)
    for name, value in given.items():
        if not name.startswith("_") and name not in _FREE and value != settings.get(name):
            raise RunError(
                f"{home / _CONFIG}: {name}: expected {settings.get(name)}, as Stable Diffusion 1, 2 and XL have "
                f"it, got {value}. Other autoencoders are not supported."
            )
    if not (home / _WEIGHTS).is_file():
        pickled = (home / _PICKLED).is_file()
        raise RunError(
            f"{home}: expected {_WEIGHTS}, got "
            + (f"{_PICKLED}, which would have to be unpickled. " if pickled else "none. ")
            + "Convert the weights to safetensors, with AutoencoderKL.save_pretrained for example."
        )
    state = {_renamed(name): value for name, value in read_tensors(home / _WEIGHTS).items()}
    return fill_autoencoder(settings, state, given.get("scaling_factor", STOCK_SCALING), str(home))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        RunError: If it cannot be read.
    """
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as err:
        raise RunError(f"{path}: expected weights in safetensors, got {err}. Get the file again.") from err


def _renamed(name: str) -> str:
    """Return the name that a tensor has today."""
    head, found, tail = name.partition(".attentions.0.")
    part, _, kind = tail.partition(".")
    return f"{head}{found}{_OLD_NAMES.get(part, part)}.{kind}" if found else name


def fill_autoencoder(
    settings: Mapping[str, Any], state: Mapping[str, Tensor], scaling: object, what: str
) -> AutoencoderKL:
    """Return a network with the tensors of a state, frozen and in inference mode.

    Args:
        settings: Of `shape_settings`.
        state: Floating-point tensors, by the names of `AutoencoderKL`; they are copied.
        scaling: What latents are multiplied with.
        what: What the tensors are, for errors.

    Raises:
        MissingExtra: If diffusers is not installed.
        RunError: If tensors lack, are left over or of another shape, if one is not finite, or if `scaling` is not
            positive.
    """
    is_number = isinstance(scaling, int | float) and not isinstance(scaling, bool)
    if not is_number or not 0.0 < cast(float, scaling) < math.inf:
        raise RunError(f"{what}: expected a positive factor of its latents, got {scaling!r}.")
    with torch.device("meta"):  # shapes are compared before there is memory for them, and nothing is drawn at random
        autoencoder: Any = new_autoencoder(settings, cast(float, scaling))
    wanted = autoencoder.state_dict()
    fitting = sum(name in state and state[name].shape == value.shape for name, value in wanted.items())
    if fitting != len(wanted) or len(state) != len(wanted):
        raise RunError(
            f"{what}: expected the {len(wanted)} tensors of an autoencoder with widths "
            f"{settings['block_out_channels']}, got {len(state)}, of which {fitting} fit. Is it another network's?"
        )
    for name, value in state.items():
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            got = "NaN or infinity" if value.is_floating_point() else str(value.dtype)
            raise RunError(f"{what}: {name}: expected finite floating-point numbers, got {got}.")
    tensors = {name: value.to(torch.float32, copy=True) for name, value in state.items()}
    autoencoder.load_state_dict(tensors, assign=True)
    return cast("AutoencoderKL", autoencoder.requires_grad_(False).eval())
