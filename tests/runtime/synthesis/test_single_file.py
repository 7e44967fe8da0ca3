"""Checkpoints in a single file: converted without unpickling to what diffusers' own converter makes of them."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from latent_diffusion_layout import (
    REAL,
    BertOfXTransformers,
    Sizes,
    autoencoder,
    betas,
    clip,
    clip_state,
    unet,
)
from tiny_stable_diffusion import write_stable_diffusion, write_text_to_image
from torch import Tensor, nn

from flawscope import cli
from flawscope.config import DsadConfig, from_flat
from flawscope.errors import DataError, RunError
from flawscope.files import sha256_file
from flawscope.runtime.synthesis.ldm_layout import autoencoder_part, bert_part, clip_part, unet_part
from flawscope.tensor_files import TensorEntry
from flawscope.training.diffusion.autoencoder import open_autoencoder
from flawscope.training.diffusion.diffusers_folder import FolderParts, read_base_folder
from flawscope.training.diffusion.semantic_guidance import load_guided_denoiser
from flawscope.training.synthesis.base_model import open_base

SIZES = Sizes()
TINY_TEXT = Sizes(text_layers=2)

pytestmark = pytest.mark.long


def seeded(make: Any, *arguments: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return make(*arguments)


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


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


def _vocabulary(folder: Path) -> int:
    return len(json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"])


@pytest.fixture(scope="module")
def stable(tokenizers: dict[str, Path]) -> dict[str, Tensor]:
    """Stable Diffusion for inpainting: all names of the real one, small widths."""
    sizes = Sizes(channels_in=9, tokens=_vocabulary(tokenizers["clip"]))
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
    sizes = Sizes(tokens=_vocabulary(tokenizers["bert"]))
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


def entries(state: dict[str, Tensor]) -> dict[str, TensorEntry]:
    def read() -> Any:
        raise AssertionError("no number of it is needed")

    return {name: TensorEntry(np.dtype(np.float32), tuple(value.shape), read) for name, value in state.items()}


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


# ---- What is refused -------------------------------------------------------------------------------------------------


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.run(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1, error
    return error


@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight", "an SDXL checkpoint"),
        ("model.diffusion_model.label_emb.0.0.weight", "an SDXL checkpoint"),
        ("cond_stage_model.model.token_embedding.weight", "a Stable Diffusion 2 checkpoint"),
        ("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight", "a Stable Diffusion 3 checkpoint"),
        ("double_blocks.0.img_attn.qkv.weight", "a Flux checkpoint"),
        ("control_model.time_embed.0.weight", "a ControlNet checkpoint"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "a LoHa adapter of LyCORIS"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "a LoKr adapter of LyCORIS"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "a LoRA of SDXL"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "a LoRA of Flux"),
        ("first_stage_model.quantize.embedding.weight", "an autoencoder of the VQ kind"),
        ("down_blocks.0.resnets.0.conv1.weight", "a file of 1 other tensors"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder"),
    ],
)
def test_other_models_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str, form: str
) -> None:
    path = tmp_path / f"model.{form}"
    state = {name: torch.zeros(2, 3, 1)}
    if form == "ckpt":
        torch.save({"state_dict": state}, path)
    else:
        safetensors.torch.save_file(state, path)
    error = refused(["synth", "import", str(path), "--out", str(tmp_path / "out")], capsys)
    assert f"got {words}" in error
    assert "expected a checkpoint of Stable Diffusion 1, LDM text-to-image" in error
    assert not (tmp_path / "out").exists()


def test_gguf_lora_and_missing_parts_are_named(
    stable: dict[str, Tensor], tokenizers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "model.ckpt", str(tmp_path / "out")
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(100))
    assert "got a GGUF file" in refused(["synth", "import", str(path), "--out", out], capsys)
    torch.save({"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(1, 2)}, path)
    assert "got a LoRA, which is merged into its base" in refused(["synth", "import", str(path), "--out", out], capsys)
    torch.save({"state_dict": {"epoch": 3}}, path)
    assert "expected a checkpoint with a state_dict" in refused(["synth", "import", str(path), "--out", out], capsys)
    options = ["--tokenizer", str(tokenizers["clip"]), "--out", out]
    for gone in (
        "model.diffusion_model.output_blocks.5.1.norm.bias",
        "first_stage_model.decoder.up.2.block.1.conv2.weight",
    ):
        torch.save({"state_dict": {name: value for name, value in stable.items() if name != gone}}, path)
        error = refused(["synth", "import", str(path), *options], capsys)
        assert gone.split("_model.", 1)[1].split("diffusion_model.")[-1] in error
        assert "cut short" in error
    more = "model.diffusion_model.input_blocks.1.2.norm.weight"
    torch.save({"state_dict": {**stable, more: torch.zeros(3)}}, path)
    assert "got 1 tensors more (the first is input_blocks.1.2" in refused(
        ["synth", "import", str(path), *options], capsys
    )
    odd = "model.diffusion_model.input_blocks.0.0.weight"
    for value in (torch.zeros(32), torch.zeros(32, 8, 3, 3)):
        torch.save({"state_dict": {**stable, odd: value}}, path)
        error = refused(["synth", "import", str(path), *options], capsys)
        assert "is it another model's?" in error.lower() or "got 8 in and 4 out" in error
    for levels in (torch.linspace(0.1, 0.9, 1000) ** 3, torch.full((1000,), torch.inf), -betas(), betas()[:9]):
        torch.save({"state_dict": {**stable, "betas": levels}}, path)
        error = refused(["synth", "import", str(path), *options], capsys)
        assert "noise levels that are linear or scaled_linear" in error
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.ckpt"]


def test_a_checkpoint_without_tokenizer_or_with_another_is_one_line(
    stable: dict[str, Tensor], tokenizers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "model.ckpt", str(tmp_path / "out")
    torch.save({"state_dict": stable}, path)
    arguments = ["synth", "import", str(path), "--out", out]
    assert "vocab.json and merges.txt of CLIP: --tokenizer DIR" in refused(arguments, capsys)
    assert "got no such folder" in refused([*arguments, "--tokenizer", str(tmp_path / "none")], capsys)
    assert "got a folder without it" in refused([*arguments, "--tokenizer", str(tmp_path)], capsys)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_a_file_that_was_cut_short_is_one_line(
    stable: dict[str, Tensor],
    tokenizers: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: str,
    share: float,
) -> None:
    path = tmp_path / f"model.{form}"
    if form == "ckpt":
        torch.save({"state_dict": stable}, path)
    else:
        safetensors.torch.save_file(stable, path)
    os.truncate(path, int(share * path.stat().st_size))
    options = ["--tokenizer", str(tokenizers["clip"]), "--out", str(tmp_path / "out")]
    error = refused(["synth", "import", str(path), *options], capsys)
    assert str(path) in error
    assert "broken" in error
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name]


class Bomb:
    """Pickled, it asks whoever unpickles it to make a file."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("place", ["state_dict", "callbacks", "key", "top"])
