"""What an autoencoder is read from: folders that diffusers wrote, runs, bare tensors; and what of them is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_bytes import assert_read_or_refused, odd_bytes
from odd_files import ODD
from torch import Tensor, nn

from flawscope.config import AutoencoderConfig, build_config
from flawscope.errors import ArgumentError, RunError
from flawscope.runs import BackboneSource, RunRecord, encode_record
from flawscope.training.diffusion.autoencoder import Encoder, build_autoencoder, open_autoencoder, restore_autoencoder
from flawscope.training.diffusion.autoencoder_network import new_autoencoder, settings_from_state, shape_settings

SETTINGS = {"resize": 32, "widths": [8, 16], "layers": 1}


def config(**changes: object) -> AutoencoderConfig:
    settings = build_config("autoencoder", {**SETTINGS, **changes})[0]
    assert isinstance(settings, AutoencoderConfig)
    return settings


def autoencoder(seed: int = 0, **changes: object) -> Any:
    torch.manual_seed(seed)
    return build_autoencoder(config(**changes)).eval()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run has that an autoencoder is read from, and some of what it has beside."""
    folder = tmp_path / "run"
    folder.mkdir()
    record = RunRecord(
        kind="autoencoder",
        config=config(normalization="imagenet"),
        category="gear",
        layout="mvtec",
        dataset="0" * 64,
        training=("1" * 64,),
        held_out=(),
        backbone=BackboneSource("scattering", "none: fixed filters", "Apache-2.0"),
        grid=(8, 8),
        channels=None,
        facts={"scaling": 1.7, "psnr": 20.5, "epochs": 3},
        seconds={},
        versions={},
        created="2026-11-28T00:00:00+00:00",
        command="",
        flawscope="0",
    )
    (folder / "run.json").write_bytes(encode_record(record))
    state = {f"autoencoder.{name}": value for name, value in autoencoder(seed=5).state_dict().items()}
    safetensors.torch.save_file({**state, "backbone.bias": torch.zeros(2)}, folder / "weights.safetensors")
    return folder


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """What diffusers writes."""
    folder = tmp_path / "kl"
    network = autoencoder(seed=3)
    network.register_to_config(scaling_factor=0.5)
    network.save_pretrained(folder)
    return folder


# --- from a folder


def same_network(first: Any, second: Any) -> bool:
    first_state, second_state = first.state_dict(), second.state_dict()
    return first_state.keys() == second_state.keys() and all(
        torch.equal(value, second_state[name]) for name, value in first_state.items()
    )


@pytest.mark.parametrize("place", ["itself", "vae"])
def test_training_starts_from_what_diffusers_wrote(stored: Path, place: str) -> None:
    if place == "vae":
        (stored.parent / "sd").mkdir()
        (stored.parent / "sd" / "model_index.json").write_text("{}")
        stored = Path(shutil.move(stored, stored.parent / "sd" / "vae")).parent
    start: Any = build_autoencoder(config(base=str(stored), widths=[4, 4]))
    assert same_network(start, autoencoder(seed=3))
    assert start.config["scaling_factor"] == 0.5
    assert all(parameter.requires_grad for parameter in start.parameters())


def test_old_names_and_half_precision_are_read(stored: Path) -> None:
    path = stored / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in safetensors.torch.load_file(path).items():
        if ".attentions.0." in name:
            for new, former in old.items():
                name = name.replace(f".{new}.", f".{former}.")
        state[name] = value.half()
    assert sum("proj_attn" in name for name in state) == 4
    safetensors.torch.save_file(state, path)
    opened, normalization = open_autoencoder(stored)
    assert normalization is None
    assert same_network(opened, autoencoder(seed=3).half().float())


# --- from a run


def test_an_autoencoder_is_read_from_a_run(run: Path) -> None:
    opened, normalization = open_autoencoder(run)
    assert normalization == "imagenet"
    assert same_network(opened, autoencoder(seed=5))
    assert Encoder(opened, "imagenet").scaling == 1.7
    parameters: list[nn.Parameter] = list(opened.parameters())  # type: ignore[attr-defined]
    assert not any(parameter.requires_grad for parameter in parameters)


@settings(max_examples=12)
@given(widths=st.lists(st.integers(4, 40), min_size=1, max_size=4), layers=st.integers(1, 3), latent=st.integers(1, 9))
def test_a_state_tells_its_network(widths: list[int], layers: int, latent: int) -> None:
    expected = shape_settings(widths, layers, latent)
    with torch.device("meta"):
        network: Any = new_autoencoder(expected)
    assert settings_from_state(network.state_dict(), "it") == expected


# --- refused


