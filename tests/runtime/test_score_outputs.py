"""What `flawscope score` finds in folders and what it writes: maps, a table, a folder of results, a summary."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from file_contents import files_of
from odd_files import refuse_listing
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.imaging.images import read_image
from flawscope.runtime import Result
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.score_summary import Summary


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose score is the brightness, and whose threshold is 150."""
    write_tiny_bundle(tmp_path / "t.flaw", thresholds=tiny_thresholds(150.0), min_area_px=1)
    return tmp_path / "t.flaw"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return tmp_path / "parts"


def write(path: Path, value: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((16, 16, 3), value, np.uint8))
    return path


def score(*arguments: object) -> int:
    return cli.run(["score", *(str(argument) for argument in arguments), "--backend", "cpu"])


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class TestFolders:
    def test_all_images_below_are_scored_in_order_also_behind_links_and_only_once(
        self, bundle: Path, parts: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("b.png", "a/1.png", "a/deep/er/2.PNG", "c/3.bmp"):
            write(parts / name)
        (parts / "a" / "notes.txt").write_text("no image")
        (parts / "c" / "round").symlink_to(parts)
        write(parts.parent / "elsewhere" / "4.png")
        (parts / "c" / "away").symlink_to(parts.parent / "elsewhere")
        assert score(bundle, parts, "--json") == 0
        names = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
        expected = ["a/1.png", "a/deep/er/2.PNG", "b.png", "c/3.bmp", "c/away/4.png"]
        assert names == [str(parts / name) for name in expected]

    @pytest.mark.parametrize("order", [("", "monday"), ("monday", ""), ("", "")])
    def test_a_folder_and_one_below_it_are_scored_once(
        self, bundle: Path, parts: Path, order: tuple[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(parts / "monday" / "1.png")
        assert score(bundle, *(parts / name for name in order), "--json") == 0
        assert len(capsys.readouterr().out.splitlines()) == 1

    def test_nothing_but_a_link_that_goes_round_holds_no_image(
        self, bundle: Path, parts: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        parts.mkdir(exist_ok=True)
        (parts / "round").symlink_to(parts)
        assert score(bundle, parts) == 2
        assert "expected images in this folder or below, got none" in capsys.readouterr().err

    def test_a_folder_below_that_cannot_be_listed_is_a_fault(
        self, bundle: Path, parts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("a.png", "b/1.png", "c.png"):
            write(parts / name)
        refuse_listing(monkeypatch, parts / "b")
        assert score(bundle, parts, "--json") == 1
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["decision"] for line in lines] == ["accept", "fault", "accept"]
        assert lines[1]["image"] == str(parts / "b")
        assert "Permission denied" in lines[1]["reason"]

    def test_masks_of_a_dataset_are_no_images_and_that_is_said(
        self, bundle: Path, parts: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(parts / "test" / "good" / "0.png")
        write(parts / "ground_truth" / "dent" / "0_mask.png", 255)
        assert score(bundle, parts, "--json") == 0
        shown = capsys.readouterr()
        assert len(shown.out.splitlines()) == 1
        assert f"note: {parts}/ground_truth: masks of a dataset, passed over. Name it to score" in shown.err
        assert score(bundle, parts / "ground_truth", "--json") == 0
        assert json.loads(capsys.readouterr().out)["decision"] == "reject"


class TestMaps:
    def test_they_keep_the_folders_of_the_input(self, bundle: Path, parts: Path, tmp_path: Path) -> None:
        for name in ("a.png", "a.bmp", "day 1/a.png", "day 2/x/a.png"):
            write(parts / name)
        assert score(bundle, parts, "--maps", tmp_path / "maps") == 0
        assert below(tmp_path / "maps") == ["a.png", "a_2.png", "day 1/a.png", "day 2/x/a.png"]

    def test_equal_places_of_several_inputs_do_not_meet(self, bundle: Path, tmp_path: Path) -> None:
        values = {"x/good/0.png": 10, "y/good/0.png": 20, "y/good_2/0.png": 30, "0.png": 40, "z/0.png": 50}
        for name, value in values.items():
            write(tmp_path / name, value)
        named = ["x/good", "y/good", "y/good_2", "0.png", "z/0.png"]
        assert score(bundle, *(tmp_path / name for name in named), "--maps", tmp_path / "maps") == 0
        maps = below(tmp_path / "maps")
        assert maps == ["0.png", "0_2.png", "good/0.png", "good_2/0.png", "good_2_2/0.png"]
        found = {name: int(read_image(tmp_path / "maps" / name)[0, 0, 0]) for name in maps}
        assert sorted(found.values()) == [10, 20, 30, 40, 50]

    def test_they_do_not_go_behind_a_link_that_is_scored(
        self, bundle: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(tmp_path / "elsewhere" / "a.png")
        parts.mkdir()
        (parts / "link").symlink_to(tmp_path / "elsewhere")
        assert score(bundle, parts, "--maps", tmp_path / "elsewhere" / "maps") == 2
        assert f"expected a folder outside of {parts}, of which all images" in capsys.readouterr().err
        assert score(bundle, parts, "--maps", tmp_path / "elsewhere", "--overwrite") == 2
        assert below(tmp_path / "elsewhere") == ["a.png"]

    def test_where_the_next_command_would_score_them_they_are_not_drawn(
        self, bundle: Path, parts: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(parts / "a.png")
        for place in (parts / "maps", parts / "maps" / ".." / "more"):
            assert score(bundle, parts, "--maps", place) == 2
            assert f"{place}: expected a folder outside of {parts}, of which all images" in capsys.readouterr().err
        assert below(parts) == ["a.png"]


class TestTable:
    def rows(self, path: Path) -> list[dict[str, str]]:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def test_it_has_a_row_an_image_with_what_was_decided_and_where_the_map_is(
        self, bundle: Path, parts: Path, tmp_path: Path
    ) -> None:
        write(parts / "a" / "0.png", 60)
        write(parts / "a" / "1.png", 200)
        (parts / "b.png").write_bytes(b"no image")
        assert score(bundle, parts, "--csv", tmp_path / "t.csv", "--maps", tmp_path / "maps") == 1
        rows = self.rows(tmp_path / "t.csv")
        assert [row["image"] for row in rows] == [str(parts / name) for name in ("a/0.png", "a/1.png", "b.png")]
        assert [row["decision"] for row in rows] == ["accept", "reject", "fault"]
        assert [row["regions"] for row in rows] == ["0", "1", "0"]
        assert [row["map"] for row in rows] == ["a/0.png", "a/1.png", ""]
        assert (float(rows[1]["score"]), float(rows[1]["ratio"])) == (200.0, 200 / 150)
        assert (rows[2]["score"], rows[2]["latency_ms"], rows[2]["threshold_revision"]) == ("", "", "")
        assert rows[2]["reason"].startswith("expected an image (")

    def test_a_name_is_never_a_formula_or_a_second_row(
        self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        names = ["=1+2,3.png", "@a.png", 'x"y\naccept.png']
        for name in names:
            write(tmp_path / name)
        (tmp_path / "-b.png").write_bytes(b"no image")
        assert score(bundle, *names, "./-b.png", "--csv", "t.csv") == 1
        rows = self.rows(tmp_path / "t.csv")
        assert [row["image"] for row in rows] == ["./=1+2,3.png", "./@a.png", 'x"y\\x0aaccept.png', "./-b.png"]
        assert len((tmp_path / "t.csv").read_text().splitlines()) == 5
        assert all(not cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())

    def test_only_an_earlier_table_is_replaced_and_only_if_asked_to(self, bundle: Path, tmp_path: Path) -> None:
        image, table = write(tmp_path / "a.png"), tmp_path / "t.csv"
        assert score(bundle, image, "--csv", table) == 0
        assert score(bundle, image, "--csv", table) == 2
        assert score(bundle, image, "--csv", table, "--overwrite") == 0
        table.write_text("name,price\nnut,3\n")
        assert score(bundle, image, "--csv", table, "--overwrite") == 2
        assert table.read_text() == "name,price\nnut,3\n"


class TestOut:
    def test_results_are_the_lines_of_json_without_their_time(
        self, bundle: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(parts / "a.png", 60)
        write(parts / "b.png", 200)
        write(parts / "c.png", 145)
        (parts / "d.png").write_bytes(b"no image")
        out = tmp_path / "out"
        assert score(bundle, parts, "--json", "--out", out, "--batch", 2) == 1
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        kept = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        assert kept == [{key: value for key, value in line.items() if key != "latency_ms"} for line in lines]
        report = json.loads((out / "report.json").read_text())
        counts = {key: report[key] for key in ("images", "accept", "reject", "fault", "near_threshold")}
        assert counts == {"images": 4, "accept": 2, "reject": 1, "fault": 1, "near_threshold": 1}
        with Inspector.load(bundle, "cpu") as inspector:
            assert report["digest"] == inspector.manifest.digest
        assert (report["image_threshold"], report["threshold_revision"], report["backend"]) == (150.0, 0, "cpu")
        assert report["options"]["batch"] == 2
        assert report["command"]
        assert report["slowest"]["ms"] >= report["ms_median"] > 0
        assert below(out) == ["report.json", "results.jsonl"]

    def test_the_same_images_give_the_same_file_and_nothing_is_replaced_unasked(
        self, bundle: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(parts / "a.png")
        out = tmp_path / "out"
        assert score(bundle, parts, "--out", out) == 0
        first = (out / "results.jsonl").read_bytes()
        assert score(bundle, parts, "--out", out) == 2
        assert "expected a new name, got an earlier output with report.json" in capsys.readouterr().err
        assert score(bundle, parts, "--out", out, "--overwrite") == 0
        assert (out / "results.jsonl").read_bytes() == first
        other = tmp_path / "other"
        (other / "mine").mkdir(parents=True)
        assert score(bundle, parts, "--out", other, "--overwrite") == 2
        assert below(other) == []

    def test_what_is_broken_off_leaves_nothing(
        self, bundle: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(parts / "a.png")
        write(parts / "b.png")
        stream = Inspector.stream

        def broken_off(*arguments: Any, **named: Any) -> Any:
            yield next(stream(*arguments, **named))
            raise KeyboardInterrupt

        monkeypatch.setattr(Inspector, "stream", broken_off)
        before = files_of(tmp_path)
        assert score(bundle, parts, "--out", tmp_path / "out", "--csv", tmp_path / "t.csv") != 0
        assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("values", "plain", "failing"), [((60, 100), 0, 0), ((60, 200), 0, 1), ((60, None), 1, 1), ((200, None), 1, 1)]
)
def test_a_reject_fails_only_where_asked_to(
    bundle: Path, parts: Path, values: tuple[int | None, ...], plain: int, failing: int
) -> None:
    for number, value in enumerate(values):
        if value is None:
            write(parts / "x.png").write_bytes(b"no image")
        else:
            write(parts / f"{number}.png", value)
    assert score(bundle, parts) == plain
    assert score(bundle, parts, "--fail-on-reject") == failing


def test_the_summary_counts_what_is_near_the_threshold_and_names_the_slowest() -> None:
    summary = Summary()
    assert list(summary.lines()) == ["0 images: 0 accept, 0 reject, 0 fault"]
    for number, (value, took) in enumerate([(96.0, 1.0), (94.0, 9.0), (104.0, 2.0), (106.0, 3.0)]):
        decision: Any = "reject" if value > 100 else "accept"
        summary.add(Result(f"{number}.png", decision, value, 100.0, timings_ms={"total": took}))
    summary.add(Result("4.png", "fault", reason="broken"))
    lines = list(summary.lines())
    assert lines[:2] == ["5 images: 2 accept, 2 reject, 1 fault", "near: 2 within 5% of the threshold"]
    assert lines[2].startswith("time: 2.5 ms an image (median), slowest 9.0 ms (1.png), ")


class Terminal(io.StringIO):
    """A stream that somebody looks at."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("form", ["text", "json"])
def test_progress_is_for_people_and_stdout_stays_as_it_is(
    bundle: Path, parts: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    for number in range(3):
        write(parts / f"{number}.png")
    out, err = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("FLAWSCOPE_NO_PROGRESS", raising=False)  # that of all other tests
    assert score(bundle, parts, *(["--json"] if form == "json" else [])) == 0
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("{" if form == "json" else "accept  ") for line in lines)
    assert "3/3" in err.getvalue()
    assert "3 images: 3 accept, 0 reject, 0 fault" in err.getvalue()
    # Where the lines can be seen, they are the progress.
    seen, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", seen)
    monkeypatch.setattr(sys, "stderr", err)
    assert score(bundle, parts) == 0
    assert len(seen.getvalue().splitlines()) == 3
    assert "3/3" not in err.getvalue()


def test_a_map_that_cannot_be_drawn_has_no_place_in_the_table(
    bundle: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(parts / "a.png")
    copies = shutil.copytree(parts, tmp_path / "copies")
    stream = Inspector.stream

    def removing(*arguments: Any, **named: Any) -> Any:
        for result in stream(*arguments, **named):
            (copies / "a.png").unlink()
            yield result

    monkeypatch.setattr(Inspector, "stream", removing)
    table = tmp_path / "t.csv"
    assert score(bundle, copies, "--csv", table, "--maps", tmp_path / "maps") == 2
    (row,) = csv.DictReader(io.StringIO(table.read_text()))
    assert (row["decision"], row["map"]) == ("accept", "")


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        ({"--csv": "o/a.csv", "--out": "o"}, "--csv {0}: expected a place outside of --out {1}, got one in it."),
        ({"--maps": "o/maps", "--out": "o"}, "--maps {0}: expected a place outside of --out {1}, got one in it."),
        ({"--csv": "o", "--out": "o"}, "--csv {0}: expected a place outside of --out {1}, got the same."),
        ({"--csv": "o", "--maps": "o"}, "--csv {0}: expected a place outside of --maps {1}, got the same."),
        ({"--out": "o", "--csv": "link/o"}, "--csv {1}: expected a place outside of --out {0}, got the same."),
    ],
)
def test_outputs_in_one_another_are_refused_before_the_work(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], outputs: dict[str, str], told: str
) -> None:
    image = write(tmp_path / "a.png")
    (tmp_path / "link").symlink_to(tmp_path)
    options = [part for option, name in outputs.items() for part in (option, tmp_path / name)]
    assert score(bundle, image, *options) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert told.format(*options[1::2]) in shown.err
    assert not (tmp_path / "o").exists()
