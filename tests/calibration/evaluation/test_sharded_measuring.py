"""`evaluate` in shards: the figures of one process to the last bit, whatever the shards are."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import here_executor
import msgspec
import numpy as np
import pytest
from damaged_json import damages
from tiny_bundle import tiny_thresholds, write_tiny_bundle
from tiny_dataset import CATEGORY

from flawscope.calibration import evaluate_bundle
from flawscope.calibration.evaluation.measurements import ShardsMissing
from flawscope.calibration.evaluation.sharded_measuring import Sharding, asked_of, measure_in_shards
from flawscope.cli import run
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, DataError, FlawscopeError, StorageError
from flawscope.runtime.scale.executors import Placement

HERE = Placement(on="here", workers=2)
ASKED = asked_of("fp32", None, None, by_product=False, use_overlay=True)


@pytest.fixture
def bundle(tmp_path):
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds(150.0))
    return tmp_path / "tiny.flaw"


@pytest.fixture
def evaluate(bundle, tiny_root, tmp_path, monkeypatch):
    """Return a function that evaluates in shards; with none, in one process."""
    here_executor.use(monkeypatch)
    dataset = open_dataset(tiny_root, CATEGORY)

    def evaluated(shard_size=None, out=None, **more):
        measure = None
        if shard_size is not None or out is not None:
            out = out or tmp_path / f"out{shard_size}"
            more = {"out": out, "shard_size": shard_size, "placement": HERE, **more}
            measure = partial(measure_in_shards, Sharding(asked=ASKED, **more))
        return evaluate_bundle(bundle, dataset, backend="cpu", command="", resamples=50, measure=measure)

    return evaluated


def comparable(figures):
    """Return figures without what is of the moment."""
    return msgspec.structs.replace(figures, latency_ms=None, when="")


def test_figures_are_those_of_one_process(evaluate):
    whole = evaluate()
    for shard_size in (1, 5, 100):
        sharded = evaluate(shard_size)
        assert comparable(sharded.figures) == comparable(whole.figures)
        assert sharded.figures.latency_ms is not None
        assert isinstance(sharded.measured.maps, np.memmap), "maps are read from their file"
        assert np.array_equal(sharded.measured.maps, whole.measured.maps)


def test_jobs_share_a_plan_and_the_last_has_the_figures(evaluate, tmp_path, capsys):
    out = tmp_path / "jobs"
    with pytest.raises(ShardsMissing, match=r"expected 3 whole shards for the figures, got 2"):
        evaluate(5, out, part=(0, 2), is_shared=True)
    assert run(["merge", str(tmp_path / out)]) == 2
    assert "its command makes the figures. Run that without --shard, with --resume" in capsys.readouterr().err
    with pytest.raises(ArgumentError, match="Go on with it by --resume"):
        evaluate(5, out)
    with pytest.raises(ArgumentError, match="shard_size 5, not 6"):
        evaluate(6, out, is_resumed=True)
    last = evaluate(5, out, part=(1, 2), is_shared=True)
    assert comparable(last.figures) == comparable(evaluate().figures)
    size_of_the_plan = evaluate(None, out, is_resumed=True)
    assert comparable(size_of_the_plan.figures) == comparable(last.figures)


def test_faults_are_told_as_in_one_process(bundle, tiny_root, tmp_path, monkeypatch):
    here_executor.use(monkeypatch)
    shutil.copytree(tiny_root, tmp_path / "parts")
    monkeypatch.chdir(tmp_path)
    Path("parts", CATEGORY, "test/good/000.png").write_bytes(b"")
    dataset = open_dataset(Path("parts"), CATEGORY)
    sharding = Sharding(out=tmp_path / "out", placement=HERE, asked=ASKED)
    whole, sharded = (
        evaluate_bundle(bundle, dataset, backend="cpu", command="", resamples=50, measure=measure).figures
        for measure in (None, partial(measure_in_shards, sharding))
    )
    assert len(whole.faults) == 1
    assert comparable(sharded) == comparable(whole)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems have no names that are not UTF-8")
def test_folders_with_names_that_are_not_utf_8_are_found_by_workers(bundle, tiny_root, tmp_path, monkeypatch):
    here_executor.use(monkeypatch)
    odd = tmp_path / os.fsdecode(b"w\xff")
    shutil.copytree(tiny_root, odd / "parts")
    shutil.move(bundle, odd / os.fsdecode(b"b\xfe.flaw"))
    monkeypatch.chdir(odd)
    dataset, sharding = open_dataset(Path("parts"), CATEGORY), Sharding(out=Path("out"), placement=HERE, asked=ASKED)
    alone, sharded = (
        evaluate_bundle(
            Path(os.fsdecode(b"b\xfe.flaw")), dataset, backend="cpu", command="", resamples=5, measure=measure
        ).figures
        for measure in (None, partial(measure_in_shards, sharding))
    )
    assert sharded.faults == alone.faults == ()
    assert comparable(sharded) == comparable(alone)


def test_a_full_disk_is_no_fault_of_an_image(evaluate, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"maps\.npy: could not be written: the disk is full"):
        evaluate(5)


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: os.truncate(path, 2000), lambda path: os.truncate(path, 0)]
)
@pytest.mark.parametrize("part", [(0, 2), (0, 1)])
def test_maps_that_were_damaged_are_told(evaluate, tmp_path, part, damage):
    with contextlib.suppress(ShardsMissing):
        evaluate(5, tmp_path / "out", part=part)
    damage(tmp_path / "out/maps.npy")
    with pytest.raises(DataError, match=r"maps\.npy: expected the maps of this run"):
        evaluate(5, tmp_path / "out", is_resumed=True)


@pytest.mark.parametrize("other", [np.zeros((3, 8, 8), np.float32), np.zeros((40, 8, 8), np.float64), np.zeros(3)])
def test_maps_of_another_shape_are_refused(evaluate, tmp_path, other):
    evaluate(5, tmp_path / "out")
    np.save(tmp_path / "out/maps.npy", other)
    with pytest.raises(DataError, match=r"maps\.npy: expected the maps of this run, float32"):
        evaluate(5, tmp_path / "out", is_resumed=True)


def test_a_damaged_plan_is_told_in_one_line(evaluate, tmp_path):
    plan = tmp_path / "out/plan.json"
    evaluate(5, tmp_path / "out")
    # Some of them: each that is not refused measures anew.
    for _, data in list(damages(plan.read_bytes()))[::7]:
        plan.write_bytes(data)
        with contextlib.suppress(FlawscopeError):
            evaluate(5, tmp_path / "out", is_resumed=True)


def test_a_placement_that_cannot_be_leaves_no_plan_behind(evaluate, tmp_path):
    much = Placement(on="local", workers=1, gpus_per_worker=1000.0)
    with pytest.raises(ArgumentError, match="--gpus-per-worker: expected GPUs for 1 workers"):
        evaluate(5, tmp_path / "out", placement=much)
    assert not (tmp_path / "out").exists()


def test_an_image_that_kills_its_scorer_is_a_fault_and_never_accepted(evaluate, monkeypatch):
    here_executor.use(monkeypatch, 2)
    figures = evaluate(4).figures
    (fault,) = figures.faults
    assert "the scorer died of this image, each time that it was tried: killed by signal 9" in fault.reason
    assert figures.confusion.good.fault + figures.confusion.anomalous.fault == 1
    assert figures.images == 12


@pytest.mark.long
def test_the_command_scores_with_worker_processes(bundle, tiny_root, tmp_path, capsys):
    command = ["evaluate", str(bundle), "--data", str(tiny_root), "--category", CATEGORY, "--no-record"]
    sharded = [*command, "--out", str(tmp_path / "out"), "--workers", "2", "--shard-size", "6"]
    assert run([*sharded, "--shard", "0/2"]) == 0
    assert "note: " in capsys.readouterr().err
    assert run([*sharded, "--resume", "--json", str(tmp_path / "sharded.json")]) == 0
    assert run([*command, "--json", str(tmp_path / "whole.json")]) == 0
    first, second = (msgspec.json.decode((tmp_path / f"{name}.json").read_bytes()) for name in ("sharded", "whole"))
    moment = dict.fromkeys(("latency_ms", "when", "command"))
    assert first | moment == second | moment
    assert run([*command, "--workers", "2"]) == 2
    assert "--workers: expected --out DIR beside it" in capsys.readouterr().err
