"""LoRA of kohya, diffusers and peft: merged as those libraries merge them, and written so that they read it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers_reference import latent_ddim
from error_lines import refused
from tiny_drawers import record_of
from tiny_stable_diffusion import write_stable_diffusion
from torch import Tensor, nn

from flawscope import cli
from flawscope.config import build_config
from flawscope.training.diffusion.diffusers_folder import read_base_folder
from flawscope.training.synthesis.base_model import open_base
from flawscope.training.synthesis.generator_run import GeneratorFitResult, read_synthesis_run, write_synthesis_run
from flawscope.training.synthesis.learned_text import restore_text
from flawscope.training.synthesis.lora import AdaptedText, AdaptedUnet, restore_unet

pytestmark = pytest.mark.long

FORMS = ("diffusers", "kohya", "peft")
RANK, ALPHA = 3, 5.0
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
PROJECTION = "text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion for inpainting."""
    return write_stable_diffusion(tmp_path_factory.mktemp("lora") / "base", inpainting=True)


@pytest.fixture(scope="module")
def run(base: Path) -> Path:
    """A run of train inpainting with adapt=lora, its matrices at random."""
    settings = {"resize": 16, "rank": RANK, "alpha": ALPHA, "base": str(base), "support": "support"}
    config: Any = build_config("inpainting", settings)[0]
    opened = open_base(base)
    state = AdaptedUnet(opened.unet, config).state_dict()
    drawn = torch.Generator().manual_seed(3)
    matrices = {name: 0.3 * torch.randn(value.shape, generator=drawn) for name, value in state.items()}
    folder = base.with_name("run")
    write_synthesis_run(
        folder, record_of("inpainting", config, base=opened.identity), GeneratorFitResult({"lora": matrices}, {}), ()
    )
    return folder


