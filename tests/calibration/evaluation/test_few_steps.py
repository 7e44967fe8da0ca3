"""Other samplings of a bundle: compared on labelled images, written with what they cost, refused where needed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_dataset import CATEGORY, anomalous_images, normal_images

from flawscope import cli
from flawscope.bundle import DdadHead, Manifest, open_bundle
from flawscope.config import build_config
from flawscope.datasets import open_dataset
from flawscope.export.detectors.detector_export import export_run
from flawscope.runtime import Inspector
from flawscope.training.detectors.detector_training import train_detector

pytestmark = pytest.mark.long

SETTINGS: dict[str, Any] = {
    "backbone": "scattering",
    "resize": 32,
    "stages": [1, 2],
    "widths": [8, 16],
    "layers": 1,
    "epochs": 1,
    "warmup_steps": 1,
    "held_out_minimum": 5,
    "steps": 4,
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    folder = tmp_path_factory.mktemp("sampling")
    train_detector(build_config("ddad", SETTINGS)[0], open_dataset(tiny_root, CATEGORY), folder / "run")
    export_run(folder / "run", folder / "ddad.flaw", max_batch=2)
    return folder / "ddad.flaw"


def manifest_of(path: Path) -> Manifest:
    with open_bundle(path) as opened:
        return opened.manifest


def data(root: Path) -> list[str]:
    return ["--data", str(root), "--category", CATEGORY]


def test_samplings_are_compared_on_the_same_images(
    tiny_root: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["sampling", str(bundle), *data(tiny_root), "--steps", "1,2", "--start", "100,250"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [row[:2] for row in rows[:5]] == [["4", "250"], ["1", "100"], ["2", "100"], ["1", "250"], ["2", "250"]]
    assert rows[0][6] == "+0.0000"
    assert rows[5][0] == "12"
    assert manifest_of(bundle).evidence.sampling == ()  # nothing is written


@pytest.mark.serial
def test_a_bundle_is_written_with_what_fewer_steps_cost(tmp_path: Path, tiny_root: Path, bundle: Path) -> None:
    source = Path(shutil.copytree(bundle, tmp_path / "source.flaw"))
    assert cli.run(["calibrate", str(source), *data(tiny_root)]) == 0
    out = tmp_path / "fast.flaw"
    assert (
        cli.run(["sampling", str(source), *data(tiny_root), "--steps", "2", "--spacing", "trailing", "--out", str(out)])
        == 0
    )
    fast = manifest_of(out)
    assert isinstance(fast.head, DdadHead)
    assert (fast.name, fast.head.sampling.steps, fast.head.sampling.spacing) == ("fast", 2, "trailing")
    assert fast.thresholds is None
    (change,) = fast.evidence.sampling
    assert (change.before.steps, change.after.steps, change.images, change.anomalous) == (4, 2, 12, 6)
    with Inspector.load(out, "cpu") as few, Inspector.load(source, "cpu") as many:  # golden images agree
        images = [*normal_images(tiny_root), *anomalous_images(tiny_root)]
        scores = [result.score for result in few(images)]
        before = [result.score for result in many(images)]
    labels = [False] * len(normal_images(tiny_root)) + [True] * len(anomalous_images(tiny_root))
    assert change.image_auroc == pytest.approx(pairs_won(before, labels))
    assert change.image_auroc + change.image_auroc_change == pytest.approx(pairs_won(scores, labels))
    assert change.milliseconds_after < change.milliseconds


def pairs_won(scores: list[float | None], labels: list[bool]) -> float:
    """Return the AUROC by its definition: how often an anomalous image scores above a normal one."""
    bad = [score for score, label in zip(scores, labels, strict=True) if label and score is not None]
    good = [score for score, label in zip(scores, labels, strict=True) if not label and score is not None]
    won = [(one > other) + 0.5 * (one == other) for one in bad for other in good]
    return sum(won) / len(won)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bundle}"], "Expected --data to compare samplings, or --out to write a bundle"),
        (["{bundle}", "--out", "{out}"], "--out: expected one sampling other than the bundle's, got its own"),
        (["{bundle}", "--out", "{out}", "--steps", "1,2"], "expected one sampling other than the bundle's, got 2"),
        (["{bundle}", "--out", "{out}", "--steps", "few"], "--steps: expected whole numbers with commas"),
        (["{bundle}", "--out", "{out}", "--steps", "0"], "steps: expected 1 to 250"),
        (["{bundle}", "--out", "{out}", "--eta", "1"], "sampling: expected one that takes up to 1 arrays of noise"),
        (["{bundle}", "--data", "{root}", "--eta", "1"], "sampling: expected one that takes up to 1 arrays of noise"),
        (
            ["{patchcore}", "--out", "{out}", "--steps", "2"],
            "expected a bundle that reconstructs images",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_one_line(
    tmp_path: Path,
    tiny_root: Path,
    bundle: Path,
    patchcore_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {
        "bundle": bundle,
        "patchcore": patchcore_bundle,
        "root": tiny_root / CATEGORY,
        "out": tmp_path / "out.flaw",
    }
    assert cli.run(["sampling", *(argument.format(**places) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.flaw").exists()
