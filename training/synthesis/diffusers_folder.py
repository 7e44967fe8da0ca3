"""Strict reader of diffusers and transformers folders: parts of Stable Diffusion and of LDM text-to-image.

Nothing is downloaded and nothing unpickled. Both libraries draw at random what a file lacks; here that is an error.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from flawscope.diffusion.schedule import TRAINED_STEPS, Sampling
from flawscope.errors import MissingExtra, RunError
from flawscope.files import sha256_file
from flawscope.training.diffusion.autoencoder_network import shape_settings
from flawscope.training.diffusion.diffusers_networks import import_diffusers

SAMPLING = Sampling(
    betas="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    start=TRAINED_STEPS,
    steps=50,
    spacing="leading",
    offset=1,
    final="first",
    clip=False,
)
"""Noise levels of latent diffusion, and how its images are drawn with 50 steps of DDIM."""

_STABLE_DIFFUSION = {"unet": "unet", "autoencoder": "vae", "text": "text_encoder", "tokenizer": "tokenizer"}
_TEXT_TO_IMAGE = {"unet": "unet", "autoencoder": "vqvae", "text": "bert", "tokenizer": "tokenizer"}
"""What the folders of the parts are called."""

_SCHEDULER = "scheduler"
_HASHED = (".safetensors", ".json", ".txt", ".model")
_NEEDS_MORE = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)
"""Settings of UNets that want to be given more than latents, timestep and text."""

_LICENCES = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
_LICENCE_CHARACTERS = 80


@dataclass(frozen=True)
class FolderParts:
    """What a folder has.

    Attributes:
        kind: `clip` or `ldmbert`, the kind of the text encoder.
        autoencoder: An AutoencoderKL of diffusers.
        unet: A UNet2DConditionModel of diffusers.
        text: The text encoder of either library.
        tokenizer: Content of a `tokenizer.json`.
        pad: Token that fills a short text up.
        length: Tokens of every text.
        sampling: Noise levels.
        licence: What the folder says of it.
        identity: SHA-256 over the names and contents of its weights and settings.
    """

    kind: Literal["clip", "ldmbert"]
    autoencoder: Any
    unet: Any
    text: Any
    tokenizer: bytes
    pad: int
    length: int
    sampling: Sampling
    licence: str
    identity: str


def read_base_folder(folder: Path) -> FolderParts:
    """Read Stable Diffusion 1 or 2, for drawing or inpainting, or LDM text-to-image, as diffusers writes them.

    Args:
        folder: With `unet`, `vae`, `text_encoder` (CLIP) and `tokenizer`; or with `unet`, `vqvae` (an AutoencoderKL),
            `bert` (LDMBert) and `tokenizer`. A `scheduler` is looked at where there is one.

    Raises:
        MissingExtra: If diffusers or transformers is not installed.
        RunError: If parts lack, are broken, of other kinds, or do not fit each other.
    """
    is_ldm = (folder / "bert").is_dir()
    places = _TEXT_TO_IMAGE if is_ldm else _STABLE_DIFFUSION
    for place in places.values():
        if not (folder / place).is_dir():
            raise RunError(
                f"{folder}: expected a run of train base, or a folder of Stable Diffusion or LDM text-to-image as "
                f"diffusers writes it, got none with a folder {place}. Check base."
            )
    sampling = _noise_levels(folder)
    diffusers = import_diffusers()
    transformers = import_transformers()
    unet = loaded(
        folder / places["unet"],
        diffusers,
        lambda part: diffusers.UNet2DConditionModel.from_pretrained(
            part, local_files_only=True, use_safetensors=True, output_loading_info=True, torch_dtype=torch.float32
        ),
    )
    autoencoder = loaded(
        folder / places["autoencoder"],
        diffusers,
        lambda part: diffusers.AutoencoderKL.from_pretrained(
            part, local_files_only=True, use_safetensors=True, output_loading_info=True, torch_dtype=torch.float32
        ),
    )
    _check_autoencoder(folder / places["autoencoder"], autoencoder.config)
    _check_unet(folder / places["unet"], unet.config, int(autoencoder.config.latent_channels))
    text_kind = _ldmbert() if is_ldm else transformers.CLIPTextModel
    text = loaded(
        folder / places["text"],
        transformers,
        lambda part: text_kind.from_pretrained(
            part, local_files_only=True, use_safetensors=True, output_loading_info=True
        ),
    ).to(torch.float32)
    _check_text(folder, unet.config, text.config)
    tokenizer_kind = transformers.BertTokenizerFast if is_ldm else transformers.CLIPTokenizerFast
    tokenizer = called(
        folder / places["tokenizer"],
        transformers,
        lambda part: tokenizer_kind.from_pretrained(part, local_files_only=True),
    )
    if tokenizer.pad_token_id is None or len(tokenizer) > text.config.vocab_size:
        raise RunError(f"{folder}: expected tokens that the text encoder knows, got others. Are both of one model?")
    for network in (unet, autoencoder, text):
        network.requires_grad_(False).eval()
    used = [folder / place for place in (*places.values(), _SCHEDULER)]
    return FolderParts(
        kind="ldmbert" if is_ldm else "clip",
        autoencoder=autoencoder,
        unet=unet,
        text=text,
        tokenizer=tokenizer.backend_tokenizer.to_str().encode(),
        pad=int(tokenizer.pad_token_id),
        length=int(min(tokenizer.model_max_length, text.config.max_position_embeddings)),
        sampling=sampling,
        licence=licence_of(folder),
        identity=identity_of(folder, (path for part in used for path in part.rglob("*") if path.suffix in _HASHED)),
    )


def identity_of(folder: Path, files: Iterable[Path]) -> str:
    """Return one SHA-256 over the names below a folder and the contents of files."""
    found = sorted((path.relative_to(folder).as_posix(), sha256_file(path)) for path in files)
    return hashlib.sha256(msgspec.json.encode(found)).hexdigest()


def licence_of(folder: Path) -> str:
    """Return what a folder says of its licence, in a few words: its model card, or the first line of its licence."""
    for name in _LICENCES:
        path = folder / name
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if name == "README.md":  # a model card begins with a block of settings between two lines
            settings = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
            found = re.search(r"^license:[ \t]*(\S.*?)\s*$", settings[1], re.MULTILINE) if settings else None
            line = found[1] if found else ""
        else:
            line = next((line.strip() for line in text.splitlines() if line.strip()), "")
        if line:
            return line[:_LICENCE_CHARACTERS]
    return f"unknown: see the model card of {folder.name}"


def import_transformers() -> Any:
    """Return the module transformers, which takes seconds to import: only where it is needed.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        import transformers
    except ImportError as err:
        raise MissingExtra("reading a Stable Diffusion folder", "transformers", "train") from err
    return transformers


