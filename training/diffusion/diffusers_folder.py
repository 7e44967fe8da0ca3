"""Strict reader of diffusers and transformers folders: Stable Diffusion and LDM text-to-image.

Nothing is downloaded, and no pickle is read. Both libraries initialise weights at random that a file lacks; here that
is an error.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import torch

from flawscope.diffusion.schedule import TRAINED_STEPS, Sampling, Spacing
from flawscope.errors import MissingExtra, RunError
from flawscope.files import sha256_file
from flawscope.open_files import RECORD_BYTES, TEXT_BYTES, read_regular, regular_folder, walk_folder
from flawscope.text import NOT_JSON, encode_json
from flawscope.training.diffusion.autoencoder_network import refuse_file, shape_settings, variant_of
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
"""Noise levels of latent diffusion (arXiv:2112.10752), and its sampling with 50 steps of DDIM."""

_STABLE_DIFFUSION = {"unet": "unet", "autoencoder": "vae", "text": "text_encoder", "tokenizer": "tokenizer"}
_TEXT_TO_IMAGE = {"unet": "unet", "autoencoder": "vqvae", "text": "bert", "tokenizer": "tokenizer"}
"""Part -> its folder, in Stable Diffusion and in LDM text-to-image."""

_SCHEDULER = "scheduler"
_HASHED = (".safetensors", ".json", ".txt", ".model")
"""Files that make up the identity: weights, settings and vocabularies, but no model card."""

_NEEDS_MORE = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)
"""Settings of UNets that take other inputs beside latents, timestep and text."""

_LICENCES = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
_LICENCE_CHARACTERS = 80


@dataclass(frozen=True)
class FolderParts:
    """The parts of a folder.

    Attributes:
        kind: Kind of the text encoder, `clip` or `ldmbert`.
        autoencoder: An AutoencoderKL of diffusers.
        unet: A UNet2DConditionModel of diffusers.
        text: The text encoder of either library.
        tokenizer: Content of a `tokenizer.json`.
        pad: Padding token.
        length: Tokens of every text.
        sampling: Noise levels.
        licence: Licence as the folder states it.
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
            `bert` (LDMBert) and `tokenizer`. A `scheduler` is read where there is one.

    Raises:
        MissingExtra: If diffusers or transformers is not installed.
        RunError: If parts are missing, broken, of another kind, or do not fit each other.
    """
    refuse_file(folder)
    is_ldm = (folder / "bert").is_dir()
    places = _TEXT_TO_IMAGE if is_ldm else _STABLE_DIFFUSION
    for place in places.values():
        if not (folder / place).is_dir():
            raise RunError(
                f"{folder}: expected a run of train base, or a folder of Stable Diffusion or LDM text-to-image as "
                f"diffusers writes it, got one without the folder {place}. Check base."
            )
    sampling = _noise_levels(folder)  # first, since it needs neither of the two large libraries
    diffusers = import_diffusers()
    transformers = import_transformers()
    unet = load_network(folder / places["unet"], diffusers, diffusers.UNet2DConditionModel)
    autoencoder = load_network(folder / places["autoencoder"], diffusers, diffusers.AutoencoderKL)
    _check_autoencoder(folder / places["autoencoder"], autoencoder.config)
    _check_unet(folder / places["unet"], unet.config, int(autoencoder.config.latent_channels))
    text_kind = _ldmbert() if is_ldm else transformers.CLIPTextModel
    # float32 by `.to`: the argument for it has changed its name between versions of transformers.
    text = loaded(
        folder / places["text"],
        transformers,
        lambda part: text_kind.from_pretrained(
            part, local_files_only=True, use_safetensors=True, output_loading_info=True, variant=variant_of(part)
        ),
    ).to(torch.float32)
    _check_text(folder, unet.config, text.config)
    tokenizer_kind = transformers.BertTokenizerFast if is_ldm else transformers.CLIPTokenizerFast
    tokenizer = called(
        folder / places["tokenizer"],
        transformers,
        lambda part: tokenizer_kind.from_pretrained(part, local_files_only=True),
    )
    # A token beyond the table would be an index error in torch, and in a graph an arbitrary row.
    if tokenizer.pad_token_id is None or len(tokenizer) > text.config.vocab_size:
        raise RunError(
            f"{folder}: expected a tokenizer that fits the text encoder, got another. Are both of one model?"
        )
    for network in (unet, autoencoder, text):
        network.requires_grad_(False).eval()
    part_folders = [folder / place for place in (*places.values(), _SCHEDULER)]
    return FolderParts(
        kind="ldmbert" if is_ldm else "clip",
        autoencoder=autoencoder,
        unet=unet,
        text=text,
        # The Rust tokenizer as JSON: the runtime reads it with `tokenizers` alone, without transformers.
        tokenizer=tokenizer.backend_tokenizer.to_str().encode(),
        pad=int(tokenizer.pad_token_id),
        # model_max_length is a huge number where the tokenizer's settings do not give it.
        length=int(min(tokenizer.model_max_length, text.config.max_position_embeddings)),
        sampling=sampling,
        licence=licence_of(folder),
        identity=identity_of(folder, _hashed_files(part_folders)),
    )


def _hashed_files(folders: Iterable[Path]) -> Iterable[Path]:
    # The scheduler's folder may be absent.
    return (path for folder in folders if folder.is_dir() for path in walk_folder(folder) if path.suffix in _HASHED)


def identity_of(folder: Path, files: Iterable[Path]) -> str:
    """Return one SHA-256 over the names below a folder and the contents of files."""
    # Sorted and with / on every system: the order in which a file system lists them must not change the identity.
    hashes = sorted((path.relative_to(folder).as_posix(), sha256_file(path)) for path in files)
    return hashlib.sha256(encode_json(hashes)).hexdigest()


def licence_of(folder: Path) -> str:
    """Return the licence of a folder in a few words, from its model card or the first line of its licence file."""
    # The model card first: its `license` is an identifier, while a licence file begins with any title.
    for name in _LICENCES:
        path = folder / name
        if not path.is_file():
            continue
        text = read_regular(path, TEXT_BYTES).decode(errors="replace")
        if name == "README.md":  # a model card begins with YAML between two lines of ---
            settings = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
            entry = re.search(r"^license:[ \t]*(\S.*?)\s*$", settings[1], re.MULTILINE) if settings else None
            line = entry[1] if entry else ""
        else:
            line = next((line.strip() for line in text.splitlines() if line.strip()), "")
        if line:
            return line[:_LICENCE_CHARACTERS]
    return f"unknown: see the model card of {folder.name}"


def import_transformers() -> Any:
    """Return the module transformers, imported only where it is needed because that takes seconds.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        import transformers
    except ImportError as err:
        raise MissingExtra("reading a Stable Diffusion folder", "transformers", "train") from err
    return transformers


