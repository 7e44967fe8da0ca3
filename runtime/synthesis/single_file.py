"""Checkpoints in a single file (`.ckpt`, `.safetensors`) of latent diffusion, written as a diffusers folder.

Nothing is unpickled, nothing is downloaded, and torch is not needed. One tensor is in memory at a time, and each keeps
its type: half precision stays half.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flawscope.errors import ArgumentError, DataError
from flawscope.files import atomic_folder, sha256_file, write_text
from flawscope.open_files import list_folder, regular_path
from flawscope.runtime.synthesis.base_import import COPIED, MODEL_BYTES, NAMES
from flawscope.runtime.synthesis.checkpoint_kinds import AUTOENCODER, TEXT, UNET, Kind, kind_of
from flawscope.runtime.synthesis.ldm_layout import ModelPart, autoencoder_part, bert_part, clip_part, unet_part
from flawscope.runtime.synthesis.lora_merge import LoraScale, merged_parts
from flawscope.tensor_files import TensorEntry, TensorFile, open_tensors, write_tensors

_DIFFUSERS, _TRANSFORMERS = NAMES["diffusion_pytorch_model"], NAMES["pytorch_model"]
_EMA = "model_ema."
_SCALING = 0.18215  # of the latents, in all published models of this layout
_STEPS = 1000
_BETAS = (0.00085, 0.012)
_SAME_NOISE = 1e-6  # the schedule was computed in float64 and stored in float32
_READ = ("betas", "scale_factor")  # beside the parts
_SIZES = {Kind.STABLE_DIFFUSION: 512, Kind.TEXT_TO_IMAGE: 256, Kind.AUTOENCODER: 256}
"""Side in pixels of the images that the published models were trained on."""

_FOLDERS = {
    Kind.STABLE_DIFFUSION: ("unet", "vae", "text_encoder"),
    Kind.TEXT_TO_IMAGE: ("unet", "vqvae", "bert"),
}
_VOCABULARIES = {
    Kind.STABLE_DIFFUSION: ("CLIP", (("tokenizer.json",), ("vocab.json", "merges.txt"))),
    Kind.TEXT_TO_IMAGE: ("BERT", (("tokenizer.json",), ("vocab.txt",))),
}
_PIPELINES: dict[Kind, dict[str, object]] = {
    Kind.TEXT_TO_IMAGE: {
        "_class_name": "LDMTextToImagePipeline",
        "bert": ["latent_diffusion", "LDMBertModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "tokenizer": ["transformers", "BertTokenizerFast"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vqvae": ["diffusers", "AutoencoderKL"],
    },
    Kind.STABLE_DIFFUSION: {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
}
_INPAINTING = "StableDiffusionInpaintPipeline"
_DIFFUSERS_VERSION = "0.6.0"  # diffusers asks for one: that of the published folders, in whose form it is written


@dataclass(frozen=True)
class CheckpointOptions:
    """What a checkpoint does not say itself.

    Attributes:
        tokenizer: Folder of the tokenizer, which no checkpoint holds; None for an autoencoder alone.
        autoencoder: Another checkpoint whose autoencoder is taken in place of its own.
        ema: Whether the averaged weights of the UNet are taken; None to take them where they are there.
        image_size: Side in pixels of the images it was trained on; None for that of the published models.
        licence: Licence of the weights, in a few words; None where it is not known.
        loras: LoRAs that are merged into the weights.
    """

    tokenizer: Path | None = None
    autoencoder: Path | None = None
    ema: bool | None = None
    image_size: int | None = None
    licence: str | None = None
    loras: tuple[LoraScale, ...] = ()


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        kind: What the file is.
        weights: Paths of the weights, below the folder.
        averaged: Whether the UNet's averaged weights were taken.
        left_out: Count of the tensors that belong to no part, by the first part of their names.
        licence: Licence as it was named, by the options or the file; None where neither does.
    """

    kind: Kind
    weights: tuple[Path, ...]
    averaged: bool
    left_out: Mapping[str, int]
    licence: str | None


