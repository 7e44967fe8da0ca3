"""Bases: texts as tokens and vectors, and what is read and refused of the folders of other tools."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import safetensors.torch
import torch
from error_lines import reason
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_bytes import assert_read_or_refused, odd_bytes
from odd_files import refuse_listing
from tiny_base import tiny_base, write_tiny_base_run
from tiny_stable_diffusion import LENGTH, TEXT_WIDTH, write_stable_diffusion, write_text_to_image
from torch import Tensor

from flawscope.diffusion.schedule import plan_steps
from flawscope.errors import DataError, MissingExtra, RunError
from flawscope.export.onnx_trace import export_network
from flawscope.training.diffusion.diffusers_folder import SAMPLING, check_prediction
from flawscope.training.synthesis.base_model import SynthesisBase, open_base
from flawscope.training.synthesis.text_encoder import TextEncoder

KINDS = ("clip", "ldmbert")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stable Diffusion, its inpainting network, and LDM text-to-image."""
    root = tmp_path_factory.mktemp("folders")
    return {
        "clip": write_stable_diffusion(root / "sd"),
        "inpainting": write_stable_diffusion(root / "inpainting", inpainting=True),
        "ldmbert": write_text_to_image(root / "ldm"),
    }


@pytest.fixture(scope="module")
def bases(folders: dict[str, Path]) -> dict[str, SynthesisBase]:
    return {name: open_base(folder) for name, folder in folders.items()}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A Stable Diffusion folder to break."""
    return Path(shutil.copytree(folders["clip"], tmp_path / "sd"))


# ---- The text encoder ------------------------------------------------------------------------------------------------


def tokens_of(encoder: TextEncoder, count: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return tokens int64 [count, L] and vectors float32 [count, L, W] at random."""
    drawn = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, len(encoder.table), (count, encoder.length), generator=drawn)
    return tokens, torch.randn((count, encoder.length, encoder.width), generator=drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_placed_vector_texts_are_those_of_the_library(bases: dict[str, SynthesisBase], kind: str) -> None:
    encoder = bases[kind].text
    tokens, vectors = tokens_of(encoder)
    with torch.inference_mode():
        context = encoder(tokens, vectors, torch.zeros(tokens.shape))
        assert torch.equal(context, encoder.model(tokens, return_dict=False)[0])
    assert context.shape == (3, LENGTH, TEXT_WIDTH)


@pytest.mark.parametrize("kind", KINDS)
def test_a_placed_vector_does_what_a_row_of_the_table_would(bases: dict[str, SynthesisBase], kind: str) -> None:
    encoder = bases[kind].text
    tokens, vectors = tokens_of(encoder)
    tokens[:, 2] = tokens[1, 4] = 3
    row = vectors[0, 0]
    placed = (tokens == 3).float()
    before = encoder.table[3].clone()
    with torch.inference_mode():
        context = encoder(tokens, torch.where(placed[..., None] > 0, row, vectors), placed)
        encoder.table[3] = row
        expected = encoder.model(tokens, return_dict=False)[0]
        encoder.table[3] = before
        assert torch.equal(context, expected)
        assert not torch.equal(context, encoder.model(tokens, return_dict=False)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_of_a_batch_has_vectors_of_its_own(bases: dict[str, SynthesisBase], kind: str) -> None:
    encoder = bases[kind].text
    tokens, vectors = tokens_of(encoder)
    placed = torch.zeros(tokens.shape)
    placed[:, 3] = 1.0
    with torch.inference_mode():
        together = encoder(tokens, vectors, placed)
        alone = [encoder(*(value[index : index + 1] for value in (tokens, vectors, placed))) for index in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_placed_vectors_alone(bases: dict[str, SynthesisBase], kind: str) -> None:
    encoder = bases[kind].text
    tokens, vectors = tokens_of(encoder)
    vectors.requires_grad_(True)
    placed = torch.zeros(tokens.shape)
    placed[0, 1] = placed[2, 5] = 1.0
    context = encoder(tokens, vectors, placed)
    # Not the sum of squares, nor any sum of equal weights: the last LayerNorm makes those the same for all vectors.
    (context * torch.randn(context.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert vectors.grad is not None
    sizes = vectors.grad.abs().sum(dim=-1)
    assert (sizes[placed > 0] > 0.1).all()
    assert (sizes[placed == 0] == 0.0).all()
    assert all(parameter.grad is None for parameter in encoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_its_graph_gives_the_same_numbers(bases: dict[str, SynthesisBase], kind: str) -> None:
    encoder = bases[kind].text
    tokens, vectors = tokens_of(encoder, 1)
    examples = {"tokens": tokens, "vectors": vectors, "placed": torch.ones(tokens.shape)}
    graph = export_network(encoder, examples, 4, ["context"], "text")
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        tokens, vectors = tokens_of(encoder, count, seed=count)
        placed = (torch.arange(LENGTH) % 2).float().expand(count, -1).contiguous()
        inputs = {"tokens": tokens, "vectors": vectors, "placed": placed}
        context = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
        with torch.inference_mode():
            np.testing.assert_allclose(context, encoder(tokens, vectors, placed).numpy(), atol=1e-5, rtol=0)


# ---- Folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["", "a b *", "a defect b", "b a b a b a b a *"])
def test_texts_of_a_folder_become_the_tokens_of_its_own_tokenizer(
    folders: dict[str, Path], bases: dict[str, SynthesisBase], kind: str, text: str
) -> None:
    import transformers

    reader = transformers.CLIPTokenizer if kind == "clip" else transformers.BertTokenizer
    tokenizer = reader.from_pretrained(folders[kind] / "tokenizer", local_files_only=True)
    expected = tokenizer(text, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    tokenized = bases[kind].prompts.tokens([text], TEXT_WIDTH)
    assert tokenized.tokens.tolist() == [expected]


@pytest.mark.parametrize("kind", [*KINDS, "inpainting"])
def test_a_folder_gives_its_networks_and_what_they_were_trained_with(
    folders: dict[str, Path],
    bases: dict[str, SynthesisBase],
    kind: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, base = folders[kind], open_base(folders[kind])
    assert capfd.readouterr() == ("", "")
    parts = {"unet": base.unet, "vqvae" if kind == "ldmbert" else "vae": base.autoencoder}
    parts["bert" if kind == "ldmbert" else "text_encoder"] = base.text.model
    for place, network in parts.items():
        (path,) = (folder / place).glob("*.safetensors")
        state: dict[str, Tensor] = network.state_dict()  # type: ignore[assignment]
        for name, value in safetensors.torch.load_file(path).items():
            assert torch.equal(state[name], value), name
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not network.training
    assert base.size == (16, 16)
    assert base.latents == (4, 8, 8)
    assert base.is_inpainting == (kind == "inpainting")
    assert base.sampling == SAMPLING
    assert base.normalization == "signed"
    assert base.prompts.word("defect") != base.prompts.word("*")
    assert base.licence == f"unknown: see the model card of {folder.name}"
    assert base.identity == bases[kind].identity
    assert len({opened.identity for opened in bases.values()}) == len(bases)


def test_half_precision_weights_are_taken_in_full_precision(copied: Path) -> None:
    for place in ("unet", "text_encoder", "vae"):
        (path,) = (copied / place).glob("*.safetensors")
        halves = {name: value.half() for name, value in safetensors.torch.load_file(path).items()}
        safetensors.torch.save_file(halves, path, {"format": "pt"})
    base = open_base(copied)
    for network in (base.unet, base.text, base.autoencoder):
        assert {value.dtype for value in network.parameters()} == {torch.float32}


def test_a_folder_that_was_changed_is_another_base_and_one_that_was_moved_is_not(
    bases: dict[str, SynthesisBase], copied: Path
) -> None:
    assert open_base(copied).identity == bases["clip"].identity
    path = copied / "tokenizer" / "tokenizer_config.json"
    path.write_text(path.read_text("utf-8") + " ", "utf-8")
    assert open_base(copied).identity != bases["clip"].identity


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "README.md",
            "---\nlanguage: en\nlicense: creativeml-openrail-m\ntags: []\n---\n# A model\n",
            "creativeml-openrail-m",
        ),
        ("LICENSE", "\n  MIT License\n\nCopyright\n", "MIT License"),
        ("README.md", "# A model\nlicense: none of this block\n", "unknown: see the model card of sd"),
        ("README.md", "---\ntags: []\n---\nlicense: mit\n---\n", "unknown: see the model card of sd"),
    ],
)
def test_the_licence_is_what_the_folder_says(copied: Path, name: str, text: str, said: str) -> None:
    (copied / name).write_text(text, "utf-8")
    assert open_base(copied).licence == said


def change_json(path: Path, **settings: object) -> None:
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**before, **settings}), "utf-8")


def test_noise_levels_are_those_of_the_scheduler(copied: Path) -> None:
    scheduler = copied / "scheduler" / "scheduler_config.json"
    change_json(scheduler, beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
    sampling = open_base(copied).sampling
    assert (sampling.betas, sampling.beta_start, sampling.beta_end) == ("linear", 0.0001, 0.02)
    assert (sampling.start, sampling.steps, sampling.offset, sampling.final) == (1000, 50, 1, "first")


@pytest.mark.parametrize(
    ("spacing", "first", "last"), [("leading", 981, 1), ("trailing", 999, 19), ("linspace", 999, 0)]
)
def test_steps_are_spaced_as_the_scheduler_says(copied: Path, spacing: str, first: int, last: int) -> None:
    from diffusers import DDIMScheduler

    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    change_json(copied / "scheduler" / "scheduler_config.json", **settings, timestep_spacing=spacing)
    timesteps = [step.timestep for step in plan_steps(open_base(copied).sampling)]
    assert (timesteps[0], timesteps[-1], len(timesteps)) == (first, last, 50)
    scheduler = DDIMScheduler(**settings, timestep_spacing=spacing)
    scheduler.set_timesteps(50)
    assert timesteps == [int(timestep) for timestep in scheduler.timesteps]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rescale_betas_zero_snr": True}, "a last noise level that leaves some .* got rescale_betas_zero_snr"),
        ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "got rescale_betas_zero_snr"),
        ({"timestep_spacing": "karras"}, "expected the timestep_spacing leading, trailing, linspace, got 'karras'"),
        ({"timestep_spacing": ["leading"]}, "expected the timestep_spacing"),
        ({"prediction_type": "v_prediction"}, "predicts the noise .* got one that predicts v_prediction"),
        (
            {"beta_schedule": "squaredcos_cap_v2"},
            "1000 noise levels that are linear or scaled_linear, got 1000, squared",
        ),
        ({"num_train_timesteps": 500}, "1000 noise levels"),
        ({"trained_betas": [0.1, 0.2]}, "1000 noise levels"),
        ({"beta_end": "much"}, "1000 noise levels"),
    ],
)
def test_other_predictions_and_noise_levels_are_refused(copied: Path, settings: dict[str, Any], message: str) -> None:
    change_json(copied / "scheduler" / "scheduler_config.json", **settings)
    with pytest.raises(RunError, match=message) as raised:
        open_base(copied)
    reason(raised)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_scheduler_of_any_bytes_is_taken_or_refused_in_one_line(copied: Path, data: st.DataObject) -> None:
    whole = b'{"beta_schedule": "linear", "beta_start": 0.0001, "num_train_timesteps": 1000, "trained_betas": null}'
    (copied / "scheduler").mkdir(exist_ok=True)
    (copied / "scheduler" / "scheduler_config.json").write_bytes(data.draw(odd_bytes(whole)))
    assert_read_or_refused(lambda: check_prediction(copied))


