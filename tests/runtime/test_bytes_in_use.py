"""What was verified is what runs: nothing that happens to a bundle's files after loading changes a decision."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from flawscope.bundle import open_bundle, pack_bundle, rewrite_manifest
from flawscope.errors import BundleError, DeviceError
from flawscope.runtime import Inspector, ready_scorer

FORMS = ("folder", "packed")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(loaded_case: tuple[Path, str], form: str, tmp_path: Path) -> Iterator[tuple[Inspector, Path]]:
    """An inspector of a copy of a bundle, and the copy."""
    source, path = loaded_case
    copy = tmp_path / "part.flaw"
    if form == "folder":
        shutil.copytree(source, copy)
    else:
        with open_bundle(source) as bundle:
            pack_bundle(bundle, copy)
    with Inspector.load(copy, "cpu", path) as inspector:
        yield inspector, copy


@pytest.fixture(params=[("padim", "graph"), ("padim", "kernel"), ("patchcore", "graph"), ("patchcore", "kernel")])
def loaded_case(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> tuple[Path, str]:
    method, path = request.param
    return bundles[method], path


def files_below(copy: Path) -> list[Path]:
    return [copy] if copy.is_file() else [file for file in copy.rglob("*") if file.is_file()]


def overwrite(copy: Path) -> None:
    # In place: the same inode, as `cp` writes. A mapped file would change in memory.
    for file in files_below(copy):
        with file.open("r+b") as opened:
            opened.write(bytes(file.stat().st_size))


def truncate(copy: Path) -> None:
    # Reading a mapped file beyond its end kills the process (SIGBUS).
    for file in files_below(copy):
        os.truncate(file, 0)


def remove(copy: Path) -> None:
    shutil.rmtree(copy) if copy.is_dir() else copy.unlink()


def batch(inspector: Inspector) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (2, *inspector.manifest.input.size, 3), np.uint8)


@pytest.mark.parametrize("happens", [overwrite, truncate, remove])
def test_scores_stay_whatever_happens_to_the_files(pair: tuple[Inspector, Path], happens: Any) -> None:
    inspector, copy = pair
    before = [array.tobytes() for array in inspector.infer(batch(inspector))]
    happens(copy)
    assert [array.tobytes() for array in inspector.infer(batch(inspector))] == before


@pytest.mark.parametrize("happens", [overwrite, truncate, remove])
def test_a_device_is_reopened_from_the_same_memory(pair: tuple[Inspector, Path], happens: Any) -> None:
    inspector, copy = pair
    before = [array.tobytes() for array in inspector.infer(batch(inspector))]
    happens(copy)
    lose_device(inspector)
    with pytest.raises(DeviceError):
        inspector.infer(batch(inspector))
    assert [array.tobytes() for array in inspector.infer(batch(inspector))] == before


def lose_device(inspector: Inspector) -> None:
    def lost(images: object) -> object:
        raise DeviceError("backend cpu: the device failed")

    inspector.scorer.score = lost  # type: ignore[method-assign, assignment]


def test_a_reopened_device_that_computes_something_else_makes_faults(
    padim_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ready_scorer.open_scorer

    def other(*arguments: Any) -> Any:
        scorer = real(*arguments)
        score = scorer.score
        monkeypatch.setattr(scorer, "score", lambda images: tuple(array * 0 for array in score(images)))
        return scorer

    with Inspector.load(padim_bundle, "cpu") as inspector:
        image = np.zeros((64, 64, 3), np.uint8)
        monkeypatch.setattr(ready_scorer, "open_scorer", other)
        lose_device(inspector)
        results = [inspector(image) for _ in range(4)]
        assert [result.decision for result in results] == ["fault"] * 4
        assert "golden image" in str(results[-1].reason)
        monkeypatch.setattr(ready_scorer, "open_scorer", real)
        assert inspector(image).decision != "fault"  # the next call tries again


def test_a_service_may_change_its_folder(padim_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(padim_bundle.parent)
    with Inspector.load(padim_bundle.name, "cpu") as inspector:
        before = [array.tobytes() for array in inspector.infer(batch(inspector))]
        monkeypatch.chdir(tmp_path)
        lose_device(inspector)
        with pytest.raises(DeviceError):
            inspector.infer(batch(inspector))
        assert [array.tobytes() for array in inspector.infer(batch(inspector))] == before


def test_a_closed_inspector_never_decides_again(padim_bundle: Path) -> None:
    inspector = Inspector.load(padim_bundle, "cpu")
    inspector.close()
    results = [inspector(np.zeros((64, 64, 3), np.uint8)) for _ in range(3)]
    assert [result.decision for result in results] == ["fault"] * 3
    assert all("the inspector was closed" in str(result.reason) for result in results)
    with pytest.raises(BundleError, match="the inspector was closed"):
        inspector.infer(np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(BundleError, match="the inspector was closed"):
        inspector.check_reconstructs()


@pytest.mark.parametrize(
    ("maps", "scores"),
    [
        (np.zeros((1, 0, 0), np.float32), np.zeros(1, np.float32)),
        (np.zeros((1, 64, 64), np.float64), np.zeros(1, np.float32)),
        (np.zeros((1, 64, 32), np.float32), np.zeros(1, np.float32)),
        (np.zeros((2, 64, 64), np.float32), np.zeros(2, np.float32)),
        (np.zeros((1, 64, 64), np.float32), np.zeros((1, 1), np.float32)),
        (np.zeros((1, 64, 64), np.float32), np.zeros(1, np.int64)),
        ("text", np.zeros(1, np.float32)),
    ],
)
def test_outputs_of_another_shape_or_type_are_a_fault(padim_bundle: Path, maps: Any, scores: Any) -> None:
    with Inspector.load(padim_bundle, "cpu") as inspector:
        inspector.scorer.score = lambda images: (maps, scores)  # type: ignore[method-assign]
        result = inspector(np.zeros((64, 64, 3), np.uint8))
    assert result.decision == "fault"
    assert "graph output" in str(result.reason)


def test_a_bundle_without_golden_images_is_not_loaded(padim_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(padim_bundle, tmp_path / "part.flaw"))
    with open_bundle(copy) as bundle:
        rewrite_manifest(copy, msgspec.structs.replace(bundle.manifest, golden=()))
    with pytest.raises(BundleError, match="expected golden images for fp32, got none"):
        Inspector.load(copy, "cpu")


@pytest.mark.parametrize("error", [TypeError("odd"), MemoryError(), ZeroDivisionError("odd")])
def test_whatever_is_not_foreseen_at_load_is_one_sentence(
    padim_bundle: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def odd(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(ready_scorer, "open_scorer", odd)
    with pytest.raises(BundleError, match=f"could not be made ready: unexpected {type(error).__name__}"):
        Inspector.load(padim_bundle, "cpu")
