"""`synth generate` in shards: the bytes of one process, whatever the shards are; what was killed goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import here_executor
import msgspec
import pytest
from damaged_json import damages
from drawn_folders import record_of
from file_contents import files_of
from tiny_dataset import CATEGORY

from flawscope.bundle import SynthHead, open_bundle
from flawscope.cli import run
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, DataError, FlawscopeError, GateError
from flawscope.progress import no_progress
from flawscope.runtime.scale import generate_run, run_shards
from flawscope.runtime.scale.executors import Placement
from flawscope.runtime.scale.generate_plan import Request, finished_before, plan_generate
from flawscope.runtime.scale.generate_run import draw_planned
from flawscope.runtime.scale.generate_shards import ArchiveReader
from flawscope.runtime.scale.plan import SHARDS, read_plan
from flawscope.runtime.synthesis import DrawOptions, GenerateSettings, QualityLimits, generate_images
from flawscope.runtime.synthesis.set_writer import SetWriter

HERE = Placement(on="here", workers=2)
SETTINGS = GenerateSettings(
    number=11, rounds=3, best_of=2, seed=5, batch=3, options=DrawOptions(limits=QualityLimits(full=0.44))
)


@pytest.fixture
def request_(place, tiny_root, sites):
    with open_bundle(place / "drawer.flaw") as bundle:
        manifest = bundle.manifest
    assert isinstance(manifest.head, SynthHead)
    return Request(
        bundle=place / "drawer.flaw",
        manifest=manifest,
        head=manifest.head,
        sites=sites,
        settings=SETTINGS,
        backend="cpu",
        precision="fp32",
        lpips=None,
        dataset=open_dataset(tiny_root, CATEGORY),
        data=(tiny_root, (CATEGORY,)),
        lines={},
    )


@pytest.fixture(scope="module")
def whole(drawer, sites, tiny_root, tmp_path_factory):
    """The set as one process writes it: three rounds, in each of which something is rejected."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    record = generate_images(drawer, sites, folder, SETTINGS, dataset=open_dataset(tiny_root, CATEGORY))
    lines = [json.loads(line) for line in (folder / "generated.jsonl").read_text().splitlines()]
    assert {line["round"] for line in lines} == set(range(1, 7)), "some records must be left for every round"
    assert 0 < record.summary.rejected < record.summary.pictures
    return folder


def check_same(out, whole):
    """Compare two sets: all bytes, and of the record all that is not of the machine and the time."""
    got, expected = files_of(out), files_of(whole)
    assert got.keys() == expected.keys()
    assert {name for name in got if got[name] != expected[name]} <= {"generate.json"}
    machine = ("seconds", "seconds_per_picture", "seconds_per_accepted", "peak_memory_kib", "backend_reason")
    mine, theirs = (json.loads(files["generate.json"]) for files in (got, expected))
    assert mine.keys() == theirs.keys()
    assert mine | dict.fromkeys(machine) == theirs | dict.fromkeys(machine)


def draw(request, out, shard_size=None, part=(0, 1), **more):
    planned = plan_generate(request, out, HERE, shard_size=shard_size, is_shared=part != (0, 1), **more)
    return draw_planned(request, out, HERE, planned, part=part, report=no_progress)


@pytest.mark.parametrize("shard_size", [3, 8, None])
def test_a_set_in_shards_has_the_bytes_of_one_process(request_, whole, tmp_path, monkeypatch, shard_size):
    here_executor.use(monkeypatch)
    drawn = draw(request_, tmp_path / "out", shard_size)
    assert drawn.record == record_of(tmp_path / "out")
    assert drawn.round == 3
    check_same(tmp_path / "out", whole)
    assert not (tmp_path / "out.parts").exists()


def test_jobs_of_an_array_draw_their_shards_round_by_round_and_the_last_one_writes_the_set(
    request_, whole, tmp_path, monkeypatch
):
    here_executor.use(monkeypatch)
    out, records = tmp_path / "out", []
    # The last job of a round goes on to its own part of the next one.
    for job in (0, 1, 0, 1, 0, 1):
        if (drawn := draw(request_, out, 3, (job, 2))).record is not None:
            records.append(drawn.record)
            break
        assert drawn.missing > 0
        assert not out.exists()
    assert len(records) == 1
    check_same(out, whole)
    assert finished_before(request_, out) == records[0]


