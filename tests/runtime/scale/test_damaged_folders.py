"""Folders of shards whose files were changed, cut or lost: a run goes on with the same result, or one line says why."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from damaged_json import damages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_files import ODD
from sharded_scores import results, score
from thread_executor import use_threads

from flawscope import cli
from flawscope.errors import DataError
from flawscope.runtime.scale.plan import read_plan
from flawscope.runtime.scale.times import Took

pytestmark = pytest.mark.usefixtures("parts_here")

JSON = ("plan.json", "report.json", "shards/shard-00001.times.json")
"""Files that are one object; of `shards/*.jsonl` the last line is one."""
GO_ON: dict[str, Callable[[], int]] = {
    "resume": lambda: score("parts", "--out", "out", "--on", "threads", "--resume"),
    "resume without images": lambda: score("--out", "out", "--on", "threads", "--resume"),
    "merge": lambda: cli.run(["merge", "out"]),
}


@pytest.fixture
def finished(parts_here: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A finished run in `whole`; returns its results."""
    use_threads(monkeypatch)
    assert score("parts", "--out", "whole", "--on", "threads", "--shard-size", 4, "--shard-maps") == 1
    return results("whole")


def check(capsys: pytest.CaptureFixture[str], expected: bytes, name: str, data: bytes, go_on: str) -> None:
    """Damage a file of a finished run, of which only the end is missing, and go on with it."""
    shutil.rmtree("out", ignore_errors=True)
    shutil.copytree("whole", "out")
    if name != "report.json":
        Path("out/report.json").unlink()
    Path("out", name).write_bytes(data)
    capsys.readouterr()
    status = GO_ON[go_on]()
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    if status == 2:
        assert len(errors) == 1, said
    else:
        # Whatever is not in the results, as a command or a time, may be another one.
        assert (status, errors) == (1, []), said
        assert results() == expected


def of_file(name: str) -> Iterator[bytes]:
    whole = Path("whole", name).read_bytes()
    if name.endswith(".jsonl"):
        *lines, trailer = whole.splitlines()
        whole, before = trailer, b"".join(line + b"\n" for line in lines)
    else:
        before = b""
    for _, damaged in damages(whole):
        yield before + damaged + b"\n"


@given(st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_a_damaged_file_is_told_in_one_line_or_does_not_matter(
    finished: bytes, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from((*JSON, "shards/shard-00001.jsonl")))
    damaged = data.draw(st.sampled_from(list(of_file(name))))
    check(capsys, finished, name, damaged, data.draw(st.sampled_from(sorted(GO_ON))))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*JSON, "shards/shard-00001.jsonl"])
def test_every_damage_of_every_key(finished: bytes, capsys: pytest.CaptureFixture[str], name: str) -> None:
    for damaged in of_file(name):
        for go_on in GO_ON:
            check(capsys, finished, name, damaged, go_on)


@pytest.mark.parametrize("name", ["items.jsonl", "items.offsets", "shards/shard-00001.maps.zip"])
@pytest.mark.parametrize("damage", [b"", b"\xff" * 64], ids=["empty", "ones"])
def test_lists_and_archives(finished: bytes, capsys: pytest.CaptureFixture[str], name: str, damage: bytes) -> None:
    for go_on in GO_ON:
        check(capsys, finished, name, damage, go_on)


@pytest.mark.parametrize("kind", ODD)
def test_a_plan_that_is_no_file(finished: bytes, kind: str) -> None:
    Path("whole/plan.json").unlink()
    ODD[kind](Path("whole/plan.json"))
    with pytest.raises(DataError, match="expected the folder of a run in shards"):
        read_plan(Path("whole"))


def test_more_shards_than_were_listed_are_refused_and_not_gone_through(
    finished: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Path("whole/plan.json").read_bytes()
    check(capsys, finished, "plan.json", plan.replace(b'"items": 22', b'"items": 22000000000000'), "merge")
    assert cli.run(["merge", "out"]) == 2
    assert "expected 6 shards, as items.offsets has, got 5500000000000" in capsys.readouterr().err


def test_times_that_no_clock_gives_are_none() -> None:
    for buckets in ({10**6: 1}, {3: 0}, {3: -1}):
        with pytest.raises(ValueError, match="buckets"):
            Took(buckets)
