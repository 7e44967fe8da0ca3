"""The autoencoder network: builds it, and loads the weights of a run or of a diffusers folder."""

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
from flawscope.open_files import RECORD_BYTES, list_folder, read_regular, regular_path
from flawscope.text import NOT_JSON
from flawscope.training.diffusion.diffusers_networks import group_count, import_diffusers

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

STOCK_SCALING = 0.18215
"""Factor of the latents in Stable Diffusion, and the default of diffusers for folders without one."""

_CONFIG, _WEIGHTS, _PICKLED = "config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
_STEMS = ("diffusion_pytorch_model", "model")  # as diffusers and transformers name weights
_PART = "vae"  # of a Stable Diffusion folder
_FREE = ("sample_size", "scaling_factor", "force_upcast")
"""Settings of an AutoencoderKL that do not change the network."""

_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Old names of the parts of attention, as in the files of Stable Diffusion 1.5, and those of diffusers today."""

# Bounds for numbers from foreign files: a forged size must not make us allocate memory or loop for long.
_Count = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
_Layers = Annotated[int, msgspec.Meta(ge=1, le=64)]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class _Sizes(msgspec.Struct, rename={"kind": "_class_name"}):
    """Required keys of a `config.json`. The number of groups cannot be read from the tensors' shapes."""

    kind: Literal["AutoencoderKL"]
    block_out_channels: Annotated[list[_Count], msgspec.Meta(min_length=1, max_length=16)]
    layers_per_block: _Layers
    latent_channels: _Count
    norm_num_groups: _Count


def shape_settings(widths: Sequence[int], layers: int, latent: int) -> dict[str, Any]:
    """Return the settings of the only supported family of networks: that of Stable Diffusion 1, 2 and XL.

    Widths, layers and latent channels, and with them all settings, follow from the shapes of the tensors.
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
    """Return a network with random weights.

    Raises:
        MissingExtra: If diffusers is not installed.
    """
    return cast("AutoencoderKL", import_diffusers().AutoencoderKL(**settings, scaling_factor=scaling))


def settings_of(autoencoder: AutoencoderKL) -> Mapping[str, Any]:
    """Return the settings of a network."""
    return cast(Mapping[str, Any], cast(Any, autoencoder).config)


def settings_from_state(state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Return the settings of the network to which tensors belong, read from their shapes; `name` is for errors.

    Raises:
        RunError: If they are not those of an autoencoder.
    """
    outputs = {key: value.shape[0] for key, value in state.items() if value.ndim == 4}  # of the convolutions
    widths: list[int] = []
    while (key := f"encoder.down_blocks.{len(widths)}.resnets.0.conv1.weight") in outputs:
        widths.append(outputs[key])
    layers = 0
    while f"encoder.down_blocks.0.resnets.{layers}.conv1.weight" in outputs:
        layers += 1
    latent = outputs.get("post_quant_conv.weight")
    if not widths or min(widths) == 0 or latent is None:
        raise RunError(f"{name}: expected the tensors of an autoencoder, got {len(state)} others. Train again.")
    return shape_settings(widths, layers, latent)


def refuse_file(path: Path) -> None:
    """Refuse a checkpoint in a single file where a folder is expected, and name the command that makes one of it.

    Raises:
        RunError: If `path` is a file.
    """
    if path.is_file():
        raise RunError(
            f"{path}: expected a folder as diffusers writes it, got a file. Make a folder of a checkpoint with: "
            f"flawscope synth import {path} --tokenizer DIR --out FOLDER."
        )


def read_folder(path: Path) -> AutoencoderKL:
    """Read a folder of diffusers, frozen and in inference mode; nothing is downloaded and nothing unpickled.

    Args:
        path: Folder with `config.json` and weights in safetensors, or a Stable Diffusion folder, whose `vae` is read.

    Raises:
        MissingExtra: If diffusers is not installed.
        RunError: If it is neither, broken, or has another kind of autoencoder.
    """
    refuse_file(path)
    folder = path if (path / _CONFIG).is_file() else path / _PART
    if not (folder / _CONFIG).is_file():
        raise RunError(
            f"{path}: expected a folder with {_CONFIG} and {_WEIGHTS}, or a Stable Diffusion folder with such a "
            f"{_PART}, got {'neither' if path.is_dir() else 'no such folder'}. Models are not fetched by name: "
            "download it first."
        )
    try:
        stored = msgspec.json.decode(read_regular(folder / _CONFIG, RECORD_BYTES), type=dict[str, Any])
        sizes = msgspec.convert(stored, _Sizes)
    except (OSError, *NOT_JSON) as err:
        raise RunError(
            f"{folder / _CONFIG}: expected the settings of an AutoencoderKL, got others: {err}. Name another folder."
        ) from err
    settings = shape_settings(sizes.block_out_channels, sizes.layers_per_block, sizes.latent_channels)
    # Every setting is compared: some change the result but no shape (`act_fn`, `shift_factor`).
    for name, value in stored.items():
        if not name.startswith("_") and name not in _FREE and value != settings.get(name):
            raise RunError(
                f"{folder / _CONFIG}: {name}: expected {settings.get(name)}, as Stable Diffusion 1, 2 and XL have "
                f"it, got {value}. Other autoencoders are not supported."
            )
    files = weight_files(folder)
    if not files:
        pickled = (folder / _PICKLED).is_file()
        raise RunError(
            f"{folder}: expected {_WEIGHTS}, got "
            + (f"{_PICKLED}, which would have to be unpickled. " if pickled else "none. ")
            + "Convert the weights to safetensors, with AutoencoderKL.save_pretrained for example."
        )
    state = {_current_name(name): value for path in files for name, value in read_tensors(path).items()}
    return fill_autoencoder(settings, state, stored.get("scaling_factor", STOCK_SCALING), str(folder))


