"""Checkpoints in a single file that are no model, or not whole: named by what they are, and never executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from error_lines import refused
from latent_diffusion_layout import (
    betas,
)
from single_files import entries
from torch import Tensor, nn

from flawscope.config import DsadConfig, from_flat
from flawscope.errors import DataError, RunError
from flawscope.runtime.synthesis.ldm_layout import bert_part, unet_part
from flawscope.training.diffusion.autoencoder import open_autoencoder
from flawscope.training.diffusion.semantic_guidance import load_guided_denoiser
from flawscope.training.synthesis.base_model import open_base

pytestmark = pytest.mark.long


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