@pytest.mark.parametrize("place", ["unet", "vae", "text_encoder", "tokenizer"])
def test_a_pipe_in_a_part_is_refused_before_a_library_waits_for_it(copied: Path, place: str) -> None:
    os.mkfifo(copied / place / "model.safetensors.index.json")
    with pytest.raises(RunError, match="it is a pipe, not a file"):
        open_base(copied)


@pytest.mark.parametrize("place", ["unet", "scheduler"])
def test_a_part_that_cannot_be_listed_does_not_fall_out_of_the_identity(
    copied: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (copied / place / "more").mkdir(parents=True)
    refuse_listing(monkeypatch, copied / place / "more")
    with pytest.raises((DataError, RunError), match="expected a folder that can be listed"):
        open_base(copied)


@pytest.mark.parametrize(
    ("place", "settings", "message"),
    [
        ("unet", {"time_cond_proj_dim": 8}, "unet: expected"),
        ("unet", {"in_channels": 5}, "unet: expected"),
        ("vae", {"latent_channels": 8}, "vae: expected"),
        ("vae", {"norm_num_groups": 3}, "vae: expected"),
        ("text_encoder", {"hidden_size": 8}, "text_encoder: expected"),
        ("text_encoder", {"use_attention_mask": True}, "a text encoder that attends to all tokens"),
    ],
)
def test_parts_of_other_kinds_are_refused(copied: Path, place: str, settings: dict[str, Any], message: str) -> None:
    change_json(copied / place / "config.json", **settings)
    with pytest.raises(RunError, match=message) as raised:
        open_base(copied)
    reason(raised)


def test_parts_that_do_not_fit_each_other_are_refused(folders: dict[str, Path], copied: Path, tmp_path: Path) -> None:
    import diffusers
    from tiny_guided import tiny_guided

    unet: Any = tiny_guided(context=8).unet
    unet.save_pretrained(copied / "unet")
    with pytest.raises(RunError, match="expected texts of width 8, which the UNet takes, got 6"):
        open_base(copied)
    plain = {name: value for name, value in tiny_guided().unet.config.items() if not name.startswith("_")}  # type: ignore[operator]
    diffusers.UNet2DConditionModel(**{**plain, "in_channels": 5}).save_pretrained(copied / "unet")
    with pytest.raises(RunError, match=r"expected 4 channels in and out, or 9 in .* got 5 in and 4 out"):
        open_base(copied)
    diffusers.UNet2DConditionModel(**{**plain, "class_embed_type": "timestep"}).save_pretrained(copied / "unet")
    with pytest.raises(RunError, match="got one with class_embed_type"):
        open_base(copied)
    shutil.copytree(folders["clip"] / "unet", copied / "unet", dirs_exist_ok=True)
    shutil.rmtree(copied / "tokenizer")
    shutil.copytree(folders["clip"] / "tokenizer", copied / "tokenizer")
    change_json(copied / "text_encoder" / "config.json", vocab_size=9)
    (path,) = (copied / "text_encoder").glob("*.safetensors")
    weights = safetensors.torch.load_file(path)
    name = next(name for name in weights if name.endswith("token_embedding.weight"))
    weights[name] = weights[name][:9].clone()
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    with pytest.raises(RunError, match="expected a tokenizer that fits the text encoder"):
        open_base(copied)


@pytest.mark.parametrize("fault", ["missing", "too many", "not finite", "pickled"])
@pytest.mark.parametrize("place", ["vqvae", "bert"])
def test_a_folder_with_other_weights_is_refused(
    folders: dict[str, Path], tmp_path: Path, place: str, fault: str
) -> None:
    folder = Path(shutil.copytree(folders["ldmbert"], tmp_path / "ldm"))
    (path,) = (folder / place).glob("*.safetensors")
    weights = safetensors.torch.load_file(path)
    name = next(name for name in sorted(weights) if name.endswith(".weight"))
    if fault == "missing":
        del weights[name]
    elif fault == "too many":
        weights["another"] = torch.zeros(3)
    elif fault == "not finite":
        weights[name].view(-1)[0] = math.nan
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    if fault == "pickled":
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(RunError, match=rf"{place}: expected"):
        open_base(folder)


def test_what_is_no_base_is_refused(tmp_path: Path, copied: Path, patchcore_run: Path) -> None:
    with pytest.raises(
        RunError, match=r"nowhere: expected a run of train base, or a folder of .* without the folder unet"
    ):
        open_base(tmp_path / "nowhere")
    shutil.rmtree(copied / "vae")
    with pytest.raises(RunError, match=r"sd: expected a run of train base, .* got one without the folder vae"):
        open_base(copied)
    with pytest.raises(RunError, match=r"expected a run of train base, embedding, inpainting, got that of a detector"):
        open_base(patchcore_run)


@pytest.mark.parametrize("package", ["diffusers", "transformers"])
def test_a_package_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"needs the package {package}"):
        open_base(folders["clip"])


# ---- The helper ------------------------------------------------------------------------------------------------------


def test_a_tiny_base_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = tiny_base(inpainting=True), open_base(write_tiny_base_run(tmp_path / "run", inpainting=True))
    assert first.identity == second.identity
    assert first.is_inpainting
    assert math.prod(first.latents) <= 256
