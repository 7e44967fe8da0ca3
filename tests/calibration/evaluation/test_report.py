"""The report: self-contained, reproducible, safe against file names, and honest where something is missing."""

from __future__ import annotations

import dataclasses
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fake_bundles import write_image
from hypothesis import given
from hypothesis import strategies as st

from flawscope import cli
from flawscope.calibration import evaluate_bundle, record_accuracy
from flawscope.calibration.evaluation import (
    report,
    report_galleries,
    report_images,
    report_page,
    report_plots,
    rounding,
)
from flawscope.calibration.evaluation.figures import SizeFigures
from flawscope.calibration.evaluation.intervals import rate
from flawscope.calibration.evaluation.report_table import dials_of
from flawscope.datasets import content_hash, open_dataset
from flawscope.datasets.defects.support_set import SupportImage, SupportRecord
from flawscope.drawn_check import DrawnCheck, DrawnKind
from flawscope.imaging.heat import HeatScale


class _Page(HTMLParser):
    """Collects what a browser would load, what images say, and element ids."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr", "wbr"})

    def __init__(self, text):
        super().__init__()
        self.loads, self.images, self.ids, self.open, self.words = [], [], [], [], []
        self.broken = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.broken = tag == "wbr"
        self.loads += [values[name] for name in ("src", "href", "xlink:href", "srcset") if name in values]
        if tag == "img":
            self.images.append(values)
        if "id" in values:
            self.ids.append(values["id"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        # A name goes on behind a place where a line may break.
        if self.broken:
            self.words[-1] += data
        else:
            self.words.append(data)
        self.broken = False

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def _evaluation(path, dataset):
    return evaluate_bundle(path, dataset, command="flawscope evaluate part.flaw --data <set>", resamples=50)


@pytest.fixture
def evaluation(make_bundle, dataset):
    return _evaluation(make_bundle(threshold=75.0), dataset)


def test_the_page_is_well_formed_and_loads_nothing_from_outside(evaluation):
    page = _Page(report.render_report(evaluation))
    assert page.open == []
    assert page.loads
    assert all(value.startswith(("data:image/", "#")) for value in page.loads)
    assert len(page.ids) == len(set(page.ids))


def test_the_diagnosis_comes_first_and_the_drawn_check_is_a_table(evaluation):
    kinds = (DrawnKind("scratch", 16, 2.5, 0.625, 0.875), DrawnKind("smear", 14, 2.0, 0.5625, 0.75))
    drawn = DrawnCheck(False, 20, 8, 1.5, kinds, 0.59, 0.52, 0.66, 0.8, "near chance", 2.0)
    evidence = msgspec.structs.replace(evaluation.manifest.evidence, drawn=drawn)
    manifest = msgspec.structs.replace(evaluation.manifest, evidence=evidence)
    sizes = (SizeFigures(smallest_px=1.5, largest_px=3.25, detection=rate(2, 20)),)
    figures = msgspec.structs.replace(evaluation.figures, recall_by_size=sizes, diagnosis=("It sees <nothing>.",))
    page = _Page(report.render_report(dataclasses.replace(evaluation, figures=figures, manifest=manifest)))
    assert page.open == []
    assert page.text.index("It sees <nothing>.") < page.text.index("Missed defects")
    assert "near chance , image AUROC 0.590 (0.520 to 0.660), pixel AUROC 0.800" in page.text
    assert "that the detector had learned from, which flatters it" in page.text
    assert "30 drawn defects against 20 normal images" in page.text
    assert "scratch 16 2.5 0.625 0.875" in page.text
    assert "1.5 to 3.2 20 10% " in page.text


def test_a_page_without_findings_has_no_diagnosis(evaluation):
    figures = msgspec.structs.replace(evaluation.figures, diagnosis=(), recall_by_size=())
    text = _Page(report.render_report(dataclasses.replace(evaluation, figures=figures))).text
    assert "Diagnosis" not in text
    assert "Drawn defects" not in text
    assert "By size of the defect" not in text


def test_every_reference_inside_the_plots_has_its_target(evaluation):
    page = _Page(text := report.render_report(evaluation))
    references = {value[1:] for value in page.loads if value.startswith("#")} | set(
        re.findall(r"url\(#([^)]+)\)", text)
    )
    assert references
    assert references <= set(page.ids)


def test_plots_take_their_colours_and_fonts_from_the_page(evaluation):
    text = report.render_report(evaluation)
    plot = text[text.index("<svg") : text.rindex("</svg>")]
    assert "var(--good)" in plot
    assert not re.search(r"#0[1-6]0[1-6]0[1-6]|DejaVu|<style|<metadata", plot)


def test_the_same_evaluation_gives_the_same_page(evaluation):
    assert report.render_report(evaluation) == report.render_report(evaluation)


def test_every_image_has_a_text_for_those_who_do_not_see_it(evaluation):
    images = _Page(report.render_report(evaluation)).images
    assert len(images) > 10
    assert all(image["alt"] for image in images)


def test_misses_and_false_rejects_are_shown_worst_first(evaluation):
    misses, alarms, rejects = report_galleries.galleries(evaluation, report_galleries.Drawings(evaluation))
    assert [card.score for card in misses.cards] == [36, 37, 38, 39]
    assert [card.score for card in alarms.cards] == [80, 79, 78, 77, 76]
    assert [(card.kind, card.score, card.boxes, card.has_outline) for card in rejects.cards] == [("spot", 104, 1, True)]
    assert misses.cards[0].title == "test/dull/0.png"


def test_the_page_says_that_there_are_no_misses_and_no_false_rejects(make_bundle, dataset):
    import shutil

    shutil.rmtree(dataset.root / "test/dull")
    page = _Page(report.render_report(_evaluation(make_bundle(threshold=90.0), open_dataset(dataset.root))))
    assert "No defective part was accepted." in page.text
    assert "No good part was rejected." in page.text


def test_thresholds_are_those_of_the_precision_that_was_measured(evaluation):
    of_fp32 = evaluation.manifest.thresholds
    of_int8 = msgspec.structs.replace(of_fp32, pixel=msgspec.structs.replace(of_fp32.pixel, value=31.25))
    # Those that the evaluation says were in force, and not those of the manifest: a precision has its own.
    text = report.render_report(dataclasses.replace(evaluation, thresholds=of_int8))
    assert "pixels of the map</th><td>31.25</td><td>normal images</td>" in text


def test_a_bundle_without_thresholds_gets_a_page_that_says_so(make_bundle, dataset):
    page = _Page(report.render_report(_evaluation(make_bundle(), dataset)))
    assert "This bundle has no thresholds, so nothing was decided." in page.text
    assert "Highest normal" in page.text


def test_a_set_that_cannot_be_scored_at_all_still_gets_a_page(make_bundle, dataset):
    rule = lambda image: np.full(image.shape[:2], np.nan, np.float32)  # noqa: E731
    page = _Page(report.render_report(_evaluation(make_bundle(threshold=75.0, rule=rule), dataset)))
    assert "No image could be scored." in page.text
    assert "Faults (22)" in page.text


def test_a_set_of_normal_images_alone_gets_a_page(make_bundle, tmp_path):
    for split in ("train", "test"):
        write_image(tmp_path / f"other/{split}/good/1.png", 90 + len(split))
    write_image(tmp_path / "other/test/good/2.png", 97)
    page = _Page(report.render_report(_evaluation(make_bundle(threshold=95.0), open_dataset(tmp_path / "other"))))
    assert "It rejected 1 of 2 good parts; at most 97.5% with 95% confidence." in page.text
    assert "How defective parts are judged is not known." in page.text
    assert "– not tested No test image shows a defect." in page.text
    assert "No AUROC, AP and F1 of images: all that could be scored show good parts." in page.text
    # No card, row or legend of what was not tested.
    for word in ("Image AUROC", "Pixel AUROC", "Worst misses", "true defect", "anomalous images (below)"):
        assert word not in page.text, word
    assert "Worst false rejects (1)" in page.text
    assert "Closest to a false reject (1)" in page.text
    assert "normal 1 1 0 2 false reject 50% 1.3% to 98.7%" in page.text
    assert "anomalous 0 0 0 0" not in page.text


def test_normal_images_alone_without_thresholds_begin_at_the_highest_score(make_bundle, tmp_path):
    for number in range(3):
        write_image(tmp_path / f"other/test/good/{number}.png", 90 + number)
    write_image(tmp_path / "other/train/good/0.png", 80)
    evaluation = _evaluation(make_bundle(), open_dataset(tmp_path / "other"))
    page = _Page(report.render_report(evaluation))
    assert "this begins at the highest score." in page.text
    assert dials_of(evaluation)[0][0].value == 92.0
    assert "It decides nothing yet" in page.text
    assert "Highest normal (3)" in page.text
    assert "Lowest anomalous" not in page.text


def test_a_set_of_defects_alone_gets_a_page(make_bundle, dataset):
    import shutil

    shutil.rmtree(dataset.root / "test/good")
    page = _Page(report.render_report(_evaluation(make_bundle(threshold=75.0), open_dataset(dataset.root))))
    assert "It missed 4 of 12 defective parts. How good parts are judged is not known." in page.text
    assert "– not tested No test image shows a good part." in page.text
    assert "Worst false rejects" not in page.text
    assert "Pixel AUROC" in page.text  # there are masks
    assert "Image AUROC" not in page.text


def test_a_set_without_masks_has_no_cards_of_pixels_and_says_why(make_bundle, dataset):
    import shutil

    assert "No figures of pixels" not in report.render_report(_evaluation(make_bundle(threshold=75.0), dataset))
    shutil.rmtree(dataset.root / "ground_truth")
    page = _Page(report.render_report(_evaluation(make_bundle(threshold=75.0), open_dataset(dataset.root))))
    assert "No figures of pixels: no defect has a mask. Masks go into ground_truth/DEFECT" in page.text
    assert "Image AUROC" in page.text
    for word in ("Pixel AUROC", "pixel AUROC", "AU-PRO", "Pixel F1", "without mask", "true defect"):
        assert word not in page.text, word


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("test/good/exp1_num-7.png", ["test/", "good/", "exp1_", "num-", "7.png"]),
        ("/a//b__c", ["/a//b__c"]),
        ("plain.png", ["plain.png"]),
        ("<b>_x", ["&lt;b&gt;_", "x"]),
        ("", [""]),
    ],
)
def test_names_break_behind_separators(name, parts):
    assert str(report_page.breakable(name)) == "<wbr>".join(parts)


def test_options_of_a_command_stay_whole():
    shown = str(report_page.command_text("flawscope evaluate a/b.flaw --no-record --set=mean=<1> -q"))
    assert shown == (
        'flawscope evaluate a/<wbr>b.flaw <span class="word">--no-record</span> <span class="word">--set=</span>mean='
        '<wbr>&lt;1&gt; <span class="word">-q</span>'
    )


def test_file_names_and_commands_are_text_and_never_markup(make_bundle, tmp_path):
    name = "<img src=x onerror=alert(1)>"
    write_image(tmp_path / f"other/train/good/{name}.png", 80)
    write_image(tmp_path / f"other/test/good/{name}.png", 90)
    write_image(tmp_path / f"other/test/{name}/{name}.png", 91)
    text = report.render_report(_evaluation(make_bundle(threshold=75.0), open_dataset(tmp_path / "other")))
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text
    assert '<span class="word">--data</span> &lt;set&gt;' in text


def test_a_defect_type_may_have_any_name(make_bundle, tmp_path):
    name = "划痕 $\\bad$ 100%"
    write_image(tmp_path / "other/train/good/1.png", 80)
    write_image(tmp_path / "other/test/good/2.png", 81)
    write_image(tmp_path / f"other/test/{name}/1.png", 91)
    page = _Page(report.render_report(_evaluation(make_bundle(threshold=75.0), open_dataset(tmp_path / "other"))))
    assert page.text.count(name) >= 4  # row of the histogram, table and caption of the image


def test_names_that_are_no_text_are_escaped(make_bundle, tmp_path):
    name = os.fsdecode(b"a\xff\x1b]52;c;aGk=\x07\nb")
    write_image(tmp_path / "other/train/good/1.png", 80)
    for defect, value in (("good", 90), (name, 70)):
        write_image(tmp_path / "image.png", value)  # OpenCV, which writes it, crashes on such a name
        place = tmp_path / "other" / "test" / defect / f"{name}.png"
        place.parent.mkdir(parents=True)
        (tmp_path / "image.png").rename(place)
    written = report.write_report(
        _evaluation(make_bundle(threshold=75.0), open_dataset(tmp_path / "other")), tmp_path / "page"
    )
    text = written.read_text("utf-8")
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert _Page(text).text.count(r"a\xff\x1b]52;c;aGk=\x07\x0ab") >= 4


def test_the_page_beside_a_support_set_is_well_formed_and_shows_names_as_text(make_bundle, dataset):
    name = "<b>7.png"
    (dataset.root / "test/spot/7.png").rename(dataset.root / "test/spot" / name)
    image = SupportImage("part", "spot", "test", "a", content_hash(dataset.root / "test/spot" / name), *["x"] * 4, 1)
    record = SupportRecord("0", "part", 1, 0, "test", (image,))
    text = report.render_report(
        evaluate_bundle(
            make_bundle(threshold=75.0), open_dataset(dataset.root), support=record, command="c", resamples=50
        )
    )
    page = _Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert "Images left out (1)" in page.text
    assert "test/spot/<b>7.png a support image" in page.text


def test_the_page_with_drift_is_well_formed_and_shows_names_as_text(make_bundle, dataset, tmp_path):
    path, file = make_bundle(threshold=75.0), tmp_path / "host.json"
    first = evaluate_bundle(path, dataset, command="c", resamples=50, graph_path="graph")
    odd = msgspec.structs.replace(first.figures, backend="<b>cpu")
    file.write_bytes(msgspec.json.encode(odd))
    record_accuracy(path, first)
    text = report.render_report(
        evaluate_bundle(path, dataset, command="c", resamples=50, graph_path="kernel", against=file)
    )
    page = _Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    # One image by image, with intervals, and one from the evidence, without.
    assert "Against <b>cpu" in page.text
    assert "decisions changed: 0 of 22" in page.text
    assert "Against cpu, measured" in page.text
    assert page.text.count("+0.0000 to +0.0000") == 4
    assert "Single scores of the other side are not known" in page.text


def test_no_absolute_path_of_the_dataset_is_shown(evaluation, tmp_path):
    assert str(tmp_path) not in report.render_report(evaluation)


def test_command_writes_the_report_and_replaces_an_older_one_if_asked_to(make_bundle, dataset, tmp_path, capsys):
    path, folder = make_bundle(threshold=75.0), tmp_path / "out"
    for asked, status in (([], 0), ([], 2), (["--overwrite"], 0)):
        arguments = ["evaluate", str(path), "--data", str(dataset.root), "--report", str(folder), *asked]
        assert cli.run(arguments) == status
    assert [file.name for file in folder.iterdir()] == ["report.html"]
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out


def test_colours_step_at_the_threshold_and_do_not_depend_on_the_image():
    scale = HeatScale(0.0, 10.0, 30.0, True)
    low, at, above, high = scale.colours(np.array([-5.0, 10.0, np.nextafter(10.0, 11.0), 99.0]))
    assert low[3] == 0.0
    assert at[3] < above[3]
    assert at[1] > above[1]
    assert high.tolist() == scale.colours(np.array([30.0]))[0].tolist()


@given(st.floats(-1e3, 1e3), st.floats(0, 100), st.floats(-2e3, 2e3) | st.none())
def test_the_colour_scale_rises_whatever_the_maps_and_the_threshold(base, spread, threshold):
    maps = (base + spread * np.arange(32).reshape(2, 4, 4) / 31).astype(np.float32)
    scale = report_images.make_scale(maps, np.array([True, False]), np.array([True, True]), threshold)
    assert scale.low < scale.middle < scale.high
    if threshold is not None:
        assert scale.middle == threshold


def test_a_bar_of_the_histogram_is_never_on_both_sides_of_the_threshold():
    edges = report_plots._edges(np.array([0.0, 1.0, 7.3]), 3.1)
    assert edges[0] < 0.0
    assert edges[-1] > 7.3
    assert np.nextafter(3.1, 4) in edges
    assert len(report_plots._edges(np.array([2.0]), 2.0)) >= 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0%"),
        (1.0, "100%"),
        (0.9999, "99.9%"),
        (0.05, "5%"),
        (0.0153, "1.5%"),
        (0.001, "0.1%"),
        (0.00034, "0.034%"),
    ],
)
def test_shares_are_written_with_few_digits_and_not_rounded_to_all(value, text):
    assert rounding.percent(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (1.0, "1.000"), (0.99996, "0.999"), (0.5, "0.500")])
def test_figures_are_never_rounded_up_to_a_perfect_one(value, text):
    assert rounding.figure(value) == text


def _light(colour):
    """Return the relative luminance of a colour as WCAG 2 has it; `#rrggbb`."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return sum(
        share * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
        for share, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_text_has_contrast_on_every_background(scheme):
    styles = (Path(report.__file__).parent / "templates/report.css").read_text("utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in re.findall(r":root \{(.*?)\}", styles, re.S)
    )
    colours = light if scheme == "light" else light | dark
    assert light.keys() == dark.keys()
    for ink in ("ink", "muted", "good", "bad", "mark", "ok"):
        for back in ("page", "card", "sunk", "care-back", "ok-back", "bad-back"):
            low, high = sorted((_light(colours[ink]), _light(colours[back])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, back)
