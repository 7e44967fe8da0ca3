"""Drawings of a support set as further examples of a generator's training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_base import SIDE, tiny_base, write_tiny_base_run
from tiny_dataset import CATEGORY, DEFECTS

from flawscope import cli
from flawscope.config import build_config
from flawscope.datasets import open_dataset
from flawscope.datasets.defects.descriptions import write_descriptions
from flawscope.datasets.defects.support_set import find_support, read_support, write_support
from flawscope.diffusion.location_words import without_location
from flawscope.errors import ArgumentError, DataError
from flawscope.training.synthesis.drawn_examples import drawn_identity, with_drawn
from flawscope.training.synthesis.generator_run import read_synthesis_run
from flawscope.training.synthesis.generator_training import train_synthesis
from flawscope.training.synthesis.inpainting import InpaintingTask
from flawscope.training.synthesis.support_examples import SupportExamples, describe, read_support_examples

pytestmark = pytest.mark.long

PASTED = 4
"""Images of each defect type."""


@pytest.fixture(scope="module")
def folders(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A support set, and what was pasted from it."""
    folder, dataset = tmp_path_factory.mktemp("sets"), open_dataset(tiny_root, CATEGORY)
    write_support(dataset, folder / "support", shots=2, split="test")
    paste(tiny_root, folder / "support", folder / "pasted")
    return folder / "support", folder / "pasted"


def paste(root: Path, support: Path, out: Path) -> None:
    common = ["--data", str(root), "--category", CATEGORY, "--within", "image"]
    arguments = ["--support", str(support), "--per-defect", str(PASTED), "--out", str(out)]
    assert cli.run(["synth", "paste", *common, *arguments]) == 0


@pytest.fixture(scope="module")
def support(folders: tuple[Path, Path]) -> SupportExamples:
    return read_support_examples(folders[0])


def test_drawings_follow_the_support_images_and_are_none(support: SupportExamples, folders: tuple[Path, Path]) -> None:
    learned = with_drawn(support, [folders[1]], None)
    assert learned.examples[: len(support.examples)] == support.examples == learned.real
    assert len(learned.examples) == len(support.examples) + PASTED * len(DEFECTS)
    assert learned.types == support.types
    for category, defect in support.types:
        assert len(learned.of(category, defect)) == 2 + PASTED
        assert learned.shots(category, defect) == 2
    for example in learned.examples:
        assert example.mask.any()
        assert example.mask.shape == example.image.shape[:2]


@pytest.mark.parametrize("number", [1, 2, 5, 1000])
def test_a_number_of_drawings_is_shared_among_the_types(
    support: SupportExamples, folders: tuple[Path, Path], number: int
) -> None:
    learned = with_drawn(support, [folders[1]], number)
    counts = [len(learned.of(*kind)) - learned.shots(*kind) for kind in support.types]
    assert sum(counts) == min(number, PASTED * len(DEFECTS))
    assert max(counts) - min(counts) <= 1


def test_a_drawing_is_described_as_its_type_at_its_own_place(
    tiny_root: Path, support: SupportExamples, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    learned = with_drawn(support, [folders[1]], None)
    dataset = open_dataset(tiny_root, CATEGORY)
    write_descriptions(dataset, find_support(dataset, read_support(folders[0])), tmp_path / "described")
    for folder in (None, tmp_path / "described"):
        described = describe(learned, folder)
        assert len(described) == len(learned.examples)
        texts: dict[str, set[str]] = {}
        for example, description in zip(learned.examples, described, strict=True):
            assert not (example.mask & ~description.box).any()
            texts.setdefault(example.type, set()).update(map(without_location, description.texts))
        # Sentences of a drawing are those of its type: without their places there are no others.
        of_real = {
            example.type: set(map(without_location, description.texts))
            for example, description in zip(learned.real, described, strict=False)
        }
        assert texts == of_real


def test_a_run_learns_from_drawings_and_keeps_the_support_set_alone(
    tiny_root: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base = write_tiny_base_run(tmp_path / "base", inpainting=True)
    plain: dict[str, Any] = {"resize": SIDE, "epochs": 1, "repeats": 1, "batch_size": 4, "learning_rate": 0.01}
    plain |= {"base": str(base), "support": str(folders[0])}
    dataset = open_dataset(tiny_root, CATEGORY)
    runs = {}
    for name, changes in (("real", {}), ("drawn", {"drawn": [str(folders[1])], "drawn_number": 3})):
        config = build_config("inpainting", {**plain, **changes})[0]
        record = train_synthesis(config, dataset, tmp_path / name)
        runs[name] = read_synthesis_run(tmp_path / name)
        assert record.facts["pictures"] == 2 * len(DEFECTS)
        assert record.facts["drawn_pictures"] == (3 if changes else 0)
        assert [defect.pictures for defect in record.defects] == [2] * len(DEFECTS)
    # What a test has to leave out is the same, and so is what travels with the run.
    assert runs["drawn"].record.training == runs["real"].record.training
    files = [{path.relative_to(run.path) for path in run.path.rglob("support/**/*")} for run in runs.values()]
    assert files[0] == files[1]
    tensors = [run.tensors["lora"] for run in runs.values()]
    assert any(not value.equal(tensors[1][name]) for name, value in tensors[0].items())


def test_a_training_does_not_go_on_with_other_drawings(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[1], tmp_path / "other")
    lines = (tmp_path / "other" / "generated.jsonl").read_text().splitlines()
    (tmp_path / "other" / "generated.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    identities = {drawn_identity([]), drawn_identity([folders[1]]), drawn_identity([tmp_path / "other"])}
    assert len(identities) == 3
    assert "" in identities  # a training without drawings is identified as before there were any


def test_drawings_are_an_example_of_the_task_alone(support: SupportExamples, folders: tuple[Path, Path]) -> None:
    config: Any = build_config("inpainting", {"resize": SIDE})[0]
    learned = with_drawn(support, [folders[1]], None)
    task = InpaintingTask(config, tiny_base(inpainting=True), learned, describe(learned))
    assert len(task.texts.rows) == len(DEFECTS)
    assert np.isfinite(list(task.validate().values())).all()


def test_drawings_that_do_not_fit_are_one_line(
    tiny_root: Path, support: SupportExamples, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"drawn: expected a folder of drawn defects with generated\.jsonl, got none"):
        with_drawn(support, [tmp_path], None)
    dataset = open_dataset(tiny_root, CATEGORY)
    write_support(dataset, tmp_path / "other", shots=2, split="test", seed=9, allow_alike=True)
    paste(tiny_root, tmp_path / "other", tmp_path / "pasted")
    with pytest.raises(DataError, match=r"drawn: expected defects drawn from the support set .* other images"):
        with_drawn(support, [tmp_path / "pasted"], None)
    shutil.copytree(folders[1], tmp_path / "renamed")
    path = tmp_path / "renamed" / "generated.jsonl"
    lines = [{**json.loads(line), "defect": "dent"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"drawn: expected defects of steel/\w+, .* without any"):
        with_drawn(support, [tmp_path / "renamed"], None)
    with pytest.raises(ArgumentError, match="drawn_number: expected null without drawn, got 3"):
        build_config("inpainting", {"drawn_number": 3})
    with pytest.raises(ArgumentError, match="drawn: expected different folders"):
        build_config("embedding", {"drawn": ["a", "a"]})
