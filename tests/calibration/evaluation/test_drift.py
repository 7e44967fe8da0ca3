"""Drift: the same model elsewhere, image by image; what is compared, what cannot be, and what is refused."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from fake_bundles import write_image
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope import cli
from flawscope.bundle import Threshold, change_bundle, open_bundle
from flawscope.calibration import evaluate_bundle, record_accuracy
from flawscope.calibration.evaluation.drift import paired_drift
from flawscope.calibration.evaluation.earlier_figures import EarlierFigures, pair_images, read_earlier_figures
from flawscope.calibration.evaluation.figures import (
    BundleIdentity,
    Confusion,
    DatasetIdentity,
    Decisions,
    Drift,
    Figures,
    ImageResult,
)
from flawscope.calibration.evaluation.intervals import rate
from flawscope.calibration.evaluation.metrics import auroc
from flawscope.calibration.evaluation.report import render_report
from flawscope.datasets import open_dataset
from flawscope.errors import DataError
from flawscope.text import encode_json

THRESHOLD = 5.0


def measured(good, anomalous, threshold=THRESHOLD, **fields):
    """Figures of images with these scores, as far as drift takes them; None is a fault."""
    labelled = [(score, False) for score in good] + [(score, True) for score in anomalous]
    results = tuple(
        ImageResult(
            image=f"test/{number}.png",
            content=f"pixels:{number}",
            defect="spot" if label else "good",
            is_anomalous=label,
            mask=None,
            score=score,
            decision=None
            if threshold is None
            else "fault"
            if score is None
            else "reject"
            if score > threshold
            else "accept",
        )
        for number, (score, label) in enumerate(labelled)
    )
    usable = [(score, label) for score, label in labelled if score is not None]
    confusion = None
    if threshold is not None:
        set_to = Threshold(threshold, "manual", 0, None, None, None, None)
        none = Decisions(n=0, accept=0, reject=0, fault=0)
        both = dict.fromkeys(("image_threshold", "pixel_threshold"), set_to)
        confusion = Confusion(**both, good=none, anomalous=none, false_reject=rate(0, 0), miss=rate(0, 0))
    plain = dict.fromkeys(
        ("image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro", "aupro_05", "pixel_f1", "pixel_recall")
    )
    plain |= dict.fromkeys(("f1_threshold", "latency_ms", "support"))
    plain |= dict.fromkeys(("recall_by_size", "diagnosis", "defects", "faults", "notes", "drift"), ())
    plain |= {
        "image_auroc": auroc(np.array([s for s, _ in usable], np.float64), np.array([label for _, label in usable]))
        if usable
        else None,
        "images": len(results),
        "anomalous": len(anomalous),
        "without_mask": 0,
        "masks_lost": 0,
        "backend": "cpu",
        "backend_reason": "asked for",
        "path": "graph",
        "precision": "fp32",
        "intervals": {},
        "confusion": confusion,
        "bundle": BundleIdentity(name="part", method="padim", digest="0" * 64, model="1" * 64),
        "dataset": DatasetIdentity(category="part", fingerprint="2" * 64),
        "versions": {},
        "command": "",
        "when": "2026-01-01T00:00:00+00:00",
        "seed": 0,
        "resamples": 200,
        "per_image": results,
    }
    return Figures(**plain | fields)


def earlier(figures):
    """The figures as another machine reads them."""
    return msgspec.json.decode(encode_json(figures), type=EarlierFigures)


SCORES = st.lists(st.none() | st.floats(-1e6, 1e6, width=32), max_size=8)


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES, st.sampled_from([None, 5.0]))
def test_a_result_has_no_drift_from_itself(good, anomalous, threshold):
    figures = measured(good, anomalous, threshold)
    drift = paired_drift(earlier(figures), figures)
    for change in drift.figures.values():
        assert change.change == 0.0
        assert (change.interval.low, change.interval.high) == (0.0, 0.0)
    paired = drift.paired
    assert (paired.images, paired.only_before, paired.only_after) == (len(good) + len(anomalous), 0, 0)
    assert paired.faults_before == paired.faults_after == [*good, *anomalous].count(None)
    assert paired.largest_relative in (None, 0.0)
    assert paired.median_interval is None or paired.median_interval.low == paired.median_interval.high == 0.0
    assert paired.decisions == {}
    assert paired.rank_correlation is None or paired.rank_correlation == pytest.approx(1.0)
    # Not known where both kinds were not scored; `evaluate` has a note of its own on that.
    assert ("image_auroc" in drift.figures) == (figures.image_auroc is not None)


def test_a_drift_that_can_be_counted_by_hand():
    before = measured([1.0, 2.0, 4.0], [3.0, 6.0, 7.0, 8.0])
    after = measured([1.0, 2.0, 7.5], [3.0, 6.0, 7.0, 4.0])
    drift = paired_drift(earlier(before), after)
    # Of 12 pairs of a normal and an anomalous image, 11 were in order: not 4.0 and 3.0. Now 7.5 is above all four.
    auc = drift.figures["image_auroc"]
    assert (auc.before, auc.after) == (pytest.approx(11 / 12), pytest.approx(8 / 12))
    assert auc.change == pytest.approx(-3 / 12)
    assert auc.interval.low < -3 / 12 < auc.interval.high <= 1
    # Above 5: three of four defects before, two now; no good part before, one of three now.
    assert drift.figures["recall"].change == pytest.approx(2 / 4 - 3 / 4)
    assert drift.figures["false_rejects"].change == pytest.approx(1 / 3)
    assert drift.paired.decisions == {"accept to reject": 1, "reject to accept": 1}
    assert (drift.paired.changed.count, drift.paired.changed.n) == (2, 7)
    assert drift.paired.largest_relative == pytest.approx(3.5 / 4)
    assert drift.paired.median_relative == 0.0
    assert drift.goal == 0.001
    assert any("-25.00 points, more than the goal of 0.1" in note for note in drift.notes)


def test_intervals_are_those_of_a_bootstrap_that_really_draws_images():
    chance = np.random.default_rng(3)
    scores = [chance.normal(size=12), chance.normal(1, 1, 9)]
    moved = [values + chance.normal(0, 0.4, len(values)) for values in scores]
    drift = paired_drift(
        earlier(measured(*(list(map(float, values)) for values in scores))),
        measured(*(list(map(float, values)) for values in moved), resamples=4000),
    )
    first, second = np.concatenate(scores), np.concatenate(moved)
    labels = np.arange(21) >= 12
    changes, medians, correlations = [], [], []
    for _ in range(4000):
        rows = np.concatenate((chance.integers(0, 12, 12), chance.integers(12, 21, 9)))
        a, b = first[rows], second[rows]
        above = lambda s: np.mean(np.sign(s[labels][:, None] - s[~labels][None]) / 2 + 0.5)  # noqa: E731
        changes.append(above(b) - above(a))
        medians.append(np.median(np.abs(b - a) / np.abs(a)))
        # Ties alone come from images drawn twice, which are tied on both sides: middle ranks by sorting.
        ranks = [np.searchsorted(np.sort(s), s) + np.searchsorted(np.sort(s), s, "right") for s in (a, b)]
        correlations.append(np.corrcoef(*ranks)[0, 1])
    paired = drift.paired
    for interval, drawn in (
        (drift.figures["image_auroc"].interval, changes),
        (paired.median_interval, medians),
        (paired.rank_correlation_interval, correlations),
    ):
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_the_goal_is_that_of_the_coarser_precision_and_a_wide_interval_is_said():
    good, anomalous = [1.0 + k / 100 for k in range(60)], [1.205 + k / 100 for k in range(60)]
    before = measured(good, anomalous)
    good[30] += 0.01  # one good part passes one defective one: 1 of 3600 pairs
    fp32 = paired_drift(earlier(before), measured(good, anomalous))
    int8 = paired_drift(earlier(before), measured(good, anomalous, precision="int8"))
    assert (fp32.goal, int8.goal) == (0.001, 0.003)
    assert fp32.figures["image_auroc"].change == pytest.approx(-1 / 3600)
    assert any("interval reaches beyond" in note for note in fp32.notes)
    assert not any("goal" in note for note in int8.notes)


def test_faults_are_counted_and_never_an_accept():
    before = measured([1.0, 2.0, 3.0], [6.0, 7.0])
    after = measured([1.0, None, 3.0], [None, 7.0])
    drift = paired_drift(earlier(before), after)
    assert (drift.paired.faults_before, drift.paired.faults_after) == (0, 2)
    assert drift.paired.decisions == {"accept to fault": 1, "reject to fault": 1}
    assert drift.figures["false_rejects"].change == pytest.approx(1 / 3)
    assert drift.figures["recall"].change == 0.0
    assert drift.figures["image_auroc"].change == 0.0
    assert any("2 images could not be scored on one side at least" in note for note in drift.notes)


def test_another_threshold_in_force_is_said():
    before, after = measured([1.0, 2.0], [6.0], 5.0), measured([1.0, 2.0], [6.0], 1.5)
    drift = paired_drift(earlier(before), after)
    assert any("image threshold in force was 5 there and is 1.5 here" in note for note in drift.notes)
    assert drift.figures["false_rejects"].change == 0.5
    drift = paired_drift(earlier(measured([1.0, 2.0], [6.0], None)), after)
    assert "recall" not in drift.figures
    assert drift.paired.changed is None
    assert any("the other side had no thresholds" in note for note in drift.notes)


def test_pixel_figures_are_plain_differences_of_the_same_pixels():
    before, after = measured([1.0], [6.0], pixel_ap=0.5), measured([1.0], [6.0], pixel_ap=0.25)
    change = paired_drift(earlier(before), after).figures["pixel_ap"]
    assert (change.change, change.interval) == (-0.25, None)
    moved = msgspec.structs.replace(after.per_image[1], mask="another")
    other = msgspec.structs.replace(after, per_image=(after.per_image[0], moved))
    drift = paired_drift(earlier(before), other)
    assert "pixel_ap" not in drift.figures
    assert any("Pixel figures are not compared" in note for note in drift.notes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans())), st.lists(st.tuples(st.integers(0, 3), st.booleans())))
def test_images_are_paired_by_content_and_label_each_once(before, after):
    def results(rows):
        template = measured([1.0], []).per_image[0]
        return [
            msgspec.structs.replace(template, image=str(place), content=str(content), is_anomalous=label)
            for place, (content, label) in enumerate(rows)
        ]

    pairs = pair_images(results(before), results(after))
    assert all((a.content, a.is_anomalous) == (b.content, b.is_anomalous) for a, b in pairs.both)
    assert len({a.image for a, _ in pairs.both}) == len({b.image for _, b in pairs.both}) == len(pairs.both)
    shared = sum(min(before.count(row), after.count(row)) for row in set(before))
    assert len(pairs.both) == shared
    assert (pairs.only_before, pairs.only_after) == (len(before) - shared, len(after) - shared)


@given(
    places=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.sampled_from("xy"), st.booleans()),
        unique_by=lambda each: each[:2],
        max_size=8,
    ),
    data=st.data(),
)
def test_copies_are_paired_with_those_at_their_place_and_in_their_product(places, data):
    template = measured([1.0], [6.0]).per_image[0]
    images = [
        msgspec.structs.replace(template, image=f"{product}/{number}", content=content, is_anomalous=label)
        for product, number, content, label in places
    ]
    kept = [image for image in images if data.draw(st.booleans())]
    shuffled = data.draw(st.permutations(kept))
    for before, after in ((images, shuffled), (shuffled, images)):
        for by_product in (False, True):
            pairs = pair_images(before, after, by_product=by_product)
            assert all(old == new for old, new in pairs.both)
            assert len(pairs.both) == len(kept)
    # The same images with other names: copies of one product are never those of another.
    moved = [msgspec.structs.replace(image, image=f"{image.image}.png") for image in shuffled]
    pairs = pair_images(images, moved, by_product=True)
    assert all(old.image[0] == new.image[0] and old.content == new.content for old, new in pairs.both)
    assert len(pairs.both) == len(kept)
    # And those of a product that the other side lacks have nobody.
    alone = [image for image in kept if image.image[0] == "a"]
    assert not pair_images(alone, [image for image in images if image.image[0] == "b"], by_product=True).both


# ---- Through the command ---------------------------------------------------------------------------------------------


def _shifted(image):
    """The brightness, and bright spots are dull: three of eight fall below the good images."""
    value = image.mean(axis=2, dtype=np.float32)
    return np.where((value >= 100) & (value < 103), np.float32(50), value)


def _run(path, dataset, *options):
    return cli.run(["evaluate", str(path), "--data", str(dataset.root), "--path", "graph", *map(str, options)])


@pytest.fixture
def host_json(make_bundle, dataset, tmp_path, capsys):
    """What the host wrote; the bundle has its figures as evidence, so another digest than the file says."""
    file = tmp_path / "host.json"
    path = make_bundle(threshold=85.0)
    assert _run(path, dataset, "--json", file) == 0
    capsys.readouterr()
    return file


def test_json_keeps_each_image_and_nothing_of_this_machine(host_json, dataset, read_json):
    results = read_json(host_json)["per_image"]
    assert len(results) == 22
    spot = next(result for result in results if result["image"] == "test/spot/0.png")
    assert (spot["defect"], spot["is_anomalous"], spot["score"], spot["decision"]) == ("spot", True, 100.0, "reject")
    assert spot["content"].startswith("pixels:")
    assert len(spot["mask"]) == 64
    dull = next(result for result in results if result["image"] == "test/dull/0.png")
    assert (dull["mask"], dull["decision"]) == (None, "accept")
    assert str(dataset.root) not in json.dumps(results)


def test_the_figures_of_another_machine_are_compared_image_by_image(
    host_json, make_bundle, dataset, tmp_path, read_json, capsys
):
    path = make_bundle(threshold=85.0, rule=_shifted)
    file = tmp_path / "device.json"
    assert _run(path, dataset, "--against", host_json, "--json", file, "--report", tmp_path / "report") == 0
    printed = capsys.readouterr()
    (drift,) = read_json(file)["drift"]
    # 8 of 12 defects were above all good images, now 5 are.
    assert drift["figures"]["image_auroc"]["change"] == pytest.approx(-3 / 12)
    assert drift["figures"]["pixel_auroc"]["interval"] is None
    assert drift["paired"]["decisions"] == {"reject to accept": 3}
    assert drift["paired"]["moved"] == {f"test/spot/{number}.png": "reject to accept" for number in range(3)}
    assert "drift from cpu of" in printed.out
    assert "decisions changed: 3 of 22" in printed.out
    assert "image AUROC    0.6667  0.4167  -0.2500" in printed.out
    assert "more than the goal of 0.1" in printed.err
    page = (tmp_path / "report/report.html").read_text()
    assert "-0.2500" in page
    assert "3 reject to accept" in page
    assert "Images with another decision (3)" in page
    assert "test/spot/2.png" in page
    with open_bundle(path) as bundle:
        (recorded,) = bundle.manifest.evidence.accuracy[-1].drift
    assert (recorded.against, recorded.images, recorded.decisions_changed) == ("cpu", 22, 3)
    assert recorded.changes["image_auroc"] == pytest.approx(-3 / 12)
    assert recorded.intervals["image_auroc"][0] < -3 / 12 < recorded.intervals["image_auroc"][1]
    assert cli.run(["bundle", "info", str(path)]) == 0
    assert "image_auroc -0.25" in capsys.readouterr().out


def test_the_same_machine_again_has_no_drift_and_no_note(host_json, make_bundle, dataset, capsys):
    assert _run(make_bundle(threshold=85.0), dataset, "--against", host_json) == 0
    printed = capsys.readouterr()
    assert "decisions changed: 0 of 22" in printed.out
    assert "+0.0000 to +0.0000" in printed.out
    assert "Drift from" not in printed.err


def test_unasked_the_evidence_of_another_path_is_compared(make_bundle, dataset, tmp_path, read_json, capsys):
    path = make_bundle(threshold=85.0)
    assert _run(path, dataset) == 0
    assert "drift" not in capsys.readouterr().out
    file = tmp_path / "kernel.json"
    assert _run(path, dataset, "--path", "kernel", "--json", file) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("drift")]
    assert line.startswith("drift from cpu of 20")
    assert "image AUROC +0.0000" in line
    assert "false rejects +0.0000" in line
    (drift,) = read_json(file)["drift"]
    assert (drift["against"], drift["paired"]) == ("cpu", None)
    with open_bundle(path) as bundle:
        first, second = bundle.manifest.evidence.accuracy
    assert first.drift == ()
    (recorded,) = second.drift
    assert (recorded.against, recorded.images, recorded.intervals) == ("cpu", 0, {})
    assert recorded.changes["recall"] == recorded.changes["image_auroc"] == 0.0
    # The single scores of the same figures say more: they are named once.
    file = tmp_path / "graph.json"
    assert _run(path, dataset, "--json", file) == 0
    both = evaluate_bundle(path, dataset, command="", resamples=50, graph_path="kernel", against=file).figures.drift
    assert [(drift.against, drift.paired is None) for drift in both] == [("cpu", False)]


def test_evidence_of_another_dataset_or_of_the_same_backend_is_no_drift(make_bundle, dataset):
    path = make_bundle(threshold=85.0)
    record_accuracy(path, evaluate_bundle(path, dataset, command="", resamples=50))
    assert evaluate_bundle(path, dataset, command="", resamples=50).figures.drift == ()
    (dataset.root / "test/dull/0.png").unlink()
    fewer = open_dataset(dataset.root)
    assert evaluate_bundle(path, fewer, command="", resamples=50, graph_path="kernel").figures.drift == ()


def test_recorded_figures_beyond_the_goal_and_at_another_threshold_are_said(make_bundle, dataset):
    path = make_bundle(threshold=85.0)
    record_accuracy(path, evaluate_bundle(path, dataset, command="", resamples=50))
    with open_bundle(path) as bundle:
        accuracy = bundle.manifest.evidence.accuracy
    moved = make_bundle(threshold=90.0, rule=_shifted)
    record_accuracy(moved, evaluate_bundle(path, dataset, command="", resamples=50))
    with open_bundle(moved) as bundle:
        manifest = bundle.manifest
    change_bundle(
        moved,
        manifest,
        lambda now: msgspec.structs.replace(now, evidence=msgspec.structs.replace(now.evidence, accuracy=accuracy)),
    )
    figures = evaluate_bundle(moved, dataset, command="", resamples=50, graph_path="kernel").figures
    assert any("-25.00 points, more than the goal" in note for note in figures.notes)
    assert any("was 85 there and is 90 here" in note for note in figures.notes)


def test_a_part_of_the_images_is_compared_and_the_rest_is_said(host_json, make_bundle, dataset, capsys):
    for index in range(4):
        (dataset.root / f"test/good/{index}.png").unlink()
    write_image(dataset.root / "test/good/new.png", 33)
    assert _run(make_bundle(threshold=85.0), dataset, "--against", host_json) == 0
    printed = capsys.readouterr()
    assert "18 images in both" in printed.out
    assert "18 images are in both; 4 of the other side and 1 of this one are left out." in printed.err
    assert "Pixel figures are not compared" in printed.err


def _change(file, change):
    figures = json.loads(file.read_text())
    change(figures)
    file.write_text(json.dumps(figures))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda figures: figures.pop("per_image"), "got those of an older flawscope. Write it with"),
        (lambda figures: figures["bundle"].pop("model"), "got those of an older flawscope"),
        (lambda figures: figures["bundle"].update(model="f" * 64), "got those of part-padim (ffffffffffff…). Measure"),
        (lambda figures: figures.update(per_image=[]), "expected images with their scores, got none"),
        (lambda figures: figures["per_image"][0].update(score=None), "a decision without one"),
        (lambda figures: figures["per_image"][0].update(decision="maybe"), "expected a file of flawscope evaluate"),
        (lambda figures: figures.pop("dataset"), "missing required field `dataset`"),
        (
            lambda figures: [result.update(content="pixels:0") for result in figures["per_image"]],
            "got those of 22 images (part), none of which is there. Measure the same images",
        ),
        (
            lambda figures: [result.update(is_anomalous=False) for result in figures["per_image"]],
            "which is normal there and anomalous here. Sort the images alike",
        ),
    ],
)
def test_figures_that_do_not_fit_are_refused_in_one_line_before_anything_is_scored(
    host_json, make_bundle, dataset, capsys, change, message
):
    def never(image):
        raise AssertionError("nothing may be scored")

    _change(host_json, change)
    path = make_bundle(threshold=85.0, rule=never)
    before = (path / "manifest.json").read_bytes()
    assert _run(path, dataset, "--against", host_json) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("error")]) == 1
    assert (path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("data", [b"", b"[1]", b"{", b'{"bundle": 1}', b"\xff\xfe", b"[" * 100_000])
def test_a_broken_file_is_refused(make_bundle, dataset, tmp_path, capsys, data):
    file = tmp_path / "broken.json"
    file.write_bytes(data)
    assert _run(make_bundle(threshold=85.0), dataset, "--against", file) == 2
    err = capsys.readouterr().err
    assert "expected a file of flawscope evaluate --json" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("field", ["backend", "path", "precision", "when"])
@pytest.mark.parametrize("figure", ["pixel_auroc", "pixel_ap", "aupro", "aupro_05", "pixel_f1", "pixel_recall"])
def test_what_gets_into_the_evidence_is_short_and_figures_are_shares(tmp_path, field, figure):
    file = tmp_path / "host.json"
    for name, value, where in ((field, "y" * 201, field), (figure, 1.01, figure), (figure, -0.01, figure)):
        figures = json.loads(encode_json(measured([1.0], [6.0], pixel_ap=0.5)))
        file.write_bytes(encode_json(figures))
        read_earlier_figures(file)
        file.write_bytes(encode_json(figures | {name: value}))
        with pytest.raises(DataError, match=rf"\$\.{where}"):
            read_earlier_figures(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_a_file_of_figures_holds_it_is_read_or_refused(tmp_path_factory, data):
    figures = json.loads(encode_json(measured([1.0, None], [6.0, 7.0], pixel_ap=0.5)))
    place = figures
    while True:
        key = data.draw(st.sampled_from(range(len(place)) if isinstance(place, list) else sorted(place)))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            place[key] = data.draw(JSON)  # one value somewhere in it becomes another
            break
        place = place[key]
    file = tmp_path_factory.mktemp("figures") / "host.json"
    file.write_bytes(encode_json(figures))
    try:
        read = read_earlier_figures(file)
    except DataError:
        return
    drift = paired_drift(read, measured([1.0, None], [6.0, 7.0], pixel_ap=0.5))
    numbers = [number for change in drift.figures.values() for number in (change.before, change.after, change.change)]
    assert np.isfinite(numbers).all()
    # What was measured has to get into a manifest and out of it again.
    assert msgspec.json.decode(encode_json(drift), type=Drift) == drift


def test_a_file_that_is_not_there_or_a_folder_is_refused(make_bundle, dataset, tmp_path, capsys):
    path = make_bundle(threshold=85.0)
    assert _run(path, dataset, "--against", tmp_path / "none.json") == 2
    assert "No such file" in capsys.readouterr().err
    assert _run(path, dataset, "--against", tmp_path) == 2
    assert "Is a directory" in capsys.readouterr().err


def test_a_page_without_drift_has_no_section_of_it(make_bundle, dataset):
    evaluation = evaluate_bundle(make_bundle(threshold=85.0), dataset, command="", resamples=50)
    assert 'id="drift"' not in render_report(evaluation)