@pytest.mark.parametrize(
    "bomb",
    [
        Bomb(os.system, "touch was_executed"),
        Bomb(eval, "open('was_executed', 'w')"),
        Bomb(Path.touch, Path("was_executed")),
    ],
    ids=["system", "eval", "touch"],
)
def test_a_bomb_in_a_checkpoint_is_never_executed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bomb: Bomb,
    place: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.ckpt"
    state: dict[Any, Any] = {"model.diffusion_model.out.0.weight": torch.zeros(3)}
    content: Any = {"state_dict": state, "callbacks": {}}
    if place == "state_dict":
        state["model.diffusion_model.out.0.bias"] = bomb
    elif place == "callbacks":
        content["callbacks"]["ModelCheckpoint"] = {"best": bomb}
    elif place == "key":
        content["callbacks"][bomb] = 1
    else:
        content = bomb
    torch.save(content, path, pickle_module=pickle)
    refused(["synth", "import", str(path), "--out", "out"], capsys)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.ckpt"]


def test_trainings_name_the_command_for_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "v1-5-pruned.ckpt"
    torch.save({"state_dict": {"model.diffusion_model.out.0.weight": torch.zeros(3)}}, path)
    for opener in (open_base, open_autoencoder):
        with pytest.raises(RunError, match=r"flawscope synth import .*v1-5-pruned\.ckpt .*--out FOLDER"):
            opener(path)


def test_exports_and_commands_that_want_a_run_name_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "v1-5-pruned.ckpt"
    torch.save({"state_dict": {"model.diffusion_model.out.0.weight": torch.zeros(3)}}, path)
    error = refused(["export", str(path), "--out", str(tmp_path / "b.flaw")], capsys)
    assert "got a checkpoint, of which flawscope synth import makes a folder" in error
    config: Any = from_flat(DsadConfig, {"resize": (16, 16), "hint_widths": (4, 6), "base": str(path)})
    with pytest.raises(RunError, match="flawscope synth import"):
        load_guided_denoiser(path, config)


def test_options_that_say_nothing_here_are_refused(
    tokenizers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tokenizers["clip"].parent)
    assert "are for a checkpoint in one file, got a folder" in refused(
        ["synth", "import", folder, "--out", str(tmp_path / "out"), "--tokenizer", folder], capsys
    )
    torch.save({"<crack>": torch.zeros(1, 6)}, tmp_path / "learned_embeds.bin")
    assert "are for a model, got a word" in refused(
        ["synth", "import", str(tmp_path / "learned_embeds.bin"), "--out", str(tmp_path / "o"), "--no-ema"], capsys
    )


def test_a_model_with_pieces_of_other_kinds_is_an_error_of_data() -> None:
    with pytest.raises(DataError, match="expected a whole UNet"):
        unet_part(Path("x"), {}, 64)
    with pytest.raises(DataError, match="expected a whole text encoder"):
        bert_part(Path("x"), entries(nn.Linear(2, 2).state_dict()))
