"""What each run leaves of itself, and the report that sums all of them, whoever writes it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from sharded_scores import in_shards, report, results
from thread_executor import use_threads

from flawscope import cli
from flawscope.runtime.scale import run_records
from flawscope.runtime.scale.plan import read_plan
from flawscope.runtime.scale.run_records import RunRecord, busy_seconds, read_records
from flawscope.runtime.scale.score_work import ScoreWorker
from flawscope.runtime.scale.task import Task

BEGAN = "2026-01-01T00:00:{:02d}+00:00"


def run(began: int, seconds: float) -> RunRecord:
    return RunRecord(plan="", began=BEGAN.format(began), seconds=seconds, on="local")


def test_time_in_which_several_runs_are_at_work_counts_once() -> None:
    assert busy_seconds([]) == 0.0
    # The second within the first, the third beside the end of it, the last alone.
    assert busy_seconds([run(30, 5), run(0, 10), run(2, 3), run(8, 12)]) == pytest.approx(25.0)


@pytest.mark.usefixtures("parts_here")
class TestReports:
    def test_the_report_has_the_deaths_of_all_jobs_whoever_merges(self, monkeypatch: pytest.MonkeyPatch) -> None:
        use_threads(monkeypatch, kills=lambda task: task.first <= 6 < task.stop)
        assert in_shards("--shard", "1/2") == 1
        use_threads(monkeypatch)
        assert in_shards("--shard", "0/2", "--workers", 3) == 1
        last = report()
        assert last["given_up"] == [6]
        assert {death["reason"] for death in last["deaths"]} == {"killed by signal 9"}
        assert [(each["shards"], each["items"], each["ended"]) for each in last["runs"]] == [
            (3, 10, "done"),
            (3, 12, "done"),
        ]
        assert [len(each["deaths"]) for each in last["runs"]] == [len(last["deaths"]), 0]
        assert last["images_per_second"] == pytest.approx(22 / last["seconds"])
        whole = results()
        Path("out/report.json").unlink()
        assert cli.run(["merge", "out"]) == 1
        merged = report()
        assert {name for name in last if last[name] != merged[name]} <= {"on", "command", "made", "shards_skipped"}
        assert results() == whole

    def test_a_run_that_was_ended_is_in_the_report_of_the_one_that_goes_on(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_threads(monkeypatch, kills=lambda task: task.shard == 0 and task.items > 2)
        real, done = ScoreWorker.run, list[Task]()

        def interrupted(worker: ScoreWorker, task: Task) -> object:
            if len(done) == 3:
                raise KeyboardInterrupt
            done.append(task)
            return real(worker, task)

        with monkeypatch.context() as patch:
            patch.setattr(ScoreWorker, "run", interrupted)
            assert in_shards("--workers", 1) == 130
        assert not Path("out/report.json").exists()
        use_threads(monkeypatch)
        assert in_shards("--resume") == 1
        first, second = report()["runs"]
        assert (first["ended"], second["ended"]) == ("KeyboardInterrupt", "done")
        assert first["shards"] + second["shards"] == 6
        assert len(first["deaths"]) == 3
        assert report()["deaths"] == first["deaths"]

    def test_an_image_that_was_given_up_and_decided_on_later_is_not_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        use_threads(monkeypatch, kills=lambda task: any(task.first <= number < task.stop for number in (6, 20)))
        in_shards()
        assert report()["given_up"] == [6, 20]
        for name in ("report.json", "shards/shard-00001.jsonl"):
            Path("out", name).unlink()
        use_threads(monkeypatch)
        in_shards("--resume")
        assert report()["given_up"] == [20]
        assert (report()["fault"], len(report()["runs"])) == (2, 2)

    def test_deaths_are_on_the_disk_when_the_driver_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        use_threads(monkeypatch, kills=lambda task: task.shard == 2)
        seen: list[int] = []
        real = run_records.Recorder.note

        def note(recorder: run_records.Recorder, *known: object, **options: object) -> None:
            real(recorder, *known, **options)  # type: ignore[arg-type]
            (record,) = read_records(Path("out"), read_plan(Path("out")))
            seen.append(len(record.deaths))
            assert record.ended in ("", "done")

        monkeypatch.setattr(run_records.Recorder, "note", note)
        in_shards("--workers", 1)
        assert set(seen) == set(range(max(seen) + 1))
        assert max(seen) > 3

    def test_a_record_that_cannot_be_read_is_told_and_one_of_another_plan_is_left_out(
        self, tried: list[Task], capsys: pytest.CaptureFixture[str]
    ) -> None:
        in_shards()
        (path,) = Path("out/runs").iterdir()
        record = msgspec.json.decode(path.read_bytes(), type=RunRecord)
        for name, data in {
            "empty": b"",
            "cut": path.read_bytes()[:-9],
            "time": path.read_bytes().replace(record.began.encode(), b"yesterday"),
        }.items():
            path.with_name(f"{name}.json").write_bytes(data)
        path.with_name("other.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(record, plan="0")))
        path.with_name("folder.json").mkdir()
        Path("out/report.json").unlink()
        assert cli.run(["merge", "out"]) == 1
        assert len(report()["runs"]) == 1
        said = capsys.readouterr().err.splitlines()
        told = [line for line in said if "expected the record of a run" in line]
        assert [Path(line.removeprefix("note: ").partition(":")[0]).stem for line in told] == [
            "cut",
            "empty",
            "folder",
            "time",
        ]
