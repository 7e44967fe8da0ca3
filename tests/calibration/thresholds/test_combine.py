"""Combining bundles: scales from normal images that nobody has learned, refusals, every verb on the result."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from fake_bundles import write_image
from file_contents import files_of
from tiny_dataset import CATEGORY, anomalous_images, normal_images, training_images
from tiny_ensemble import write_member
from tiny_synth_bundle import write_tiny_synth

from flawscope import cli
from flawscope.bundle import EnsembleHead, ImageHashes, open_bundle, read_image_hashes
from flawscope.calibration.thresholds import combine, ensemble_scales
from flawscope.calibration.thresholds.combine import combine_bundles
from flawscope.calibration.thresholds.ensemble_scales import Scale, measure_scale
from flawscope.datasets import content_hash, fingerprint, hash_contents, image_hash, open_dataset
from flawscope.errors import ArgumentError, BundleError, DataError
from flawscope.imaging.images import Preprocessing, prepare, read_image
from flawscope.imaging.tiles import Tiling
from flawscope.runtime import Inspector
from flawscope.runtime.bench.measurement import bench
from flawscope.runtime.doctor.doctor_command import examine

LEARNED = range(40, 50)
"""Brightness of the normal images of the tiny bundles' dataset that they have learned; 50 to 69 are left."""


@pytest.fixture
def image_hashes(dataset):
    """The bytes of `images.json` of a detector that has learned the ten darkest images."""
    hashes = {int(sample.path.stem): content_hash(sample.path) for sample in dataset.train_good}
    split = {
        "training": [hash_ for value, hash_ in hashes.items() if value in LEARNED],
        "held_out": [hash_ for value, hash_ in hashes.items() if value not in LEARNED],
    }
    return json.dumps(split).encode()


@pytest.fixture
def members(tmp_path, image_hashes):
    """Brightness, and four times the brightness."""
    return [
        write_member(tmp_path / f"{name}.flaw", factor, image_hashes) for name, factor in (("one", 1.0), ("four", 4.0))
    ]


def run(capsys, *arguments):
    status = cli.run([*map(str, arguments)])
    printed = capsys.readouterr()
    return status, " ".join(printed.out.split()), " ".join(printed.err.split())


# --- scales


def test_a_scale_is_the_median_and_the_distance_to_a_quantile() -> None:
    assert measure_scale(np.arange(1001, dtype=np.float32), 0.999) == Scale(500.0, 499.0)
    assert measure_scale(np.array([7, 1, 3, 9, 5], np.float32), 0.9) == Scale(5.0, pytest.approx(3.2))


def test_a_few_odd_pixels_do_not_move_a_scale() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=100_000).astype(np.float32)
    plain = measure_scale(values, ensemble_scales.MAP_QUANTILE)
    values[:20] = 1e6
    odd = measure_scale(values, ensemble_scales.MAP_QUANTILE)
    assert odd.center == pytest.approx(plain.center, rel=1e-3)
    assert odd.spread == pytest.approx(plain.spread, rel=0.05)


def test_centers_and_spreads_come_from_what_no_member_has_learned(tmp_path, dataset, members) -> None:
    combination = combine_bundles(members, tmp_path / "both.flaw", dataset, weights=[2, 0.5], backend="cpu")
    head = combination.manifest.head
    assert isinstance(head, EnsembleHead)
    assert head.images == 20
    single, four = head.members
    # Brightness 50 to 69, each on all pixels of its image.
    assert (single.map_center, single.map_spread) == (59.5, 69.0 - 59.5)
    assert (single.score_center, single.score_spread) == (59.5, pytest.approx(50 + 0.9 * 19 - 59.5))
    assert (four.map_center, four.map_spread) == (4 * single.map_center, 4 * single.map_spread)
    assert (four.score_center, four.score_spread) == (4 * single.score_center, pytest.approx(4 * single.score_spread))
    assert (single.weight, four.weight) == (2.0, 0.5)
    assert combination.left_out == (("learned by a member", 10),)
    assert combination.notes == ("Members and data have different categories (part, tiny): expected one part.",)
    assert combination.backend == "cpu"
    with Inspector.load(tmp_path / "both.flaw", "cpu") as inspector:
        assert inspector(np.full((16, 16, 3), 69, np.uint8)).score == pytest.approx(2.5 * 9.5 / single.score_spread)


