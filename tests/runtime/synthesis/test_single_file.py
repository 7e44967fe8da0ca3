"""Checkpoints in a single file: converted without unpickling to what diffusers' own converter makes of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from error_lines import refused
from latent_diffusion_layout import (
    REAL,
    BertOfXTransformers,
    Sizes,
    autoencoder,
    clip,
    clip_state,
    unet,
)
from single_files import entries, prefixed, seeded, vocabulary
from torch import Tensor

from flawscope import cli
from flawscope.files import sha256_file
from flawscope.runtime.synthesis.ldm_layout import autoencoder_part, bert_part, clip_part, unet_part
from flawscope.training.diffusion.autoencoder import open_autoencoder
from flawscope.training.diffusion.diffusers_folder import FolderParts, read_base_folder
from flawscope.training.synthesis.base_model import open_base

SIZES = Sizes()
TINY_TEXT = Sizes(text_layers=2)

pytestmark = pytest.mark.long


def averaged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the average of a training's weights is stored as."""
    flat = {
        f"model_ema.{name.removeprefix('model.').replace('.', '')}": value * 0.5
        for name, value in state.items()
        if name.startswith("model.diffusion_model.")
    }
    return {**flat, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}


class Callback:
    """An object of a package that a checkpoint names; it pretends to be one of Lightning's."""


Callback.__module__, Callback.__qualname__ = "pytorch_lightning.callbacks.model_checkpoint", "Callback"