def test_what_is_no_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere: expected a folder with config\.json .* got no such folder"):
        build_autoencoder(config(base=str(tmp_path / "nowhere")))
    with pytest.raises(RunError, match=r"expected a folder with config\.json .* got neither"):
        open_autoencoder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DModel"}, r"expected the settings of an AutoencoderKL, got others: .*UNet2DModel"),
        ({"block_out_channels": []}, "expected the settings of an AutoencoderKL"),
        ({"layers_per_block": 10**9}, "expected the settings of an AutoencoderKL"),
        ({"norm_num_groups": 4}, "norm_num_groups: expected 8, as Stable Diffusion"),
        ({"shift_factor": 0.1}, r"shift_factor: expected None, .* got 0\.1"),
        ({"act_fn": "relu"}, "act_fn: expected silu"),
        ({"use_quant_conv": False}, "use_quant_conv: expected True"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention: expected True"),
        ({"something_new": 1}, "something_new: expected None"),
        ({"scaling_factor": 0.0}, r"expected a positive factor of its latents, got 0\.0"),
        ({"scaling_factor": "much"}, "expected a positive factor of its latents, got 'much'"),
        ({"latent_channels": 8}, r"expected the \d+ tensors of an autoencoder .* of which \d+ fit"),
    ],
)
def test_other_settings_are_refused(stored: Path, changes: dict[str, object], message: str) -> None:
    path = stored / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(RunError, match=message):
        open_autoencoder(stored)


def test_settings_that_are_not_json_are_refused(stored: Path) -> None:
    (stored / "config.json").write_bytes(b"\xff{")
    with pytest.raises(RunError, match=r"config\.json: expected the settings of an AutoencoderKL"):
        open_autoencoder(stored)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data())
def test_settings_of_any_bytes_are_taken_or_refused_in_one_line(stored: Path, data: st.DataObject) -> None:
    path = stored / "config.json"
    whole = stored / "whole.json"
    if not whole.exists():
        whole.write_bytes(path.read_bytes())
    path.write_bytes(data.draw(odd_bytes(whole.read_bytes())))
    assert_read_or_refused(lambda: open_autoencoder(stored))


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_what_is_no_file_is_no_autoencoder(stored: Path, name: str, kind: str) -> None:
    (stored / name).unlink()
    ODD[kind](stored / name)
    with pytest.raises(RunError, match="expected"):
        open_autoencoder(stored)


def test_weights_that_need_unpickling_are_refused(stored: Path) -> None:
    (stored / "diffusion_pytorch_model.safetensors").rename(stored / "diffusion_pytorch_model.bin")
    with pytest.raises(RunError, match=r"got diffusion_pytorch_model\.bin, which would have to be unpickled\. Convert"):
        open_autoencoder(stored)
    (stored / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(RunError, match=r"expected diffusion_pytorch_model\.safetensors, got none\. Convert"):
        open_autoencoder(stored)


def with_nan(state: dict[str, Tensor]) -> None:
    state["decoder.conv_in.bias"][0] = torch.nan


def with_integers(state: dict[str, Tensor]) -> None:
    state["decoder.conv_in.bias"] = torch.zeros(16, dtype=torch.int8)


def without_one(state: dict[str, Tensor]) -> None:
    del state["decoder.conv_in.bias"]


def with_one_more(state: dict[str, Tensor]) -> None:
    state["decoder.more"] = torch.zeros(1)


FAULTS: Mapping[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "nan": (with_nan, r"decoder\.conv_in\.bias: expected finite floating-point numbers, got NaN or infinity"),
    "integers": (with_integers, r"expected finite floating-point numbers, got torch\.int8"),
    "missing": (without_one, r"expected the (\d+) tensors of an autoencoder with widths \[8, 16\], got (?!\1)\d+"),
    "left over": (with_one_more, r"expected the (\d+) tensors of an .*, got (?!\1)\d+, of which \1 fit"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_are_broken_are_refused(stored: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    path = stored / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(path)
    change(state)
    with pytest.raises(RunError, match=message):
        restore_autoencoder(config(), state, 1.0)
    with pytest.raises(RunError, match=message):
        restore_autoencoder(None, state, 1.0)
    safetensors.torch.save_file(state, path)
    with pytest.raises(RunError, match=message):
        build_autoencoder(config(base=str(stored)))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match=r"expected weights in safetensors, got .*Get the file again"):
        build_autoencoder(config(base=str(stored)))


def test_a_state_of_something_else_is_refused() -> None:
    state = autoencoder().state_dict()
    with pytest.raises(RunError, match=r"expected the \d+ tensors of an autoencoder with widths \[16, 16\]"):
        restore_autoencoder(config(widths=[16, 16]), state, 1.0)
    with pytest.raises(RunError, match="expected the tensors of an autoencoder, got 1 others"):
        restore_autoencoder(None, {"encoder.down_blocks.0.resnets.0.conv1.weight": torch.tensor(1.0)}, 1.0)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("config", {"method": "stfpm"}, "expected a run of train autoencoder, got another: .*unknown field"),
        ("facts", {"scaling": -1.0}, r"weights\.safetensors: expected a positive factor of its latents, got -1\.0"),
        ("facts", {"scaling": None}, "expected a run of train autoencoder, got another"),
        ("schema", 99, "expected run schema 2 or older, got 99"),
    ],
)
def test_runs_of_something_else_are_refused(run: Path, tmp_path: Path, part: str, change: Any, message: str) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    record = json.loads((copy / "run.json").read_text())
    record[part] = {**record[part], **change} if isinstance(change, dict) else change
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=message):
        open_autoencoder(copy)


def test_a_size_that_the_levels_of_a_folder_cannot_halve_is_refused(tmp_path: Path) -> None:
    autoencoder(widths=[4, 4, 4, 4]).save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match=r"resize: expected sides that are multiples of 8"):
        build_autoencoder(config(base=str(tmp_path), resize=36))