def test_the_ensemble_says_what_it_is_made_of(tmp_path, dataset, members) -> None:
    manifest = combine_bundles(members, tmp_path / "both.flaw", dataset, backend="cpu", command="combined").manifest
    assert (manifest.name, manifest.kind, manifest.method) == ("both", "score", "ensemble")
    assert (manifest.graphs, manifest.bank, manifest.thresholds, manifest.max_batch) == ({}, None, None, 4)
    source = manifest.provenance
    assert (source.command, source.category) == ("combined", dataset.category)
    assert source.run == hashlib.sha256(2 * ("0" * 64 + "\n").encode()).hexdigest()
    assert source.dataset == fingerprint(dataset, hash_contents([sample.path for sample in dataset.samples]))
    for path in members:
        with open_bundle(path) as bundle:
            digest = bundle.manifest.digest
        assert source.config["members"][path.stem] == {"bundle": path.name, "digest": digest, "method": "patchcore"}
        assert files_of(tmp_path / "both.flaw" / "members" / path.stem) == files_of(path)
    # The members have the same golden image: it is looked at once.
    assert [golden.file for golden in manifest.golden] == ["members/one/golden/0.png"]


def test_the_images_that_members_know_are_joined(tmp_path, dataset, image_hashes) -> None:
    hashes = msgspec.json.decode(image_hashes, type=ImageHashes)
    first, second = hashes.held_out[:2]
    other = {"training": [*hashes.training[:4], first], "held_out": [second, "another"]}
    paths = [
        write_member(tmp_path / "a.flaw", 1.0, image_hashes),
        write_member(tmp_path / "b.flaw", 2.0, json.dumps(other).encode()),
    ]
    combination = combine_bundles(paths, tmp_path / "both.flaw", dataset, backend="cpu")
    with open_bundle(tmp_path / "both.flaw") as bundle:
        joined = read_image_hashes(bundle)
    assert joined.training == (*hashes.training, first)
    assert set(joined.held_out) == {*hashes.held_out[1:], "another"}
    assert len(set(joined.held_out)) == len(joined.held_out)
    assert combination.manifest.head.images == 19
    assert combination.left_out == (("learned by a member", 11),)


def test_copies_count_once(tmp_path, dataset, members) -> None:
    (dataset.root / "train/good/copy.png").write_bytes((dataset.root / "train/good/60.png").read_bytes())
    combination = combine_bundles(members, tmp_path / "both.flaw", open_dataset(dataset.root), backend="cpu")
    assert dict(combination.left_out)["copies of another image: they are not independent"] == 1
    assert combination.manifest.head.images == 20


def test_many_maps_are_thinned_evenly(tmp_path, dataset, members, monkeypatch) -> None:
    sizes = []
    real = ensemble_scales.measure_scale
    monkeypatch.setattr(
        ensemble_scales, "measure_scale", lambda values, share: sizes.append(len(values)) or real(values, share)
    )
    monkeypatch.setattr(ensemble_scales, "_MOST_VALUES", 400)
    head = combine_bundles(members, tmp_path / "both.flaw", dataset, backend="cpu").manifest.head
    # 20 images of 4 x 4 pixels, a sixteenth; and their 20 scores; for two members.
    assert sizes == [320, 20, 320, 20]
    assert (head.members[0].map_center, head.members[0].map_spread) == (59.5, 9.5)