def check_prediction(folder: Path) -> None:
    """Refuse networks that predict something else than the noise, such as the v-prediction of Stable Diffusion 2.

    Args:
        folder: Folder whose `scheduler` states the prediction type; without a scheduler nothing is refused.

    Raises:
        RunError: If it predicts something else, or its settings cannot be read.
    """
    scheduler = scheduler_settings(folder)
    predicted = scheduler.get("prediction_type", "epsilon")
    if predicted != "epsilon":
        raise RunError(
            f"{folder}: expected a network that predicts the noise (epsilon), got one that predicts {predicted}. Take "
            "another base."
        )
    # Zero terminal SNR (arXiv:2305.08891): the noise says nothing of the image there, and the step divides by zero.
    if scheduler.get("rescale_betas_zero_snr"):
        raise RunError(
            f"{folder}: expected a last noise level that leaves some of the image, got rescale_betas_zero_snr: from it "
            "alone no image can be told by predicted noise (epsilon). Take another base."
        )


def scheduler_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the scheduler in a folder; empty where there is none.

    Raises:
        RunError: If they cannot be read.
    """
    path = folder / _SCHEDULER / "scheduler_config.json"
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(read_regular(path, RECORD_BYTES), type=dict[str, Any])
    except (OSError, *NOT_JSON) as err:
        raise RunError(f"{path}: expected the settings of a scheduler, got {err}. Get the folder again.") from err


def loaded(folder: Path, library: Any, load: Callable[[Path], Any]) -> Any:
    """Return a model whose every tensor was in its folder.

    Args:
        folder: Folder of the model.
        library: diffusers or transformers.
        load: `(folder) -> (model, loading info)` of that library.

    Raises:
        RunError: If it cannot be read, or tensors are missing, left over, of another shape or not finite.
    """
    model, loading_info = called(folder, library, load)
    # Both libraries initialise missing tensors at random, drop unexpected ones, and only log it.
    wrong = [*loading_info["missing_keys"], *loading_info["mismatched_keys"], *loading_info["unexpected_keys"]]
    # Older files store position_ids, which newer versions compute.
    wrong = sorted(str(name) for name in wrong if not str(name).endswith("position_ids"))
    if wrong:
        raise RunError(
            f"{folder}: expected the weights that its config.json asks for, got missing, unexpected or other shapes "
            f"for {len(wrong)} tensors (the first is {wrong[0]}). Get the folder again."
        )
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise RunError(f"{folder}: expected finite weights, got NaN or infinity. Get the folder again.")
    return model


def called(folder: Path, library: Any, load: Callable[[Path], Any]) -> Any:
    """Return what `load` reads with one of the two libraries, without the library's own progress bars and logs.

    Raises:
        RunError: If it raises anything.
    """
    library_log = library.utils.logging
    level, has_bars = library_log.get_verbosity(), library_log.is_progress_bar_enabled()
    library_log.set_verbosity(logging.CRITICAL)
    library_log.disable_progress_bar()
    try:
        # The libraries open files by their names, and would wait for ever for a pipe.
        return load(regular_folder(folder))
    except Exception as err:
        # Both libraries raise errors of many families, their own and others'; for the user all mean an unusable folder.
        first = next(iter(str(err).splitlines()), "no message")
        raise RunError(
            f"{folder}: expected a part of Stable Diffusion as diffusers writes it, in safetensors, got "
            f"{type(err).__name__}: {first}. Pickles (.bin) are not read: convert them with flawscope synth import."
        ) from err
    finally:
        library_log.set_verbosity(level)
        if has_bars:
            library_log.enable_progress_bar()


def load_network(folder: Path, diffusers: Any, kind: Any) -> Any:
    """Return a network of diffusers in float32, whatever its files have.

    Raises:
        RunError: As `loaded`.
    """

    def load(part: Path) -> Any:
        # use_safetensors: without it the library falls back to pickles, which may run code when they are loaded.
        return kind.from_pretrained(
            part,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            torch_dtype=torch.float32,
            variant=variant_of(part),
        )

    return loaded(folder, diffusers, load)


def _ldmbert() -> Any:
    # Not exported at the top of diffusers, and imported late: the module of its pipeline needs transformers.
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel

    return LDMBertModel


def _noise_levels(folder: Path) -> Sampling:
    """Return the noise levels a network was trained with: those of its scheduler, or those of latent diffusion."""
    check_prediction(folder)
    scheduler = scheduler_settings(folder)
    schedule = scheduler.get("beta_schedule", SAMPLING.betas)
    steps = scheduler.get("num_train_timesteps", TRAINED_STEPS)
    start, end = scheduler.get("beta_start", SAMPLING.beta_start), scheduler.get("beta_end", SAMPLING.beta_end)
    is_supported = (
        schedule in ("linear", "scaled_linear")
        and steps == TRAINED_STEPS
        and all(isinstance(beta, float) and 0.0 < beta < 1.0 for beta in (start, end))
        and start <= end
        and scheduler.get("trained_betas") is None
    )
    if not is_supported:
        raise RunError(
            f"{folder / _SCHEDULER}: expected {TRAINED_STEPS} noise levels that are linear or scaled_linear, got "
            f"{steps}, {schedule}, from {start} to {end}. Take another base."
        )
    spacing = scheduler.get("timestep_spacing", SAMPLING.spacing)
    if spacing not in get_args(Spacing):
        raise RunError(
            f"{folder / _SCHEDULER}: expected the timestep_spacing {', '.join(get_args(Spacing))}, got {spacing!r}. "
            "Take another base."
        )
    # As in diffusers, whose steps_offset shifts leading timesteps alone.
    offset = SAMPLING.offset if spacing == "leading" else 0
    return msgspec.structs.replace(
        SAMPLING, betas=schedule, beta_start=start, beta_end=end, spacing=spacing, offset=offset
    )


def _check_autoencoder(folder: Path, settings: Any) -> None:
    """Refuse autoencoders of another architecture than that of Stable Diffusion 1, 2 and XL."""
    expected = shape_settings(settings.block_out_channels, settings.layers_per_block, settings.latent_channels)
    expected["norm_num_groups"] = settings.norm_num_groups
    for name, value in expected.items():
        got = settings.get(name)
        got = list(got) if isinstance(got, tuple) else got  # JSON has lists, diffusers' defaults are tuples
        if got != value:
            raise RunError(
                f"{folder}: expected an AutoencoderKL as of Stable Diffusion 1 or 2, with {name}={value}, got {got}. "
                "Take another base."
            )
    scaling = settings.scaling_factor
    if not isinstance(scaling, int | float) or not 0.0 < scaling < math.inf:
        raise RunError(f"{folder}: expected a positive factor of its latents, got {scaling!r}. Take another base.")


def _check_unet(folder: Path, settings: Any, latent: int) -> None:
    unsupported = [name for name in _NEEDS_MORE if settings.get(name) is not None]
    if unsupported or settings.get("time_embedding_type", "positional") != "positional":
        raise RunError(
            f"{folder}: expected a UNet as of Stable Diffusion 1 or 2, which takes latents, timestep and text, got one "
            f"with {(unsupported or ['time_embedding_type'])[0]}. Take another base."
        )
    # For inpainting the UNet also takes the mask and the latents of the masked image: C + 1 + C.
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
            f"{folder}: expected a text encoder that attends to all tokens, got one with an attention mask. "
            "Take another base."
        )