@pytest.fixture(scope="module")
def written(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Form -> its LoRA of the run."""
    folder = tmp_path_factory.mktemp("written")
    paths = {form: folder / (form if form == "peft" else f"{form}.safetensors") for form in FORMS}
    for form, path in paths.items():
        assert cli.run(["synth", "export-adapter", str(run), "--form", form, "--out", str(path)]) == 0
    return paths


def imported(source: Path, out: Path, *options: str) -> Path:
    assert cli.run(["synth", "import", str(source), "--out", str(out), *options]) == 0
    return out


def close(expected: Any, actual: Any) -> None:
    expected, actual = expected.state_dict(), actual.state_dict()
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_and_merged_again_is_the_network_of_the_run(
    base: Path, run: Path, written: dict[str, Path], tmp_path: Path, form: str
) -> None:
    expected = restore_unet(open_base(base), read_synthesis_run(run))
    out = imported(base, tmp_path / "out", "--lora", str(written[form]))
    parts = read_base_folder(out)
    close(expected, parts.unet)
    plain = read_base_folder(base)
    assert not torch.allclose(
        plain.unet.state_dict()[f"{ATTENTION}.to_q.weight"], parts.unet.state_dict()[f"{ATTENTION}.to_q.weight"]
    )
    for part in ("vae", "text_encoder"):  # what no LoRA changes is copied
        for path in (out / part).glob("*.safetensors"):
            assert path.read_bytes() == (base / part / path.name).read_bytes()


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_diffusers_reads_what_is_written(base: Path, run: Path, written: dict[str, Path], form: str) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    parts = read_base_folder(base)
    parts.unet.register_to_config(sample_size=8)  # the pipeline takes the side of a square as one number
    pipeline: Any = StableDiffusionInpaintPipeline(
        vae=parts.autoencoder,
        text_encoder=parts.text,
        tokenizer=None,
        unet=parts.unet,
        scheduler=latent_ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.load_lora_weights(written[form].parent, weight_name=written[form].name, local_files_only=True)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    close(restore_unet(open_base(base), read_synthesis_run(run)), pipeline.unet)


def test_peft_reads_what_is_written(base: Path, run: Path, written: dict[str, Path]) -> None:
    import peft

    plain: Any = read_base_folder(base).unet
    wrapped: Any = peft.PeftModel.from_pretrained(plain, str(written["peft"]))
    close(restore_unet(open_base(base), read_synthesis_run(run)), wrapped.merge_and_unload())


# ---- What others write -----------------------------------------------------------------------------------------------


def pair(outputs: int, inputs: int, rank: int = 2, *kernel: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(outputs + inputs)
    down = torch.randn((rank, inputs, *kernel), generator=drawn)
    return down, torch.randn((outputs, rank, *(1 for _ in kernel)), generator=drawn)


def layer_sizes(base: Path, part: str, layer: str) -> tuple[int, ...]:
    network = read_base_folder(base).unet if part == "unet" else read_base_folder(base).text
    state = {name.removeprefix("text_model."): value for name, value in network.state_dict().items()}
    return tuple(state[f"{layer.removeprefix('text_model.')}.weight"].shape)


def changes(base: Path, out: Path, part: str, layer: str) -> Tensor:
    found = []
    for folder in (base, out):
        network = read_base_folder(folder).unet if part == "unet" else read_base_folder(folder).text
        state = {name.removeprefix("text_model."): value for name, value in network.state_dict().items()}
        found.append(state[f"{layer.removeprefix('text_model.')}.weight"])
    return found[1] - found[0]


@pytest.mark.parametrize("half", [False, True])
def test_kohya_with_convolutions_and_text_encoder_is_merged(base: Path, tmp_path: Path, half: bool) -> None:
    layers = {("unet", f"{ATTENTION}.to_out.0"), ("unet", "down_blocks.0.resnets.0.conv1"), ("unet", "conv_out")}
    layers |= {("te", PROJECTION)}
    tensors: dict[str, Tensor] = {}
    wanted = {}
    for part, layer in layers:
        shape = layer_sizes(base, part, layer)
        down, up = pair(shape[0], shape[1], 2, *shape[2:])
        name = f"lora_{part}_{layer.replace('.', '_')}"
        down, up = (value.half() if half else value for value in (down, up))
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
        change = (up.float().reshape(shape[0], -1) @ down.float().reshape(2, -1)).reshape(shape)
        wanted[part, layer] = 0.25 * 1.0 / 2 * change
    path = tmp_path / "style=v2.safetensors"
    safetensors.torch.save_file(tensors, path)
    out = imported(base, tmp_path / "out", "--lora", f"{path}=0.25")
    for (part, layer), change in wanted.items():
        torch.testing.assert_close(changes(base, out, part, layer), change, rtol=1e-4, atol=1e-5)
    again = imported(base, tmp_path / "again", "--lora", str(path), "--lora", f"{path}=-0.75")
    for (part, layer), change in wanted.items():
        torch.testing.assert_close(changes(base, again, part, layer), change, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_names_of_the_first_diffusers_are_merged_as_alpha_equal_to_the_rank(
    base: Path, tmp_path: Path, suffix: str
) -> None:
    shape, text = layer_sizes(base, "unet", f"{ATTENTION}.to_out.0"), layer_sizes(base, "te", PROJECTION)
    first, second = pair(*shape[:2]), pair(*text[:2])
    tensors = {
        f"unet.{ATTENTION}.processor.to_out_lora.down.weight": first[0],
        f"unet.{ATTENTION}.processor.to_out_lora.up.weight": first[1],
        f"unet.{ATTENTION}.to_q.lora.down.weight": first[0].clone(),
        f"unet.{ATTENTION}.to_q.lora.up.weight": first[1].clone(),
        f"text_encoder.{PROJECTION}.lora_linear_layer.down.weight": second[0],
        f"text_encoder.{PROJECTION}.lora_linear_layer.up.weight": second[1],
    }
    folder = tmp_path / "adapter"
    folder.mkdir()
    path = folder / f"pytorch_lora_weights.{suffix}"
    if suffix == "bin":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)
    out = imported(base, tmp_path / "out", "--lora", str(path if suffix == "bin" else folder))
    for name in ("to_out.0", "to_q"):
        torch.testing.assert_close(
            changes(base, out, "unet", f"{ATTENTION}.{name}"), first[1] @ first[0], rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(changes(base, out, "te", PROJECTION), second[1] @ second[0], rtol=1e-4, atol=1e-5)


def test_settings_of_peft_say_alpha(base: Path, tmp_path: Path) -> None:
    import peft

    plain: Any = read_base_folder(base).unet
    kind: Any = peft.LoraConfig
    settings = kind(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["to_q", "to_v"],
        init_lora_weights=False,
        alpha_pattern={f"{ATTENTION}.to_v": 9},
    )
    wrapped: Any = peft.get_peft_model(plain, settings)
    wrapped.save_pretrained(tmp_path / "adapter")
    out = imported(base, tmp_path / "out", "--lora", str(tmp_path / "adapter"))
    close(wrapped.merge_and_unload(), read_base_folder(out).unet)


# ---- What is refused -------------------------------------------------------------------------------------------------


def test_a_lora_of_another_base_names_the_first_layer_that_does_not_fit(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.safetensors"
    arguments = ["synth", "import", str(base), "--out", str(tmp_path / "out"), "--lora", str(path)]
    down, up = pair(320, 320)
    name = f"lora_unet_{ATTENTION.replace('.', '_')}_to_q"
    safetensors.torch.save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, path)
    outputs, inputs = layer_sizes(base, "unet", f"{ATTENTION}.to_q")
    assert (
        f"{name.removeprefix('lora_unet_')}: expected a change of {outputs} x {inputs}, as {ATTENTION}.to_q.weight of "
        f"the base is [{outputs}, {inputs}], got 320 x 320. Is it of another base?"
    ) in refused(arguments, capsys)
    far = "unet.down_blocks.3.attentions.1.transformer_blocks.0.attn1.to_q"
    safetensors.torch.save_file({f"{far}.lora_A.weight": down, f"{far}.lora_B.weight": up}, path)
    assert "got down_blocks.3.attentions.1.transformer_blocks.0.attn1.to_q, of 320 x 320" in refused(arguments, capsys)
    safetensors.torch.save_file(
        {
            f"text_encoder.{PROJECTION[:-6]}x_proj.lora_A.weight": down,
            f"text_encoder.{PROJECTION[:-6]}x_proj.lora_B.weight": up,
        },
        path,
    )
    assert "which its text encoder has not" in refused(arguments, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"lora_unet_a.lora_down.weight": (2, 3)}, "expected both matrices of each layer"),
        ({"lora_unet_a.lora_down.weight": (2, 3), "lora_unet_a.lora_up.weight": (3, 4)}, "expected matrices [rank"),
        ({"lora_unet_a.lora_down.weight": (2, 3), "lora_unet_a.strange": (3, 4)}, "got lora_unet_a.strange"),
        ({"lora_unet_a.hada_w1_a": (2, 3)}, "got a LoHa adapter of LyCORIS"),
        ({"lora_unet_a.lora_mid.weight": (2, 2), "lora_unet_a.lora_up.weight": (2, 2)}, "LoCon adapter of LyCORIS"),
        ({"lora_unet_a.dora_scale": (2, 3), "lora_unet_a.lora_up.weight": (3, 4)}, "got a DoRA adapter"),
        ({"lora_te1_a.lora_down.weight": (2, 3)}, "got a LoRA of SDXL"),
        ({"a.diff": (2, 3)}, "got an adapter of whole differences"),
        ({"conv.weight": (2, 3, 3, 3)}, "got a file of 1 other tensors"),
    ],
)
def test_other_adapters_are_named(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tensors: dict[str, tuple[int, ...]],
    words: str,
) -> None:
    path = tmp_path / "adapter.safetensors"
    safetensors.torch.save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    arguments = ["synth", "import", str(base), "--out", str(tmp_path / "out"), "--lora", str(path)]
    assert words in refused(arguments, capsys)


def test_adapters_that_are_not_there_or_not_finite_are_one_line(
    base: Path, written: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["synth", "import", str(base), "--out", str(tmp_path / "out"), "--lora"]
    assert "expected a file of tensors, got: No such file" in refused([*arguments, str(tmp_path / "none")], capsys)
    (tmp_path / "empty").mkdir()
    assert "in the folder of a LoRA, got neither" in refused([*arguments, str(tmp_path / "empty")], capsys)
    assert "expected finite weights with it" in refused([*arguments, f"{written['kohya']}=1e39"], capsys)
    shutil.copytree(written["peft"], tmp_path / "dora")
    settings = tmp_path / "dora" / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "use_dora": True}))
    assert "of the type LORA, got DoRA" in refused([*arguments, str(tmp_path / "dora")], capsys)
    assert not (tmp_path / "out").exists()


# ---- The command that writes -----------------------------------------------------------------------------------------


def test_runs_without_an_adapter_and_names_that_are_taken_are_refused(
    base: Path, run: Path, written: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config: Any = build_config("inpainting", {"resize": 16, "adapt": "full", "base": "b", "support": "s"})[0]
    write_synthesis_run(
        tmp_path / "full", record_of("inpainting", config), GeneratorFitResult({"unet": {"a": torch.zeros(1)}}, {}), ()
    )
    out = ["--out", str(tmp_path / "o.safetensors")]
    assert "got one with adapt=full" in refused(["synth", "export-adapter", str(tmp_path / "full"), *out], capsys)
    # Who names a defect wants a word: that the run has no LoRA either says nothing of it.
    wanted = refused(["synth", "export-adapter", str(tmp_path / "full"), *out, "--defect", "crack"], capsys)
    assert "--defect: expected a run that has learned words, got " in wanted
    assert "learn_text=vectors" in wanted
    assert "adapt=lora" not in wanted
    assert "Leave it out" not in wanted
    named = ["synth", "export-adapter", str(run), *out]
    assert "--token is for a learned word" in refused([*named, "--token", "crack"], capsys)
    assert (
        "which has none. Train with --set learn_text=vectors, or with train embedding. Leave it out to get"
        in refused([*named, "--defect", "crack"], capsys)
    )
    for form in FORMS:
        arguments = ["synth", "export-adapter", str(run), "--form", form, "--out", str(written[form])]
        assert "expected a new " in refused(arguments, capsys)
        assert cli.run([*arguments, "--overwrite"]) == 0
        capsys.readouterr()


def test_what_a_run_has_learned_of_the_text_is_written_too(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"resize": 16, "rank": RANK, "alpha": ALPHA, "base": str(base), "support": "s", "learn_text": "encoder"}
    config: Any = build_config("inpainting", settings)[0]
    opened = open_base(base)
    networks: dict[str, nn.Module] = {
        "lora": AdaptedUnet(opened.unet, config),
        "text_lora": AdaptedText(opened.text, config),
    }
    drawn = torch.Generator().manual_seed(3)
    matrices = {
        group: {name: 0.3 * torch.randn(value.shape, generator=drawn) for name, value in network.state_dict().items()}
        for group, network in networks.items()
    }
    matrices["vectors"] = {"steel/crack": torch.ones(1, 6)}
    folder = tmp_path / "run"
    record = record_of("inpainting", config, base=opened.identity)
    write_synthesis_run(folder, record, GeneratorFitResult(matrices, {}), ())
    run = read_synthesis_run(folder)
    for form in ("diffusers", "kohya"):
        path = tmp_path / f"{form}.safetensors"
        assert cli.run(["synth", "export-adapter", str(folder), "--form", form, "--out", str(path)]) == 0
        assert "words are files of their own, with --defect: steel/crack" in capsys.readouterr().out
        parts = read_base_folder(imported(base, tmp_path / form, "--lora", str(path)))
        close(restore_unet(opened, run), parts.unet)
        close(restore_text(opened, run).model, parts.text)
    arguments = ["synth", "export-adapter", str(folder), "--out", str(tmp_path / "o")]
    assert "got peft, whose files hold one network" in refused([*arguments, "--form", "peft"], capsys)
    assert "--form is for a LoRA" in refused([*arguments, "--defect", "crack", "--form", "peft"], capsys)
    assert cli.run([*arguments, "--defect", "crack"]) == 0


# ---- Learned words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_a_learned_word_goes_to_diffusers_and_comes_back(base: Path, tmp_path: Path, count: int) -> None:
    import transformers
    from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin

    config: Any = build_config("embedding", {"resize": 16, "vectors": count, "base": str(base), "support": "s"})[0]
    learned = torch.randn((count, 6), generator=torch.Generator().manual_seed(count))
    vectors = {"steel/crack": learned, "steel/pit": learned + 1}
    write_synthesis_run(
        tmp_path / "run", record_of("embedding", config), GeneratorFitResult({"vectors": vectors}, {}), ()
    )
    path = tmp_path / "learned_embeds.safetensors"
    arguments = ["synth", "export-adapter", str(tmp_path / "run"), "--out", str(path)]
    assert cli.run(arguments) == 2
    assert cli.run([*arguments, "--defect", "crack"]) == 0

    class Loader(TextualInversionLoaderMixin):
        def __init__(self) -> None:
            self.tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
            self.text_encoder: Any = transformers.CLIPTextModel.from_pretrained(base / "text_encoder")
            self.hf_device_map, self.components = None, {}

    loader = Loader()
    loader.load_textual_inversion(str(path), local_files_only=True)
    table = loader.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[-count:], learned)
    assert "<crack>" in loader.tokenizer.get_vocab()
    assert (
        cli.run(["synth", "import", str(path), "--out", str(tmp_path / "back.safetensors"), "--defect", "crack"]) == 0
    )
    back = safetensors.torch.load_file(tmp_path / "back.safetensors")
    assert torch.equal(back["<crack>"], learned)


@pytest.mark.parametrize("form", ["safetensors", "bin", "nameless"])
def test_learned_embeds_of_diffusers_are_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    vector = torch.randn(6, generator=torch.Generator().manual_seed(1)).half()
    path = tmp_path / f"learned_embeds.{'bin' if form == 'bin' else 'safetensors'}"
    if form == "bin":
        torch.save({"<crack>": vector}, path)
    else:
        safetensors.torch.save_file({"emb_params" if form == "nameless" else "<crack>": vector}, path)
    out = tmp_path / "crack.safetensors"
    assert cli.run(["synth", "import", str(path), "--out", str(out), "--defect", "crack", "--category", "steel"]) == 0
    name = "learned_embeds" if form == "nameless" else "<crack>"
    assert f"{out}: {name!r}, 1 vector of width 6" in capsys.readouterr().out
    np.testing.assert_array_equal(safetensors.torch.load_file(out)[name].numpy(), vector.float().numpy()[None])


# ---- On to a bundle --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_base_with_merged_changes_exports_like_torch_and_builds(
    base: Path, written: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flawscope.bundle import SynthHead, open_bundle

    folder, bundle = imported(base, tmp_path / "base", "--lora", str(written["kohya"])), tmp_path / "b.flaw"
    assert cli.run(["export", str(folder), "--out", str(bundle), "--max-batch", "2"]) == 0
    with open_bundle(bundle) as opened:
        head = opened.manifest.head
    assert isinstance(head, SynthHead)
    assert head.mode == "inpaint"
    assert head.parity[0].psnr_db >= 50.0
    pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is not installed: pip install "flawscope[tensorrt-rtx]"')
    build = ["engine", "build", str(bundle), "--target", "8.9", "--cache", str(tmp_path / "cache"), "--max-batch", "2"]
    capsys.readouterr()
    assert cli.run(build) == 0
    assert "graph denoise, fp32, batch 2 to 2, tensorrt-rtx" in capsys.readouterr().out