def test_tiles_are_measured_as_they_are_inspected(tmp_path, dataset, image_hashes) -> None:
    tiling = Tiling((16, 16), 0.0)
    paths = [write_member(tmp_path / f"{name}.flaw", 2.0**name, image_hashes, tiling=tiling) for name in (1, 2)]
    bright = dataset.root / "train/good/50.png"
    head = combine_bundles(paths, tmp_path / "flat.flaw", dataset, backend="cpu").manifest.head
    image = np.full((32, 32, 3), 50, np.uint8)
    image[:16, :16] = 69  # one tile of four
    cv2.imwrite(str(bright), image)
    changed = combine_bundles(paths, tmp_path / "both.flaw", open_dataset(dataset.root), backend="cpu").manifest
    assert changed.tiling == tiling
    assert head.members[0].score_center == 2 * 59.5
    scores = sorted([*range(51, 70)] * 4 + [50, 50, 50, 69])
    entry = changed.head.members[0]
    assert entry.score_center == 2 * np.median(scores)
    assert entry.score_spread == pytest.approx(2 * (np.quantile(scores, 0.9) - np.median(scores)))
    with Inspector.load(tmp_path / "both.flaw", "cpu") as inspector:
        assert inspector(image).anomaly_map.shape == (32, 32)


# --- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"input": Preprocessing(resize=(20, 20), crop=(16, 16))},
            r"b\.flaw: expected the preprocessing of .*a\.flaw "
            r"\(resize \[16, 16\], crop None, version 2, mode stretch, bits None\), "
            r"got resize \[20, 20\], crop \[16, 16\]",
        ),
        ({"tiling": Tiling((16, 16), 0.0)}, r"expected the tiles of .* \(none\), got size \[16, 16\], overlap 0.0"),
    ],
)
def test_bundles_that_do_not_go_together_are_refused(tmp_path, dataset, image_hashes, changes, message) -> None:
    paths = [
        write_member(tmp_path / "a.flaw", 1.0, image_hashes),
        write_member(tmp_path / "b.flaw", 2.0, image_hashes, **changes),
    ]
    with pytest.raises(ArgumentError, match=message):
        combine_bundles(paths, tmp_path / "both.flaw", dataset, backend="cpu")
    assert not (tmp_path / "both.flaw").exists()


def test_a_bundle_without_golden_images_is_refused(tmp_path, dataset, members, image_hashes) -> None:
    bare = write_member(tmp_path / "bare.flaw", 2.0, image_hashes, golden=())
    with pytest.raises(BundleError, match=r"bare\.flaw: expected golden images for fp32, got none"):
        combine_bundles([members[0], bare], tmp_path / "both.flaw", dataset, backend="cpu")
    assert not (tmp_path / "both.flaw").exists()


def test_a_bundle_that_draws_is_refused(tmp_path, dataset, members) -> None:
    write_tiny_synth(tmp_path / "drawing.flaw")
    with pytest.raises(ArgumentError, match=r"drawing\.flaw: expected a bundle of a detector, got one that draws"):
        combine_bundles([members[0], tmp_path / "drawing.flaw"], tmp_path / "both.flaw", dataset, backend="cpu")


def test_an_ensemble_and_the_same_bundle_twice_are_refused(tmp_path, dataset, members) -> None:
    out = tmp_path / "both.flaw"
    combine_bundles(members, out, dataset, backend="cpu")
    with pytest.raises(ArgumentError, match=r"both\.flaw: expected a bundle of one detector, got an ensemble"):
        combine_bundles([members[0], out], tmp_path / "more.flaw", dataset, backend="cpu")
    with pytest.raises(
        ArgumentError, match=r"one\.flaw: expected another bundle, got the one of .*one\.flaw once more"
    ):
        combine_bundles([members[0], members[0]], tmp_path / "more.flaw", dataset, backend="cpu")


