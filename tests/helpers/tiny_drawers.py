"""Runs of what draws defects, a few channels wide, not trained; and an exporter that traces each network once."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from tiny_base import SIDE, TINY_BASE, tiny_autoencoder, tiny_images
from tiny_dataset import CATEGORY, DEFECTS, write_rgb
from tiny_guided import randomise

from flawscope import cli
from flawscope.bundle import SynthHead, open_bundle
from flawscope.config import BaseConfig, EmbeddingConfig, InpaintingConfig, from_flat
from flawscope.datasets import open_dataset
from flawscope.datasets.defects.support_set import write_support
from flawscope.diffusion.location_words import LOCATIONS
from flawscope.export.synthesis import generator_graphs
from flawscope.runs import LearnedDefect, SynthesisRecord
from flawscope.runtime.synthesis.embedding_files import write_embedding
from flawscope.training.synthesis.base_model import build_networks, open_base
from flawscope.training.synthesis.base_training import base_settings
from flawscope.training.synthesis.generator_run import GeneratorFitResult, write_synthesis_run
from flawscope.training.synthesis.lora import LORA, AdaptedUnet
from flawscope.training.synthesis.prompt_templates import defect_sentences
from flawscope.training.synthesis.support_examples import read_support_examples
from flawscope.training.synthesis.word_tokenizer import write_tokenizer

WIDTH = TINY_BASE["context"]
"""Width of a token's embedding."""


def write_drawers(folder: Path, dataset: Path) -> dict[str, Path]:
    """Write a run of every kind; `filler` is the base of the inpainting network.

    Args:
        folder: Where the runs are made.
        dataset: Root of the tiny dataset, for the support set, which lies in `folder`/support.
    """
    write_support(open_dataset(dataset, CATEGORY), folder / "support", shots=2, split="test")
    images = [write_rgb(folder / f"{index}.png", image) for index, image in enumerate(tiny_images(3))]
    runs = {
        "base": write_base(folder / "base", False, images),
        "filler": write_base(folder / "filler", True, images),
    }
    for kind, base in (("embedding", "base"), ("inpainting", "filler")):
        runs[kind] = write_adapted(folder / kind, runs[base], folder / "support", images)
    return runs


def write_base(folder: Path, inpainting: bool, images: list[Path]) -> Path:
    """Write a run of kind base whose UNet attends once and has no middle block: a third of what has to be traced."""
    config = from_flat(BaseConfig, {**TINY_BASE, "inpainting": inpainting, "autoencoder": "autoencoder", "seed": 3})
    tokenizer, autoencoder = write_tokenizer([CATEGORY]), tiny_autoencoder()
    settings = base_settings(config, autoencoder, "signed", tokenizer)
    # The pipeline of diffusers takes the side of a square as one number.
    smaller = {"mid_block_type": None, "up_block_types": ["UpBlock2D", "UpBlock2D"], "sample_size": SIDE // 2}
    settings = msgspec.structs.replace(settings, unet={**settings.unet, **smaller})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(6)
        unet, text = build_networks(settings)
        torch.manual_seed(7)
        for parameter in text.parameters():  # the same for both bases
            parameter.normal_(std=0.3)
    randomise(unet)
    networks = {"unet": unet, "text": text.model, "autoencoder": autoencoder}
    states = {name: dict(network.state_dict()) for name, network in networks.items()}
    fitted = GeneratorFitResult(states, {}, tokenizer=tokenizer)
    changes = {"training": ("1" * 64,), "networks": msgspec.to_builtins(settings)}
    write_synthesis_run(folder, record_of("base", config, **changes), fitted, images)
    return folder


def record_of(kind: Any, config: Any, **changes: Any) -> SynthesisRecord:
    plain: dict[str, Any] = {
        "base": "",
        "defects": (),
        "networks": {},
        "training": ("2" * 64,),
    }
    return SynthesisRecord(
        **{**plain, **changes},
        kind=kind,
        config=config,
        category=CATEGORY,
        layout="mvtec",
        dataset="0" * 64,
        licence="own",
        facts={},
        seconds={},
        versions={},
        created="2026-01-01T00:00:00+00:00",
        command="",
        flawscope="0",
    )


def write_adapted(folder: Path, base: Path, support: Path, images: list[Path]) -> Path:
    """Write a run of kind embedding, or inpainting where the base is one."""
    opened = open_base(base)
    drawn = torch.Generator().manual_seed(4)
    if opened.is_inpainting:
        config: Any = from_flat(
            InpaintingConfig, {"resize": (SIDE, SIDE), "base": str(base), "support": str(support), "crop_fill": 0.4}
        )
        adapted = AdaptedUnet(opened.unet, config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=drawn))
        networks = {LORA: dict(adapted.state_dict())}
        texts = [
            tuple(text for place in LOCATIONS[0] for text in defect_sentences(CATEGORY, name, place))
            for name in DEFECTS
        ]
    else:
        config = from_flat(
            EmbeddingConfig, {"resize": (SIDE, SIDE), "base": str(base), "support": str(support), "vectors": 2}
        )
        vectors = {f"{CATEGORY}/{name}": torch.randn((2, WIDTH), generator=drawn) for name in DEFECTS}
        networks, texts = {"vectors": vectors}, [("*",)] * len(DEFECTS)
    learned = tuple(
        LearnedDefect(CATEGORY, name, said, vectors=not opened.is_inpainting, pictures=2)
        for name, said in zip(DEFECTS, texts, strict=True)
    )
    files = {"support.json": support / "support.json"}
    for one in read_support_examples(support).examples:
        place = f"support/{one.category}/{one.defect}"
        files[f"{place}/{one.name}.png"] = one.image_file
        files[f"{place}_mask/{one.name}_mask.png"] = one.mask_file
    kind = "inpainting" if opened.is_inpainting else "embedding"
    record = record_of(kind, config, base=opened.identity, defects=learned)
    write_synthesis_run(folder, record, GeneratorFitResult(networks, {}, defects=learned), images, support=files)
    return folder


@contextlib.contextmanager
def traced_once() -> Iterator[dict[Any, bytes]]:
    """Let each network be traced once: that takes seconds, and the same network gives the same graph."""
    made: dict[Any, bytes] = {}
    trace = generator_graphs.export_network

    def export(module: torch.nn.Module, examples: Any, max_batch: int, outputs: Any, name: str) -> onnx.ModelProto:
        digest = hashlib.sha256()
        for key, value in (*module.named_parameters(), *module.named_buffers()):
            digest.update(key.encode() + value.detach().numpy().tobytes())
        identity = (name, max_batch, digest.hexdigest())
        if identity not in made:
            made[identity] = trace(module, examples, max_batch, outputs, name).SerializeToString()
        return onnx.load_from_string(made[identity])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator_graphs, "export_network", export)
        yield made


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must be refused; return the one line that says why."""
    assert cli.run([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def synth_head(path: Path) -> SynthHead:
    """Return the head of a bundle that draws."""
    with open_bundle(path) as bundle:
        head = bundle.manifest.head
    assert isinstance(head, SynthHead)
    return head


def write_word(path: Path, width: int = WIDTH, **metadata: str) -> Path:
    """Write a learned word of one vector; return the file."""
    vectors = np.random.default_rng(8).standard_normal((1, width), np.float32)
    write_embedding(path, "*", vectors, metadata)
    return path
