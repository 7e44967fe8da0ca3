"""Upkeep of an exported bundle: images are added and taken out, and both paths agree at every step."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from tiny_dataset import CATEGORY, anomalous_images, normal_images, training_images, write_rgb

from flawscope.bundle import (
    ProductThresholds,
    Threshold,
    Thresholds,
    change_bundle,
    decode_additions,
    open_bundle,
    read_image_hashes,
)
from flawscope.cli import run
from flawscope.config import build_config
from flawscope.datasets import open_dataset
from flawscope.datasets.parts import render
from flawscope.errors import ArgumentError, BundleError
from flawscope.export.detectors.detector_export import export_run
from flawscope.runtime import Inspector
from flawscope.runtime.engines.ensure import model_hash
from flawscope.runtime.upkeep.addition import Addition, add_images
from flawscope.runtime.upkeep.image_patches import patches_of
from flawscope.runtime.upkeep.removal import prune_bank, remove_images
from flawscope.training.detectors.detector_training import train_detector

Answers = tuple[npt.NDArray[np.float64], list[npt.NDArray[np.float32]]]


@pytest.fixture(scope="module")
def new_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Normal images that no bundle has seen."""
    folder = tmp_path_factory.mktemp("new")
    return [write_rgb(folder / f"{index}.png", render(CATEGORY, 0, 5000 + index, 64)[0]) for index in range(8)]


@pytest.fixture(scope="module")
def added(
    patchcore_bundle: Path, new_images: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Addition]:
    """A bundle to which the first four images were added."""
    out = tmp_path_factory.mktemp("added") / "added.flaw"
    return out, add_images(patchcore_bundle, new_images[:4], out, all_good=True)


def scores_of(bundle: Path, images: list[Path], path: str = "kernel") -> Answers:
    with Inspector.load(bundle, "cpu", path) as inspector:
        results = inspector(images)
    maps = [result.anomaly_map for result in results if result.anomaly_map is not None]
    return np.array([result.score for result in results]), maps


