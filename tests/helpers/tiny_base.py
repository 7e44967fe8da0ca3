"""A base of a few channels at 16x16 pixels with latents of 4x8x8, its weights at random but seeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tiny_guided import randomise

from flawscope.config import BaseConfig, from_flat
from flawscope.runs import SynthesisRecord
from flawscope.training.diffusion.autoencoder_network import new_autoencoder, shape_settings
from flawscope.training.synthesis.base_model import SynthesisBase, build_networks, open_base
from flawscope.training.synthesis.base_training import base_settings
from flawscope.training.synthesis.generator_run import GeneratorFitResult, write_synthesis_run
from flawscope.training.synthesis.word_tokenizer import write_tokenizer

SIDE, LATENT = 16, 8
CATEGORY = "steel"
TINY_BASE: dict[str, Any] = {
    "resize": (SIDE, SIDE),
    "widths": (8, 16),
    "layers": 1,
    "heads": 2,
    "context": 8,
    "text_layers": 1,
}


def tiny_autoencoder(seed: int = 5) -> Any:
    """Return an autoencoder that halves the sides once, at random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = new_autoencoder(shape_settings((4, 8), 1, 4), 0.5)
    return network.requires_grad_(False).eval()


def write_tiny_base_run(folder: Path, inpainting: bool = False) -> Path:
    """Write a run of kind base into a folder that does not exist yet; return it."""
    config = from_flat(BaseConfig, {**TINY_BASE, "inpainting": inpainting, "autoencoder": "autoencoder"})
    tokenizer, autoencoder = write_tokenizer([CATEGORY]), tiny_autoencoder()
    settings = base_settings(config, autoencoder, "signed", tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        unet, text = build_networks(settings)
    randomise(unet)
    record = SynthesisRecord(
        kind="base",
        config=config,
        category=CATEGORY,
        layout="mvtec",
        dataset="0" * 64,
        training=("1" * 64,),
        base="",
        licence="own",
        defects=(),
        networks=msgspec.to_builtins(settings),
        facts={"epochs": 1},
        seconds={},
        versions={},
        created="2026-01-01T00:00:00+00:00",
        command="",
        flawscope="0",
    )
    networks = {"unet": unet, "text": text.model, "autoencoder": autoencoder}
    fitted = GeneratorFitResult(
        {name: dict(network.state_dict()) for name, network in networks.items()}, {}, tokenizer=tokenizer
    )
    write_synthesis_run(folder, record, fitted, ())
    return folder


def tiny_base(inpainting: bool = False) -> SynthesisBase:
    """Return a base as `open_base` gives it."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return open_base(write_tiny_base_run(Path(folder) / "run", inpainting))


def tiny_images(count: int = 4, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return images at random, uint8 [count, 16, 16, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