def test_what_was_killed_goes_on_with_the_shards_that_are_whole(request_, whole, tmp_path, monkeypatch):
    here_executor.use(monkeypatch)
    out = tmp_path / "out"
    draw(request_, out, 3, (0, 2))
    shards = sorted((tmp_path / "out.parts/round-001/shards").glob("*.zip"))
    times = [path.stat().st_mtime_ns for path in shards]
    shards[1].write_bytes(shards[1].read_bytes()[:-5])
    with pytest.raises(ArgumentError, match="Go on with it by --resume, or replace it with --overwrite"):
        plan_generate(request_, out, HERE)
    # The size of shards is part of the plan, as all options are; one that is not stated is that of the plan.
    with pytest.raises(ArgumentError, match="shard_size 3, not 6"):
        plan_generate(request_, out, HERE, shard_size=6, is_resumed=True)
    other = dataclasses.replace(request_, settings=msgspec.structs.replace(SETTINGS, seed=6))
    with pytest.raises(ArgumentError, match="expected the plan of this command, got another one: settings"):
        plan_generate(other, out, HERE, shard_size=3, is_resumed=True)
    drawn = draw(request_, out, is_resumed=True)
    assert drawn.skipped == len(shards) - 1, "the one that was cut is drawn again"
    assert times[0] > 0
    check_same(out, whole)


def test_a_set_whose_writer_was_killed_is_written_again(request_, whole, tmp_path, monkeypatch):
    here_executor.use(monkeypatch)
    out = tmp_path / "out"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SetWriter, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            draw(request_, out)
    assert not out.exists()
    assert draw(request_, out, is_resumed=True).skipped == 3
    check_same(out, whole)


def test_a_request_that_cannot_be_leaves_no_plan_behind(request_, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match="expected the name of a folder to make"):
        plan_generate(request_, Path(), HERE)
    with pytest.raises(ArgumentError, match="--gpus-per-worker: expected GPUs for 1 workers"):
        plan_generate(request_, Path("out"), Placement(on="local", workers=1, gpus_per_worker=1000.0))
    assert not list(tmp_path.iterdir())


def test_rounds_whose_removal_was_killed_are_replaced(request_, whole, tmp_path, monkeypatch):
    here_executor.use(monkeypatch)
    out = tmp_path / "out"
    (plan_generate(request_, out, HERE).folder / SHARDS).rmdir()
    draw(request_, out, overwrite=True)
    check_same(out, whole)


def test_an_earlier_set_is_replaced_by_one_that_goes_on_after_a_kill(request_, whole, tmp_path, monkeypatch):
    here_executor.use(monkeypatch)
    out = tmp_path / "out"
    other = msgspec.structs.replace(SETTINGS, number=2)
    draw(dataclasses.replace(request_, settings=other), out)
    with pytest.raises(ArgumentError, match="expected a new name, got an earlier output"):
        plan_generate(request_, out, HERE)
    plan_generate(request_, out, HERE, overwrite=True)
    assert finished_before(request_, out) is None
    assert draw(request_, out, is_resumed=True).record is not None
    check_same(out, whole)
    with pytest.raises(ArgumentError, match="expected the set of this command to go on with"):
        finished_before(dataclasses.replace(request_, settings=other), out)


def test_records_that_kill_every_worker_are_named_and_no_set_is_written(request_, tmp_path, monkeypatch):
    here_executor.use(monkeypatch, 7)
    out = tmp_path / "out"
    with pytest.raises(GateError, match=r"got none of 1, the first train/good/.*every worker died of drawing on it"):
        draw(request_, out, 6)
    assert not out.exists()
    (shard,) = (tmp_path / "out.parts/round-001/shards").glob("shard-00001.jsonl")
    lines = [json.loads(line) for line in shard.read_text().splitlines()[:-1]]
    assert [line["accepted"] is None for line in lines] == [False, True, False, False, False]
    assert not list(shard.parent.glob("shard-00001.*-*")), "parts are removed"