def test_the_place_of_a_member_is_not_written_to(tmp_path, dataset, members) -> None:
    before = files_of(members[0])
    for out in (members[0], members[0] / "inside.flaw"):
        with pytest.raises(ArgumentError, match=r"expected a place outside the bundles, got one in .*one\.flaw"):
            combine_bundles(members, out, dataset, backend="cpu")
    assert files_of(members[0]) == before


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "weights: expected one for each of 2 bundles, got 1"),
        ([1.0, 0.0], "weights: expected numbers above 0, got 0"),
        ([1.0, -1.0], "weights: expected numbers above 0, got -1"),
        ([1.0, float("inf")], "weights: expected numbers above 0, got inf"),
        ([1.0, float("nan")], "weights: expected numbers above 0, got nan"),
        ([1.0, 1e-40], "maps of four: expected a weight of ordinary size"),
    ],
)
def test_wrong_weights_are_refused(tmp_path, dataset, members, weights, message) -> None:
    with pytest.raises(ArgumentError, match=message):
        combine_bundles(members, tmp_path / "both.flaw", dataset, weights=weights, backend="cpu")


def test_too_few_images_that_nobody_has_learned_are_refused(tmp_path, dataset, image_hashes) -> None:
    hashes = msgspec.json.decode(image_hashes, type=ImageHashes)
    most = json.dumps({"training": hashes.held_out[4:], "held_out": hashes.held_out[:4]}).encode()
    paths = [write_member(tmp_path / "a.flaw", 1.0, image_hashes), write_member(tmp_path / "b.flaw", 2.0, most)]
    with pytest.raises(DataError, match=r"at least 5 normal images that no member has learned from, got 4 among 30\."):
        combine_bundles(paths, tmp_path / "both.flaw", dataset, backend="cpu")


def test_a_member_that_does_not_vary_is_refused(tmp_path, image_hashes) -> None:
    root = tmp_path / "still"
    for index in range(6):
        image = np.full((32, 32, 3), 60, np.uint8)
        image[0, 0] = index  # the files differ, the images of 16 pixels hardly
        path = root / f"train/good/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    path = write_member(tmp_path / "a.flaw", 1.0, image_hashes)
    with pytest.raises(
        DataError, match=r"a\.flaw: expected maps that vary over 6 normal images, got 60 with a spread of"
    ):
        combine_bundles([path], tmp_path / "b.flaw", open_dataset(root), backend="cpu")


def test_an_image_without_finite_numbers_is_refused(tmp_path, dataset, image_hashes) -> None:
    paths = [write_member(tmp_path / "a.flaw", 1.0, image_hashes)]
    write_image(dataset.root / "train/good/250.png", 250)
    huge = write_member(tmp_path / "huge.flaw", 1.5e36, image_hashes)  # times 250 is past the largest float32
    with pytest.raises(DataError, match=r"250\.png: expected finite maps and scores, got NaN or infinity from .*huge"):
        combine_bundles([*paths, huge], tmp_path / "b.flaw", open_dataset(dataset.root), backend="cpu")


def test_a_failure_leaves_what_was_there(tmp_path, dataset, members, monkeypatch) -> None:
    out = tmp_path / "out" / "both.flaw"
    combine_bundles(members, out, dataset, backend="cpu")
    before = files_of(out)

    def fail(*arguments: object) -> None:
        raise DataError("no")

    monkeypatch.setattr(combine, "rewrite_manifest", fail)
    with pytest.raises(DataError, match="no"):
        combine_bundles(members[::-1], out, dataset, backend="cpu", overwrite=True)
    assert files_of(out) == before
    with pytest.raises(ArgumentError, match="expected a new name, got an earlier output"):
        combine_bundles(members[::-1], out, dataset, backend="cpu")
    assert files_of(out) == before
    assert list(out.parent.iterdir()) == [out]


