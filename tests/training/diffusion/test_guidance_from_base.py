"""Stable Diffusion as the base of a guided denoiser: what is taken from its folder, and folders that are refused."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_guided import TINY, predict, tiny_guided, unet_alone
from tiny_stable_diffusion import LENGTH, TEXT_WIDTH, write_stable_diffusion

from flawscope.config import DsadConfig, from_flat
from flawscope.errors import ArgumentError, MissingExtra, RunError
from flawscope.training.diffusion.semantic_guidance import load_guided_denoiser


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder of a few parameters, as diffusers and transformers write it."""
    pytest.importorskip("transformers", reason="the empty text's embedding needs transformers")
    return write_stable_diffusion(tmp_path_factory.mktemp("base") / "sd")


@pytest.fixture
def copied(stable_diffusion: Path, tmp_path: Path) -> Path:
    """A Stable Diffusion folder to break."""
    return Path(shutil.copytree(stable_diffusion, tmp_path / "sd"))


def test_a_stable_diffusion_folder_gives_unet_guidance_and_empty_text(
    stable_diffusion: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import transformers

    model = load_guided_denoiser(stable_diffusion, from_flat(DsadConfig, {**TINY, "widths": (320, 640)}))
    assert capfd.readouterr() == ("", "")
    weights = safetensors.torch.load_file(stable_diffusion / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(model.unet.state_dict()[name], value) for name, value in weights.items())
    assert torch.equal(model.guidance.state_dict()["conv_in.weight"], weights["conv_in.weight"])
    encoder = transformers.CLIPTextModel.from_pretrained(stable_diffusion / "text_encoder", local_files_only=True)
    tokens = torch.tensor([[0] + [1] * (LENGTH - 1)])  # a start, then ends up to the longest length
    with torch.inference_mode():
        expected = encoder.eval()(tokens).last_hidden_state[0]
        context = model.get_buffer("context")
        assert context.shape == (LENGTH, TEXT_WIDTH)
        torch.testing.assert_close(context, expected, atol=1e-6, rtol=1e-6)
        assert float((context[0] - context[1]).abs().max()) > 0.1  # the start is another token than the ends
        assert torch.equal(predict(model), unet_alone(model))


def test_a_network_from_a_folder_is_the_same_for_the_same_seed(stable_diffusion: Path) -> None:
    first, second = (load_guided_denoiser(stable_diffusion, from_flat(DsadConfig, TINY)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_half_precision_weights_are_taken_in_full_precision(copied: Path) -> None:
    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights = {name: value.half() for name, value in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    model = load_guided_denoiser(copied, from_flat(DsadConfig, TINY))
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


def change_json(path: Path, **settings: object) -> None:
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**before, **settings}), "utf-8")


def test_what_is_not_a_stable_diffusion_folder_is_refused(copied: Path, tmp_path: Path) -> None:
    config = from_flat(DsadConfig, TINY)
    with pytest.raises(RunError, match=r"nowhere: expected a Stable Diffusion folder .* none with a folder unet"):
        load_guided_denoiser(tmp_path / "nowhere", config)
    (copied / "tokenizer").rename(copied / "other")
    with pytest.raises(RunError, match=r"sd: expected a Stable Diffusion folder .* none with a folder tokenizer"):
        load_guided_denoiser(copied, config)
    (copied / "other").rename(copied / "tokenizer")
    (copied / "unet" / "config.json").write_text("{", "utf-8")
    with pytest.raises(RunError, match=r"unet: expected a part of Stable Diffusion .* in safetensors"):
        load_guided_denoiser(copied, config)


def test_pickled_weights_are_not_read(copied: Path) -> None:
    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(safetensors.torch.load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(
        RunError,
        match=r"unet: expected a part of Stable Diffusion .* Pickles .* are not read: convert them with",
    ):
        load_guided_denoiser(copied, from_flat(DsadConfig, TINY))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"expected the weights that its config\.json asks for, .* 1 tensors"),
        ("too many", r"expected the weights that its config\.json asks for, .* 1 tensors \(the first is another\)"),
        ("misshapen", "expected"),
        ("not finite", "expected finite weights"),
    ],
)
def test_a_folder_with_other_weights_is_refused(copied: Path, part: str, fault: str, message: str) -> None:
    (path,) = (copied / part).glob("*.safetensors")
    weights = safetensors.torch.load_file(path)
    name = next(name for name in sorted(weights) if name.endswith(".weight"))
    if fault == "missing":
        del weights[name]
    elif fault == "too many":
        weights["another"] = torch.zeros(3)
    elif fault == "misshapen":
        weights[name] = torch.zeros((*weights[name].shape, 2))
    else:
        weights[name].view(-1)[0] = math.nan
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    with pytest.raises(RunError, match=rf"{part}: {message}"):
        load_guided_denoiser(copied, from_flat(DsadConfig, TINY))


def test_networks_of_another_kind_are_refused(copied: Path) -> None:
    config = from_flat(DsadConfig, TINY)
    scheduler = copied / "scheduler" / "scheduler_config.json"
    change_json(scheduler, prediction_type="v_prediction")
    with pytest.raises(RunError, match=r"predicts the noise .* got one that predicts v_prediction"):
        load_guided_denoiser(copied, config)
    scheduler.write_text("[]", "utf-8")
    with pytest.raises(RunError, match=r"scheduler_config\.json: expected the settings of a scheduler"):
        load_guided_denoiser(copied, config)
    scheduler.write_text('{"prediction_type": "epsilon"}', "utf-8")
    change_json(copied / "unet" / "config.json", center_input_sample=True)
    with pytest.raises(RunError, match="with center_input_sample=False, got True"):
        load_guided_denoiser(copied, config)


def test_a_unet_and_a_text_encoder_of_two_models_are_refused(copied: Path) -> None:
    unet: Any = tiny_guided(context=8).unet
    unet.save_pretrained(copied / "unet")
    with pytest.raises(RunError, match="expected texts of width 8, which the UNet takes, got 6"):
        load_guided_denoiser(copied, from_flat(DsadConfig, TINY))


def test_a_unet_for_inpainting_is_refused(copied: Path) -> None:
    import diffusers

    unet: Any = tiny_guided().unet
    diffusers.UNet2DConditionModel.from_config({**unet.config, "in_channels": 9}).save_pretrained(copied / "unet")
    with pytest.raises(RunError, match=r"as many channels in as out, .* got 9, 4 and 2"):
        load_guided_denoiser(copied, from_flat(DsadConfig, TINY))


def test_images_that_the_hint_encoder_does_not_fit_are_refused(stable_diffusion: Path) -> None:
    with pytest.raises(ArgumentError, match="hint_widths: expected one more"):
        load_guided_denoiser(stable_diffusion, from_flat(DsadConfig, {**TINY, "resize": (17, 16)}))


@pytest.mark.parametrize("package", ["diffusers", "transformers"])
def test_a_package_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, stable_diffusion: Path, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"needs the package {package}"):
        load_guided_denoiser(stable_diffusion, from_flat(DsadConfig, TINY))
