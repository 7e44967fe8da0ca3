"""Folders of diffusers whose weights are in several files or in half precision alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_stable_diffusion import write_stable_diffusion
from torch import Tensor

from flawscope import cli
from flawscope.config import DsadConfig, from_flat
from flawscope.errors import RunError
from flawscope.training.detectors.dsad import autoencoder_identity
from flawscope.training.diffusion.autoencoder_network import read_folder
from flawscope.training.diffusion.diffusers_folder import FolderParts, read_base_folder
from flawscope.training.diffusion.semantic_guidance import load_guided_denoiser


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one file a part."""
    return write_stable_diffusion(tmp_path_factory.mktemp("parts") / "model")


def in_parts(whole: Path, folder: Path, *, half: bool, shards: bool, pickles: bool = False) -> Path:
    """Write the same model with its weights in another form, as diffusers and transformers name it."""
    shutil.copytree(whole, folder)
    for path in sorted(folder.glob("*/*.safetensors")):
        tensors = safetensors.torch.load_file(path)
        path.unlink()
        if half:
            tensors = {name: tensor.half() for name, tensor in tensors.items()}
        stem = "pytorch_model" if pickles and path.stem == "model" else path.stem
        kind, variant = ("bin" if pickles else "safetensors"), (".fp16" if half else "")
        if not shards:
            _save(path.with_name(f"{stem}{variant}.{kind}"), tensors)
            continue
        names, places = sorted(tensors), {}
        for number in range(2):
            shard = f"{stem}{variant}-0000{number + 1}-of-00002.{kind}"
            part = {name: tensors[name] for name in names[number::2]}
            _save(path.with_name(shard), part)
            places |= dict.fromkeys(part, shard)
        index = path.with_name(f"{stem}.{kind}.index{variant}.json")
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return folder


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path, {"format": "pt"})


def same(first: FolderParts, second: FolderParts, *, half: bool) -> None:
    for name in ("unet", "autoencoder", "text"):
        expected, actual = (getattr(parts, name).state_dict() for parts in (first, second))
        assert expected.keys() == actual.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensor.half().float() if half else tensor, actual[key]), key


@pytest.mark.parametrize(("half", "shards"), [(False, True), (True, False), (True, True)])
def test_weights_in_several_files_and_in_half_precision_are_read_as_they_are(
    whole: Path, tmp_path: Path, half: bool, shards: bool
) -> None:
    folder = in_parts(whole, tmp_path / "model", half=half, shards=shards)
    expected, parts = read_base_folder(whole), read_base_folder(folder)
    same(expected, parts, half=half)
    alone: Any = read_folder(folder)
    assert all(torch.equal(value, parts.autoencoder.state_dict()[name]) for name, value in alone.state_dict().items())
    settings = {"resize": (16, 16), "hint_widths": (4, 6), "base": str(folder)}
    config = from_flat(DsadConfig, settings)
    guided: Any = load_guided_denoiser(folder, config)
    assert all(torch.equal(value, parts.unet.state_dict()[name]) for name, value in guided.unet.state_dict().items())
    identity = autoencoder_identity(config)
    assert identity.startswith("sha256:")
    stored = sorted((folder / "vae").glob("*.safetensors"))[-1]
    tensors = safetensors.torch.load_file(stored)
    safetensors.torch.save_file({name: tensor + 1 for name, tensor in tensors.items()}, stored, {"format": "pt"})
    assert autoencoder_identity(config) != identity


@pytest.mark.parametrize("pickles", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize(("half", "shards"), [(False, True), (True, True), (True, False)])
def test_the_import_makes_one_file_a_part_of_them(
    whole: Path, tmp_path: Path, half: bool, shards: bool, pickles: bool
) -> None:
    folder = in_parts(whole, tmp_path / "model", half=half, shards=shards, pickles=pickles)
    assert cli.run(["synth", "import", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*/*.safetensors"))) == 3
    assert not list((tmp_path / "out").glob("*/*index*"))
    same(read_base_folder(whole), read_base_folder(tmp_path / "out"), half=half)


def test_full_precision_is_taken_where_both_are_there(whole: Path, tmp_path: Path) -> None:
    folder = in_parts(whole, tmp_path / "model", half=True, shards=False)
    for path in whole.glob("*/*.safetensors"):
        shutil.copyfile(path, folder / path.relative_to(whole))
    same(read_base_folder(whole), read_base_folder(folder), half=False)


@pytest.mark.parametrize("fault", ["outside", "gone", "broken", "name"])
def test_a_broken_index_is_one_line(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    folder = in_parts(whole, tmp_path / "model", half=False, shards=True)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"]))
    if fault == "outside":
        content["weight_map"][first] = "../vae/diffusion_pytorch_model-00001-of-00002.safetensors"
    elif fault == "gone":
        (folder / "unet" / content["weight_map"][first]).unlink()
    elif fault == "name":
        content["weight_map"]["no.such.tensor"] = content["weight_map"][first]
    index.write_text("{" if fault == "broken" else json.dumps(content))
    if fault != "name":  # diffusers takes what the files have
        with pytest.raises(RunError, match=str(index)) as raised:
            read_base_folder(folder)
        assert "\n" not in str(raised.value)
    assert cli.run(["synth", "import", str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert str(folder / "unet") in error
    assert not (tmp_path / "out").exists()