def test_names_become_folders_of_their_own(tmp_path, dataset, image_hashes) -> None:
    paths = [
        write_member(tmp_path / name / "b.flaw", factor, image_hashes, name=name)
        for name, factor in (("Part 1/left", 1.0), ("part 1", 2.0), ("Part 1 left", 4.0), ("…", 8.0))
    ]
    head = combine_bundles(paths, tmp_path / "all.flaw", dataset, backend="cpu").manifest.head
    assert [member.name for member in head.members] == ["Part-1-left", "part-1", "Part-1-left-2", "patchcore"]


# --- real detectors


@pytest.fixture(scope="module")
def pair(tmp_path_factory, patchcore_bundle, padim_bundle, tiny_root) -> Path:
    """PatchCore and PaDiM in one bundle."""
    out = tmp_path_factory.mktemp("pair") / "pair.flaw"
    data = open_dataset(tiny_root, CATEGORY)
    combine_bundles([patchcore_bundle, padim_bundle], out, data, weights=[1.0, 2.0], backend="cpu")
    return out


def test_maps_and_scores_are_the_weighted_sums_of_the_members_own(
    pair, patchcore_bundle, padim_bundle, tiny_root
) -> None:
    paths = [*normal_images(tiny_root)[:3], *anomalous_images(tiny_root)[:3]]
    with Inspector.load(pair, "cpu") as inspector:
        results = inspector(paths)
        head = inspector.manifest.head
    expected_map, expected_score = 0.0, 0.0
    for path, entry in zip((patchcore_bundle, padim_bundle), head.members, strict=True):
        with Inspector.load(path, "cpu") as alone:
            maps, scores = (
                np.stack([getattr(result, name) for result in alone(paths)]) for name in ("anomaly_map", "score")
            )
        expected_map = expected_map + entry.weight * (maps.astype(np.float64) - entry.map_center) / entry.map_spread
        expected_score = expected_score + entry.weight * (scores - entry.score_center) / entry.score_spread
    np.testing.assert_allclose(np.stack([result.anomaly_map for result in results]), expected_map, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose([result.score for result in results], expected_score, rtol=1e-5, atol=1e-5)
    assert min(result.score for result in results[3:]) > max(result.score for result in results[:3])
    assert min(result.anomaly_map.min() for result in results) < 0, "nothing is clamped"


def test_the_same_image_gives_the_same_bits_alone_and_in_a_batch(pair, tiny_root) -> None:
    image = prepare(read_image(anomalous_images(tiny_root)[0]), Preprocessing((64, 64)))
    with Inspector.load(pair, "cpu") as inspector:
        alone, again = inspector.infer(image[None]), inspector.infer(image[None])
        for first, second in zip(alone, again, strict=True):
            assert first.tobytes() == second.tobytes()
        batch = inspector.infer(np.stack([image] * 4))
    np.testing.assert_allclose(batch[0][3], alone[0][0], rtol=1e-4, atol=1e-4)


def test_one_member_with_weight_1_ranks_images_as_it_does_alone(tmp_path, patchcore_bundle, tiny_root) -> None:
    data = open_dataset(tiny_root, CATEGORY)
    combine_bundles([patchcore_bundle], tmp_path / "one.flaw", data, backend="cpu")
    paths = [*training_images(tiny_root), *normal_images(tiny_root), *anomalous_images(tiny_root)]
    ranks = []
    for bundle in (patchcore_bundle, tmp_path / "one.flaw"):
        with Inspector.load(bundle, "cpu") as inspector:
            results = inspector(paths)
        ranks.append(np.argsort([result.score for result in results], kind="stable"))
        ranks.append(np.argsort([float(result.anomaly_map.max()) for result in results], kind="stable"))
    np.testing.assert_array_equal(ranks[0], ranks[2])
    np.testing.assert_array_equal(ranks[1], ranks[3])


def test_packed_members_make_the_same_ensemble(
    tmp_path, pair, patchcore_bundle, padim_bundle, tiny_root, capsys
) -> None:
    paths = []
    for bundle in (patchcore_bundle, padim_bundle):
        paths.append(tmp_path / f"{bundle.stem}.packed")
        assert run(capsys, "bundle", "pack", bundle, "--out", paths[-1])[0] == 0
    data = open_dataset(tiny_root, CATEGORY)
    manifest = combine_bundles(paths, tmp_path / "pair.flaw", data, weights=[1.0, 2.0], backend="cpu").manifest
    with open_bundle(pair) as bundle:
        assert manifest.head == bundle.manifest.head
        assert manifest.files == bundle.manifest.files
        assert manifest.golden == bundle.manifest.golden


def test_from_combining_to_deciding(tmp_path, patchcore_bundle, padim_bundle, tiny_root, capsys) -> None:
    out, figures = tmp_path / "pair.flaw", tmp_path / "figures.json"
    data = ("--data", tiny_root, "--category", CATEGORY)
    status, printed, err = run(
        capsys, "bundle", "combine", patchcore_bundle, padim_bundle, "--out", out, *data, "--weights", "1,0.5"
    )
    assert (status, err) == (0, "")
    assert "patchcore patchcore 1 " in printed
    assert "padim padim 0.5 " in printed
    assert "Measured on 5 normal images that no member has learned from, backend cpu" in printed
    assert "left out: 19 learned by a member" in printed
    status, printed, _ = run(capsys, "score", out, anomalous_images(tiny_root)[0], "--json")
    assert (status, json.loads(printed)["decision"]) == (1, "fault")
    status, printed, err = run(capsys, "calibrate", out, *data)
    assert status == 0
    assert "left out: 19 " in printed
    assert "(n = 5, backend cpu)" in printed
    status, printed, err = run(capsys, "evaluate", out, *data, "--json", figures, "--report", tmp_path / "report")
    assert status == 0, err
    measured = json.loads(figures.read_text())
    assert measured["image_auroc"] == 1.0
    assert measured["pixel_auroc"] > 0.9
    assert (measured["path"], measured["bundle"]["method"]) == ("members", "ensemble")
    assert (tmp_path / "report" / "report.html").is_file()
    status, printed, _ = run(capsys, "score", out, anomalous_images(tiny_root)[0], "--json", "--maps", tmp_path / "m")
    line = json.loads(printed)
    assert (status, line["decision"]) == (0, "reject")
    assert line["score"] > line["threshold"]
    assert run(capsys, "bundle", "verify", out)[0] == 0
    assert run(capsys, "bundle", "pack", out, "--out", tmp_path / "packed.flaw")[0] == 0
    packed = run(capsys, "score", tmp_path / "packed.flaw", anomalous_images(tiny_root)[0], "--json")
    assert json.loads(packed[1])["score"] == line["score"]
    status, printed, _ = run(capsys, "bundle", "info", out)
    assert "accuracy" in printed
    assert "cpu (members)" in printed


def test_calibrating_on_the_images_of_the_scales_takes_all_of_them(pair, tiny_root, tmp_path, capsys) -> None:
    with open_bundle(pair) as bundle:
        hashes = read_image_hashes(bundle)
    unseen = {image_hash(path) for path in training_images(tiny_root)} - set(hashes.training)
    assert set(hashes.held_out) == unseen
    assert len(unseen) == 5


def test_bench_and_doctor_take_an_ensemble(pair, patchcore_bundle, padim_bundle) -> None:
    with Inspector.load(pair, "cpu") as inspector:
        figures = bench(inspector, batch=2, seconds=0.1)
    assert (figures["method"], figures["path"], figures["backbone_ms"]) == ("ensemble", "members", None)
    assert figures["transfers"]["outputs"] == {"anomaly_map": ["float32", 64, 64], "score": ["float32"]}
    examined = examine(pair, "cpu", "fp32")
    alone = [examine(path, "cpu", "fp32") for path in (patchcore_bundle, padim_bundle)]
    names = [
        f"members/{path.stem}/{member['graph']}"
        for path, member in zip((patchcore_bundle, padim_bundle), alone, strict=True)
    ]
    assert examined["graph"] == ", ".join(names)
    assert examined["head"] == (
        f"the sum of its members, on the host; patchcore: {alone[0]['head']}; padim: {alone[1]['head']}"
    )
    assert [node["name"] for node in examined["nodes"]] == [
        node["name"] for member in alone for node in member["nodes"]
    ]


def test_what_an_ensemble_cannot_do_is_one_line(pair, tiny_root, tmp_path, capsys) -> None:
    image = normal_images(tiny_root)[0]
    for arguments, message in (
        (("score", pair, image, "--path", "kernel"), "path kernel: expected a method with a bank, got ensemble"),
        (("score", pair, image, "--precision", "int8"), "precision: expected one the bundle has (fp32), got 'int8'"),
        (("score", pair, image, "--reconstructions", tmp_path / "p"), "expected a bundle that reconstructs images"),
        (
            ("export-triton", pair, "--out", tmp_path / "t", "--model-name", "both"),
            "--model-name: expected it with one",
        ),
        (("explain", pair), "explain: expected a detector whose score is one graph"),
        (
            ("export", pair, "--precision", "int8", "--calibration-data", tiny_root, "--out", tmp_path / "e.flaw"),
            "expected a run with run.json, got a bundle",
        ),
    ):
        status, printed, err = run(capsys, *arguments)
        assert (status, printed) == (2, ""), arguments
        assert err.startswith("error: ")
        assert message in err, arguments


def test_engines_of_an_ensemble_are_those_of_its_members(pair, patchcore_bundle, tmp_path, capsys, monkeypatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is not installed: pip install "flawscope[tensorrt-rtx]"')
    monkeypatch.setenv("FLAWSCOPE_ENGINES", str(tmp_path / "engines"))
    build = ("engine", "build", "--target", "8.9")
    assert run(capsys, *build, patchcore_bundle)[0] == 0
    status, printed, err = run(capsys, *build, pair)
    assert (status, err) == (0, "")
    # PatchCore's engine was there already: it is the same one.
    assert printed.startswith("engine fits: ")
    assert "patchcore, graph features, fp32, batch 1 to 4" in printed
    assert "padim, graph features, fp32, batch 1 to 4" in printed
    assert printed.count("built because") == 1
    stored = json.loads(run(capsys, "engine", "list", "--json")[1])
    assert sorted(engine["entry"]["bundle"] for engine in stored) == ["padim", "patchcore"]
    status, _, err = run(capsys, *build, pair, "--graph", "denoise")
    assert status == 2
    assert "members/patchcore: expected a graph called denoise, got ['features', 'score']" in err
    status, _, err = run(capsys, *build, pair, "--precision", "int8")
    assert status == 2
    assert "precision: expected one the bundle has (fp32), got 'int8'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("A",), "Expected two bundles or more, got one. (see flawscope bundle combine --help)"),
        (("A", "B", "--weights", "1;2"), "--weights: expected numbers with commas between them, got '1;2'."),
        (("A", "B", "--weights", "1,2,3"), "weights: expected one for each of 2 bundles, got 3."),
        (("A", "none.flaw"), "expected a bundle, got no such file or folder"),
        (("A", "B", "--backend", "abacus"), "backend: expected one of auto, cpu, cuda, tensorrt"),
    ],
)
def test_a_wrong_request_is_one_line(patchcore_bundle, padim_bundle, tiny_root, tmp_path, capsys, arguments, message):
    named = {"A": patchcore_bundle, "B": padim_bundle}
    status, printed, err = run(
        capsys,
        *("bundle", "combine", *(named.get(argument, argument) for argument in arguments)),
        *("--data", tiny_root, "--category", CATEGORY, "--out", tmp_path / "out.flaw"),
    )
    assert (status, printed) == (2, "")
    assert message in err
    assert not (tmp_path / "out.flaw").exists()