def import_checkpoint(
    file: TensorFile,
    out: Path,
    options: CheckpointOptions,
    progress: Callable[[str, int, int], None] | None = None,
) -> Converted:
    """Write a folder that can be the base of a training: Stable Diffusion 1, LDM text-to-image, or an autoencoder.

    The folder appears whole or not at all.

    Args:
        file: The checkpoint.
        out: The folder to make; it must not exist, or be empty.
        options: What the checkpoint does not say.
        progress: Called with the name of the stage, the number of parts finished and their total.

    Raises:
        ArgumentError: If `out` holds something, or an option says nothing of such a checkpoint.
        DataError: If it is another model, not whole or broken, or the tokenizer is missing or another one.
        StorageError: If the system refuses to write.
    """
    kind = kind_of(file.tensors)
    if not isinstance(kind, Kind) or kind in (Kind.LORA, Kind.WORD):
        got = kind.value if isinstance(kind, Kind) else kind
        raise DataError(
            f"{file.path}: expected a checkpoint of Stable Diffusion 1, LDM text-to-image or their autoencoder, got "
            f"{got}. Take another base."
        )
    size = options.image_size or _SIZES[kind]
    # Where the form of modelspec is followed, the file says it itself.
    licence = " ".join((options.licence or file.metadata.get("modelspec.license") or "").split()) or None
    if kind is Kind.AUTOENCODER:
        _refuse_idle(file.path, options)
        part = _autoencoder(file, size)
        with atomic_folder(out) as unfinished:
            # No folder `vae`: trainings name the folder of an autoencoder itself.
            _write_part(unfinished, part, _DIFFUSERS, sha256_file(file.path))
            _write_licence(unfinished, licence)
        return Converted(kind, (Path(_DIFFUSERS),), False, _left_out(file, kind), licence)
    tokenizer = _tokenizer(file.path, kind, options.tokenizer)
    other = file if options.autoencoder is None else open_tensors(options.autoencoder, MODEL_BYTES)
    parts, averaged = _parts(file, other, kind, size, options)
    source, written = sha256_file(file.path), []
    sources = {} if other is file else dict.fromkeys(("vae", "vqvae"), sha256_file(other.path))
    with atomic_folder(out) as unfinished:
        for finished, (folder, part) in enumerate(parts.items()):
            if progress:
                progress(f"converting {folder}", finished, len(parts))
            name = _TRANSFORMERS if folder in ("text_encoder", "bert") else _DIFFUSERS
            (unfinished / folder).mkdir()
            _write_part(unfinished / folder, part, name, sources.get(folder, source))
            written.append(Path(folder, name))
        (unfinished / "tokenizer").mkdir()
        for path in tokenizer:
            shutil.copyfile(regular_path(path), unfinished / "tokenizer" / path.name)
        (unfinished / "scheduler").mkdir()
        _write_json(unfinished / "scheduler" / "scheduler_config.json", _scheduler(file))
        pipeline = _PIPELINES[kind] | {"_diffusers_version": _DIFFUSERS_VERSION}
        if parts["unet"].config["in_channels"] != parts["unet"].config["out_channels"]:
            pipeline["_class_name"] = _INPAINTING
        _write_json(unfinished / "model_index.json", pipeline)
        _write_licence(unfinished, licence)
        if progress:
            progress("converting", len(parts), len(parts))
    return Converted(kind, tuple(written), averaged, _left_out(file, kind), licence)


def _refuse_idle(path: Path, options: CheckpointOptions) -> None:
    given = {
        "--tokenizer": options.tokenizer,
        "--autoencoder": options.autoencoder,
        "--ema": options.ema,
        "--lora": options.loras or None,
    }
    for name, value in given.items():
        if value is not None:
            raise ArgumentError(
                f"{name}: expected it with a whole model, got it with {path}, which is an autoencoder alone. Leave it "
                "out."
            )


def _parts(
    file: TensorFile, other: TensorFile, kind: Kind, size: int, options: CheckpointOptions
) -> tuple[dict[str, ModelPart], bool]:
    """Return folder -> part, and whether averaged weights were taken."""
    path = file.path
    unet, averaged = _unet_tensors(file, options.ema)
    autoencoder = _autoencoder(other, size)
    halvings = len(autoencoder.config["block_out_channels"]) - 1
    text = bert_part if kind is Kind.TEXT_TO_IMAGE else clip_part
    try:
        made = (unet_part(path, unet, size >> halvings), autoencoder, text(path, _below(file.tensors, TEXT)))
    except (IndexError, ValueError) as err:
        raise DataError(f"{path}: expected the shapes of {kind.value}, got {err}. Is it another model's?") from err
    parts = dict(zip(_FOLDERS[kind], made, strict=True))
    latent = autoencoder.config["latent_channels"]
    channels = parts["unet"].config["in_channels"], parts["unet"].config["out_channels"]
    if channels not in ((latent, latent), (2 * latent + 1, latent)):
        raise DataError(
            f"{path}: expected a UNet with {latent} channels in and out, or {2 * latent + 1} in for inpainting, got "
            f"{channels[0]} in and {channels[1]} out. Take another base."
        )
    return merged_parts(parts, options.loras), averaged


def _unet_tensors(file: TensorFile, ema: bool | None) -> tuple[dict[str, TensorEntry], bool]:
    unet = _below(file.tensors, UNET)
    # The average is stored under the same names, without their dots.
    averages = {name: f"{_EMA}diffusion_model{name.replace('.', '')}" for name in unet}
    found = {name: file.tensors[average] for name, average in averages.items() if average in file.tensors}
    if ema is False or (ema is None and not found):
        return unet, False
    if len(found) != len(unet):
        raise DataError(
            f"{file.path}: expected the averaged weights (EMA) of all {len(unet)} tensors of its UNet, got "
            f"{len(found)}. Take the others with --no-ema."
        )
    return found, True


