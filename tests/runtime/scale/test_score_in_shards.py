"""`score` in shards: the bytes of one process, and nothing lost, done twice or taken for another run."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from file_contents import files_of
from odd_files import refuse_listing
from sharded_scores import error, in_shards, report, results, score
from thread_executor import use_threads
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.errors import ArgumentError
from flawscope.runtime.scale import shards
from flawscope.runtime.scale.executors import EXECUTORS
from flawscope.runtime.scale.plan import Plan, write_plan
from flawscope.runtime.scale.task import Task
from flawscope.scale import score as score_many

pytestmark = pytest.mark.usefixtures("parts_here")


class TestBytes:
    def test_results_have_the_bytes_of_one_process_and_the_account_closes(self, tried: list[Task]) -> None:
        assert score("parts", "--threads", 1, "--out", "one") == 1  # the broken image
        assert in_shards() == 1
        assert results() == results("one")
        assert [task.items for task in sorted(tried, key=lambda task: task.shard)] == [4, 4, 4, 4, 4, 2]
        one, many = report("one"), report()
        same = ("images", "accept", "reject", "fault", "near_threshold", "digest", "backend", "image_threshold")
        assert [one[name] for name in same] == [many[name] for name in same]
        assert many["images"] == many["accept"] + many["reject"] + many["fault"] == 22
        conservation = many["conservation"]
        assert (conservation["listed"], conservation["lines"], conservation["shards"]) == (22, 22, 6)
        assert 0.0 < many["ms_median"] <= many["ms_p99"]

    @pytest.mark.parametrize("batch", [2, 4])
    def test_batches_are_those_of_one_process(self, tried: list[Task], batch: int) -> None:
        score("parts", "--threads", 1, "--batch", batch, "--out", "one")
        in_shards("--batch", batch)
        assert results() == results("one")

    def test_maps_lie_in_an_archive_of_each_shard_with_the_bytes_of_one_process(self, tried: list[Task]) -> None:
        score("parts", "--threads", 1, "--maps", "maps")
        in_shards("--shard-maps")
        drawn = {}
        for archive in sorted(Path("out/shards").glob("*.maps.zip")):
            with zipfile.ZipFile(archive) as file:
                drawn |= {name: file.read(name) for name in file.namelist()}
        assert drawn == files_of(Path("maps"))
        assert len(drawn) == 21

    def test_shards_repeat_bit_for_bit_wherever_they_run(self, tried: list[Task]) -> None:
        in_shards("--shard-maps")
        first = files_of(Path("out"))
        shutil.rmtree("out")
        in_shards("--shard-maps", "--workers", 3)
        again = files_of(Path("out"))
        timed = {name for name in first if name.startswith(("report.json", "runs/")) or name.endswith("times.json")}
        assert all(again[name] == data for name, data in first.items() if name not in timed)


class TestInputs:
    def test_images_of_an_archive_and_of_a_list_have_the_results_of_their_files(self, tried: list[Task]) -> None:
        score("parts", "--threads", 1, "--out", "one")
        with tarfile.open("parts.tar", "w") as archive:
            archive.add("parts")
        files = sorted(path for path in Path("parts").rglob("*") if path.is_file())
        Path("parts.txt").write_text("".join(f"{path}\n" for path in files))
        score("@parts.txt", "--out", "listed", "--on", "threads", "--shard-size", 4)
        assert results("listed") == results("one")
        score("parts.tar", "--out", "packed", "--on", "threads", "--shard-size", 4, "--shard-maps")
        packed, expected = ([json.loads(line) for line in results(name).splitlines()] for name in ("packed", "one"))
        assert [line["image"] for line in packed] == [f"parts.tar::{line['image']}" for line in expected]
        assert [(line["decision"], line["score"]) for line in packed] == [
            (line["decision"], line["score"]) for line in expected
        ]
        (fault,) = (line for line in packed if line["decision"] == "fault")
        assert fault["reason"]
        assert fault["image"] not in fault["reason"]
        assert report("packed")["maps_missing"] == 0

    def test_a_folder_that_cannot_be_listed_is_a_fault_with_a_line(
        self, tried: list[Task], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refuse_listing(monkeypatch, Path("parts/1"))
        score("parts", "--threads", 1, "--out", "one")
        assert in_shards() == 1
        assert results() == results("one")
        assert (report()["images"], report()["fault"]) == (15, 1)

    def test_names_that_are_not_utf8_have_their_lines_and_maps(self, tried: list[Task]) -> None:
        for name in (b"parts/x\xff.png", b"parts/a\nb.png"):
            shutil.copy(b"parts/0/00.png", name)
        score("parts", "--threads", 1, "--out", "one")
        assert in_shards("--shard-maps", "--workers", 1) == 1
        assert results() == results("one")
        assert report()["maps_missing"] == 0

    def test_an_image_that_was_changed_after_the_plan_is_a_fault(self, tried: list[Task]) -> None:
        in_shards("--plan-only")
        cv2.imwrite("parts/0/00.png", np.zeros((32, 32, 3), np.uint8))
        Path("parts/0/03.png").unlink()
        assert score("--out", "out", "--on", "threads", "--resume") == 1
        lines = [json.loads(line) for line in results().splitlines()]
        assert [line["image"] for line in lines if line["decision"] == "fault"] == [
            "parts/0/00.png",
            "parts/0/03.png",
            "parts/1/broken.png",
        ]

    def test_hashes_tell_an_image_that_was_changed_and_kept_its_size(self, tried: list[Task]) -> None:
        score("parts", "--threads", 1, "--out", "one")
        in_shards("--hash")
        assert results() == results("one")
        shutil.rmtree("out")
        in_shards("--hash", "--plan-only")
        changed = Path("parts/0/00.png")
        size = changed.stat().st_size
        cv2.imwrite(str(changed), np.full((16, 16, 3), 61, np.uint8))
        assert changed.stat().st_size == size  # else the size would tell
        assert in_shards("--resume") == 2  # it is listed again, and is another list
        assert score("--out", "out", "--on", "threads", "--resume") == 1
        first = json.loads(results().splitlines()[0])
        assert first["decision"] == "fault"
        assert "SHA-256" in first["reason"]


class TestPlan:
    def test_a_run_is_not_replaced_and_not_mixed_with_another(
        self, tried: list[Task], capsys: pytest.CaptureFixture[str]
    ) -> None:
        in_shards()
        before = files_of(Path("out"))
        capsys.readouterr()
        assert in_shards() == 2
        assert "Go on with it by --resume" in error(capsys)
        others: list[tuple[list[object], str]] = [
            (["--batch", 2], "batch 1, not 2"),
            (["--strict"], "strict False, not True"),
            (["--shard-maps"], "maps False, not True"),
            (["--precision", "fp16"], "precision"),
        ]
        for options, words in others:
            assert in_shards("--resume", *options) == 2
            assert words in error(capsys)
        assert score("parts", "--out", "out", "--on", "threads", "--shard-size", 8, "--resume") == 2
        assert "shard_size 4, not 8" in error(capsys)
        write_tiny_bundle(Path("other.flaw"), thresholds=tiny_thresholds(90.0), min_area_px=1)
        shutil.move("t.flaw", "first.flaw")
        shutil.move("other.flaw", "t.flaw")
        assert in_shards("--resume") == 2
        assert "bundle" in error(capsys)
        assert files_of(Path("out")) == before

    def test_images_that_came_since_are_another_plan_unless_none_are_named(
        self, tried: list[Task], capsys: pytest.CaptureFixture[str]
    ) -> None:
        in_shards()
        shutil.rmtree("out/shards")
        Path("out/shards").mkdir()
        Path("out/report.json").unlink()
        shutil.copy("parts/0/00.png", "parts/0/new.png")
        capsys.readouterr()
        assert in_shards("--resume") == 2
        assert "expected the 22 images of its plan" in error(capsys)
        assert score("--out", "out", "--on", "threads", "--resume") == 1
        assert report()["images"] == 22

    def test_what_is_not_stated_is_as_planned(self, tried: list[Task]) -> None:
        score("parts", "--threads", 1, "--batch", 2, "--out", "one", "--strict")
        in_shards("--batch", 2, "--strict", "--shard-maps", "--plan-only")
        assert cli.run(["score", "t.flaw", "--out", "out", "--on", "threads", "--resume"]) == 1
        assert results() == results("one")
        assert report()["options"]["batch"] == 2
        assert Path("out/shards/shard-00000.maps.zip").is_file()

    def test_results_that_are_gone_are_joined_again(self, tried: list[Task]) -> None:
        in_shards()
        expected, done = results(), len(tried)
        Path("out/results.jsonl").unlink()
        assert in_shards("--resume") == 1
        assert (results(), len(tried)) == (expected, done)

    @pytest.mark.parametrize("name", ["items.jsonl", "items.offsets"])
    def test_a_list_that_was_changed_or_damaged_is_refused(
        self, tried: list[Task], capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        in_shards("--plan-only")
        data = Path("out", name).read_bytes()
        if name == "items.jsonl":
            Path("out", name).write_bytes(b"".join(reversed(data.splitlines(keepends=True))))
        else:
            Path("out", name).write_bytes(data[:8] + data[16:24] + data[16:])
        capsys.readouterr()
        assert score("--out", "out", "--on", "threads", "--resume") == 2
        assert "by their SHA-256" in error(capsys)
        Path("out", name).unlink()
        assert score("--out", "out", "--on", "threads", "--resume") == 2
        assert "could not be read" in error(capsys)
        assert not tried

    def test_a_run_of_another_kind_or_version_is_refused(
        self, tried: list[Task], capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_plan(Path("out"), lambda folder: Plan(kind="toy", asked={}, items=1))
        write_plan(Path("old"), lambda folder: Plan(kind="score", flawscope="0.0.1", asked={}, items=1))
        capsys.readouterr()
        assert in_shards("--resume") == 2
        assert "kind 'toy', not 'score'" in error(capsys)
        assert score("parts", "--out", "old", "--on", "threads", "--resume") == 2
        assert "flawscope '0.0.1'" in error(capsys)

    def test_a_finished_run_says_so_and_scores_nothing(
        self, tried: list[Task], capsys: pytest.CaptureFixture[str]
    ) -> None:
        in_shards()
        before, done = files_of(Path("out")), len(tried)
        capsys.readouterr()
        assert in_shards("--resume") == 1
        assert "finished before" in capsys.readouterr().err
        assert (files_of(Path("out")), len(tried)) == (before, done)

    def test_another_thresholds_overlay_is_another_run(
        self, tried: list[Task], capsys: pytest.CaptureFixture[str]
    ) -> None:
        in_shards("--plan-only")
        changed = ["bundle", "threshold", "t.flaw", "--image", "140", "--pixel", "140", "--why", "test", "--by", "me"]
        assert cli.run(changed) == 0
        capsys.readouterr()
        assert in_shards("--resume") == 2
        assert "thresholds" in error(capsys)
        assert in_shards("--resume", "--no-overlay") == 2
        assert "use_overlay True, not False" in error(capsys)

    def test_a_refused_request_leaves_nothing(self, tried: list[Task], capsys: pytest.CaptureFixture[str]) -> None:
        requests: list[list[object]] = [
            ["nowhere", "--out", "out", "--on", "threads", "--batch", 3, "--shard-size", 4],
            ["parts", "--out", "out", "--on", "nobody"],
            ["parts", "--out", "out", "--workers", 0],
            ["parts", "--out", "out", "--workers", 99999],
            ["parts", "--out", "out", "--workers", 2, "--gpus-per-worker", 1000],
            ["parts", "--out", "out", "--workers", 2, "--json"],
            ["parts", "--out", "out", "--workers", 2, "--csv", "t.csv"],
            ["parts", "--out", "out", "--workers", 2, "--maps", "m"],
            ["parts", "--workers", 2],
            ["parts", "--resume"],
            ["parts", "--shard-maps"],
            ["parts", "--hash"],
            ["parts", "--out", "out", "--gpus-per-worker", -1],
            ["parts", "--out", "out", "--shard", "8/8"],
            ["parts", "--out", "out", "--shard", "1-8"],
            ["parts", "--out", "out", "--resume", "--overwrite"],
            ["parts", "--out", "out", "--workers", 2, "--product", "none"],
            ["--out", "out", "--resume"],
            [],
        ]
        for request in requests:
            assert score(*request) == 2, request
            assert "expected" in error(capsys) or not request
        assert not Path("out").exists()
        assert not tried


class TestResume:
    @pytest.mark.parametrize("damage", ["gone", "cut", "changed", "no trailer", "another shard"])
    def test_what_is_whole_is_kept_and_the_rest_is_done(self, tried: list[Task], damage: str) -> None:
        in_shards()
        expected = results()
        shard = Path("out/shards/shard-00002.jsonl")
        data = shard.read_bytes()
        if damage == "gone":
            shard.unlink()
        elif damage == "another shard":
            shutil.copy("out/shards/shard-00001.jsonl", shard)
        else:
            lines = data.splitlines(keepends=True)
            shard.write_bytes(
                {
                    "cut": data[:-3],
                    "changed": data.replace(b"accept", b"reject", 1),
                    "no trailer": b"".join(lines[:-1]),
                }[damage]
            )
        Path("out/report.json").unlink()
        Path("out/results.jsonl").unlink()
        tried.clear()
        assert in_shards("--resume") == 1
        assert [task.shard for task in tried] == [2]
        assert results() == expected
        assert report()["shards_skipped"] == 5

    def test_a_missing_archive_is_made_again(self, tried: list[Task]) -> None:
        in_shards("--shard-maps")
        archive = Path("out/shards/shard-00001.maps.zip")
        data = archive.read_bytes()
        archive.unlink()
        Path("out/report.json").unlink()
        tried.clear()
        in_shards("--shard-maps", "--resume")
        assert [task.shard for task in tried] == [1]
        assert archive.read_bytes() == data

    def test_interrupted_it_says_how_to_go_on(
        self, tried: list[Task], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from thread_executor import ThreadExecutor

        real = ThreadExecutor.wait

        def interrupted(executor: ThreadExecutor) -> Any:
            if len(list(Path("out/shards").glob("*.jsonl"))) >= 2:
                raise KeyboardInterrupt
            return real(executor)

        monkeypatch.setattr(ThreadExecutor, "wait", interrupted)
        assert in_shards("--workers", 1) == 130
        told = capsys.readouterr().err
        assert "Go on with: " in told
        assert "--resume" in told
        monkeypatch.setattr(ThreadExecutor, "wait", real)
        assert in_shards("--workers", 1, "--resume") == 1
        score("parts", "--threads", 1, "--out", "one")
        assert results() == results("one")


class TestDeaths:
    def test_the_image_that_kills_is_a_fault_and_all_others_are_decided(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        use_threads(monkeypatch, kills=lambda task: task.first <= 6 < task.stop)
        score("parts", "--threads", 1, "--out", "one")
        capsys.readouterr()
        assert in_shards("--shard-maps") == 1
        assert "1 image killed every worker: a fault" in capsys.readouterr().err
        lines, expected = results().splitlines(), results("one").splitlines()
        assert [line for n, line in enumerate(lines) if n != 6] == [line for n, line in enumerate(expected) if n != 6]
        killed = json.loads(lines[6])
        assert (killed["image"], killed["decision"]) == (json.loads(expected[6])["image"], "fault")
        assert "the scorer died" in killed["reason"]
        many = report()
        assert (many["given_up"], many["fault"], many["images"]) == ([6], 2, 22)
        assert {death["reason"] for death in many["deaths"]} == {"killed by signal 9"}
        assert not list(Path("out/shards").glob("*.*-*.*"))  # no parts are left
        with zipfile.ZipFile("out/shards/shard-00001.maps.zip") as file:
            assert len(file.namelist()) == 3

    @pytest.mark.parametrize("block", [1, 7, 1 << 20])
    def test_a_shard_is_joined_from_its_parts_wherever_blocks_of_reading_end(
        self, monkeypatch: pytest.MonkeyPatch, block: int
    ) -> None:
        use_threads(monkeypatch, kills=lambda task: task.first <= 6 < task.stop)
        monkeypatch.setattr(shards, "_BLOCK", block)
        in_shards()
        score("parts", "--threads", 1, "--out", "one")
        lines, expected = results().splitlines(), results("one").splitlines()
        assert lines[:6] + lines[7:] == expected[:6] + expected[7:]

    def test_a_worker_that_dies_now_and_then_costs_no_image(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        died = set[Task]()

        def once(task: Task) -> bool:
            return task.shard % 2 == 0 and task not in died and not died.add(task)  # type: ignore[func-returns-value]

        use_threads(monkeypatch, kills=once)
        in_shards()
        score("parts", "--threads", 1, "--out", "one")
        assert results() == results("one")
        assert len(report()["deaths"]) == 3


def test_the_python_function_gives_the_report_and_goes_on(tried: list[Task]) -> None:
    first = score_many("t.flaw", "parts", out="out", on="threads", workers=2, shard_size=4, backend="cpu")
    assert (first.images, first.fault, first.conservation.shards) == (22, 1, 6)
    with pytest.raises(ArgumentError, match="resume"):
        score_many("t.flaw", "parts", out="out", on="threads", backend="cpu")
    assert score_many("t.flaw", ["parts"], out="out", on="threads", backend="cpu", resume=True) == first


@pytest.mark.parametrize(
    "wrong",
    [{"images": None}, {"images": 5}, {"images": b"parts"}, {"images": [5]}, {"on": None}, {"shard_size": True}],
    ids=str,
)
def test_the_python_function_refuses_what_is_of_no_such_kind(tried: list[Task], wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"images": "parts", "on": "threads", **wrong}
    with pytest.raises(ArgumentError, match=f"{next(iter(wrong))}: expected"):
        score_many("t.flaw", out="out", backend="cpu", **arguments)
    assert not Path("out").exists()


def test_the_executor_of_the_tests_is_in_no_product() -> None:
    assert "threads" not in EXECUTORS


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems have no names that are not UTF-8")
class TestNames:
    """Bundle, working folder and images whose names are not UTF-8; results and maps are those of one process."""

    @pytest.fixture
    def odd(self, parts_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        odd = parts_here / os.fsdecode(b"w\xff")
        shutil.copytree("parts", odd / "parts")
        shutil.copy("parts/0/00.png", odd / "parts" / os.fsdecode(b"o\xfe.png"))
        shutil.copytree("t.flaw", odd / os.fsdecode(b"t\xfd.flaw"))
        monkeypatch.chdir(odd)

    def test_shards_in_an_odd_folder_have_the_bytes_of_one_process(self, odd: None, tried: list[Task]) -> None:
        bundle = os.fsdecode(b"t\xfd.flaw")
        command = ["score", bundle, "parts", "--backend", "cpu", "--threads", "1", "--out"]
        assert cli.run([*command, "one"]) == 1
        for job in (0, 1):
            assert cli.run([*command, "out", "--on", "threads", "--shard-size", "4", "--shard", f"{job}/2"]) in (0, 1)
        assert results() == results("one")
        assert rb"o\\xfe.png" in results()
        Path("out/report.json").unlink()
        assert cli.run(["merge", "out"]) == 1
        assert cli.run([*command, "out", "--on", "threads", "--resume"]) == 1

    def test_a_folder_for_results_with_an_odd_name_is_refused_in_one_line(
        self, parts_here: Path, tried: list[Task], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert score("parts", "--out", os.fsdecode(b"o\xff"), "--on", "threads") == 2
        assert "expected a folder name in UTF-8, got other bytes" in error(capsys)
        assert sorted(path.name for path in parts_here.iterdir()) == ["parts", "t.flaw"]
