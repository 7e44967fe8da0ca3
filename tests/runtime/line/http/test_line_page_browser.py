"""The operator's page in Chromium: what is seen, when, and what it never does."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the HTTP interface needs the extra `line`")
pytest.importorskip("uvicorn", reason="the HTTP interface needs the extra `line`")
sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")

pytest.importorskip("httpx", reason="the client of these tests")

from browser import CHROMIUM, DESKTOP, PHONE, launch, opened  # noqa: E402
from line_control import wait_for  # noqa: E402
from line_here import line_here, spotted  # noqa: E402
from line_page_stand_in import PageHere, drawn  # noqa: E402
from line_project import png  # noqa: E402
from swapped_lines import write_bundle_at  # noqa: E402

from flawscope.bundle import open_bundle, pack_bundle  # noqa: E402
from flawscope.errors import StorageError  # noqa: E402
from flawscope.runtime.line.users.users_file import UsersFile  # noqa: E402

pytestmark = [pytest.mark.long, pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")]

WAIT_S = 40.0
PASSWORD = "correct horse battery"
STRANGER = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = launch(playwright)
        sync_api.expect.set_options(timeout=1000 * WAIT_S)
        yield chromium
        chromium.close()


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageHere]:
    here = PageHere(tmp_path, monkeypatch)
    yield here
    here.close()


def shot(page: Any, folder: Path, name: str) -> None:
    """Keep a screenshot, with what is open at the time."""
    data = page.screenshot(path=folder / f"{name}.png")
    assert len(data) > 5000


def until_shown(page: Any, where: str, part: str) -> None:
    """Return when an image has been drawn whose path has this part; asked often, as the time it takes is tested."""
    canvas, end = page.locator(where), time.monotonic() + WAIT_S
    while part not in (canvas.get_attribute("data-key") or ""):
        assert time.monotonic() < end, f"no image of {part}"
        page.wait_for_timeout(20)


def base(here: Any) -> str:
    """Return the address of a real line."""
    return str(here.client.base_url).rstrip("/")


def seconds_until_seen(here: Any, page: Any, value: int) -> float:
    """Return how long after its verdict a rejected part is seen on the page, with its image."""
    seq = here.push(spotted(90, value))["seq"]
    began = time.monotonic()
    until_shown(page, ".tile canvas", f"seq={seq}")
    sync_api.expect(page.locator(".verdict-word")).to_have_text("REJECT")
    return time.monotonic() - began


def pixel(page: Any, where: str) -> list[int]:
    """Return red, green and blue at the place of the spot that the stand-in draws on maps."""
    # From a copy: Chromium warns of a canvas that is read often.
    script = """(canvas) => {
        const copy = new OffscreenCanvas(1, 1).getContext('2d');
        copy.drawImage(canvas, -110, -40);
        return [...copy.getImageData(0, 0, 1, 1).data].slice(0, 3);
    }"""
    found: list[int] = page.locator(where).evaluate(script)
    return found


def test_live_follows_parts_and_says_what_is_wrong(browser: Any, line: PageHere, tmp_path: Path) -> None:
    line.top.part([2.0], STRANGER)
    with opened(browser, line.url, has_touch=True) as (page, watch):
        word = page.locator(".verdict-word")
        sync_api.expect(word).to_have_text("ACCEPT")
        # What a stranger calls a part is text and nothing else.
        sync_api.expect(page.locator(".which")).to_have_text(f"part 1 · {STRANGER}")

        seq = line.top.part([5.5])
        until_shown(page, ".tile canvas", f"seq={seq}")
        sync_api.expect(word).to_have_text("REJECT")
        sync_api.expect(page.locator(".score")).to_contain_text("5.5")
        sync_api.expect(page.locator(".strip button")).to_have_count(2)

        plain = pixel(page, ".tile canvas")
        page.keyboard.press("m")
        until_shown(page, ".tile canvas", "map=1")
        assert pixel(page, ".tile canvas")[0] > plain[0] + 60, "the map is drawn over the image"
        shot(page, tmp_path, "live")

        line.top.part([None])
        sync_api.expect(word).to_have_text("FAULT")
        sync_api.expect(page.locator(".why")).to_contain_text("too dark, too bright or blurred")

        line.top.change("error")
        banner = page.locator(".banner")
        sync_api.expect(banner).to_contain_text("the camera does not answer")
        sync_api.expect(word).to_have_text("NOT READY")
        banner.get_by_role("button", name="Acknowledge").tap()
        sync_api.expect(banner).to_be_hidden()
        assert line.top.actors == ["acknowledge local"]

        page.get_by_role("button", name="Halt").tap()
        assert line.top.actors == ["acknowledge local"], "one touch halts nothing"
        page.get_by_role("button", name="Press again: halt").tap()
        sync_api.expect(word).to_have_text("HALTED")
        banner.get_by_role("button", name="Start again").tap()
        sync_api.expect(word).to_have_text("FAULT")
        watch.check()


def test_what_is_old_never_looks_current(browser: Any, line: PageHere, tmp_path: Path) -> None:
    line.top.part([2.0], age_s=300.0)
    with opened(browser, line.url, PHONE) as (page, watch):
        sync_api.expect(page.locator(".age")).to_have_text("5 min ago")
        sync_api.expect(page.locator(".pane")).to_have_attribute("data-old", "image of 5 min ago")
        watch.check()
        line.close()
        sync_api.expect(page.locator("#lost")).to_contain_text("What is shown is not current")
        sync_api.expect(page.locator(".verdict-word")).to_have_text("UNKNOWN")
        sync_api.expect(page.locator(".pane")).to_have_attribute("data-old", "NOT CURRENT\nno connection")
        shot(page, tmp_path, "lost")


def test_an_image_that_belongs_to_another_part_says_so_however_fast_parts_come(browser: Any, line: PageHere) -> None:
    first = line.top.part([2.0])
    with opened(browser, line.url) as (page, watch):
        until_shown(page, ".tile canvas", f"seq={first}")
        line.line.draw = lambda seq, view, is_map: time.sleep(4) or drawn(seq, is_map)  # a network that hangs
        veil, end = page.locator(".pane"), time.monotonic() + WAIT_S
        while veil.get_attribute("data-old") != f"image of part {first}":
            assert time.monotonic() < end, "an old image looked current"
            line.top.part([2.0])
            page.wait_for_timeout(300)
        watch.check()


def test_review_by_keys_alone(browser: Any, line: PageHere, tmp_path: Path) -> None:
    for score in (5.0, 2.0, 6.0, 7.0, 5.5):
        line.top.part([score])
    line.top.part([None], reason="missing_view", image="none")
    with opened(browser, f"{line.url}/#review") as (page, watch):
        title = page.locator("#review h2")
        sync_api.expect(title).to_have_text("Part 6")
        # It goes on while one looks at it; how old it is at first depends on the machine.
        age = page.locator(".review-age")
        sync_api.expect(age).to_have_text(re.compile(r"^\d+ (s|min) ago$"))
        sync_api.expect(age).not_to_have_text(age.text_content())
        page.keyboard.press("u")
        sync_api.expect(title).to_have_text("Part 5")
        until_shown(page, "#review canvas", "/5/left.png")
        page.keyboard.press("m")
        until_shown(page, "#review canvas", "/5/left-map.png")
        page.keyboard.press("a")
        page.keyboard.type("crack")
        page.keyboard.press("Enter")
        sync_api.expect(title).to_have_text("Part 4")
        page.keyboard.press("1")  # the type that was used last
        sync_api.expect(title).to_have_text("Part 3")
        page.keyboard.press("z")
        sync_api.expect(title).to_have_text("Part 4")
        shot(page, tmp_path, "review")
        page.keyboard.press("n")
        page.keyboard.press("ArrowRight")
        sync_api.expect(title).to_have_text("Part 1")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("n")
        sync_api.expect(title).to_have_text("Part 1")
        page.keyboard.press("u")
        sync_api.expect(page.locator("#review")).to_contain_text("All of these have been looked at")
        wait_for(lambda: len(line.line.reviews) == 6)
        watch.check()
    said = [(row["seq"], row["label"], row["type"]) for row in line.line.reviews]
    assert said == [
        (6, "unsure", ""),
        (5, "anomalous", "crack"),
        (4, "anomalous", "crack"),
        (4, "normal", ""),
        (3, "normal", ""),
        (1, "unsure", ""),
    ]


def test_a_view_that_the_line_does_not_offer_says_so(browser: Any, line: PageHere) -> None:
    line.top.part([5.0])
    line.line.journal.failure = StorageError("journal.db: could not be read.")
    with opened(browser, f"{line.url}/#review") as (page, _):
        denied = page.locator("#denied")
        sync_api.expect(denied).to_contain_text("Review is not offered by this line now.")
        sync_api.expect(page.locator("#live")).to_be_visible()
        page.locator("#tab-live").click()
        sync_api.expect(denied).to_be_hidden()
        page.locator("#tab-engineer").click()
        sync_api.expect(page.locator("#engineer")).to_be_visible()
        # Past the tabs, and not to another view.
        page.locator(".skip").focus()
        page.keyboard.press("Enter")
        page.wait_for_function("location.hash === '#main'")
        sync_api.expect(page.locator("#engineer")).to_be_visible()


def test_an_engineer_tries_a_threshold_and_swaps_to_the_end(browser: Any, tmp_path: Path) -> None:
    write_bundle_at(tmp_path / "tiny.flaw", 150.0)
    digest = write_bundle_at(tmp_path / "other.flaw", 100.0, name="other")
    with open_bundle(tmp_path / "other.flaw") as bundle:
        pack_bundle(bundle, tmp_path / "packed.flaw")
    with line_here(tmp_path) as here, opened(browser, f"{base(here)}/#engineer") as (page, watch):
        for value in range(95, 215, 6):
            here.push(png(value))
        page.get_by_role("button", name="Load again").click()
        outcome = page.locator("#what-if-outcome")
        sync_api.expect(outcome).to_contain_text("10 accept, 10 reject")
        slider = page.locator("#what-if")
        move = "(slider, to) => { slider.value = to; slider.dispatchEvent(new Event('input')); }"
        slider.evaluate(move, "120")
        assert "5 accept, 15 reject" in outcome.inner_text(), "judged anew at once, without asking"
        sync_api.expect(page.locator(".changed")).to_contain_text("5 would be decided otherwise")
        button = page.locator("#threshold-set")
        sync_api.expect(button).to_be_disabled()
        page.locator("#threshold-reason").fill("scratches come through")
        button.click()
        sync_api.expect(page.locator("#told")).to_contain_text("from the next part on")
        sync_api.expect(page.locator(".audit")).to_contain_text("scratches come through")
        assert here.push(png(130))["verdict"] == "reject"
        slider.evaluate(move, "225")
        sync_api.expect(button).to_contain_text("outside of the bundle's limits")

        page.locator("#upload").set_input_files(tmp_path / "packed.flaw")
        swap = page.locator(f".swap-in[data-digest='{digest}']")
        page.locator("#shadow").fill("1")
        swap.click()
        swap.click()
        sync_api.expect(page.locator(".steps li.running b")).to_have_text("shadow")
        here.push(png(110))  # on this one the two differ
        sync_api.expect(page.locator(".swap")).to_have_attribute("data-state", "done")
        sync_api.expect(page.locator(".steps li.ok")).to_have_count(6)
        sync_api.expect(page.locator("#what-if-exact")).to_have_value("100")  # the one that is in force now
        sync_api.expect(page.locator(".steps li.skipped b")).to_have_text("challenge")
        sync_api.expect(page.locator(".swap tbody tr")).to_have_count(1)
        sync_api.expect(page.locator(".bundle.here h3")).to_have_text("other")
        assert here.push(png(110))["verdict"] == "reject"
        shot(page, tmp_path, "engineer")
        page.locator("#rollback-reason").fill("good parts were rejected")
        page.get_by_role("button", name="Roll back").click()
        page.get_by_role("button", name="Press again: roll back").click()
        sync_api.expect(page.locator(".bundle.here h3")).to_have_text("tiny")
        sync_api.expect(page.locator("#told")).to_contain_text("rolled back")
        sync_api.expect(page.locator(".audit")).to_contain_text("good parts were rejected")
        sync_api.expect(
            page.locator("#rollback-reason")
        ).to_be_hidden()  # with the button: there is nothing to go back to
        bad = tmp_path / "state" / "challenge" / "top" / "must_reject"
        bad.mkdir(parents=True)
        (bad / "scratch.png").write_bytes(png(200))
        page.get_by_role("button", name="Challenge the one in force").click()
        sync_api.expect(page.locator(".challenged")).to_contain_text("Challenge by hand passed")
        page.locator("#verify").click()
        sync_api.expect(page.locator("#verified")).to_contain_text("The chain is whole: 23 parts")
        watch.check()


def test_a_user_signs_in_and_sees_what_his_role_may_do(browser: Any, line: PageHere, tmp_path: Path) -> None:
    line.top.part([5.0])
    UsersFile(tmp_path).add_user("olga", "operator", PASSWORD)
    line.line.users.look()
    with opened(browser, f"{line.url}/#engineer", PHONE, color_scheme="dark") as (page, watch):
        sync_api.expect(page.locator("#live")).to_be_hidden()
        page.get_by_label("Name").fill("olga")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        sync_api.expect(page.locator("#tab-review")).to_be_visible()
        sync_api.expect(page.locator("#tab-engineer")).to_be_hidden()
        sync_api.expect(page.locator("#engineer")).to_be_hidden()
        denied = page.locator("#denied")
        sync_api.expect(denied).to_contain_text("Engineer needs the role engineer; olga has the role operator.")
        # What changes something brings the token of the session.
        page.locator("#tab-review").click()
        sync_api.expect(denied).to_be_hidden()
        page.locator("#say-unsure").click()
        sync_api.expect(page.locator("#review")).to_contain_text("All of these have been looked at")
        wait_for(lambda: [row["actor"] for row in line.line.reviews] == ["olga"])
        watch.check()
        page.locator("#user").click()
        sync_api.expect(page.get_by_label("Password")).to_be_visible()
        sync_api.expect(page.locator("#live")).to_be_hidden()


def test_a_real_line_is_seen_within_a_second_halted_and_reviewed(browser: Any, tmp_path: Path) -> None:
    with line_here(tmp_path) as here, opened(browser, base(here), DESKTOP) as (page, watch):
        here.push(spotted(90, 120))
        word = page.locator(".verdict-word")
        sync_api.expect(word).to_have_text("ACCEPT")
        # The best of three, as other tests may have the machine meanwhile.
        assert min(seconds_until_seen(here, page, value) for value in (200, 220, 230)) < 1.0
        seq = 4
        plain = page.locator(".tile canvas").screenshot()
        page.locator(".tile .map").click()
        until_shown(page, ".tile canvas", f"map=1&seq={seq}")
        assert page.locator(".tile canvas").screenshot() != plain, "the map is drawn over the image"
        page.locator(".strip button").last.click()
        sync_api.expect(page.locator("dialog")).to_contain_text("reject")
        until_shown(page, "dialog canvas", f"/{seq}/cam0-map.png")
        shot(page, tmp_path, "part")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Halt").click()
        page.get_by_role("button", name="Press again: halt").click()
        sync_api.expect(word).to_have_text("HALTED")
        assert here.push(spotted(90, 120))["verdict"] == "fault"
        sync_api.expect(page.locator(".why")).to_contain_text("station was not ready")
        page.get_by_role("button", name="Start again").click()
        sync_api.expect(page.locator(".banner")).to_be_hidden()
        assert here.push(spotted(80, 110))["verdict"] == "accept"
        sync_api.expect(word).to_have_text("ACCEPT")

        page.keyboard.press("2")  # the fault first, then the rejects
        for key, typed in (("u", ""), ("a", "crack"), ("1", ""), ("n", "")):
            sync_api.expect(page.locator("#review .facts")).to_be_visible()
            page.keyboard.press(key)
            if typed:
                page.keyboard.type(typed)
                page.keyboard.press("Enter")
        sync_api.expect(page.locator("#review")).to_contain_text("All of these have been looked at")
        reviews = here.line.journal.reviews
        wait_for(lambda: len(reviews()) == 4)
        said = [(row.seq, row.label, row.type) for row in reviews()]
        assert said == [(5, "unsure", ""), (4, "anomalous", "crack"), (3, "anomalous", "crack"), (2, "normal", "")]
        watch.check()