def _autoencoder(file: TensorFile, size: int) -> ModelPart:
    kind = kind_of(file.tensors)
    if kind not in (Kind.STABLE_DIFFUSION, Kind.TEXT_TO_IMAGE, Kind.AUTOENCODER):
        got = kind.value if isinstance(kind, Kind) else kind
        raise DataError(f"{file.path}: expected a checkpoint with an autoencoder (kl-f8), got {got}. Name another.")
    nested = _below(file.tensors, AUTOENCODER)
    own = {
        name: entry
        for name, entry in file.tensors.items()
        if name.partition(".")[0] in ("encoder", "decoder", "quant_conv", "post_quant_conv")
    }
    # What an autoencoder was trained with (a network for the perceptual loss, a discriminator) lies beside it.
    names = {name: entry for name, entry in (nested or own).items() if not name.startswith("loss.")}
    try:
        return autoencoder_part(file.path, names, size, _scaling(file))
    except (IndexError, ValueError) as err:
        raise DataError(f"{file.path}: expected the shapes of an autoencoder, got {err}. Name another.") from err


def _scaling(file: TensorFile) -> float:
    entry = file.tensors.get("scale_factor")
    numbers = np.array([_SCALING]) if entry is None else np.asarray(entry.read(), np.float64).reshape(-1)
    value = float(numbers[0]) if len(numbers) == 1 else math.nan
    if not 0.0 < value < np.inf:
        raise DataError(f"{file.path}: expected a positive factor of its latents, got {value}. Take another base.")
    # A buffer of float32 in some files: the number that was written into it.
    return _SCALING if abs(value - _SCALING) < 1e-7 else value


def _scheduler(file: TensorFile) -> dict[str, Any]:
    """Return the settings of the noise levels, which a checkpoint stores as numbers."""
    schedule, first, last = _noise_levels(file)
    return {
        "_class_name": "DDIMScheduler",
        "beta_end": last,
        "beta_schedule": schedule,
        "beta_start": first,
        "clip_sample": False,
        "num_train_timesteps": _STEPS,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def _noise_levels(file: TensorFile) -> tuple[str, float, float]:
    """Return the schedule that the stored numbers follow, and its ends."""
    if "betas" not in file.tensors:
        return ("scaled_linear", *_BETAS)
    betas = np.asarray(file.tensors["betas"].read(), np.float64).reshape(-1)
    if len(betas) == _STEPS and bool(((betas > 0.0) & (betas < 1.0)).all()):
        # The published ends first: what is stored was rounded to float32, or to half.
        for first, last in (_BETAS, (float(betas[0]), float(betas[-1]))):
            straight = np.linspace(first, last, _STEPS)
            scaled = np.linspace(first**0.5, last**0.5, _STEPS) ** 2
            for schedule, levels in (("scaled_linear", scaled), ("linear", straight)):
                if np.abs(levels - betas).max() < _SAME_NOISE:
                    return schedule, first, last
    raise DataError(
        f"{file.path}: expected {_STEPS} noise levels that are linear or scaled_linear, got {len(betas)} others. Take "
        "another base."
    )


def _tokenizer(path: Path, kind: Kind, folder: Path | None) -> list[Path]:
    """Return the files of a tokenizer."""
    what, forms = _VOCABULARIES[kind]
    listed = " and ".join(forms[1])
    if folder is None:
        raise DataError(
            f"{path}: expected the folder of its tokenizer too, which no checkpoint holds, got none. Name one with "
            f"{listed} of {what}: --tokenizer DIR."
        )
    if not any(all((folder / name).is_file() for name in form) for form in forms):
        raise DataError(
            f"{folder}: expected the tokenizer of {what} ({listed}, or tokenizer.json), got "
            f"{'a folder without it' if folder.is_dir() else 'no such folder'}. Name another with --tokenizer."
        )
    return [path for path in list_folder(folder) if path.suffix in COPIED and path.is_file()]


def _write_part(folder: Path, part: ModelPart, name: str, source: str) -> None:
    _write_json(folder / "config.json", part.config)
    # transformers refuses a safetensors file without `format`.
    write_tensors(folder / name, part.tensors, {"format": "pt", "source_sha256": source})


def _write_licence(folder: Path, licence: str | None) -> None:
    if licence:
        write_text(folder / "README.md", f"---\nlicense: {licence}\n---\n")


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _below(tensors: Mapping[str, TensorEntry], prefix: str) -> dict[str, TensorEntry]:
    return {name.removeprefix(prefix): entry for name, entry in tensors.items() if name.startswith(prefix)}


def _left_out(file: TensorFile, kind: Kind) -> dict[str, int]:
    parts: tuple[str, ...] = (UNET, AUTOENCODER, TEXT, _EMA)
    if kind is Kind.AUTOENCODER:
        parts = (AUTOENCODER, "encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    left: dict[str, int] = {}
    for name in file.tensors:
        if not name.startswith(parts) and name not in _READ:
            first = name.partition(".")[0]
            left[first] = left.get(first, 0) + 1
    return left
