"""`flawscope line demo`: what the fake belt sends, and a line that judges it."""

from __future__ import annotations

import re
import signal
import sys
import webbrowser
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from error_lines import refused
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.bundle import open_bundle
from flawscope.datasets.parts import render
from flawscope.runtime.line.clock import SystemClock
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.parts import PartRecord
from flawscope.workflows import line_demo
from flawscope.workflows.fake_belt import KIND, SEED, panel

VIEWS = ("left", "right")
SIDE = 64


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """Give signals back to pytest: the command takes them for itself."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_demo, "SIZE", SIDE)


def brightest(number: int) -> float:
    """Return about the score that the tiny bundle gives to a good board: the mean grey of its brightest sixteenth."""
    image = cv2.resize(render(KIND, SEED, number, SIDE)[0], (16, 16), interpolation=cv2.INTER_AREA)
    return float(image.mean(axis=2).max())


def parts_of(folder: Path) -> list[PartRecord]:
    journal = Journal.open(folder / "state", "demo", SystemClock())
    try:
        return journal.parts(limit=1000)
    finally:
        journal.close()


class TestPanel:
    def test_it_is_decided_by_its_number(self) -> None:
        assert panel(7, VIEWS, SIDE) == panel(7, VIEWS, SIDE)
        assert panel(7, VIEWS, SIDE).images != panel(8, VIEWS, SIDE).images

    def test_of_25_in_a_row_18_are_good_and_3_are_faults(self) -> None:
        panels = [panel(number, VIEWS, SIDE) for number in range(25, 50)]
        kinds = Counter(re.sub("^(left|right): ", "", one.what) for one in panels)
        assert kinds.pop("") == 18
        for fault in ("the camera sent nothing", "the lamp is off", "the file is cut off"):
            assert kinds.pop(fault) == 1
        assert sum(kinds.values()) == 4, "the rest are defects"

    def test_what_is_said_is_what_is_sent(self) -> None:
        for number in range(25):
            what, images = panel(number, VIEWS, SIDE)
            decoded = {
                view: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for view, data in images.items()
            }
            assert (len(images) == 1) is ("sent nothing" in what)
            assert (len(images) == 2 and any(image is None for image in decoded.values())) is ("cut off" in what)
            if what == "the lamp is off":
                assert all(np.median(image) < 10 for image in decoded.values())

    def test_of_one_camera(self) -> None:
        assert all(set(panel(number, ["only"], SIDE).images) == {"only"} for number in range(25))


class TestLineDemo:
    @pytest.mark.long
    def test_a_bundle_that_is_there_is_used_and_the_account_holds(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small: None
    ) -> None:
        opened: list[str] = []
        monkeypatch.setattr(webbrowser, "open", opened.append)
        monkeypatch.setenv("DISPLAY", ":99")
        # Torch is needed for training alone.
        monkeypatch.setitem(sys.modules, "flawscope.workflows.pipeline", None)
        middle = float(np.median([brightest(number) for number in range(20)]))
        for number in range(10):  # where the machine was too slow to judge any part in time, it is begun anew
            folder = tmp_path / str(number)
            folder.mkdir()
            write_tiny_bundle(folder / "board.flaw", thresholds=tiny_thresholds(middle))
            arguments = ["line", "demo", "--minutes", "0.05", "--rate", "40", "--port", "0", str(folder)]
            opened.clear()
            assert cli.run(arguments) == 0
            said = capsys.readouterr()
            (page,) = re.findall(r"the page: (http://127\.0\.0\.1:\d+/)", said.out)
            assert opened == [page]
            parts = parts_of(folder)
            assert [part.seq for part in parts] == list(range(1, len(parts) + 1))
            counts = Counter(part.verdict for part in parts)
            if counts["accept"] and counts["reject"]:
                break
        assert counts["accept"] > 0
        assert counts["reject"] > 0
        account = re.findall(r"(\d+) parts = (\d+) accept \+ (\d+) reject \+ (\d+) fault \+ 0 open", said.err)
        assert tuple(map(int, account[-1])) == (len(parts), counts["accept"], counts["reject"], counts["fault"])
        reasons = {part.reason for part in parts if part.verdict == "fault"}
        if len(parts) >= 25:  # else the machine was too slow to see one of each
            assert {"missing_view", "scene", "unreadable_image"} <= reasons
        # The numbers go on, and so does the belt.
        for _ in range(10):
            assert cli.run([*arguments, "--no-open", "--minutes", "0.01"]) == 0
            if len(parts_of(folder)) > len(parts):
                break
        assert len(opened) == 1
        assert parts_of(folder)[len(parts)].part_id == f"panel-{len(parts)}"

    @pytest.mark.slow
    def test_a_new_folder_gets_a_bundle_that_tells_good_from_bad(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "new"
        assert (
            cli.run(["line", "demo", "--minutes", "0.2", "--rate", "8", "--port", "0", "--no-open", str(folder)]) == 0
        )
        with open_bundle(folder / "board.flaw") as bundle:
            assert bundle.manifest.thresholds is not None
        assert sorted(path.name for path in folder.iterdir()) == ["board.flaw", "line.yml", "state"]
        parts = parts_of(folder)
        whats = [panel(int(part.part_id.removeprefix("panel-")), VIEWS, SIDE).what for part in parts]
        verdicts = Counter((what == "", part.verdict) for what, part in zip(whats, parts, strict=True))
        # Whoever is slow sees fewer parts: the shares have to be right, not the numbers.
        assert verdicts[True, "accept"] > 0.7 * sum(what == "" for what in whats)
        assert verdicts[False, "accept"] <= 0.3 * sum(what != "" for what in whats)
        faults = ("sent nothing", "lamp is off", "cut off")
        assert all(
            part.verdict == "fault"
            for what, part in zip(whats, parts, strict=True)
            if any(one in what for one in faults)
        )

    def test_without_torch_it_says_which_extra_is_missing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "flawscope.workflows.pipeline", None)
        assert cli.run(["line", "demo", "--no-open", str(tmp_path)]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert 'pip install "flawscope[all]"' in errors[0]
        assert not (tmp_path / "state").exists()

    @pytest.mark.parametrize("missing", ["starlette", "uvicorn", "yaml", "prometheus_client"])
    def test_what_the_line_needs_is_looked_for_before_the_training(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str
    ) -> None:
        monkeypatch.setitem(sys.modules, missing, None)
        assert missing in refused(["line", "demo", "--no-open", str(tmp_path / "new")], capsys)
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize(
        "options",
        [
            ["--minutes", "0"],
            ["--minutes", "nan"],
            ["--minutes", "x"],
            ["--rate", "0"],
            ["--port", "65536"],
            ["--port", "-1"],
            ["--hardware"],
            ["one", "two"],
        ],
    )
    def test_wrong_options_give_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        refused(["line", "demo", "--no-open", *options], capsys)
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_is_a_file_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").write_bytes(b"mine")
        refused(["line", "demo", "--no-open", str(tmp_path / "file")], capsys)
        assert (tmp_path / "file").read_bytes() == b"mine"

    def test_a_line_whose_images_are_not_sent_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line_demo.write_config(tmp_path)
        config = (tmp_path / "line.yml").read_text()
        changed = config.split("      - name: right")[0].replace("{kind: push}", "{kind: folder, path: images}")
        (tmp_path / "line.yml").write_text(changed)
        assert "kind push" in refused(["line", "demo", "--no-open", str(tmp_path)], capsys)
        assert (tmp_path / "line.yml").read_text() == changed, "it is the user's file"

    @pytest.mark.long
    def test_it_ends_when_its_journal_is_large(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small: None
    ) -> None:
        from flawscope.workflows import line_demo_command as command

        write_tiny_bundle(tmp_path / "board.flaw", thresholds=tiny_thresholds())
        monkeypatch.setattr(command, "_MOST_BYTES", 1)
        monkeypatch.setattr(command, "_SAY_S", 0.2)
        assert cli.run(["line", "demo", "--no-open", "--port", "0", str(tmp_path)]) == 0
        assert "enough for a demo: it ends" in capsys.readouterr().err