def test_another_archive_than_was_drawn_is_refused(request_, tmp_path, monkeypatch):
    here_executor.use(monkeypatch)
    out = tmp_path / "out"
    draw(request_, out, 3, (0, 2))
    (shard,) = (tmp_path / "out.parts/round-001/shards").glob("shard-00002.zip")
    data = bytearray(shard.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-00002.zip: expected .* Remove the file and run .* --resume"):
        draw(request_, out, 3, is_resumed=True)
    assert not out.exists()
    shard.unlink()
    assert draw(request_, out, 3, is_resumed=True).record is not None


@pytest.mark.long
def test_the_command_draws_with_worker_processes(arguments, whole, place, tmp_path, capsys):
    options = ["--num", "11", "--keep-trying", "3", "--best-of", "2", "--seed", "5", "--batch", "3", "--backend", "cpu"]
    sharding = ["--workers", "2", "--shard-size", "6"]
    command = [*arguments, *options, "--limit", "full=0.44", *sharding, "--out", str(tmp_path / "out")]
    assert run([*command, "--plan-only"]) == 0
    assert "round-001: 11 records in 2 shards" in capsys.readouterr().err
    assert run(command) == 2
    assert "Go on with it by --resume" in capsys.readouterr().err
    assert run([*command, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert "images of 2 defect types" in out
    assert "shards: " in err
    got, expected = files_of(tmp_path / "out"), files_of(whole)
    assert {name for name in expected if got[name] != expected[name]} == {"generate.json"}
    assert run([*command, "--resume"]) == 0
    assert f"{tmp_path / 'out'}: finished before" in capsys.readouterr().err


def test_merge_joins_the_rounds_that_jobs_drew_where_none_could(request_, whole, tmp_path, monkeypatch, capsys):
    here_executor.use(monkeypatch)
    out = tmp_path / "out"
    first = tmp_path / "out.parts/round-001"

    def refused(named):
        assert run(["merge", str(named)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    draw(request_, out, 3, (0, 2))
    assert "4 whole shards, got 2" in refused(out)
    with monkeypatch.context() as patch:
        # Jobs that end at once, and see nothing of each other.
        patch.setattr(run_shards, "_merge_if_whole", lambda *arguments: 1)
        draw(request_, out, 3, (1, 2))
    assert "expected all rounds drawn, got 1 of at most 3: " in refused(first)
    for job in (0, 1):
        draw(request_, out, 3, (job, 2))
    with monkeypatch.context() as patch:
        patch.setattr(generate_run, "merge_rounds", lambda *arguments, **options: None)
        for job in (0, 1):
            draw(request_, out, 3, (job, 2))
    assert not out.exists()
    # Whichever of its folders is named.
    assert run(["merge", str(tmp_path / "out.parts/round-002")]) == 0
    assert "images of 2 defect types" in capsys.readouterr().out
    check_same(out, whole)
    assert not (tmp_path / "out.parts").exists()
    assert run(["merge", str(out)]) == 0
    assert "finished before" in capsys.readouterr().err


def test_merge_needs_the_bundle_that_drew(request_, place, tmp_path, monkeypatch, capsys):
    here_executor.use(monkeypatch)
    bundle = tmp_path / "moved.flaw"
    shutil.copytree(place / "drawer.flaw", bundle)
    moved = dataclasses.replace(
        request_, bundle=bundle, settings=msgspec.structs.replace(SETTINGS, rounds=1), dataset=None, data=None
    )
    with monkeypatch.context() as patch:
        patch.setattr(generate_run, "merge_rounds", lambda *arguments, **options: None)
        draw(moved, tmp_path / "out")
    bundle.rename(tmp_path / "away.flaw")
    assert run(["merge", str(tmp_path / "out.parts")]) == 2
    assert "moved.flaw" in capsys.readouterr().err
    (tmp_path / "away.flaw").rename(bundle)
    # Of each defect type enough was accepted, or the status says so, as that of the command does.
    assert run(["merge", str(tmp_path / "out.parts")]) in (0, 1)
    assert record_of(tmp_path / "out").support_in_test == 0


def test_a_damaged_plan_is_told_in_one_line(request_, tmp_path, monkeypatch, capsys):
    here_executor.use(monkeypatch)
    out, plan = tmp_path / "out", tmp_path / "out.parts/round-001/plan.json"
    draw(request_, out, 3, (0, 2))
    # Some of them; all in the next test.
    for _, data in list(damages(plan.read_bytes()))[::4]:
        plan.write_bytes(data)
        # Each way up to the drawing.
        with contextlib.suppress(FlawscopeError):
            finished_before(request_, out)
        with contextlib.suppress(FlawscopeError):
            plan_generate(request_, out, HERE, is_resumed=True)
        capsys.readouterr()
        assert run(["merge", str(out)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_an_archive_with_other_bytes_at_its_end_is_read_or_refused(request_, tmp_path, monkeypatch):
    here_executor.use(monkeypatch)
    draw(request_, tmp_path / "out", 3, (0, 2))
    folder = tmp_path / "out.parts/round-001"
    plan = read_plan(folder)
    (shard,) = (folder / SHARDS).glob("shard-00002.zip")
    whole = shard.read_bytes()
    for place in range(len(whole) - 300, len(whole)):  # names, methods and sizes of what is in it, and its cost
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with contextlib.suppress(DataError), ArchiveReader(folder, plan, plan.task(2)) as archive:
            list(archive.drawings())


@pytest.mark.slow
def test_a_set_whose_plan_was_damaged_is_the_same_or_not_there(request_, whole, tmp_path, monkeypatch, capsys):
    here_executor.use(monkeypatch)
    out, parts = tmp_path / "out", tmp_path / "out.parts"
    with monkeypatch.context() as patch:
        patch.setattr(generate_run, "merge_rounds", lambda *arguments, **options: None)
        draw(request_, out, 3)
    parts.rename(tmp_path / "kept")
    for name, data in damages((tmp_path / "kept/round-001/plan.json").read_bytes()):
        shutil.copytree(tmp_path / "kept", parts)
        (parts / "round-001/plan.json").write_bytes(data)
        capsys.readouterr()
        status = run(["merge", str(out)])
        said = capsys.readouterr().err
        if status == 0:  # a default that was left out: the plan is the same
            check_same(out, whole)
            shutil.rmtree(out)
            continue
        assert (status, said.count("error: "), said.count("\n")) == (2, 1, 1), (name, said)
        assert not out.exists()
        shutil.rmtree(parts)
