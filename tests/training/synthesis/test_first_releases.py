"""Stable Diffusion as its first releases lie on disk: read as what today's diffusers and transformers write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import tokenizers
import torch
from tiny_stable_diffusion import LENGTH, write_stable_diffusion

from flawscope.training.diffusion.diffusers_folder import FolderParts, read_base_folder

_OLD_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
_LATER_SETTINGS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast")
_LATER_PARTS = ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")


def _as_first_released(folder: Path) -> None:
    """Change a folder into the form of 2022: slow tokenizer, positions among the weights, other names of attention."""
    (folder / "tokenizer" / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).write_bytes((folder / "words" / name).read_bytes())
    token = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "__type": "AddedToken"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": {**token, "content": "<|startoftext|>"},
                "eos_token": {**token, "content": "<|endoftext|>"},
                "unk_token": {**token, "content": "<|endoftext|>"},
                "pad_token": "<|endoftext|>",
                "add_prefix_space": False,
                "do_lower_case": True,
                "model_max_length": LENGTH,
                "tokenizer_class": "CLIPTokenizer",
            }
        )
    )
    path = folder / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in _tensors(path).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for name, tensor in _tensors(path).items():
        for new, old in _OLD_NAMES.items():
            name = name.replace(new, old)
        renamed[name] = tensor
    assert any(".proj_attn." in name for name in renamed)
    safetensors.torch.save_file(renamed, path, {"format": "pt"})
    settings = json.loads((folder / "vae" / "config.json").read_text())
    first_settings = {name: value for name, value in settings.items() if name not in (*_LATER_SETTINGS, *_LATER_PARTS)}
    (folder / "vae" / "config.json").write_text(json.dumps(first_settings | {"_diffusers_version": "0.2.2"}))


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderParts, FolderParts]:
    """The same model as it is written today, and as it was released."""
    folder = write_stable_diffusion(tmp_path_factory.mktemp("releases") / "model", inpainting=True)
    today = read_base_folder(folder)
    _as_first_released(folder)
    return today, read_base_folder(folder)


def test_the_networks_compute_the_same(both: tuple[FolderParts, FolderParts]) -> None:
    image, tokens = torch.rand(1, 3, 16, 16), torch.tensor([[0, 5, 6, *[1] * (LENGTH - 3)]])
    with torch.no_grad():
        current, first = (parts.autoencoder.encode(image).latent_dist.mean for parts in both)
        assert torch.equal(current, first)
        current, first = (parts.text(tokens).last_hidden_state for parts in both)
        assert torch.equal(current, first)
    assert both[0].autoencoder.config.scaling_factor == both[1].autoencoder.config.scaling_factor == 0.18215


@pytest.mark.parametrize("text", ["a * defect", "A  Defect b.", "ab<|endoftext|> a", ""])
def test_texts_become_the_same_tokens(both: tuple[FolderParts, FolderParts], text: str) -> None:
    current, first = (tokenizers.Tokenizer.from_str(parts.tokenizer.decode()) for parts in both)
    assert current.encode(text).ids == first.encode(text).ids
    assert (both[0].pad, both[0].length) == (both[1].pad, both[1].length)