def check_prediction(folder: Path) -> None:
    """Refuse networks that predict something else than the noise, as one of Stable Diffusion 2 does.

    Args:
        folder: Its `scheduler` says so; without one nothing is refused.

    Raises:
        RunError: If it does, or cannot be read.
    """
    predicted = scheduler_settings(folder).get("prediction_type", "epsilon")
    if predicted != "epsilon":
        raise RunError(
            f"{folder}: expected a network that predicts the noise (epsilon), got one that predicts {predicted}. Take "
            "another base."
        )


def scheduler_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the scheduler in a folder; none where there is none.

    Raises:
        RunError: If they cannot be read.
    """
    path = folder / _SCHEDULER / "scheduler_config.json"
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as err:
        raise RunError(f"{path}: expected the settings of a scheduler, got {err}. Get the folder again.") from err


def loaded(folder: Path, library: Any, load: Callable[[Path], Any]) -> Any:
    """Return a model, every tensor of which was in its folder.

    Args:
        folder: Of the model.
        library: diffusers or transformers.
        load: Reads it with the library, and returns what the library says of it as well.

    Raises:
        RunError: If it cannot be read, or tensors lack, are left over, of another shape or not finite.
    """
    model, found = called(folder, library, load)
    # Both libraries draw at random what a file lacks, drop what is too much, and only log it.
    wrong = [*found["missing_keys"], *found["mismatched_keys"], *found["unexpected_keys"]]
    wrong = sorted(str(name) for name in wrong if not str(name).endswith("position_ids"))  # older files count along
    if wrong:
        raise RunError(
            f"{folder}: expected the weights that its config.json asks for, got none, too many or others for "
            f"{len(wrong)} tensors (the first is {wrong[0]}). Get the folder again."
        )
    if not all(bool(torch.isfinite(one).all()) for one in model.parameters()):
        raise RunError(f"{folder}: expected finite weights, got NaN or infinity. Get the folder again.")
    return model


def called(folder: Path, library: Any, load: Callable[[Path], Any]) -> Any:
    """Return what one of the two libraries reads, which draws bars and logs of its own: nothing for our users.

    Raises:
        RunError: If it raises anything.
    """
    speech = library.utils.logging
    level, has_bars = speech.get_verbosity(), speech.is_progress_bar_enabled()
    speech.set_verbosity(logging.CRITICAL)
    speech.disable_progress_bar()
    try:
        return load(folder)
    except Exception as err:
        # Both libraries raise their own and other libraries' families of errors; to the user they are one thing.
        first = next(iter(str(err).splitlines()), "no message")
        raise RunError(
            f"{folder}: expected a part of Stable Diffusion as diffusers writes it, in safetensors, got "
            f"{type(err).__name__}: {first}. Pickles (.bin) are not read: flawscope synth import takes them over."
        ) from err
    finally:
        speech.set_verbosity(level)
        if has_bars:
            speech.enable_progress_bar()


def _ldmbert() -> Any:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel

    return LDMBertModel


def _noise_levels(folder: Path) -> Sampling:
    """Return the noise levels that a network was trained with: those of its scheduler, or those of latent diffusion."""
    check_prediction(folder)
    given = scheduler_settings(folder)
    schedule, steps = given.get("beta_schedule", SAMPLING.betas), given.get("num_train_timesteps", TRAINED_STEPS)
    start, end = given.get("beta_start", SAMPLING.beta_start), given.get("beta_end", SAMPLING.beta_end)
    is_known = (
        schedule in ("linear", "scaled_linear")
        and steps == TRAINED_STEPS
        and all(isinstance(beta, float) and 0.0 < beta < 1.0 for beta in (start, end))
        and start <= end
        and given.get("trained_betas") is None
    )
    if not is_known:
        raise RunError(
            f"{folder / _SCHEDULER}: expected {TRAINED_STEPS} noise levels that are linear or scaled_linear, got "
            f"{steps}, {schedule}, from {start} to {end}. Take another base."
        )
    return msgspec.structs.replace(SAMPLING, betas=schedule, beta_start=start, beta_end=end)


def _check_autoencoder(folder: Path, settings: Any) -> None:
    """Refuse autoencoders of other families than that of Stable Diffusion 1, 2 and XL."""
    known = shape_settings(settings.block_out_channels, settings.layers_per_block, settings.latent_channels)
    known["norm_num_groups"] = settings.norm_num_groups
    for name, value in known.items():
        got = settings.get(name)
        got = list(got) if isinstance(got, tuple) else got
        if got != value:
            raise RunError(
                f"{folder}: expected an AutoencoderKL as of Stable Diffusion 1 or 2, with {name}={value}, got {got}. "
                "Take another base."
            )
    scaling = settings.scaling_factor
    if not isinstance(scaling, int | float) or not 0.0 < scaling < math.inf:
        raise RunError(f"{folder}: expected a positive factor of its latents, got {scaling!r}. Take another base.")


def _check_unet(folder: Path, settings: Any, latent: int) -> None:
    more = [name for name in _NEEDS_MORE if settings.get(name) is not None]
    if more or settings.get("time_embedding_type", "positional") != "positional":
        raise RunError(
            f"{folder}: expected a UNet as of Stable Diffusion 1 or 2, which takes latents, timestep and text, got one "
            f"with {(more or ['time_embedding_type'])[0]}. Take another base."
        )
    channels = (settings.in_channels, settings.out_channels)
    if channels not in ((latent, latent), (2 * latent + 1, latent)):
        raise RunError(
            f"{folder}: expected {latent} channels in and out, or {2 * latent + 1} in for inpainting, with latents of "
            f"{latent}, got {channels[0]} in and {channels[1]} out. Take another base."
        )


def _check_text(folder: Path, unet: Any, text: Any) -> None:
    if unet.cross_attention_dim != text.hidden_size:
        raise RunError(
            f"{folder}: expected texts of width {unet.cross_attention_dim}, which the UNet takes, got "
            f"{text.hidden_size}. Are unet and text encoder of one model?"
        )
    if getattr(text, "use_attention_mask", False):
        raise RunError(
            f"{folder}: expected a text encoder that sees all tokens, got one with a mask. Take another base."
        )
