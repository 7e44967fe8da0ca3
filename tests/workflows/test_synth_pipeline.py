"""One command from a support set to drawn defects: what it leaves, what it continues, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_base import SIDE, write_tiny_base_run
from tiny_dataset import CATEGORY, DEFECTS, training_images

from flawscope import cli
from flawscope.datasets import open_dataset
from flawscope.datasets.defects.support_set import write_support
from flawscope.training.synthesis.generator_run import read_synthesis_run

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> dict[str, Path]:
    """Two bases and a support set."""
    root = tmp_path_factory.mktemp("places")
    write_support(open_dataset(tiny_root, CATEGORY), root / "support", shots=2, split="test")
    return {
        "embedding": write_tiny_base_run(root / "base"),
        "inpainting": write_tiny_base_run(root / "inpainting", inpainting=True),
        "support": root / "support",
    }


def call(method: str, root: Path, out: Path, *more: str) -> int:
    return cli.run(["pipeline", method, "--data", str(root), "--category", CATEGORY, "--out", str(out), *more])


def of(method: str, places: dict[str, Path]) -> list[str]:
    named = {"base": places[method], "support": places["support"], "resize": SIDE, "epochs": 1, "repeats": 1}
    return [part for key, value in named.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.parametrize("method", ["embedding", "inpainting"])
@pytest.mark.slow
def test_a_support_set_becomes_a_bundle_and_drawings_with_their_sheet(
    tmp_path: Path, tiny_root: Path, places: dict[str, Path], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    # Whether the tiny networks draw anything that the filter takes is not asked here: status 1 says they did not.
    status = call(method, tiny_root, out, *of(method, places), "--draw", "2")
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == [
        "train",
        "export",
        "places",
        "drawing",
        "pipeline",
    ]
    record = json.loads((out / "drawn" / "generate.json").read_text())
    assert record["summary"]["pictures"] == 2 * len(DEFECTS)
    assert status == int(any(defect["accepted"] == 0 for defect in record["defects"].values()))
    assert {path.name for path in out.iterdir()} == {"run", f"{CATEGORY}.flaw", "boxes", "drawn"}
    assert (out / "drawn" / "contact_sheet.png").is_file()
    assert read_synthesis_run(out / "run").record.kind == method
    assert cli.run(["bundle", "verify", str(out / f"{CATEGORY}.flaw")]) == 0
    capsys.readouterr()
    # Nothing is replaced unasked; the run is used again where that is asked for, and other settings are refused.
    assert call(method, tiny_root, out, *of(method, places)) == 2
    assert "expected a new name, got an earlier output" in capsys.readouterr().err
    assert call(method, tiny_root, out, "--skip", "train", "--set", "epochs=2") == 2
    assert "epochs: expected the setting of" in capsys.readouterr().err
    assert call(method, tiny_root, out, "--skip", "train", "--draw", "1") in (0, 1)
    assert capsys.readouterr().out.splitlines()[0].split()[:2] == ["train", "skipped"]
    record = json.loads((out / "drawn" / "generate.json").read_text())
    assert record["summary"]["pictures"] == len(DEFECTS)


@pytest.mark.slow  # the other generators go the same way
def test_a_base_redraws_normal_material_at_masks(
    tmp_path: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_tiny_base_run(out / "run")
    (out / "run" / "samples").mkdir(exist_ok=True)
    for number, image in enumerate(training_images(tiny_root)[:2]):
        shutil.copyfile(image, out / "run" / "samples" / f"{number:03d}.png")
    assert call("base", tiny_root, out, "--resume", "latest") == 2
    assert "expected an unfinished training to go on with, got a finished run" in capsys.readouterr().err
    assert call("base", tiny_root, out, "--skip", "train", "--draw", "3") in (0, 1)
    assert "the base knows no defect and redraws normal material" in capsys.readouterr().out
    record = json.loads((out / "drawn" / "generate.json").read_text())
    assert record["summary"]["pictures"] == 3
    assert {path.name for path in out.iterdir()} == {"run", f"{CATEGORY}.flaw", "masks", "drawn"}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--false-reject-rate", "0.1"], "--false-reject-rate: expected none with embedding, which scores no images"),
        (["--skip", "evaluation"], "--skip evaluation: expected none with embedding"),
        (["--budget-ms", "5"], "--budget-ms: expected none with embedding"),
        (["--no-drawn-check"], "--no-drawn-check: expected none with embedding"),
        (["--draw", "0"], "draw: expected a whole number from 1"),
        (["--skip", "train"], "expected a run with run.json, got none"),
        (["--set", "defects=rust"], "defects: expected some of"),
    ],
)
def test_what_a_generator_has_no_use_for_is_one_line(
    tmp_path: Path,
    tiny_root: Path,
    places: dict[str, Path],
    typed: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("embedding", tiny_root, tmp_path / "out", *of("embedding", places), *typed) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_detector_draws_nothing(tmp_path: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("patchcore", tiny_root, tmp_path / "out", "--draw", "3") == 2
    assert "--draw: expected it with base, embedding or inpainting, got it with patchcore" in capsys.readouterr().err
