"""Runs of generators: written, read back, refused; and the trainings on a support set from end to end."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
from error_lines import reason
from interrupted import killed_at_checkpoint
from tiny_base import SIDE, write_tiny_base_run
from tiny_dataset import CATEGORY, DEFECTS, normal_images, training_images

from flawscope import cli
from flawscope.config import AdaptedConfig, EmbeddingConfig, PatchcoreConfig, build_config, from_flat
from flawscope.datasets import Dataset, content_hash, open_dataset
from flawscope.datasets.defects.descriptions import write_descriptions
from flawscope.datasets.defects.support_set import find_support, read_support, write_support
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.runs import LearnedDefect, SynthesisRecord, run_kind
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.synthesis.base_model import open_base, restore_base
from flawscope.training.synthesis.generator_run import GeneratorFitResult, read_synthesis_run, write_synthesis_run
from flawscope.training.synthesis.generator_training import train_synthesis
from flawscope.training.synthesis.lora import restore_unet

pytestmark = pytest.mark.long

RECORD = SynthesisRecord(
    kind="embedding",
    config=from_flat(EmbeddingConfig, {"base": "base", "support": "support"}),
    category=CATEGORY,
    layout="mvtec",
    dataset="0" * 64,
    training=("1" * 64,),
    base="2" * 64,
    licence="own",
    defects=(LearnedDefect(CATEGORY, "stain", ("*",), True, 3),),
    networks={"rank": 4},
    facts={"epochs": 1, "error": 0.5, "kind": "small"},
    seconds={"fitting": 1.5},
    versions={"torch": "2"},
    created="2026-01-01T00:00:00+00:00",
    command="flawscope train embedding",
    flawscope="0",
)


# ---- Files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path, tiny_root: Path) -> Path:
    workspace = tmp_path / "notes"
    for part in (".", f"{CATEGORY}/stain"):
        (workspace / part / "previews").mkdir(parents=True)
        (workspace / part / "checkpoints").mkdir()
        (workspace / part / "metrics.jsonl").write_text(f'{{"part": "{part}"}}\n')
        (workspace / part / "previews" / "epoch_0001.png").write_bytes(b"png")
    vectors = torch.arange(6.0).reshape(3, 2).T  # not as it lies in memory
    fitted = GeneratorFitResult(
        {"vectors": {f"{CATEGORY}/stain": vectors}, "lora": {"a.b.c": torch.ones(1)}}, {}, tokenizer=b"{}"
    )
    support = {f"support/{CATEGORY}/stain/x.png": normal_images(tiny_root)[0]}
    out = tmp_path / "run"
    write_synthesis_run(out, RECORD, fitted, training_images(tiny_root)[:2], workspace, support)
    return out


def test_a_run_is_read_as_it_was_written(written: Path, tiny_root: Path) -> None:
    run = read_synthesis_run(written)
    assert run.record == RECORD
    assert run_kind(written) == "embedding"
    assert {group: sorted(state) for group, state in run.tensors.items()} == {
        "vectors": [f"{CATEGORY}/stain"],
        "lora": ["a.b.c"],
    }
    assert run.tensors["vectors"][f"{CATEGORY}/stain"].tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    for part in (".", f"{CATEGORY}/stain"):
        assert json.loads((written / part / "metrics.jsonl").read_text()) == {"part": part}
        assert (written / part / "previews" / "epoch_0001.png").read_bytes() == b"png"
    assert not list(written.rglob("checkpoints"))
    assert (written / "tokenizer.json").read_bytes() == b"{}"
    copy = written / "support" / CATEGORY / "stain" / "x.png"
    assert copy.read_bytes() == normal_images(tiny_root)[0].read_bytes()
    assert [path.name for path in run.samples] == ["000.png", "001.png"]
    for sample, source in zip(run.samples, training_images(tiny_root), strict=False):
        np.testing.assert_array_equal(cv2.imread(str(sample)), cv2.imread(str(source)))


def test_what_a_run_is_can_be_told_without_reading_it(tmp_path: Path, patchcore_run: Path) -> None:
    assert run_kind(patchcore_run) == "detector"
    assert run_kind(tmp_path) is None
    for content in (b"{", b"\xff", b'{"kind": 3}', b"[]"):
        (tmp_path / "run.json").write_bytes(content)
        assert run_kind(tmp_path) is None


def test_broken_runs_are_refused_in_a_line(written: Path, tmp_path: Path, patchcore_run: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere: expected a run with run\.json, got none") as raised:
        read_synthesis_run(tmp_path / "nowhere")
    reason(raised)
    with pytest.raises(RunError, match="expected a run of train base, embedding, inpainting, got that of a detector"):
        read_synthesis_run(patchcore_run)
    with pytest.raises(RunError, match="expected the run of a detector, got one of train embedding") as raised:
        read_run(written)
    reason(raised)
    safetensors.torch.save_file({"vectors.x": torch.tensor([math.inf])}, written / "weights.safetensors")
    with pytest.raises(RunError, match=r"vectors\.x: expected finite numbers") as raised:
        read_synthesis_run(written)
    reason(raised)
    (written / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"weights\.safetensors: expected the weights of the run") as raised:
        read_synthesis_run(written)
    reason(raised)
    path = written / "run.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 3'))
    with pytest.raises(RunError, match="expected run schema 2 or older, got 3") as raised:
        read_synthesis_run(written)
    reason(raised)
    path.write_text(path.read_text().replace('"schema": 3', '"schema": 2, "more": 1'))
    with pytest.raises(RunError, match="is no run of this version") as raised:
        read_synthesis_run(written)
    reason(raised)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("tokenizer", "expected a complete run of train base"),
        ("settings", "expected a complete run of train base"),
        ("unet", r"unet: expected the \d+ tensors"),
        ("autoencoder", r"autoencoder: expected the \d+ tensors"),
        ("channels", "expected settings of a UNet and a text encoder"),
    ],
)
def test_broken_runs_of_a_base_are_refused_in_a_line(tmp_path: Path, broken: str, message: str) -> None:
    run = write_tiny_base_run(tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    tensors = safetensors.torch.load_file(run / "weights.safetensors")
    if broken == "tokenizer":
        (run / "tokenizer.json").unlink()
    elif broken == "settings":
        del record["networks"]["pad"]
    elif broken == "channels":
        record["networks"]["unet"]["block_out_channels"] = [8]
    else:
        tensors.pop(next(name for name in tensors if name.startswith(broken)))
    (run / "run.json").write_text(json.dumps(record))
    safetensors.torch.save_file(tensors, run / "weights.safetensors")
    with pytest.raises(RunError, match=message) as raised:
        open_base(run)
    reason(raised)


def test_a_run_that_is_no_base_is_refused_as_one(written: Path) -> None:
    with pytest.raises(RunError, match="expected a run of train base, got one of train embedding"):
        restore_base(read_synthesis_run(written))


# ---- Trainings on a support set --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tiny_root: Path) -> Dataset:
    return open_dataset(tiny_root, CATEGORY)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> dict[str, Path]:
    """Two bases and a support set."""
    root = tmp_path_factory.mktemp("places")
    write_support(dataset, root / "support", shots=2, split="test")
    return {
        "embedding": write_tiny_base_run(root / "base"),
        "inpainting": write_tiny_base_run(root / "inpainting", inpainting=True),
        "support": root / "support",
    }


def config(method: str, places: dict[str, Path], **changes: object) -> AdaptedConfig:
    plain = {"resize": SIDE, "epochs": 1, "repeats": 1, "base": str(places[method]), "support": str(places["support"])}
    settings = build_config(method, {**plain, **changes})[0]
    assert isinstance(settings, AdaptedConfig)
    return settings


@pytest.fixture(scope="module")
def adapted(
    tmp_path_factory: pytest.TempPathFactory, places: dict[str, Path], dataset: Dataset
) -> dict[str, tuple[Path, SynthesisRecord]]:
    root = tmp_path_factory.mktemp("adapted")
    defects = {"embedding": (), "inpainting": DEFECTS[:1]}
    return {
        method: (root / method, train_synthesis(config(method, places, defects=chosen), dataset, root / method))
        for method, chosen in defects.items()
    }


@pytest.mark.parametrize("method", ["embedding", "inpainting"])
def test_a_run_has_what_it_learned_from(
    adapted: dict[str, tuple[Path, SynthesisRecord]],
    places: dict[str, Path],
    dataset: Dataset,
    method: str,
) -> None:
    out, record = adapted[method]
    learned = DEFECTS if method == "embedding" else DEFECTS[:1]
    assert read_synthesis_run(out).record == record
    assert record.kind == method
    assert record.base == open_base(places[method]).identity
    assert record.licence == open_base(places[method]).licence
    assert [
        (learned_defect.category, learned_defect.name, learned_defect.pictures) for learned_defect in record.defects
    ] == [(CATEGORY, defect, 2) for defect in learned]
    originals = {content_hash(sample.path) for sample in dataset.samples if sample.defect in learned}
    assert len(record.training) == 2 * len(learned)
    assert set(record.training) < originals
    support = places["support"]
    copied = sorted(path.relative_to(out / "support").as_posix() for path in (out / "support").rglob("*.png"))
    folders = [f"{CATEGORY}/{defect}{end}" for defect in learned for end in ("", "_mask")]
    assert copied == sorted(
        path.relative_to(support).as_posix() for folder in folders for path in (support / folder).glob("*.png")
    )
    assert all((out / "support" / folder).read_bytes() == (support / folder).read_bytes() for folder in copied)
    assert (out / "support.json").read_bytes() == (support / "support.json").read_bytes()
    assert len(list((out / "samples").glob("*.png"))) == 8
    assert list(out.rglob("metrics.jsonl"))
    assert not out.with_name(f"{out.name}.training").exists()


def test_vectors_and_changes_are_among_the_weights(
    adapted: dict[str, tuple[Path, SynthesisRecord]], places: dict[str, Path]
) -> None:
    vectors = read_synthesis_run(adapted["embedding"][0]).tensors["vectors"]
    assert {name: tuple(value.shape) for name, value in vectors.items()} == {
        f"{CATEGORY}/{defect}": (1, 8) for defect in DEFECTS
    }
    base, run = open_base(places["inpainting"]), read_synthesis_run(adapted["inpainting"][0])
    assert set(run.tensors) == {"lora", "vectors"}  # the base is small, so each defect type has a vector
    assert restore_unet(base, run).config.in_channels == 9


def test_what_a_training_needs_is_said_first(tmp_path: Path, places: dict[str, Path], dataset: Dataset) -> None:
    out = tmp_path / "run"
    for method, changes, message in (
        ("embedding", {"base": None}, r"base: expected a run of train base, .* --set base=RUN"),
        ("inpainting", {"support": None}, r"support: expected a folder of synth support, .* --set support=FOLDER"),
        ("embedding", {"base": str(places["inpainting"])}, "draws whole images, got an inpainting network"),
        ("inpainting", {"base": str(places["embedding"])}, "base: expected an inpainting network"),
        ("embedding", {"resize": 32}, r"resize: expected \[16, 16\]"),
        ("embedding", {"defects": ["rust"]}, "defects: expected some of"),
    ):
        with pytest.raises(ArgumentError, match=message) as raised:
            train_synthesis(config(method, places, **changes), dataset, out)
        reason(raised)
    with pytest.raises(ArgumentError, match="settings of a generator, got PatchcoreConfig"):
        train_synthesis(PatchcoreConfig(), dataset, out)
    assert list(tmp_path.iterdir()) == []


def test_a_support_set_of_another_dataset_is_refused(tmp_path: Path, tiny_root: Path, places: dict[str, Path]) -> None:
    root = Path(shutil.copytree(tiny_root, tmp_path / "data"))
    dataset = open_dataset(root, CATEGORY)
    path = dataset.root / json.loads((places["support"] / "support.json").read_text())["pictures"][0]["source"]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"support: expected images of .*, got 1 that are not in it") as raised:
        train_synthesis(config("embedding", places), dataset, tmp_path / "run")
    reason(raised)


def test_a_training_does_not_go_on_with_another_base(tmp_path: Path, places: dict[str, Path], dataset: Dataset) -> None:
    base = Path(shutil.copytree(places["embedding"], tmp_path / "base"))
    settings = config("embedding", places, base=str(base), defects=DEFECTS[:1])
    with killed_at_checkpoint():
        train_synthesis(settings, dataset, tmp_path / "run")
    tensors = safetensors.torch.load_file(base / "weights.safetensors")
    before = (base / "weights.safetensors").read_bytes()
    tensors["unet.conv_in.bias"] += 1.0
    safetensors.torch.save_file(tensors, base / "weights.safetensors")
    with pytest.raises(ArgumentError, match="expected the weights that the training was begun with, got other"):
        train_synthesis(settings, dataset, tmp_path / "run", resume=True)
    (base / "weights.safetensors").write_bytes(before)
    record = train_synthesis(settings, dataset, tmp_path / "run", resume=True)
    assert msgspec.structs.asdict(record)["base"] == open_base(base).identity


def test_a_training_does_not_go_on_with_other_descriptions(
    tmp_path: Path, places: dict[str, Path], dataset: Dataset
) -> None:
    support = write_support(dataset, tmp_path / "support", shots=2, split="test")
    write_descriptions(dataset, find_support(dataset, support), tmp_path / "described")
    named = {"support": str(tmp_path / "support"), "descriptions": str(tmp_path / "described")}
    settings = config("inpainting", places, **named, defects=DEFECTS[:1])
    with killed_at_checkpoint():
        train_synthesis(settings, dataset, tmp_path / "run")
    path = tmp_path / "described" / CATEGORY / f"{CATEGORY}_train.jsonl"
    lines = path.read_text().splitlines()
    number = next(index for index, line in enumerate(lines) if json.loads(line)["defect"] == DEFECTS[0])
    other = json.loads(lines[number])
    other["text"][0] += " Indeed."
    box = tmp_path / "described" / other["mask"]
    before = box.read_bytes()
    for is_text in (True, False):
        if is_text:
            path.write_text("\n".join([*lines[:number], json.dumps(other), *lines[number + 1 :]]) + "\n")
        else:
            path.write_text("\n".join(lines) + "\n")
            larger = cv2.dilate(np.asarray(cv2.imread(str(box), cv2.IMREAD_GRAYSCALE)), np.ones((3, 3), np.uint8))
            assert cv2.imwrite(str(box), larger)
        with pytest.raises(ArgumentError, match="expected the descriptions that the training was begun with") as raised:
            train_synthesis(settings, dataset, tmp_path / "run", resume=True)
        reason(raised)
    box.write_bytes(before)
    record = train_synthesis(settings, dataset, tmp_path / "run", resume=True)
    assert len(record.defects[0].texts) > 0


def test_words_are_learned_from_a_support_set_without_a_record(
    tmp_path: Path, tiny_root: Path, places: dict[str, Path], dataset: Dataset
) -> None:
    folder = tmp_path / "train_images" / CATEGORY
    for source, name in (("test", DEFECTS[1]), ("ground_truth", f"{DEFECTS[1]}_mask")):
        shutil.copytree(tiny_root / CATEGORY / source / DEFECTS[1], folder / name)
    settings = config("embedding", places, support=str(folder.parent), epochs=1, repeats=1)
    record = train_synthesis(settings, dataset, tmp_path / "run")
    assert [defect.name for defect in record.defects] == [DEFECTS[1]]
    kept = read_support(tmp_path / "run")
    assert kept == read_support(folder.parent)
    assert set(record.training) == kept.contents
    for image in kept.pictures:
        assert (tmp_path / "run" / "support" / image.picture).is_file()


def test_words_are_learned_from_the_command_line(
    tmp_path: Path, tiny_root: Path, places: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "embedding", "--data", str(tiny_root), "--category", CATEGORY, "--image-size", str(SIDE)]
    named = [f"--set=base={places['embedding']}", f"--set=support={places['support']}", f"--set=defects={DEFECTS[1]}"]
    out = tmp_path / "run"
    assert cli.run([*command, *named, "--set=epochs=1", "--set=repeats=1", "--out", str(out)]) == 0
    assert f"embedding trained on 2 images of 1 defect type of {CATEGORY} in" in capsys.readouterr().out
    assert cli.run([*command, "--out", str(out)]) == 2
    assert "expected a new name, got an earlier output" in capsys.readouterr().err
    assert cli.run([*command, "--out", str(tmp_path / "other")]) == 2
    assert "base: expected a run of train base" in capsys.readouterr().err
