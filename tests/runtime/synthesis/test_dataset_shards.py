"""`synth dataset` in shards: the files of one process, whatever the shards are; what was killed goes on."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import here_executor
import pytest
from damaged_json import damages
from file_contents import files_of
from tiny_dataset import CATEGORY

from flawscope.cli import run
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, DataError, GateError
from flawscope.progress import no_progress
from flawscope.runtime.scale import run_shards
from flawscope.runtime.scale.dataset_run import write_in_shards
from flawscope.runtime.scale.executors import Placement
from flawscope.runtime.synthesis import write_synth_dataset
from flawscope.runtime.synthesis.mixed_datasets import plan_dataset

HERE = Placement(on="here", workers=2)


@pytest.fixture(scope="module")
def dataset(tiny_root):
    return open_dataset(tiny_root, CATEGORY)


@pytest.fixture
def write(drawn, dataset, tmp_path, monkeypatch):
    here_executor.use(monkeypatch)

    def write(name="made", asked=(), layout="mvtec", **more):
        make = partial(plan_dataset, drawn, dataset, layout=layout, are_files_checked=False)
        more = {"shard_size": 5, **more}
        return write_in_shards(make, dict(asked), tmp_path / name, HERE, report=no_progress, **more)

    return write


@pytest.mark.parametrize("layout", ["mvtec", "anogen"])
def test_a_dataset_in_shards_has_the_files_of_one_process(write, drawn, dataset, tmp_path, layout):
    record = write_synth_dataset(drawn, dataset, tmp_path / "whole", layout=layout)
    assert write(layout=layout) == record
    assert files_of(tmp_path / "made") == files_of(tmp_path / "whole")
    assert not (tmp_path / "made.parts").exists()


def test_jobs_of_an_array_write_their_shards_and_the_last_one_finishes(write, drawn, dataset, tmp_path):
    assert write(part=(1, 2), is_shared=True) is None
    assert not (tmp_path / "made").exists()
    with pytest.raises(ArgumentError, match="Go on with it by --resume, or replace it with --overwrite"):
        write()
    # A file that went away, as those that a killed finish had moved: its shard is no longer whole.
    lost = next((tmp_path / "made.parts/files").rglob("*.png"))
    lost.unlink()
    assert write(part=(0, 2), is_shared=True) is None
    record = write(is_resumed=True, shard_size=None)  # that of the plan
    assert record == write_synth_dataset(drawn, dataset, tmp_path / "whole")
    assert files_of(tmp_path / "made") == files_of(tmp_path / "whole")


def test_another_plan_is_refused_and_an_earlier_dataset_replaced_if_that_is_asked_for(write, tmp_path):
    write(asked={"take": 1})
    before = files_of(tmp_path / "made")
    with pytest.raises(ArgumentError, match="expected a new name, got an earlier output"):
        write()
    assert write(plan_only=True, overwrite=True) is None
    with pytest.raises(ArgumentError, match="another one: labels None, not 'box'"):
        write(asked={"labels": "box"}, is_resumed=True)
    record = write(is_resumed=True)
    assert record is not None
    assert files_of(tmp_path / "made") == before
    assert write(is_resumed=True) == record, "it was finished before"
    with pytest.raises(ArgumentError, match="expected the dataset of this command to go on with"):
        write(layout="anogen", is_resumed=True)


def test_a_request_that_cannot_be_leaves_no_plan_behind(drawn, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make = partial(plan_dataset, drawn, dataset)
    with pytest.raises(ArgumentError, match="expected the name of a folder to make"):
        write_in_shards(make, {}, Path(), HERE, report=no_progress)
    much = Placement(on="local", workers=1, gpus_per_worker=1000.0)
    with pytest.raises(ArgumentError, match="--gpus-per-worker: expected GPUs for 1 workers"):
        write_in_shards(make, {}, Path("made"), much, report=no_progress)
    assert not list(tmp_path.iterdir())


def test_a_plan_that_cannot_be_read_is_replaced_where_that_is_asked_for(write, tmp_path):
    (tmp_path / "made.parts").mkdir()
    (tmp_path / "made.parts/plan.json").write_text("{")
    with pytest.raises(DataError, match="expected a plan of this version of flawscope"):
        write(is_resumed=True)
    assert write(overwrite=True) is not None


def test_a_drawn_file_that_was_changed_ends_the_run_and_nothing_is_written(drawn, dataset, tmp_path, monkeypatch):
    here_executor.use(monkeypatch)
    plan = plan_dataset(drawn, dataset, are_files_checked=False)
    first = plan._drawings[0]
    image = dataclasses.replace(first.drawn, image=type(first.drawn.image)(first.drawn.image.place, "0" * 64))
    plan._drawings[0] = first._replace(drawn=image)
    with pytest.raises(DataError, match="expected the file that was drawn, got other content"):
        write_in_shards(lambda: plan, {}, tmp_path / "made", HERE, report=no_progress)
    assert not (tmp_path / "made").exists()


def test_images_that_kill_every_worker_are_named(drawn, dataset, tmp_path, monkeypatch):
    here_executor.use(monkeypatch, 3)
    make = partial(plan_dataset, drawn, dataset)
    with pytest.raises(GateError, match=r"got none of 1, the first .*png: every worker died of copying it"):
        write_in_shards(make, {}, tmp_path / "made", HERE, shard_size=4, report=no_progress)
    assert not (tmp_path / "made").exists()


@pytest.mark.long
def test_the_command_writes_with_worker_processes(drawn, tiny_root, tmp_path, capsys):
    command = ["synth", "dataset", str(drawn), "--data", str(tiny_root), "--category", CATEGORY]
    assert run([*command, "--out", str(tmp_path / "whole")]) == 0
    lines = capsys.readouterr().out.splitlines()
    sharded = [*command, "--out", str(tmp_path / "made"), "--workers", "2", "--shard-size", "6"]
    assert run(sharded) == 0
    assert capsys.readouterr().out.splitlines()[1:-1] == lines[1:-1]
    assert files_of(tmp_path / "made") == files_of(tmp_path / "whole")
    assert run([*sharded, "--shard", "2/2"]) == 2
    assert "--shard: expected I from 0 to N-1" in capsys.readouterr().err
    assert Path(tmp_path / "made.parts").exists() is False


def test_merge_makes_the_dataset_that_jobs_copied_where_none_could(
    drawn, dataset, tiny_root, tmp_path, monkeypatch, capsys
):
    here_executor.use(monkeypatch)
    whole, made = tmp_path / "whole", tmp_path / "made"
    command = ["synth", "dataset", str(drawn), "--data", str(tiny_root), "--category", CATEGORY]
    assert run([*command, "--out", str(whole)]) == 0
    sharded = [*command, "--out", str(made), "--on", "here", "--shard-size", "5"]
    assert run([*sharded, "--shard", "0/2"]) == 0
    capsys.readouterr()
    assert run(["merge", str(made)]) == 2
    assert "missing or not whole" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(run_shards, "_merge_if_whole", lambda *arguments: 1)  # it sees nothing of the other
        assert run([*sharded, "--shard", "1/2"]) == 0
    assert not made.exists()
    capsys.readouterr()
    assert run(["merge", str(made)]) == 0
    assert f"dataset: {made}, " in capsys.readouterr().out
    assert files_of(made) == files_of(whole)
    assert run(["merge", str(made)]) == 0
    assert "finished before" in capsys.readouterr().err


def test_merge_of_a_plan_of_python_says_how_to_go_on(write, tmp_path, capsys):
    assert write(part=(0, 1), is_shared=True, plan_only=True) is None
    assert run(["merge", str(tmp_path / "made")]) == 2
    assert "got one of Python" in capsys.readouterr().err


def test_a_damaged_plan_is_told_in_one_line(drawn, tiny_root, tmp_path, monkeypatch, capsys):
    here_executor.use(monkeypatch)
    made, plan = tmp_path / "made", tmp_path / "made.parts/plan.json"
    command = ["synth", "dataset", str(drawn), "--data", str(tiny_root), "--category", CATEGORY, "--out", str(made)]
    assert run([*command, "--on", "here", "--shard", "0/2", "--shard-size", "5"]) == 0
    for name, data in list(damages(plan.read_bytes()))[::3]:
        plan.write_bytes(data)
        for go_on in (["merge", str(made)], [*command, "--on", "here", "--resume", "--plan-only"]):
            capsys.readouterr()
            if run(go_on) != 0:  # it is 0 where the plan was not needed, or is the same
                said = capsys.readouterr().err
                assert said.count("error: ") == 1, (name, said)
                assert "Traceback" not in said
        assert not made.exists()
