"""Export of generators: what is measured, and what is refused in one line before anything is written."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_base import SIDE, tiny_autoencoder, tiny_images
from tiny_dataset import CATEGORY, DEFECTS
from tiny_drawers import WIDTH, refused, write_drawers, write_word

from flawscope.diffusion.reconstruction import signed
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.export.onnx_trace import export_network
from flawscope.export.synthesis import generator_export
from flawscope.export.synthesis.generator_export import export_synthesis
from flawscope.export.synthesis.generator_graphs import SignedEncoder, release_weights
from flawscope.export.synthesis.image_parity import measure_images
from flawscope.training.diffusion.autoencoder import Encoder


@pytest.fixture(scope="module")
def made_runs(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> dict[str, Path]:
    """Kind → run."""
    return write_drawers(tmp_path_factory.mktemp("synthesis"), tiny_root)


@pytest.mark.long
def test_weights_of_a_traced_network_can_be_let_go() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), torch.nn.SiLU())
    weight = weakref.ref(network[0].weight)
    export_network(network, {"x": torch.zeros((1, 2, 4, 4))}, 2, ("y",))
    del network
    release_weights()
    assert weight() is None


@pytest.mark.parametrize("normalization", ["signed", "imagenet"])
def test_latents_of_an_image_in_minus_one_to_one_are_those_of_its_bytes(normalization: Any) -> None:
    encoder = Encoder(tiny_autoencoder(), normalization)
    images = tiny_images(2)
    with torch.no_grad():
        expected = encoder(torch.from_numpy(images)).numpy()
        latents = SignedEncoder(encoder)(torch.from_numpy(signed(images))).numpy()
    np.testing.assert_allclose(latents, expected, rtol=1e-4, atol=1e-5)


def test_the_ratio_of_images_is_that_of_the_worst_one() -> None:
    images = np.full((3, 4, 4, 3), 100, np.uint8)
    assert measure_images(images, images.copy()) == 100.0
    other = images.copy()
    other[1] += 1
    other[2] += 5
    assert measure_images(images, other) == pytest.approx(10 * np.log10(255**2 / 25), rel=1e-12)
    assert measure_images(other, images) == measure_images(images, other)


@given(st.integers(1, 255), st.integers(1, 48))
def test_a_larger_difference_has_a_smaller_ratio(step: int, count: int) -> None:
    images = np.zeros((1, 4, 4, 3), np.uint8)
    nearer, farther = images.copy(), images.copy()
    nearer.reshape(-1)[:count] = step - 1
    farther.reshape(-1)[:count] = step
    assert 0.0 <= measure_images(images, farther) < measure_images(images, nearer) <= 100.0


def test_large_images_have_a_small_largest_batch_unless_one_is_given(
    made_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def stop(name: str, module: object, examples: object, max_batch: int) -> None:
        batches.append(max_batch)
        raise RunError("far enough")

    monkeypatch.setattr(generator_export, "synthesis_graph", stop)
    for large, given_batch in ((SIDE + 1, None), (SIDE, None), (SIDE, 5)):
        monkeypatch.setattr(generator_export, "_LARGE_SIDE_PX", large)
        with pytest.raises(RunError, match="far enough"):
            export_synthesis(made_runs["base"], tmp_path / "b.flaw", max_batch=given_batch)
    assert batches == [16, 2, 5]


@pytest.mark.parametrize(
    ("kind", "name", "width", "message"),
    [
        ("base", "crack", WIDTH + 1, r"expected an embedding of width 8, as the base has it, got 9\. Was it"),
        ("embedding", f"{CATEGORY}/{DEFECTS[0]}", WIDTH, r"expected a defect that is new, got steel/pitting twice"),
        ("base", "a/b/c", WIDTH, r"expected CATEGORY/DEFECT=FILE, .* got 'a/b/c'"),
        ("inpainting", "crack", WIDTH, r"--embedding: expected it with a base or a run of train embedding"),
    ],
)
def test_words_that_do_not_fit_are_refused(
    made_runs: dict[str, Path], tmp_path: Path, kind: str, name: str, width: int, message: str
) -> None:
    file = write_word(tmp_path / "w", width)
    with pytest.raises(ArgumentError, match=message):
        export_synthesis(made_runs[kind], tmp_path / "b.flaw", embeddings=[(name, file)])


def test_a_file_that_is_no_word_is_refused(made_runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"word")
    with pytest.raises(DataError, match="expected a learned word in safetensors"):
        export_synthesis(made_runs["base"], tmp_path / "b.flaw", embeddings=[("crack", tmp_path / "w")])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: shutil.rmtree(run / "samples"), r"expected sample images in samples/, got none"),
        (lambda run: (run / "support.json").unlink(), r"support\.json: expected the record of a support set"),
        (lambda run: shutil.rmtree(run / "support"), r"expected a support image of the run, got none"),
        (lambda run: (run / "run.json").write_text("{}", "utf-8"), r"is no run of this version"),
    ],
)
def test_broken_runs_are_refused_before_anything_is_written(
    made_runs: dict[str, Path], tmp_path: Path, damage: Any, message: str
) -> None:
    run = Path(shutil.copytree(made_runs["embedding"], tmp_path / "run"))
    damage(run)
    with pytest.raises(RunError, match=message):
        export_synthesis(run, tmp_path / "b.flaw")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_without_its_vectors_is_refused(made_runs: dict[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(made_runs["embedding"], tmp_path / "run"))
    safetensors.numpy.save_file({"vectors.other": np.zeros((1, WIDTH), np.float32)}, run / "weights.safetensors")
    with pytest.raises(RunError, match=r"expected vectors of steel/pitting, got none\. Train again\."):
        export_synthesis(run, tmp_path / "b.flaw")


@pytest.mark.parametrize("most", [0, 1, 257])
def test_a_largest_batch_without_room_for_guidance_is_refused(
    made_runs: dict[str, Path], tmp_path: Path, most: int
) -> None:
    with pytest.raises(
        ArgumentError, match=rf"max_batch: expected 2 to 256, since guidance takes two of it, got {most}"
    ):
        export_synthesis(made_runs["base"], tmp_path / "b.flaw", max_batch=most)


@pytest.mark.parametrize(
    "option",
    [
        ("--calibration-data", "parts"),
        ("--modelopt-python", "python"),
        ("--min-spearman", "0.9"),
    ],
)
def test_options_of_what_scores_are_refused_with_what_draws(
    made_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, ...]
) -> None:
    error = refused(capsys, "export", made_runs["embedding"], "--out", tmp_path / "b.flaw", *option)
    assert f"{option[0]}: expected no such option with the generator " in error
    assert ", got it. Leave it out." in error


def test_what_draws_is_neither_served_by_triton_nor_explained(
    made_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for typed in (("export-triton", made_runs["base"], "--out", tmp_path / "models"), ("explain", made_runs["base"])):
        assert "of a detector, got a generator." in refused(capsys, *typed)
    assert not (tmp_path / "models").exists()


def test_options_of_what_draws_are_refused_with_what_scores(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (("--base", "x"), ("--embedding", "a=b")):
        error = refused(capsys, "export", runs["padim"], "--out", tmp_path / "b.flaw", *option)
        assert f"{option[0]}: expected it with a run of embedding, inpainting or base, got it with " in error


def test_other_mistakes_on_the_command_line_are_one_line(
    made_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Missing option '--out'" in refused(capsys, "export", made_runs["base"])
    for text in ("crack", "=file", "crack="):
        error = refused(capsys, "export", made_runs["base"], "--out", tmp_path / "b", "--embedding", text)
        assert f"--embedding: expected DEFECT=FILE or CATEGORY/DEFECT=FILE, got {text!r}." in error


def test_int8_of_what_draws_is_refused(
    made_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, "export", made_runs["base"], "--out", tmp_path / "b.flaw", "--precision", "int8")
    assert "precision: expected fp32 or fp16 for a generator, got int8. Leave it out." in error