def weight_files(folder: Path) -> list[Path]:
    """Return the files of an autoencoder's weights: one, or several that an index lists; empty where there are none.

    Raises:
        RunError: If it has an index that is broken.
    """
    variant = variant_of(folder)
    named = folder / (_WEIGHTS if variant is None else f"{Path(_WEIGHTS).stem}.{variant}.safetensors")
    if named.is_file():
        return [named]
    index = folder / (f"{_WEIGHTS}.index.json" if variant is None else f"{_WEIGHTS}.index.{variant}.json")
    return shard_files(index) if index.is_file() else []


def variant_of(folder: Path) -> str | None:
    """Return `fp16` where a part of a model has its weights in half precision alone, else None.

    Raises:
        RunError: If it has an index of several files that is broken.
    """
    names = [path.name for path in list_folder(folder)]
    for name in names:
        if ".safetensors.index." in name:
            shard_files(folder / name)
    plain = any(f"{stem}.safetensors{end}" in names for stem in _STEMS for end in ("", ".index.json"))
    return "fp16" if not plain and any(".fp16" in name and ".safetensors" in name for name in names) else None


def shard_files(index: Path) -> list[Path]:
    """Return the files that an index (`*.index.json`) lists, which lie beside it.

    Raises:
        RunError: If it cannot be read, or names files elsewhere.
    """
    try:
        places = msgspec.json.decode(read_regular(index, RECORD_BYTES), type=_Index).weight_map.values()
    except (OSError, *NOT_JSON) as err:
        raise RunError(f"{index}: expected an index with a weight_map, got: {err}. Get the folder again.") from err
    # The libraries open what it names, wherever that is, and would wait for ever for a pipe.
    foreign = [place for place in places if Path(place).name != place or not (index.parent / place).is_file()]
    if foreign:
        raise RunError(f"{index}: expected the names of files beside it, got {foreign[0]!r}. Get the folder again.")
    return [index.parent / place for place in sorted(set(places))]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        RunError: If it cannot be read.
    """
    try:
        return safetensors.torch.load_file(regular_path(path))
    except (SafetensorError, OSError) as err:
        raise RunError(f"{path}: expected weights in safetensors, got {err}. Get the file again.") from err


def _current_name(name: str) -> str:
    """Return the present name of a tensor that may have an old one."""
    head, attention, tail = name.partition(".attentions.0.")
    part, _, kind = tail.partition(".")
    return f"{head}{attention}{_OLD_NAMES.get(part, part)}.{kind}" if attention else name


def fill_autoencoder(
    settings: Mapping[str, Any], state: Mapping[str, Tensor], scaling: object, name: str
) -> AutoencoderKL:
    """Return a network with the tensors of a state, frozen and in inference mode.

    Args:
        settings: As returned by `shape_settings`.
        state: Floating-point tensors, by the names of `AutoencoderKL`; they are copied.
        scaling: Factor of the latents.
        name: Name of the tensors, for errors.

    Raises:
        MissingExtra: If diffusers is not installed.
        RunError: If tensors are missing, unexpected, of another shape or not finite, or if `scaling` is not positive.
    """
    # From a foreign JSON file, so it may be anything; True would pass as the number 1.
    is_number = isinstance(scaling, int | float) and not isinstance(scaling, bool)
    if not is_number or not 0.0 < cast(float, scaling) < math.inf:
        raise RunError(f"{name}: expected a positive factor of its latents, got {scaling!r}.")
    # On `meta`, shapes are compared before any memory is allocated, and no random numbers are drawn: a seeded training
    # must not depend on how its autoencoder is loaded.
    with torch.device("meta"):
        autoencoder: Any = new_autoencoder(settings, cast(float, scaling))
    expected = autoencoder.state_dict()
    matching = sum(key in state and state[key].shape == value.shape for key, value in expected.items())
    if matching != len(expected) or len(state) != len(expected):
        raise RunError(
            f"{name}: expected the {len(expected)} tensors of an autoencoder with widths "
            f"{settings['block_out_channels']}, got {len(state)}, of which {matching} fit. Is it another network's?"
        )
    for key, value in state.items():
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            got = "NaN or infinity" if value.is_floating_point() else str(value.dtype)
            raise RunError(f"{name}: {key}: expected finite floating-point numbers, got {got}.")
    # Copied, since `assign` makes them the parameters themselves; meta tensors cannot be copied into.
    tensors = {key: value.to(torch.float32, copy=True) for key, value in state.items()}
    autoencoder.load_state_dict(tensors, assign=True)
    return cast("AutoencoderKL", autoencoder.requires_grad_(False).eval())
