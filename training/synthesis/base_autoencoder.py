"""The autoencoder that a small base works in: opening it, its identity, and what its licence makes of the base's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch

from flawscope.config import BaseConfig
from flawscope.errors import ArgumentError
from flawscope.runs import RECORD, read_autoencoder_record
from flawscope.training.diffusion.autoencoder import Normalization, open_autoencoder
from flawscope.training.diffusion.diffusers_folder import licence_of

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def autoencoder_identity(config: BaseConfig) -> str:
    """Return a SHA-256 of the autoencoder; a training is resumed only with the same one.

    Raises:
        ArgumentError: If the settings name no autoencoder.
        RunError: If it cannot be used.
    """
    autoencoder: Any = autoencoder_of(config)[0]
    digest = hashlib.sha256(safetensors.torch.save(dict(autoencoder.state_dict())))
    # The scaling factor lies in its settings, not in its state.
    digest.update(repr(float(autoencoder.config.scaling_factor)).encode())
    return digest.hexdigest()


def autoencoder_of(config: BaseConfig) -> tuple[AutoencoderKL, Normalization]:
    """Return the autoencoder that the settings name, and the normalization of its input images.

    Raises:
        ArgumentError: If they name none.
        RunError: If it cannot be used.
    """
    if config.autoencoder is None:
        raise ArgumentError(
            "autoencoder: expected a run of train autoencoder or a folder with an AutoencoderKL, got none. Make one "
            "with flawscope train autoencoder, then name it with --set autoencoder=RUN."
        )
    opened, normalization = open_autoencoder(Path(config.autoencoder))
    return opened, normalization or "signed"  # autoencoders of diffusers, which state none, use [-1, 1]


def own_licence(config: BaseConfig) -> str:
    """Return the licence of a trained base: the user's own, but for an autoencoder that came from elsewhere."""
    path = Path(config.autoencoder or "")
    if not (path / RECORD).is_file():
        return f"own, but for the autoencoder: {licence_of(path)}"
    started_from = read_autoencoder_record(path)[0].base
    if started_from is None:
        return "own"
    # The name of the folder alone: a bundle must not tell paths of the machine that made it.
    return f"own, but for the autoencoder, which began as {Path(started_from).name}"
