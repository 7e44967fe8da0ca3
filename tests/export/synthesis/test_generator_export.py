"""Export of generators: graphs equal torch and diffusers, bundles say what they draw, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from diffusers_reference import fill_box
from tiny_base import SIDE, tiny_images
from tiny_dataset import CATEGORY, DEFECTS
from tiny_drawers import WIDTH, refused, synth_head, traced_once, write_drawers, write_word

from flawscope import cli
from flawscope.bundle import SynthDefect, SynthHead, open_bundle
from flawscope.config import flatten
from flawscope.diffusion.latent_inpainting import classifier_free_guidance, draw_latents, draw_noise, keep_of
from flawscope.diffusion.reconstruction import signed, unsigned
from flawscope.errors import ArgumentError, BundleError, GateError, RunError
from flawscope.export.synthesis import generator_export
from flawscope.export.synthesis.generator_export import export_synthesis
from flawscope.export.synthesis.generator_graphs import GRAPHS, OUTPUTS, example_inputs, synthesis_modules
from flawscope.export.synthesis.image_parity import GraphCalls, measure_images
from flawscope.runtime import Inspector
from flawscope.runtime.engines.ensure import model_hash
from flawscope.training.synthesis.base_model import open_base
from flawscope.training.synthesis.generator_run import read_synthesis_run
from flawscope.training.synthesis.lora import restore_unet
from flawscope.training.synthesis.prompt_templates import defect_sentences
from flawscope.training.synthesis.support_examples import read_support_examples

pytestmark = pytest.mark.long

MAX_BATCH = 6


@pytest.fixture(scope="module")
def once() -> Iterator[dict[Any, bytes]]:
    """Graphs by network."""
    with traced_once() as traces:
        yield traces


@pytest.fixture(scope="module")
def made_runs(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> dict[str, Path]:
    """Kind → run; `filler` is the base of the inpainting network."""
    return write_drawers(tmp_path_factory.mktemp("synthesis"), tiny_root)


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, made_runs: dict[str, Path], once: dict[Any, bytes]
) -> dict[str, Path]:
    """Kind → bundle."""
    folder = tmp_path_factory.mktemp("drawers")
    kinds = ("base", "embedding", "inpainting")
    for kind in kinds:
        export_synthesis(made_runs[kind], folder / f"{kind}.flaw", max_batch=MAX_BATCH, command="test")
    return {kind: folder / f"{kind}.flaw" for kind in kinds}


# ---- What a bundle says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["base", "embedding", "inpainting"])
def test_a_bundle_says_how_it_draws_and_where_it_comes_from(
    exported: dict[str, Path], made_runs: dict[str, Path], kind: str
) -> None:
    run = read_synthesis_run(made_runs[kind])
    base = open_base(made_runs["filler" if kind == "inpainting" else "base"])
    with open_bundle(exported[kind]) as bundle:
        manifest = bundle.manifest
        images = json.loads(bundle.read("images.json"))
        tokenizer = bundle.read("tokenizer.json")
    head = manifest.head
    assert isinstance(head, SynthHead)
    assert (manifest.kind, manifest.method, manifest.max_batch) == ("synth", kind, MAX_BATCH)
    assert (manifest.input.size, manifest.golden, manifest.thresholds) == (base.size, (), None)
    assert set(manifest.graphs) == set(GRAPHS)
    assert {name: graph.outputs for name, graph in manifest.graphs.items()} == {
        name: (output,) for name, output in OUTPUTS.items()
    }
    mode, steps, guidance = ("inpaint", 20, 3.5) if kind == "inpainting" else ("blend", 50, 10.0)
    assert (head.mode, head.guidance) == (mode, guidance)
    assert head.sampling == msgspec.structs.replace(base.sampling, steps=steps)
    assert (head.latents, head.text_width, head.licence) == (base.latents, WIDTH, "own")
    assert head.prompts == base.prompts.rules
    assert (head.crop, head.crop_fill) == (kind != "base", 0.4 if kind == "inpainting" else 0.5)
    assert tokenizer == base.tokenizer
    assert images == {"training": list(run.record.training), "held_out": []}
    source = manifest.provenance
    assert (source.run, source.command, source.category, source.seed) == (
        run.digest,
        "test",
        CATEGORY,
        run.record.config.seed,
    )
    assert source.weights == f"base {base.identity}; licence: own"
    assert source.config == json.loads(msgspec.json.encode(flatten(run.record.config)))


@pytest.mark.parametrize("kind", ["base", "embedding", "inpainting"])
def test_parity_with_torch_is_measured_and_recorded(exported: dict[str, Path], kind: str) -> None:
    (row,) = synth_head(exported[kind]).parity
    assert (row.reference, row.images, row.steps) == ("torch", 2, 4)
    assert row.psnr_db >= 50.0


@pytest.mark.parametrize("kind", ["base", "embedding", "inpainting"])
def test_a_bundle_holds_what_it_needs_and_nothing_else(exported: dict[str, Path], kind: str) -> None:
    files = {path.relative_to(exported[kind]).as_posix() for path in exported[kind].rglob("*") if path.is_file()}
    supports = {f"support/{index:03d}{end}.png" for index in range(4) for end in ("", "_mask")}
    needed = {f"{name}.onnx" for name in GRAPHS} | {"tokenizer.json", "images.json", "manifest.json"}
    needed |= {"vectors.safetensors"} if kind == "embedding" else set()
    assert files == needed | (set() if kind == "base" else supports)
    for name in GRAPHS:
        data = (exported[kind] / f"{name}.onnx").read_bytes()
        assert not any(text in data for text in (b"site-packages", str(Path.cwd()).encode(), b"torch.nn"))


def test_a_bundle_of_words_has_the_run_s_vectors_and_is_asked_for_the_word_alone(
    exported: dict[str, Path], made_runs: dict[str, Path]
) -> None:
    defects = synth_head(exported["embedding"]).defects
    assert defects == tuple(SynthDefect(CATEGORY, name, ("*",), f"vectors.{CATEGORY}/{name}") for name in DEFECTS)
    learned = read_synthesis_run(made_runs["embedding"]).tensors["vectors"]
    with open_bundle(exported["embedding"]) as bundle:
        tensors = bundle.tensors()
    assert set(tensors) == {defect.vectors for defect in defects}
    for name in DEFECTS:
        np.testing.assert_array_equal(
            tensors[f"vectors.{CATEGORY}/{name}"], learned[f"{CATEGORY}/{name}"].numpy(), strict=True
        )


def test_a_bundle_that_fills_boxes_has_each_sentence_once_for_any_place(exported: dict[str, Path]) -> None:
    defects = synth_head(exported["inpainting"]).defects
    assert [(defect.name, defect.vectors) for defect in defects] == [(name, None) for name in DEFECTS]
    for defect in defects:
        assert defect.texts == defect_sentences(CATEGORY, defect.name, "{location}")


@pytest.mark.parametrize("kind", ["embedding", "inpainting"])
def test_support_images_travel_along_with_their_content_hashes(
    exported: dict[str, Path], made_runs: dict[str, Path], kind: str
) -> None:
    examples = {
        (example.category, example.defect, example.record.content): example
        for example in read_support_examples(made_runs[kind].parent / "support").examples
    }
    entries = synth_head(exported[kind]).support
    assert {(example.category, example.defect, example.sha256) for example in entries} == set(examples)
    with open_bundle(exported[kind]) as bundle:
        for entry in entries:
            image = examples[entry.category, entry.defect, entry.sha256]
            assert bundle.read(entry.picture) == image.image_file.read_bytes()
            assert bundle.read(entry.mask) == image.mask_file.read_bytes()


# ---- Graphs ----------------------------------------------------------------------------------------------------------


def some_inputs(examples: Mapping[str, torch.Tensor], count: int) -> dict[str, Any]:
    rng = np.random.default_rng(count)
    drawn: dict[str, Any] = {}
    for name, example in examples.items():
        shape = (count, *example.shape[1:])
        if name in ("tokens", "timestep"):
            drawn[name] = rng.integers(0, 300 if name == "tokens" else 1000, shape)
        elif name == "placed":
            drawn[name] = rng.integers(0, 2, shape).astype(np.float32)
        else:
            drawn[name] = rng.uniform(-1, 1, shape).astype(np.float32)
    return drawn


@pytest.mark.parametrize("kind", ["base", "inpainting"])
def test_graphs_are_their_modules_in_every_size_of_batch(
    exported: dict[str, Path], made_runs: dict[str, Path], kind: str
) -> None:
    base = open_base(made_runs["filler" if kind == "inpainting" else "base"])
    unet = restore_unet(base, read_synthesis_run(made_runs[kind])) if kind == "inpainting" else base.unet
    modules, examples = synthesis_modules(base, unet), example_inputs(base)
    with open_bundle(exported[kind]) as bundle:
        calls = GraphCalls(bundle.manifest.graphs, bundle.path)
        for name in GRAPHS:
            for count in (1, 3, MAX_BATCH):
                inputs = some_inputs(examples[name], count)
                with torch.no_grad():
                    expected = modules[name](**{key: torch.from_numpy(value) for key, value in inputs.items()}).numpy()
                output = calls(name, inputs)
                assert output.dtype == np.float32
                np.testing.assert_allclose(output, expected, rtol=1e-4, atol=2e-5, err_msg=f"{name} of {count}")
        calls.close()


def test_graphs_take_and_give_what_the_contract_says(exported: dict[str, Path], made_runs: dict[str, Path]) -> None:
    base = open_base(made_runs["filler"])
    length = base.prompts.rules.length
    channels, *sides = base.latents
    contract: dict[str, Any] = {
        "text": {
            "tokens": ("INT64", [length]),
            "vectors": ("FLOAT", [length, WIDTH]),
            "placed": ("FLOAT", [length]),
            "context": ("FLOAT", [length, WIDTH]),
        },
        "encode": {"image": ("FLOAT", [3, SIDE, SIDE]), "latents": ("FLOAT", [channels, *sides])},
        "denoise": {
            "x": ("FLOAT", [2 * channels + 1, *sides]),
            "timestep": ("INT64", []),
            "context": ("FLOAT", [length, WIDTH]),
            "noise": ("FLOAT", [channels, *sides]),
        },
        "decode": {"latents": ("FLOAT", [channels, *sides]), "picture": ("FLOAT", [3, SIDE, SIDE])},
    }
    with open_bundle(exported["inpainting"]) as bundle:
        for name, values in contract.items():
            graph = onnx.load(bundle.path / bundle.graph_file(name)).graph
            types = {}
            for value in (*graph.input, *graph.output):
                tensor = value.type.tensor_type
                first, *rest = tensor.shape.dim
                assert first.dim_param
                types[value.name] = (
                    onnx.TensorProto.DataType.Name(tensor.elem_type),
                    [dim.dim_value for dim in rest],
                )
            assert types == values
            assert {node.domain for node in graph.node} <= {"", "ai.onnx"}


def test_a_learned_network_is_not_its_base(exported: dict[str, Path], made_runs: dict[str, Path], once: Any) -> None:
    base = open_base(made_runs["filler"])
    inputs = some_inputs(example_inputs(base)["denoise"], 2)
    with torch.no_grad():
        plain = base.unet(*(torch.from_numpy(value) for value in inputs.values()), return_dict=False)[0].numpy()
    with open_bundle(exported["inpainting"]) as bundle:
        adapted = GraphCalls(bundle.manifest.graphs, bundle.path)("denoise", inputs)
    assert np.abs(adapted - plain).max() > 1e-2


@pytest.mark.parametrize("kind", ["inpainting"])
def test_tensorrt_builds_every_graph(
    exported: dict[str, Path], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is not installed: pip install "flawscope[tensorrt-rtx]"')
    build = ["engine", "build", str(exported[kind]), "--target", "8.9", "--cache", str(tmp_path)]
    assert cli.run([*build, "--max-batch", str(MAX_BATCH)]) == 0
    out = capsys.readouterr().out
    # Texts come one by one, and the denoiser sees each image with and without its text.
    batches = {"text": "1 to 1", "denoise": f"2 to {MAX_BATCH}"}
    for name in GRAPHS:
        assert f"graph {name}, fp32, batch {batches.get(name, f'1 to {MAX_BATCH // 2}')}, tensorrt-rtx" in out
    assert cli.run([*build, "--graph", "text", "--no-build"]) == 0


def test_bundles_of_one_base_share_their_engines_whatever_words_they_have(exported: dict[str, Path]) -> None:
    with open_bundle(exported["base"]) as base, open_bundle(exported["embedding"]) as embedding:
        assert [model_hash(base, name) for name in GRAPHS] == [model_hash(embedding, name) for name in GRAPHS]
    with open_bundle(exported["inpainting"]) as other, open_bundle(exported["base"]) as base:
        assert model_hash(other, "denoise") != model_hash(base, "denoise")


# ---- diffusers -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_drawing_with_graphs_is_the_inpainting_pipeline_of_diffusers(
    exported: dict[str, Path], made_runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step, from the same noise. Its autoencoder is given the mean where it would draw a sample."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    base, run = open_base(made_runs["filler"]), read_synthesis_run(made_runs["inpainting"])
    head = synth_head(exported["inpainting"])
    image = tiny_images(1, seed=9)
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[4:10, 6:14] = True  # of whole latent cells
    noise = draw_noise(1, "inpaint", head.sampling, head.latents)[None]
    tokens = base.prompts.tokens(["There is a stain in the center of the image", ""], WIDTH)
    text_inputs = {"tokens": tokens.tokens, "vectors": tokens.vectors, "placed": tokens.placed}
    with torch.no_grad():
        conditional, empty = base.text(*(torch.from_numpy(value) for value in text_inputs.values())).split(1)

    expected, expected_image = fill_box(
        base.autoencoder, restore_unet(base, run), image, mask, noise[:, 0], (conditional, empty)
    )

    with open_bundle(exported["inpainting"]) as bundle:
        calls = GraphCalls(bundle.manifest.graphs, bundle.path)
        context = calls("text", text_inputs)[::-1]
        keep = keep_of(mask, head.latents[1:])[None]
        pixels = signed(image)
        clean = calls("encode", {"image": pixels})
        beside = [1.0 - keep, calls("encode", {"image": pixels * (~mask).astype(np.float32)})]

        def predict(x: Any, timestep: int) -> Any:
            x = np.concatenate([np.concatenate([x, *beside], axis=1)] * 2)
            both = calls("denoise", {"x": x, "timestep": np.full(2, timestep), "context": context})
            return classifier_free_guidance(both[1:], both[:1], head.guidance)

        latents_by_step: list[Any] = []
        latents = draw_latents(
            "inpaint", clean, keep, noise, head.sampling, predict, told=lambda _, x: latents_by_step.append(x.copy())
        )
        drawn = unsigned(calls("decode", {"latents": latents}))
        calls.close()
    assert len(latents_by_step) == len(expected) == 20
    for value, reference in zip(latents_by_step, expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-4, atol=1e-4)
    assert measure_images(expected_image, drawn) >= 50.0
    assert measure_images(image, drawn) < 40.0  # something was drawn


# ---- The gate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "factor"), [("denoise", 1.3), ("text", -3.0)])
def test_graphs_that_draw_otherwise_than_torch_are_not_written(
    made_runs: dict[str, Path], once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, factor: float
) -> None:
    right = generator_export.synthesis_graph

    def wrong(name: str, *arguments: Any) -> onnx.ModelProto:
        model = right(name, *arguments)
        if name == network:
            output = model.graph.output[0].name
            for node in model.graph.node:
                node.output[:] = ["exact" if tensor == output else tensor for tensor in node.output]
                node.input[:] = ["exact" if tensor == output else tensor for tensor in node.input]
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(factor), "factor"))
            model.graph.node.append(onnx.helper.make_node("Mul", ["exact", "factor"], [output]))
            del model.graph.value_info[:]
        return model

    monkeypatch.setattr(generator_export, "synthesis_graph", wrong)
    message = r"parity: images drawn by the graphs .* expected a PSNR of at least 50 dB, got \d+\.\d dB\. No bundle was"
    with pytest.raises(GateError, match=message):
        export_synthesis(made_runs["embedding"], tmp_path / "b.flaw", max_batch=MAX_BATCH)
    assert list(tmp_path.iterdir()) == []


def test_weights_too_large_for_one_message_lie_beside_their_graph(
    made_runs: dict[str, Path], exported: dict[str, Path], once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator_export, "INLINE_LIMIT", 20_000)
    manifest = export_synthesis(made_runs["embedding"], tmp_path / "large.flaw", max_batch=MAX_BATCH)
    assert {"denoise.onnx.data", "text.onnx.data"} <= manifest.files.keys()
    assert "encode.onnx.data" not in manifest.files
    inputs = some_inputs(example_inputs(open_base(made_runs["base"]))["denoise"], 2)
    with open_bundle(exported["embedding"]) as small, open_bundle(tmp_path / "large.flaw") as large:
        inline_output, external_output = (
            GraphCalls(bundle.manifest.graphs, bundle.path)("denoise", inputs) for bundle in (small, large)
        )
    np.testing.assert_array_equal(inline_output, external_output)


# ---- Words from files ------------------------------------------------------------------------------------------------


def test_a_word_from_a_file_is_a_defect_of_the_bundle(
    made_runs: dict[str, Path], once: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write_word(tmp_path / "a", category="bottle", defect="crack"), write_word(tmp_path / "b")]
    out = tmp_path / "words.flaw"
    options = ["--embedding", f"broken={files[0]}", "--embedding", f"leather/poke={files[1]}"]
    assert cli.run(["export", str(made_runs["base"]), "--out", str(out), *options, "--max-batch", str(MAX_BATCH)]) == 0
    printed = capsys.readouterr().out
    assert "parity denoise.onnx and the others, cpu against torch, 2 images in 4 steps: at least" in printed
    assert "draws: bottle/broken, leather/poke; licence of the base: own" in printed
    assert [(defect.category, defect.name, defect.texts, defect.vectors) for defect in synth_head(out).defects] == [
        ("bottle", "broken", ("*",), "vectors.bottle/broken"),
        ("leather", "poke", ("*",), "vectors.leather/poke"),
    ]
    with open_bundle(out) as bundle:
        tensors = bundle.tensors()
    np.testing.assert_array_equal(tensors["vectors.bottle/broken"], safetensors.numpy.load_file(files[0])["*"])


def test_a_word_is_added_to_those_of_a_run(made_runs: dict[str, Path], once: Any, tmp_path: Path) -> None:
    added = [("scratch", write_word(tmp_path / "w"))]
    manifest = export_synthesis(made_runs["embedding"], tmp_path / "b.flaw", embeddings=added, max_batch=MAX_BATCH)
    head = manifest.head
    assert isinstance(head, SynthHead)
    assert [f"{defect.category}/{defect.name}" for defect in head.defects] == [
        *(f"{CATEGORY}/{name}" for name in DEFECTS),
        f"{CATEGORY}/scratch",  # of the category that the run is of
    ]


# ---- Bases -----------------------------------------------------------------------------------------------------------


def test_a_base_may_lie_elsewhere_than_when_the_run_was_trained(
    made_runs: dict[str, Path], once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(made_runs["embedding"], tmp_path / "run"))
    record = json.loads((run / "run.json").read_bytes())
    record["config"]["base"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(record), "utf-8")
    with pytest.raises(RunError, match=r"expected its base in .*gone, .* Name the folder of the base with --base DIR"):
        export_synthesis(run, tmp_path / "b.flaw")
    with pytest.raises(RunError, match=r"expected the base that it was trained on .* with another"):
        export_synthesis(run, tmp_path / "b.flaw", base=made_runs["filler"])
    moved = Path(shutil.copytree(made_runs["base"], tmp_path / "moved"))
    manifest = export_synthesis(run, tmp_path / "b.flaw", base=moved, max_batch=MAX_BATCH)
    assert manifest.method == "embedding"
    with pytest.raises(ArgumentError, match=r"--base: expected it with a run that has one, got it with the base"):
        export_synthesis(moved, tmp_path / "c.flaw", base=made_runs["base"])


def test_a_folder_of_stable_diffusion_is_a_base(
    made_runs: dict[str, Path], once: dict[Any, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    base = open_base(made_runs["base"])
    parts: dict[str, Any] = {"unet": base.unet, "vae": base.autoencoder, "text_encoder": base.text.model}
    folder = tmp_path / "model"
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    vocabulary = [
        "<|startoftext|>",
        "<|endoftext|>",
        *(f"{letter}{end}" for letter in "aot*ph" for end in ("", "</w>")),
    ]
    (tmp_path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(vocabulary)}), "utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True, model_max_length=77)
    tokenizer.save_pretrained(folder / "tokenizer")
    traced = len(once)
    out = tmp_path / "b.flaw"
    assert cli.run(["export", str(folder), "--out", str(out), "--max-batch", str(MAX_BATCH)]) == 0
    assert len(once) == traced  # the networks of the run, read back from the folder
    with open_bundle(out) as bundle:
        manifest = bundle.manifest
    head = synth_head(out)
    assert (manifest.method, manifest.provenance.run, head.mode) == ("base", open_base(folder).identity, "blend")
    assert (head.defects, head.support, head.parity[0].images) == ((), (), 2)
    assert "draws: what a text says, no learned defects; licence of the base: unknown" in capsys.readouterr().out


# ---- The command line ------------------------------------------------------------------------------------------------


def test_what_scores_refuses_a_bundle_that_draws(
    exported: dict[str, Path], tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BundleError, match="expected a bundle that scores, got one that draws defects"):
        Inspector.load(exported["embedding"], "cpu")
    message = "expected a bundle that scores, got one that draws defects. Use flawscope synth generate."
    data = ("--data", tiny_root, "--category", CATEGORY)
    image = next((tiny_root / CATEGORY / "train" / "good").glob("*.png"))
    for command in (("score", image), ("evaluate", *data), ("calibrate", *data)):
        verb, *rest = command
        assert message in refused(capsys, verb, exported["embedding"], *rest)


def test_bundle_info_and_verify_know_what_draws(
    exported: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bundle", "info", str(exported["inpainting"])]) == 0
    lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert "method inpainting, seed 0, category steel" in lines
    assert "draws inpaint, 20 steps, guidance 3.5, the window around a box, at most 40% of it" in lines
    assert "latents 4 channels of 8x8" in lines
    assert "licence own" in lines
    assert "support 4 images that it was trained on" in lines
    assert any(line.startswith("parity denoise.onnx and the others, cpu against torch: at least ") for line in lines)
    (stain,) = (line for line in lines if line.startswith("defect steel/stain"))
    assert "{location}" in stain
    assert stain.endswith("and 3 more texts")
    assert not any(line.startswith("thresholds") for line in lines)
    assert cli.run(["bundle", "verify", str(exported["embedding"])]) == 0
    packed = tmp_path / "packed.flaw"
    assert cli.run(["bundle", "pack", str(exported["embedding"]), "--out", str(packed)]) == 0
    assert cli.run(["bundle", "verify", str(packed)]) == 0
    assert synth_head(packed) == synth_head(exported["embedding"])
