"""`synth generate` in shards: the bytes of one process, whatever the shards are; what was killed goes on."""

from __future__ import annotations

import dataclasses
import json

import here_executor
import pytest
from drawn_folders import record_of
from file_contents import files_of
from tiny_dataset import CATEGORY

from flawscope.bundle import SynthHead, open_bundle
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, DataError, GateError
from flawscope.progress import no_progress
from flawscope.runtime.scale.executors import Placement
from flawscope.runtime.scale.generate_run import Request, generate_in_shards
from flawscope.runtime.synthesis import DrawOptions, GenerateSettings, QualityLimits, generate_images

HERE = Placement(on="here", workers=2)
SETTINGS = GenerateSettings(
    number=23, rounds=3, best_of=2, seed=5, batch=3, options=DrawOptions(limits=QualityLimits(full=0.44))
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


@pytest.mark.parametrize("shard_size", [1, 4, 100])
def test_a_set_in_shards_has_the_bytes_of_one_process(request_, whole, tmp_path, monkeypatch, shard_size):
    here_executor.use(monkeypatch)
    drawn = generate_in_shards(request_, tmp_path / "out", HERE, shard_size=shard_size, report=no_progress)
    assert drawn.record == record_of(tmp_path / "out")
    assert drawn.round == 3
    check_same(tmp_path / "out", whole)
    assert not (tmp_path / "out.parts").exists()
