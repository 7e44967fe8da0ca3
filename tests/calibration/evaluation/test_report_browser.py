"""The report in Chromium: what a reader can do with it, and what it never does."""

from __future__ import annotations

import functools
import re
from contextlib import contextmanager

import numpy as np
import pytest
from judged_evaluations import STRANGER, by_product, small_evaluation, with_zones, without_thresholds

from flawscope.calibration.evaluation import report, rounding
from flawscope.calibration.evaluation.comparison import compare_evaluations
from flawscope.calibration.evaluation.comparison_report import render_comparison

sync_api = pytest.importorskip("playwright.sync_api", reason="the report is tested with playwright")

from browser import CHROMIUM, launch  # noqa: E402

pytestmark = [pytest.mark.long, pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")]

# Of every text the colour, and of what lies behind it the first background that is not transparent.
CONTRAST = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const straight = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.slice(0, 3).map((v) => straight(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    if (!element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const ink = parts(element instanceof SVGElement ? style.fill : style.color);
    const [high, low] = [light(ink), light(behind(element))].sort((a, b) => b - a);
    found.push([(high + 0.05) / (low + 0.05), walk.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = launch(playwright)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """How images are judged -> an evaluation with misses, false rejects, a fault and a name that is markup."""
    common = small_evaluation(tmp_path_factory.mktemp("set"))
    return {
        "common": common,
        "zones": with_zones(common),
        "products": by_product(common),
        "none": without_thresholds(common),
    }


@pytest.fixture(scope="module")
def page_of(evaluations):
    """Return a function that renders a report, each once."""
    return functools.cache(lambda kind: report.render_report(evaluations[kind]))


@pytest.fixture(scope="module")
def compared(evaluations):
    return render_comparison(compare_evaluations(evaluations["common"], evaluations["zones"]))


@pytest.fixture
def show(browser, tmp_path):
    """Return a function that opens a page from a file, and asserts that it complains of nothing and loads nothing."""

    @contextmanager
    def opened(text, size=(1280, 900), **options):
        file = tmp_path / "report.html"
        file.write_text(text, "utf-8")
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        try:
            page, faults = context.new_page(), []
            page.on("console", lambda message: faults.append(message.text))
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("dialog", lambda box: (faults.append(f"dialog {box.message}"), box.dismiss()))
            page.on("request", lambda asked: faults.append(asked.url) if not asked.url.startswith("data:") else None)
            page.goto(file.as_uri())
            assert faults.pop(0) == file.as_uri()
            yield page
            assert faults == []
        finally:
            context.close()

    return opened


def _counts(page):
    return tuple(int(page.inner_text(f"#try-{name}")) for name in ("misses", "alarms"))


def _set(page, value):
    """Move the slider as a hand does."""
    page.eval_on_selector(
        "#try-slider",
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }",
        value,
    )


# Products are slow: they differ in their margins alone, which test_report_table counts.
@pytest.mark.parametrize("kind", ["common", "zones", pytest.param("products", marks=pytest.mark.slow)])
def test_the_counts_at_the_threshold_in_force_are_those_of_the_report(show, evaluations, page_of, kind):
    evaluation = evaluations[kind]
    confusion = evaluation.figures.confusion
    own = (confusion.miss.count, confusion.false_reject.count)
    assert min(own) > 0
    with show(page_of(kind)) as page:
        assert _counts(page) == own
        # The share of the page is rounded as that of the report.
        assert page.inner_text("#try-misses-share") == f"{rounding.percent(confusion.miss.value)} of {confusion.miss.n}"
        dials = page.locator("#try-dial option").all_inner_texts() or [""]
        for dial in dials:
            if dial:
                page.select_option("#try-dial", label=dial)
            before = _counts(page)
            # Everything is rejected at the lowest place, but for faults, which always are.
            _set(page, -1000)
            assert _counts(page)[0] <= before[0]
            page.fill("#try-number", "1000000")
            assert _counts(page)[0] >= before[0]
        assert _counts(page) == (confusion.miss.n, 1)
        assert page.is_visible("#images-tried")
        page.click("#try-reset")
        assert _counts(page) == own
        assert page.is_hidden("#images-tried")
        cells = page.locator("#all-images .outcome").all_text_contents()
        assert cells.count("miss") == own[0]
        if evaluation.figures.has_relative_scores:
            which = dials[0]
            page.select_option("#try-dial", label=which)
            said = page.inner_text("#try-own")
            assert said.startswith(f"{which} alone rejects ")
            rows = [row for row in evaluation.figures.zones or () if row.zone == which]
            for row in rows:
                good, bad = row.false_reject, row.detection
                assert f"{good.count} of {good.n} normal and {bad.count} of {bad.n} defective" in said


def test_a_threshold_that_is_tried_counts_as_the_runtime_would(show, evaluations, page_of):
    evaluation = evaluations["common"]
    scores, labels, usable = (getattr(evaluation.measured, name) for name in ("scores", "labels", "usable"))
    with show(page_of("common")) as page:
        for value in (72.0, 74.5, 77.0, 103.0):
            page.fill("#try-number", str(value))
            accepted = usable & (scores <= value)
            assert _counts(page) == (int((accepted & labels).sum()), int((~accepted & ~labels).sum()))
            wrong = [text for text in page.locator("#all-images .outcome").all_text_contents() if text != "correct"]
            assert len(wrong) == sum(_counts(page))
        assert "--image-threshold 103" in page.inner_text("#try-command")
        # By keyboard too.
        page.focus("#try-slider")
        before = page.input_value("#try-number")
        page.keyboard.press("ArrowLeft")
        assert page.input_value("#try-number") != before
        assert "missed" in page.get_attribute("#try-slider", "aria-valuetext")


@pytest.mark.slow
def test_without_thresholds_one_can_be_tried_all_the_same(show, evaluations, page_of):
    bare = evaluations["none"]
    best = bare.figures.f1_threshold
    accepted = bare.measured.usable & (bare.measured.scores <= best)
    with show(page_of("none")) as page:
        assert _counts(page)[0] == int((accepted & bare.measured.labels).sum())
        assert "No thresholds are set" in page.inner_text("#try")


def test_images_can_be_sorted_filtered_and_enlarged(show, evaluations, page_of):
    evaluation = evaluations["common"]
    names = "#all-images tbody tr:not([hidden]) th"
    with show(page_of("common")) as page:
        assert page.locator(names).count() == len(evaluation.measured.samples)
        score = page.locator("#all-images thead th[data-sort=score]")
        for order, pick in (("ascending", min), ("descending", max)):
            score.locator("button").press("Enter")
            assert score.get_attribute("aria-sort") == order
            first = page.locator("#all-images tbody tr").first.get_attribute("data-score")
            assert float(first) == pick(evaluation.measured.scores[evaluation.measured.usable])
        page.select_option("#filter-outcome", "miss")
        assert page.locator(names).count() == evaluation.figures.confusion.miss.count
        assert "4 of 4 shown, 22 in all" in page.inner_text("#images-shown")
        page.select_option("#filter-outcome", "")
        page.fill("#filter-name", "ONERROR")
        assert page.locator(names).all_inner_texts() == [f"test/{STRANGER}/{STRANGER}.png"]
        page.fill("#filter-name", "dull/1")
        page.locator("#all-images .zoom:visible").press("Enter")
        assert page.inner_text("#large-title") == "test/dull/1.png"
        assert page.locator("#large-images img").count() == 2  # the large ones of its card
        page.keyboard.press("Escape")
        assert page.is_hidden("#large")
        assert page.evaluate("document.activeElement.className") == "zoom"
        page.fill("#filter-name", "")
        page.locator(".card .zoom").first.click()
        title = page.inner_text("#large-title")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#large-title") != title
        page.click("#large-close")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(show, page_of, compared, scheme):
    for text in (page_of("common"), compared):
        with show(text, color_scheme=scheme) as page:
            page.eval_on_selector_all("details", "all => all.forEach((each) => { each.open = true; })")
            if page.locator("#try").count():
                _set(page, 70)
            found = page.evaluate(CONTRAST)
            assert len(found) > 100
            assert [low for low in found if low[0] < 4.5] == []
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (np.mean([int(v) for v in re.findall(r"\d+", background)[:3]]) < 128) == (scheme == "dark")


def test_on_a_phone_tables_say_that_they_scroll_and_the_page_does_not(show, page_of):
    with show(page_of("common"), size=(390, 844)) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        boxes = page.locator(".scroll").all()
        wide = [box.evaluate("box => box.scrollWidth > box.clientWidth + 1") for box in boxes]
        hints = [hint.is_visible() for hint in page.locator(".swipe").all()]
        assert any(wide)
        shown = [box.is_visible() for box in boxes]
        assert [a and b for a, b in zip(wide, shown, strict=True)] == hints
        # The table of all images fits: it leaves out columns.
        assert page.locator("#all-images").evaluate("table => table.offsetWidth") <= 390
        page.set_viewport_size({"width": 1280, "height": 900})
        # On a large screen fewer of them do, and say so as well.
        wide_too = [box.evaluate("box => box.scrollWidth > box.clientWidth + 1") for box in boxes]
        assert sum(wide_too) < sum(wide)
        sync_api.expect(page.locator(".swipe:visible")).to_have_count(sum(wide_too))


def test_on_a_phone_names_of_images_break_behind_separators_alone(show, page_of):
    # Of each piece between two places to break at, how many lines it takes.
    pieces = """names => [...names].flatMap((name) => [...name.childNodes].filter((node) => node.nodeType === 3)
      .map((node) => { const range = document.createRange(); range.selectNodeContents(node);
        return [node.data, new Set([...range.getClientRects()].map((box) => box.top)).size]; }))"""
    with show(page_of("common"), size=(390, 844)) as page:
        found = page.locator("#all-images tbody th").evaluate_all(pieces)
        # The name that is markup has spaces, and is wider than the column in one piece.
        lines = {text: count for text, count in found if text not in STRANGER}
        assert {"test/", "good/"} <= lines.keys()
        assert set(lines.values()) == {1}, lines


def test_without_script_the_report_says_all_that_matters(show, evaluations, page_of):
    evaluation = evaluations["common"]
    with show(page_of("common"), java_script_enabled=False) as page:
        for shown in ("Next step:", "Missed defects", "Worst misses", "test/dull/1.png", f"test/{STRANGER}"):
            assert shown in page.inner_text("main")
        assert page.locator("#all-images tbody tr").count() == len(evaluation.measured.samples)
        assert page.locator("#all-images img").count() == len(evaluation.measured.samples) - 1
        for control in ("#try", "#images-controls", "#show-more", "#to-try"):
            assert page.is_hidden(control)


def test_two_bundles_side_by_side(show, compared):
    with show(compared, size=(390, 844)) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.select_option("#filter-outcome", "B alone correct")
        found = page.locator("#all-images tbody tr:not([hidden]) .outcome").all_inner_texts()
        assert set(found) == {"B alone correct"}
        assert page.locator(".card").count() >= len(found[:6])
        page.locator("#all-images .zoom:visible").first.click()
        assert page.locator("#large-images img").count() == 3