def lightning(state: dict[str, Tensor]) -> dict[str, Any]:
    """What PyTorch Lightning saves around the weights."""
    return {
        "epoch": 3,
        "global_step": 875000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state,
        "optimizer_states": [
            {"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
        ],
        "lr_schedulers": [{"last_epoch": 4, "_step_count": 5}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": np.float64(0.25), "monitor": None}},
    }


def save_lightning(path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write it with an object of Lightning and its class as a key, neither of which can be imported here."""
    import sys
    import types

    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["pytorch_lightning.callbacks.model_checkpoint"].Callback = Callback  # type: ignore[attr-defined]
    content = lightning(state)
    made = Callback()
    made.best = 1.0  # type: ignore[attr-defined]
    content["callbacks"] = {**content["callbacks"], Callback: {"own": made}}
    torch.save(content, path)
    for name in list(sys.modules):
        if name.startswith("pytorch_lightning"):
            monkeypatch.delitem(sys.modules, name)
    return path


def imported(path: Path, out: Path, *options: str) -> Path:
    assert cli.run(["synth", "import", str(path), "--out", str(out), "--image-size", "64", *options]) == 0
    return out


def by_diffusers(state: dict[str, Tensor], converted: Path, folder: Path) -> Path:
    """Write what diffusers' own converter makes of a checkpoint, with the settings and the tokenizer of `converted`."""
    import shutil

    import diffusers
    import transformers
    from diffusers.loaders import single_file_utils

    shutil.copytree(converted, folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    made: Any = diffusers.UNet2DConditionModel.from_config(config)
    made.load_state_dict(single_file_utils.convert_ldm_unet_checkpoint(dict(state), config))
    made.save_pretrained(folder / "unet")
    config = json.loads((folder / "vae" / "config.json").read_text())
    made = diffusers.AutoencoderKL.from_config(config)
    made.load_state_dict(single_file_utils.convert_ldm_vae_checkpoint(dict(state), config))
    made.save_pretrained(folder / "vae")
    text = single_file_utils.convert_ldm_clip_checkpoint(dict(state))
    names = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict()
    made = transformers.CLIPTextModel(transformers.CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    long = {name: name if name.startswith("text_model.") else f"text_model.{name}" for name in names}
    made.load_state_dict({name: text[long[name]] for name in names})
    made.save_pretrained(folder / "text_encoder")
    return folder


def drawn(parts: FolderParts, inpainting: bool) -> Tensor:
    """Draw two steps from fixed noise."""
    noise = torch.Generator().manual_seed(2)
    latents = torch.randn((1, 4, 8, 8), generator=noise)
    beside = torch.randn((1, 5, 8, 8), generator=noise)
    # Copies: weights in a mapped file are not aligned alike, which decides the last bits.
    text, denoiser, pixels = copy.deepcopy((parts.text, parts.unet, parts.autoencoder))
    with torch.no_grad():
        context = text(torch.tensor([[0, 3, 2, 1, 1, 1, 1]]))[0]
        for level in (900, 100):
            given = torch.cat([latents, beside], dim=1) if inpainting else latents
            latents = latents - 0.3 * denoiser(given, torch.tensor([level]), context).sample
        image: Tensor = pixels.decode(latents / pixels.config.scaling_factor).sample
        return torch.cat([image.flatten(), pixels.encode(image).latent_dist.mean.flatten()])


@pytest.mark.parametrize("form", ["ckpt", "safetensors", "old"])
def test_stable_diffusion_becomes_what_diffusers_makes_of_it_and_draws_the_same(
    stable: dict[str, Tensor],
    tokenizers: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    path = tmp_path / f"sd-v1-5-inpainting.{'ckpt' if form == 'old' else form}"
    if form == "ckpt":
        save_lightning(path, stable, monkeypatch)
    elif form == "old":
        torch.save(lightning(stable) | {"callbacks": {}}, path, _use_new_zipfile_serialization=False)
    else:
        safetensors.torch.save_file(stable, path)
    out = imported(path, tmp_path / "out", "--tokenizer", str(tokenizers["clip"]))
    parts = read_base_folder(out)
    theirs = read_base_folder(by_diffusers(stable, out, tmp_path / "theirs"))
    for name in ("unet", "autoencoder", "text"):
        expected, actual = (getattr(each, name).state_dict() for each in (theirs, parts))
        assert expected.keys() == actual.keys()
        assert all(torch.equal(expected[key], actual[key]) for key in expected)
    assert torch.equal(drawn(parts, True), drawn(theirs, True))
    assert float(drawn(parts, True).std()) > 0.01
    from diffusers import DiffusionPipeline

    pipeline: Any = DiffusionPipeline.from_pretrained(out, local_files_only=True)
    assert type(pipeline).__name__ == "StableDiffusionInpaintPipeline"
    opened = open_base(out)
    assert opened.is_inpainting
    assert opened.size == (64, 64)
    assert opened.latents == (4, 8, 8)


def test_averaged_weights_are_taken_unless_asked_otherwise(
    stable: dict[str, Tensor], tokenizers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "v1-5-pruned.ckpt"
    torch.save({"state_dict": stable | averaged(stable)}, path)
    options = ("--tokenizer", str(tokenizers["clip"]))
    plain = read_base_folder(imported(path, tmp_path / "plain", *options, "--no-ema")).unet.state_dict()
    assert "EMA" not in capsys.readouterr().out
    average = read_base_folder(imported(path, tmp_path / "average", *options)).unet.state_dict()
    assert "Stable Diffusion 1, the averaged weights (EMA)" in capsys.readouterr().out
    assert all(torch.equal(average[name], 0.5 * plain[name]) for name in plain)
    torch.save({"state_dict": dict(list((stable | averaged(stable)).items())[:-5])}, path)
    arguments = ["synth", "import", str(path), *options, "--out", str(tmp_path / "partly")]
    assert "expected the averaged weights (EMA) of all 686 tensors of its UNet, got 683" in refused(arguments, capsys)
    torch.save({"state_dict": stable}, path)
    assert "got 0. Take the others with --no-ema" in refused([*arguments, "--ema"], capsys)


def test_half_precision_stays_half_and_the_file_is_named(
    stable: dict[str, Tensor], tokenizers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "half.safetensors"
    half = {name: value.half() if value.is_floating_point() else value for name, value in stable.items()}
    safetensors.torch.save_file(half | {"betas": stable["betas"]}, path, {"modelspec.license": "creativeml-openrail-m"})
    out = imported(path, tmp_path / "out", "--tokenizer", str(tokenizers["clip"]))
    with safetensors.safe_open(out / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "source_sha256": sha256_file(path)}
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert open_base(out).licence == "creativeml-openrail-m"
    assert "licence: creativeml-openrail-m" in capsys.readouterr().out
    named = imported(path, tmp_path / "named", "--tokenizer", str(tokenizers["clip"]), "--licence", "of our\nown")
    assert open_base(named).licence == "of our own"


def test_latent_diffusion_with_its_bert_is_converted_and_computes_the_same(
    stable: dict[str, Tensor], tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    sizes = Sizes(tokens=vocabulary(tokenizers["bert"]))
    text = seeded(BertOfXTransformers, sizes)
    state = {name: value for name, value in stable.items() if name.startswith(("first_stage_model.", "betas"))}
    state |= prefixed("model.diffusion_model.", seeded(unet, sizes).state_dict())
    state |= prefixed("cond_stage_model.transformer.", text.state_dict())
    path = tmp_path / "model.ckpt"
    torch.save(lightning(state), path)
    out = imported(path, tmp_path / "out", "--tokenizer", str(tokenizers["bert"]))
    parts = read_base_folder(out)
    assert parts.kind == "ldmbert"
    tokens = torch.tensor([[2, 6, 5, 8, 3, 0, 0]])
    with torch.no_grad():
        expected, actual = text(tokens), parts.text(tokens)[0]
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    import diffusers
    from diffusers.loaders import single_file_utils

    config = json.loads((out / "unet" / "config.json").read_text())
    made: Any = diffusers.UNet2DConditionModel.from_config(config)
    made.load_state_dict(single_file_utils.convert_ldm_unet_checkpoint(dict(state), config))
    theirs = FolderParts(**{**parts.__dict__, "unet": made.eval()})
    assert torch.equal(drawn(parts, False), drawn(theirs, False))


def test_lora_is_merged_while_a_checkpoint_is_converted(
    stable: dict[str, Tensor], tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    path, lora = tmp_path / "sd.safetensors", tmp_path / "lora.safetensors"
    safetensors.torch.save_file(stable, path)
    layers = {"lora_unet_mid_block_attentions_0_proj_in": 128, "lora_te_text_model_encoder_layers_0_mlp_fc1": 512}
    drawn = torch.Generator().manual_seed(1)
    tensors = {
        f"{layer}.{side}.weight": torch.randn(shape, generator=drawn)
        for layer, rows in layers.items()
        for side, shape in (("lora_down", (2, 128)), ("lora_up", (rows, 2)))
    }
    safetensors.torch.save_file(tensors, lora)
    options = ("--tokenizer", str(tokenizers["clip"]))
    both = imported(path, tmp_path / "both", *options, "--lora", f"{lora}=0.5")
    imported(path, tmp_path / "plain", *options)
    assert (
        cli.run(["synth", "import", str(tmp_path / "plain"), "--out", str(tmp_path / "after"), "--lora", f"{lora}=0.5"])
        == 0
    )
    for name in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        first, second, plain = (
            safetensors.torch.load_file(folder / f"{name}.safetensors")
            for folder in (both, tmp_path / "after", tmp_path / "plain")
        )
        assert all(torch.equal(value, second[key]) for key, value in first.items())
        assert sum(not torch.equal(value, plain[key]) for key, value in first.items()) == 1


def test_an_autoencoder_alone_and_in_place_of_that_of_a_model(
    stable: dict[str, Tensor], tokenizers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What DSAD's build_model joins: the model's UNet and text encoder, and a fine-tuned autoencoder."""
    tuned = {name: value + 0.01 for name, value in seeded(autoencoder, SIZES).state_dict().items()}
    torch.save(
        lightning(tuned | {"loss.logvar": torch.zeros(1), "loss.lin0.model.1.weight": torch.zeros(1)}),
        tmp_path / "kl.ckpt",
    )
    torch.save({"state_dict": stable}, tmp_path / "sd.ckpt")
    alone, _ = open_autoencoder(imported(tmp_path / "kl.ckpt", tmp_path / "kl"))
    printed = capsys.readouterr().out
    assert "left out: loss (2)" in printed
    arguments = ["synth", "import", str(tmp_path / "kl.ckpt"), "--out", str(tmp_path / "idle")]
    idle = (["--tokenizer", "x"], ["--autoencoder", "x"], ["--no-ema"], ["--lora", "x"])
    for option in idle:
        assert "which is an autoencoder alone. Leave it out" in refused([*arguments, *option], capsys)
    assert "licence: unknown, which bundles then state: name it with --licence" in printed
    options = ("--tokenizer", str(tokenizers["clip"]), "--autoencoder", str(tmp_path / "kl.ckpt"))
    joined = read_base_folder(imported(tmp_path / "sd.ckpt", tmp_path / "joined", *options))
    own = read_base_folder(imported(tmp_path / "sd.ckpt", tmp_path / "own", *options[:2]))
    expected: Any = alone
    for name, value in joined.autoencoder.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])
        assert not torch.equal(value, own.autoencoder.state_dict()[name])
    assert all(torch.equal(value, own.unet.state_dict()[name]) for name, value in joined.unet.state_dict().items())


# ---- The real layouts ------------------------------------------------------------------------------------------------

PUBLISHED_UNET = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
"""Settings of runwayml/stable-diffusion-v1-5, as published."""


def shapes(tensors: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_the_names_and_shapes_of_the_real_models_are_those_of_their_published_settings() -> None:
    import diffusers
    import transformers
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    where = Path("v1-5-pruned.ckpt")
    with torch.device("meta"):
        state = unet(REAL).state_dict()
        assert len(state) == 686  # tensors below model.diffusion_model in v1-5-pruned.ckpt
        part = unet_part(where, entries(state), 64)
        assert {name: part.config[name] for name in PUBLISHED_UNET} == PUBLISHED_UNET
        published: Any = diffusers.UNet2DConditionModel.from_config(PUBLISHED_UNET)
        assert shapes(part.tensors) == shapes(published.state_dict())

        state = autoencoder(REAL).state_dict()
        assert len(state) == 248
        part = autoencoder_part(where, entries(state), 512, 0.18215)
        assert (part.config["block_out_channels"], part.config["layers_per_block"]) == ([128, 256, 512, 512], 2)
        published = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
        assert shapes(part.tensors) == shapes(published.state_dict())

        text = clip(REAL)
        state = clip_state(text, REAL.length)
        assert len(state) == 197
        part = clip_part(where, entries(state))
        assert part.config["num_attention_heads"] == 12
        assert part.config["intermediate_size"] == 3072
        assert len(part.tensors) == len(transformers.CLIPTextModel(text.config).state_dict())

        bert = Sizes(320, (1, 2, 4, 4), 1280, 4, 128, 12, 32, 30522, 77)
        part = bert_part(where, entries(BertOfXTransformers(bert).state_dict()))
        assert shapes(part.tensors) == shapes(LDMBertModel(LDMBertConfig()).state_dict())
        kept = ("encoder_layers", "encoder_ffn_dim", "encoder_attention_heads", "head_dim", "d_model", "vocab_size")
        assert {name: part.config[name] for name in kept} == {name: getattr(LDMBertConfig(), name) for name in kept}