def check_paths_agree(bundle: Path, images: list[Path]) -> None:
    kernel, graph = scores_of(bundle, images), scores_of(bundle, images, "graph")
    np.testing.assert_allclose(kernel[0], graph[0], rtol=1e-3)
    for one, other in zip(kernel[1], graph[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3)


def files_of(bundle: Path) -> dict[str, bytes]:
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def test_added_images_become_rows_and_look_more_normal(
    added: tuple[Path, Addition], patchcore_bundle: Path, new_images: list[Path], tiny_root: Path
) -> None:
    out, done = added
    with open_bundle(patchcore_bundle) as before, open_bundle(out) as after:
        old, new = before.manifest, after.manifest
        assert old.upkeep is not None
        assert new.upkeep is not None
        assert new.upkeep.rows == (old.upkeep.rows[0] + done.rows[0],)
        assert new.upkeep.room == (old.upkeep.room[0] - done.rows[0],) == done.room
        assert [(change.number, change.what, change.images) for change in new.upkeep.changes] == [(1, "added", 4)]
        # Every file but the bank is as it was, and no graph was written anew.
        assert {name for name, entry in old.files.items() if new.files[name] != entry} == {old.bank}
        assert len(after.tensors()["bank"]) == new.upkeep.rows[0]
        assert (new.thresholds, new.evidence.accuracy, new.evidence.parity) == (None, (), ())
        assert old.thresholds is not None
        # They count as learned from now on, for calibrate and evaluate.
        assert new.upkeep.record is not None
        record = decode_additions(after.read(new.upkeep.record), "record")
        learned = read_image_hashes(after).training
        assert set(learned) == {*read_image_hashes(before).training, *record.images}
        assert len(record.images) == 4
        assert old.learned is not None
        assert new.learned is not None
        assert new.learned.images == old.learned.images + 4
        # So an engine of the features is not built again, and one of the whole graph is.
        assert model_hash(before, "features") == model_hash(after, "features")
        assert model_hash(before, "score") != model_hash(after, "score")
    assert max(done.after.scores) < max(done.before.scores)
    unseen = [*new_images, *normal_images(tiny_root), *anomalous_images(tiny_root)]
    check_paths_agree(out, unseen)
    # Of a larger bank no patch is farther.
    for one, other in zip(scores_of(patchcore_bundle, unseen)[1], scores_of(out, unseen)[1], strict=True):
        assert (other <= one + 1e-4).all()


def test_taking_the_addition_out_gives_back_the_bundle(
    added: tuple[Path, Addition], patchcore_bundle: Path, tmp_path: Path
) -> None:
    done = remove_images(added[0], tmp_path / "again.flaw", number=1)
    assert done.restored
    assert done.images == 4
    assert files_of(tmp_path / "again.flaw") == files_of(patchcore_bundle)


def test_additions_can_be_taken_out_in_any_order(
    added: tuple[Path, Addition], patchcore_bundle: Path, new_images: list[Path], tiny_root: Path, tmp_path: Path
) -> None:
    second = add_images(added[0], new_images[4:], tmp_path / "two.flaw", all_good=True, rows=4)
    assert second.number == 2
    # The later one first: the bundle in between, and then the first one.
    between = remove_images(tmp_path / "two.flaw", tmp_path / "one.flaw", number=2)
    assert between.restored
    assert files_of(tmp_path / "one.flaw") == files_of(added[0])
    # The earlier one first: a bank that never had it, without thresholds.
    late = remove_images(tmp_path / "two.flaw", tmp_path / "late.flaw", number=1)
    assert not late.restored
    assert late.manifest.upkeep is not None
    assert [change.number for change in late.manifest.upkeep.changes] == [1, 2, 3]
    check_paths_agree(tmp_path / "late.flaw", [*new_images, *anomalous_images(tiny_root)])
    # And then the other: nothing is left that was added.
    last = remove_images(tmp_path / "late.flaw", tmp_path / "none.flaw", number=2)
    assert last.restored
    assert files_of(tmp_path / "none.flaw") == files_of(patchcore_bundle)


def test_a_single_image_can_be_taken_out(
    added: tuple[Path, Addition], patchcore_bundle: Path, new_images: list[Path], tiny_root: Path, tmp_path: Path
) -> None:
    done = remove_images(added[0], tmp_path / "three.flaw", images=[new_images[1]])
    assert (done.images, done.restored) == (1, False)
    with open_bundle(tmp_path / "three.flaw") as bundle:
        assert len(read_image_hashes(bundle).training) == len(training_images(tiny_root)) - 5 + 3
    again = remove_images(
        tmp_path / "three.flaw", tmp_path / "none.flaw", images=[new_images[0], new_images[2], new_images[3]]
    )
    assert again.restored
    assert files_of(tmp_path / "none.flaw") == files_of(patchcore_bundle)
    for image, why in ((new_images[1], "is none of them"), (training_images(tiny_root)[0], "was learned in training")):
        with pytest.raises(ArgumentError, match=f"expected images that were added to its bank, got .* which {why}"):
            remove_images(tmp_path / "three.flaw", tmp_path / "x.flaw", images=[image])


def test_what_was_learned_is_forgotten_with_its_image(
    patchcore_bundle: Path, new_images: list[Path], tmp_path: Path
) -> None:
    dark = write_rgb(tmp_path / "dark.png", render(CATEGORY, 0, 6000, 64)[0] // 8)
    large = write_rgb(tmp_path / "large.png", render(CATEGORY, 0, 6001, 160)[0])
    with open_bundle(patchcore_bundle) as bundle:
        learned = bundle.manifest.learned
    assert learned is not None
    add_images(patchcore_bundle, [dark, new_images[0]], tmp_path / "1.flaw", all_good=True, rows=4)
    with pytest.raises(ArgumentError, match="expected a bundle with thresholds, which says whether a defect is among"):
        add_images(tmp_path / "1.flaw", [large, new_images[1]], tmp_path / "2.flaw", rows=4)
    second = add_images(tmp_path / "1.flaw", [large, new_images[1]], tmp_path / "2.flaw", rows=4, all_good=True)
    widest = second.manifest.learned
    assert widest is not None
    assert (widest.images, widest.heights) == (learned.images + 4, (64, 160))
    less = remove_images(tmp_path / "2.flaw", tmp_path / "3.flaw", images=[dark]).manifest.learned
    assert less is not None
    assert (less.images, less.heights) == (learned.images + 3, (64, 160))
    assert less.brightness[0] > widest.brightness[0]
    least = remove_images(tmp_path / "3.flaw", tmp_path / "4.flaw", images=[large]).manifest.learned
    assert least is not None
    assert (least.images, least.heights) == (learned.images + 2, (64, 64))
    # The images that stay are those that were added, and so are those added later.
    again = add_images(tmp_path / "4.flaw", [large], tmp_path / "5.flaw", rows=4, all_good=True).manifest.learned
    assert again is not None
    assert (again.images, again.heights) == (learned.images + 3, (64, 160))
    few = prune_bank(tmp_path / "5.flaw", tmp_path / "6.flaw", 40).manifest.learned
    assert few == again


def test_pruning_keeps_the_rows_that_cover_all_and_makes_room(
    added: tuple[Path, Addition], new_images: list[Path], tiny_root: Path, tmp_path: Path
) -> None:
    with open_bundle(added[0]) as bundle:
        before = bundle.tensors()["bank"]
    done = prune_bank(added[0], tmp_path / "few.flaw", 40)
    with open_bundle(tmp_path / "few.flaw") as bundle:
        kept = bundle.tensors()["bank"]
        assert bundle.manifest.upkeep is not None
        assert bundle.manifest.upkeep.room == (len(before) + added[1].room[0] - 40,)
    assert done.after == (40,)
    places = [int(np.flatnonzero((before == row).all(axis=1))[0]) for row in kept]
    assert places == sorted(set(places))
    check_paths_agree(tmp_path / "few.flaw", [*new_images, *anomalous_images(tiny_root)])
    with pytest.raises(ArgumentError, match=r"an addition that can be taken out \(none\), got 1"):
        remove_images(tmp_path / "few.flaw", tmp_path / "x.flaw", number=1)
    with pytest.raises(ArgumentError, match="which was added before the bank was pruned"):
        remove_images(tmp_path / "few.flaw", tmp_path / "x.flaw", images=[new_images[0]])
    more = add_images(tmp_path / "few.flaw", new_images[4:], tmp_path / "more.flaw", all_good=True)
    again = remove_images(tmp_path / "more.flaw", tmp_path / "again.flaw", number=more.number)
    assert again.restored
    assert files_of(tmp_path / "again.flaw") == files_of(tmp_path / "few.flaw")
    for rows, message in (
        (130, "expected fewer than the"),
        (4, "expected at least 5, as many"),
        (0, "expected at least 1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            prune_bank(added[0], tmp_path / "x.flaw", rows)
    assert not (tmp_path / "x.flaw").exists()


def test_a_bundle_without_room_is_pruned_first(
    patchcore_run: Path, traced_features: None, new_images: list[Path], tmp_path: Path
) -> None:
    assert export_run(patchcore_run, tmp_path / "tight.flaw", max_batch=4, bank_room=0).upkeep is None
    with pytest.raises(ArgumentError, match="expected a bundle with room for rows, got one without"):
        add_images(tmp_path / "tight.flaw", new_images, tmp_path / "x.flaw")
    done = prune_bank(tmp_path / "tight.flaw", tmp_path / "few.flaw", 60)
    assert done.manifest.upkeep is not None
    assert done.manifest.upkeep.room == (30,)
    add_images(tmp_path / "few.flaw", new_images, tmp_path / "more.flaw", all_good=True)
    check_paths_agree(tmp_path / "more.flaw", new_images)


SWITCHES: list[dict[str, Any]] = [
    {"window": 3, "reweight": "none", "coreset": 300},
    {"layers": "separate", "reweight": "none", "metric": "cosine", "top_share": 0.02, "views": "flips"},
    {"window": 4, "layers": "separate", "reweight": "none", "coreset": 300},
    {"reweight": "seed", "tile": [40, 40]},
]


@pytest.mark.long
@pytest.mark.parametrize("switches", SWITCHES)
def test_banks_with_switches_are_kept_up_too(
    switches: dict[str, Any], tiny_root: Path, new_images: list[Path], tmp_path: Path
) -> None:
    chosen = {"resize": 64, "stages": [1, 2], "coreset": 90, "sigma": 2.0, "held_out_minimum": 5} | switches
    train_detector(build_config("patchcore", chosen)[0], open_dataset(tiny_root, CATEGORY), tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "a.flaw", max_batch=4, bank_room=40)
    done = add_images(tmp_path / "a.flaw", new_images, tmp_path / "b.flaw", all_good=True)
    assert min(done.rows) > 0
    images = [*new_images, *normal_images(tiny_root), *anomalous_images(tiny_root)]
    check_paths_agree(tmp_path / "b.flaw", images)
    assert remove_images(tmp_path / "b.flaw", tmp_path / "c.flaw", number=1).restored
    assert files_of(tmp_path / "c.flaw") == files_of(tmp_path / "a.flaw")
    rows = 200 if "window" in switches else 50
    prune_bank(tmp_path / "b.flaw", tmp_path / "d.flaw", rows)
    check_paths_agree(tmp_path / "d.flaw", images)


def one_line(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    assert run([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_what_cannot_be_added_is_named_in_one_line(
    patchcore_bundle: Path,
    padim_bundle: Path,
    new_images: list[Path],
    tiny_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "x.flaw"
    add = ["bundle", "bank", "add"]
    anomalous = anomalous_images(tiny_root)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    known = training_images(tiny_root)
    for arguments, expected in (
        ([patchcore_bundle, *anomalous], "expected images that the bundle accepts, got"),
        ([patchcore_bundle, broken], "broken.png: expected an image that can be scored"),
        ([patchcore_bundle, tmp_path / "none.png"], "none.png"),
        ([patchcore_bundle, tmp_path / "empty"], "expected images in this folder, got none"),
        ([patchcore_bundle, known[0]], "expected images that the bundle has not learned, got 1 that it has"),
        ([patchcore_bundle, new_images[0], "--rows", 0], "--rows: expected at least 1, got 0"),
        ([padim_bundle, new_images[0]], "expected a bundle with a memory bank of rows (patchcore), got padim"),
        ([tmp_path / "no.flaw", new_images[0]], "no.flaw"),
    ):
        assert expected in one_line([*add, *arguments, "--out", out], capsys)
        assert not out.exists()
    remove = ["bundle", "bank", "remove", patchcore_bundle, "--out", out]
    assert "can be taken out (none), got 7" in one_line([*remove, "--number", 7], capsys)
    assert "got both" in one_line([*remove, "--number", 7, "--image", new_images[0]], capsys)
    assert "got neither" in one_line(remove, capsys)
    assert "of the bank, got 5000" in one_line(
        ["bundle", "bank", "prune", patchcore_bundle, "--out", out, "--rows", 5000], capsys
    )
    assert not out.exists()


def test_the_command_says_what_it_did(
    patchcore_bundle: Path, new_images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(patchcore_bundle, tmp_path / "part.flaw"))
    more, back = tmp_path / "more.flaw", tmp_path / "back.flaw"
    names = [str(image) for image in new_images]
    assert run(["bundle", "bank", "add", str(bundle), *names, names[0], "--out", str(more), "--all-good"]) == 0
    shown = capsys.readouterr().out
    assert "added 8 images" in shown
    assert "scores before: median" in shown
    assert "scores after:  median" in shown
    assert "written without thresholds" in shown
    assert run(["bundle", "info", str(more)]) == 0
    shown = capsys.readouterr().out
    assert "rows, room for" in shown
    assert "change 1" in shown
    assert run(["bundle", "bank", "remove", str(more), "--number", "1", "--out", str(back)]) == 0
    with open_bundle(bundle) as opened:
        assert f"the bundle of before the addition, {opened.manifest.digest}" in capsys.readouterr().out


def test_with_zones_an_image_is_judged_by_their_thresholds(
    patchcore_bundle: Path, new_images: list[Path], tiny_root: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(patchcore_bundle, tmp_path / "zones.flaw"))
    zones = ["--zone", "left", "0,0 31,0 31,63 0,63", "--zone", "right", "33,0 63,0 63,63 33,63"]
    assert run(["bundle", "region", str(bundle), "--on", str(new_images[0]), *zones]) == 0
    assert run(["calibrate", str(bundle), "--data", str(tiny_root), "--category", CATEGORY]) == 0
    for left, right in ((1e6, 1e6), (1e6, 0.0), (0.0, 1e6)):
        for zone, value in (("left", left), ("right", right), ("rest", 1e6)):
            thresholds = ["--image-threshold", str(value), "--pixel-threshold", "1"]
            assert run(["calibrate", str(bundle), "--zone", zone, *thresholds]) == 0
        out = tmp_path / f"{left:g}-{right:g}.flaw"
        if left == right:
            done = add_images(bundle, new_images[:2], out, rows=4)
            assert (done.before.rejected, done.before.threshold, done.notes) == ({}, None, ())
            assert done.manifest.thresholds is None
            continue
        zone = "left" if left < right else "right"
        with pytest.raises(ArgumentError, match=rf"got 2 of 2 that it rejects: .* > 0 in the zone {zone}\)"):
            add_images(bundle, new_images[:2], out, rows=4)
        assert not out.exists()


def test_the_thresholds_of_a_product_say_what_is_rejected_and_the_common_ones_are_named(
    patchcore_bundle: Path, new_images: list[Path], tmp_path: Path
) -> None:
    bundle, out = Path(shutil.copytree(patchcore_bundle, tmp_path / "products.flaw")), tmp_path / "out.flaw"
    lenient, strict = Threshold(1e6, "manual"), Threshold(0.0, "manual")
    rows = (ProductThresholds("gear", 30, strict, strict), ProductThresholds("nut", 30, lenient, lenient))
    with open_bundle(bundle) as opened:
        read = opened.manifest
    thresholds = Thresholds(lenient, lenient, products=rows)
    change_bundle(bundle, read, lambda now: msgspec.structs.replace(now, thresholds=thresholds))
    with pytest.raises(ArgumentError, match="got 2 of 2 that it rejects"):
        add_images(bundle, new_images[:2], out, rows=4, product="gear")
    assert not out.exists()
    said = "The common thresholds said what is rejected; those of a product (gear, nut) do with --product."
    assert said not in add_images(bundle, new_images[:2], out, rows=4, product="nut").notes
    assert said in add_images(bundle, new_images[:2], tmp_path / "common.flaw", rows=4).notes


def test_only_what_the_region_reaches_becomes_rows(
    patchcore_bundle: Path, new_images: list[Path], tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out = Path(shutil.copytree(patchcore_bundle, tmp_path / "part.flaw")), tmp_path / "out.flaw"
    odd = new_images[0]
    polygon = ["--polygon", "0,0 63,0 63,20 0,20"]
    assert run(["bundle", "region", str(bundle), "--on", str(odd), *polygon]) == 0
    with Inspector.load(bundle, "cpu", "kernel") as inspector:
        [(patches, shown)] = patches_of(inspector, odd, (16, 16))
    # 21 rows of pixels are a bit more than five cells, and one more all around.
    assert len(patches) == 256
    assert np.flatnonzero(shown).tolist() == list(range(7 * 16))
    with Inspector.load(patchcore_bundle, "cpu", "kernel") as inspector:
        assert all(shown.all() for _, shown in patches_of(inspector, odd, (16, 16)))
    add = ["bundle", "bank", "add", str(bundle), str(odd), "--out", str(out), "--rows", "4"]
    assert "expected a bundle with thresholds, which says whether a defect" in one_line(add, capsys)
    assert run([*add, "--all-good"]) == 0
    # What was set after the addition is not in the bundle of before.
    assert run(["bundle", "region", str(out), "--clear"]) == 0
    capsys.readouterr()
    assert run(["bundle", "bank", "remove", str(out), "--number", "1", "--out", str(tmp_path / "back.flaw")]) == 0
    assert "; without what was set since" in capsys.readouterr().out
    assert files_of(tmp_path / "back.flaw") == files_of(bundle)


def with_files(bundle: Path, out: Path, files: dict[str, bytes], **upkeep: Any) -> Path:
    """Return a copy with other files and another state of its bank, which its manifest lists as if it were so."""
    import msgspec

    from flawscope.bundle import FileEntry, rewrite_manifest

    copy = Path(shutil.copytree(bundle, out))
    with open_bundle(copy) as opened:
        manifest = opened.manifest
    entries = dict(manifest.files)
    for name, data in files.items():
        (copy / name).write_bytes(data)
        entries[name] = FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    assert manifest.upkeep is not None
    state = msgspec.structs.replace(manifest.upkeep, **upkeep)
    rewrite_manifest(copy, msgspec.structs.replace(manifest, files=entries, upkeep=state))
    return copy


def test_what_is_wrong_in_the_record_of_additions_is_named(
    added: tuple[Path, Addition], patchcore_bundle: Path, tmp_path: Path
) -> None:
    record = (added[0] / "upkeep/record-1.json").read_bytes()
    later = record.replace(b'"numbers":[1,', b'"numbers":[9,')
    assert later != record
    for number, (files, upkeep, expected) in enumerate(
        (
            ({"upkeep/before-1.safetensors": b"none"}, {}, "before-1.safetensors: expected a safetensors file"),
            ({"upkeep/record-1.json": later}, {}, r"that the additions \[1\] have brought, got some of addition 9"),
            ({}, {"changes": ()}, r"that the additions \[\] have brought, got some of addition 1"),
        )
    ):
        bundle = with_files(added[0], tmp_path / f"{number}.flaw", files, **upkeep)
        with pytest.raises(BundleError, match=expected):
            remove_images(bundle, tmp_path / "x.flaw", number=1)
        assert not (tmp_path / "x.flaw").exists()
    # Not names of states that we write.
    names = {f"upkeep/before-{name}.json": b"{}" for name in ("x", "-1", "1-2", "01", "9" * 30)}
    odd = with_files(added[0], tmp_path / "odd.flaw", names)
    assert remove_images(odd, tmp_path / "back.flaw", number=1).restored
    assert files_of(tmp_path / "back.flaw") == files_of(patchcore_bundle)


@pytest.mark.parametrize("path", ["kernel", "graph"])
def test_room_that_is_counted_as_rows_is_refused(added: tuple[Path, Addition], path: str, tmp_path: Path) -> None:
    (rows,), (room,) = (added[1].manifest.upkeep or pytest.fail("no upkeep")).rows, added[1].room
    # To the graph a row of the room is far from everything, and to the kernels it is the nearest to a black patch.
    bundle = with_files(added[0], tmp_path / "odd.flaw", {}, rows=(rows + 1,), room=(room - 1,))
    with pytest.raises(BundleError, match=f"in norms the squared norms of the {rows + 1} rows, got others"):
        Inspector.load(bundle, "cpu", path)


def test_rows_that_were_slipped_in_behind_the_used_ones_are_refused(
    added: tuple[Path, Addition], tmp_path: Path
) -> None:
    import msgspec

    from flawscope.bundle import rewrite_manifest

    bundle = Path(shutil.copytree(added[0], tmp_path / "odd.flaw"))
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    assert manifest.upkeep is not None
    fewer = msgspec.structs.replace(
        manifest.upkeep, rows=(manifest.upkeep.rows[0] - 1,), room=(manifest.upkeep.room[0] + 1,)
    )
    rewrite_manifest(bundle, msgspec.structs.replace(manifest, upkeep=fewer))
    with pytest.raises(BundleError, match="and room behind them, got more rows"):
        Inspector.load(bundle, "cpu", "graph")
