"""Folders that several files of tests draw in, and a checkpoint in a single file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from latent_diffusion_layout import (
    Sizes,
    autoencoder,
    betas,
    clip,
    clip_state,
    unet,
)
from single_files import prefixed, seeded, vocabulary
from tiny_dataset import CATEGORY
from tiny_stable_diffusion import write_stable_diffusion, write_text_to_image
from tiny_synth_bundle import write_tiny_synth
from torch import Tensor

from flawscope.cli import run
from flawscope.datasets import open_dataset
from flawscope.files import sha256_file
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask
from flawscope.runtime.synthesis import (
    Synthesizer,
    read_sites,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_root):
    """A folder with the bundle drawer.flaw, that has learned two test images, and the box set boxes."""
    folder = tmp_path_factory.mktemp("place")
    test = tiny_root / CATEGORY / "test"
    supports = {}
    for defect in ("pitting", "stain"):
        mask = read_mask(tiny_root / CATEGORY / "ground_truth" / defect / "000_mask.png")
        image = test / defect / "000.png"
        supports[defect] = (read_image(image), mask, sha256_file(image))
    write_tiny_synth(folder / "drawer.flaw", share=0.9, supports=supports)
    data = ["--data", str(tiny_root), "--category", CATEGORY]
    options = [
        "--split",
        "test",
        "--num",
        "7",
        "--within",
        "image",
        "--places",
        "observed",
        "--out",
        str(folder / "boxes"),
    ]
    assert run(["synth", "boxes", *data, *options]) == 0
    return folder


@pytest.fixture
def arguments(place, tiny_root):
    bundle, boxes = str(place / "drawer.flaw"), str(place / "boxes")
    return ["synth", "generate", bundle, "--boxes", boxes, "--data", str(tiny_root), "--category", CATEGORY]


@pytest.fixture(scope="module")
def drawn(place, tiny_root):
    """A folder of seven drawn images; not to be changed."""
    folder = place / "drawn"
    bundle, boxes = str(place / "drawer.flaw"), str(place / "boxes")
    data = ["--data", str(tiny_root), "--category", CATEGORY]
    assert run(["synth", "generate", bundle, "--boxes", boxes, *data, "--seed", "10", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def drawer(place):
    with Synthesizer.load(place / "drawer.flaw", "cpu") as synthesizer:
        yield synthesizer


@pytest.fixture(scope="module")
def sites(place, tiny_root):
    return read_sites(place / "boxes", open_dataset(tiny_root, CATEGORY))[0]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the tokenizers, of CLIP and of BERT."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "sd").mkdir()
    (folder / "ldm").mkdir()
    return {
        "clip": write_stable_diffusion(folder / "sd") / "tokenizer",
        "bert": write_text_to_image(folder / "ldm") / "tokenizer",
    }


@pytest.fixture(scope="module")
def stable(tokenizers: dict[str, Path]) -> dict[str, Tensor]:
    """Stable Diffusion for inpainting: all names of the real one, small widths."""
    sizes = Sizes(channels_in=9, tokens=vocabulary(tokenizers["clip"]))
    text = seeded(clip, sizes)
    state = prefixed("model.diffusion_model.", seeded(unet, sizes).state_dict())
    state |= prefixed("first_stage_model.", seeded(autoencoder, sizes).state_dict())
    state |= prefixed("cond_stage_model.transformer.", clip_state(text, sizes.length))
    return {
        "betas": betas(),
        "alphas_cumprod": torch.cumprod(1 - betas(), 0),
        "scale_factor": torch.tensor(0.18215),
        **state,
    }
