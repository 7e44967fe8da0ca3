"""Jobs that share a run in shards, one after the other or at once, and runs that replace others."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from file_contents import files_of
from sharded_scores import error, in_shards, report, results, score
from thread_executor import use_threads
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.errors import DataError, StorageError
from flawscope.runtime.scale import score_plan
from flawscope.runtime.scale.plan import read_plan
from flawscope.runtime.scale.score_work import ScoreWork, ScoreWorker
from flawscope.runtime.scale.task import Task

pytestmark = pytest.mark.usefixtures("parts_here")


class TestJobs:
    def test_jobs_of_an_array_share_the_plan_and_the_last_one_merges(
        self, tried: list[Task], capsys: pytest.CaptureFixture[str]
    ) -> None:
        score("parts", "--threads", 1, "--out", "one")
        assert in_shards("--shard", "2/3") == 0
        assert [task.shard for task in tried] == [2, 5]
        assert not Path("out/report.json").exists()
        assert "flawscope merge out" in capsys.readouterr().err
        # Whatever comes meanwhile: the list of all jobs is that of the first.
        shutil.copy("parts/0/00.png", "parts/0/new.png")
        in_shards("--shard", "0/3")
        assert not Path("out/report.json").exists()
        in_shards("--shard", "1/3")
        assert results() == results("one")
        assert sorted(task.shard for task in tried) == list(range(6))

    def test_jobs_whose_locks_do_not_show_on_other_machines_share_the_plan_too(
        self, tried: list[Task], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = score_plan.list_items

        def others_are_first(*arguments: Any, **options: Any) -> Any:
            monkeypatch.setattr(score_plan, "list_items", real)
            assert in_shards("--plan-only") == 0
            return real(*arguments, **options)

        monkeypatch.setattr(score_plan, "list_items", others_are_first)
        assert in_shards("--shard", "0/1") == 1
        assert report()["images"] == 22

    def test_merge_joins_what_is_whole_and_names_what_is_missing(
        self, tried: list[Task], capsys: pytest.CaptureFixture[str]
    ) -> None:
        in_shards()
        expected = results()
        Path("out/report.json").unlink()
        Path("out/results.jsonl").unlink()
        assert cli.run(["merge", "out"]) == 1
        assert results() == expected
        assert report()["on"] == "merge"
        merged = files_of(Path("out"))
        assert cli.run(["merge", "out"]) == 1
        assert files_of(Path("out")) == merged
        Path("out/results.jsonl").write_bytes(expected[:-1])
        assert cli.run(["score", "merge", "out"]) == 1
        assert results() == expected
        Path("out/report.json").unlink()
        shutil.move("out/shards/shard-00003.jsonl", "kept")
        capsys.readouterr()
        assert cli.run(["merge", "out"]) == 2
        assert "1 missing or not whole, such as 3" in error(capsys)
        assert cli.run(["merge", "parts"]) == 2
        assert "plan.json" in error(capsys)

    def test_plan_only_makes_the_plan_alone(self, tried: list[Task], capsys: pytest.CaptureFixture[str]) -> None:
        assert in_shards("--plan-only") == 0
        assert "22 images" in capsys.readouterr().err
        assert (read_plan(Path("out")).items, tried) == (22, [])
        assert in_shards("--shard", "0/1") == 1
        assert report()["images"] == 22

    def test_overwrite_replaces_a_run_and_only_that(
        self, tried: list[Task], capsys: pytest.CaptureFixture[str]
    ) -> None:
        in_shards()
        assert in_shards("--overwrite", "--batch", 2) == 1
        assert report()["options"]["batch"] == 2
        Path("mine").mkdir()
        Path("mine/notes.txt").write_text("mine")
        capsys.readouterr()
        assert score("parts", "--out", "mine", "--workers", 2, "--overwrite") == 2
        assert Path("mine/notes.txt").read_text() == "mine"

    def test_a_worker_of_a_run_that_was_replaced_writes_nothing_into_the_new_one(self, tried: list[Task]) -> None:
        in_shards("--shard-maps")
        plan = read_plan(Path("out"))
        worker = ScoreWork(str(Path("out").absolute()), plan.digest, str(Path("t.flaw").absolute())).open()
        assert in_shards("--shard-maps", "--strict", "--overwrite") == 1
        before = {name: data for name, data in files_of(Path("out")).items() if not name.endswith("times.json")}
        with pytest.raises(DataError, match="folder of its own"):
            worker.run(plan.task(2))
        worker.close()
        after = files_of(Path("out"))
        assert {name: data for name, data in after.items() if not name.endswith("times.json")} == before

    def test_shards_of_another_plan_are_done_again_and_never_merged(
        self, tried: list[Task], capsys: pytest.CaptureFixture[str]
    ) -> None:
        in_shards()
        expected = results()
        shard = Path("out/shards/shard-00002.jsonl")
        write_tiny_bundle(Path("other.flaw"), thresholds=tiny_thresholds(90.0), min_area_px=1)
        shutil.move("t.flaw", "first.flaw")
        shutil.move("other.flaw", "t.flaw")
        score("parts", "--out", "other", "--on", "threads", "--shard-size", 4)
        shutil.move("t.flaw", "other.flaw")
        shutil.move("first.flaw", "t.flaw")
        shutil.copy(Path("other/shards") / shard.name, shard)
        Path("out/report.json").unlink()
        capsys.readouterr()
        assert cli.run(["merge", "out"]) == 2
        assert "1 missing or not whole" in error(capsys)
        tried.clear()
        assert in_shards("--resume") == 1
        assert [task.shard for task in tried] == [2]
        assert results() == expected

    def test_a_shard_that_a_second_driver_joined_first_is_taken_as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        use_threads(monkeypatch, kills=lambda task: task.first <= 6 < task.stop)
        real = ScoreWork.join

        def twice(work: ScoreWork, shard: Task, parts: Any) -> Any:
            real(work, shard, parts)
            return real(work, shard, parts)

        monkeypatch.setattr(ScoreWork, "join", twice)
        assert in_shards() == 1
        assert (report()["given_up"], report()["fault"]) == ([6], 2)

    def test_an_error_says_what_is_whole_and_how_to_go_on(
        self, tried: list[Task], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        real = ScoreWorker.run

        def full(worker: ScoreWorker, task: Task) -> Any:
            if task.shard == 2:
                raise StorageError("out: could not be written: the disk is full.")
            return real(worker, task)

        monkeypatch.setattr(ScoreWorker, "run", full)
        monkeypatch.setattr(sys, "argv", ["flawscope", "score", "--out", "out", "--overwrite"])
        assert in_shards("--workers", 1, "--overwrite") == 2
        told = capsys.readouterr().err
        assert "note: 2 of 6 shards whole" in told
        assert "Go on with: flawscope score --out out --resume\n" in told  # beside it --overwrite is refused
