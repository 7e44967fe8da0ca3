"""Ray workers of one machine map one packed bank, in a folder that each finds by itself and the last one removes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import pytest
from stand_in_ray import StandInRay
from tiny_banks import part_images, write_bank_bundle

from flawscope.cpp_ext import HAVE_NATIVE
from flawscope.errors import StorageError
from flawscope.files import temporary_folder
from flawscope.runtime.scale.driver import Driver
from flawscope.runtime.scale.executors import Placement, worker_side
from flawscope.runtime.scale.executors.messages import Opened, decode_answer, encode_order
from flawscope.runtime.scale.executors.ray import RayExecutor
from flawscope.runtime.scale.executors.worker_side import WorkerSide
from flawscope.runtime.scale.score_plan import Planned, ScoreRequest, plan_score
from flawscope.runtime.scale.shards import read_blocks
from flawscope.runtime.scale.work import encode_work
from flawscope.runtime.scorers import bank_scorer

pytestmark = [
    pytest.mark.skipif(not HAVE_NATIVE, reason="no native kernels, which alone pack banks"),
    pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc that tells what a process maps"),
]


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where workers make their folder; a bundle and images beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for kind in ("patchcore", "padim"):
        write_bank_bundle(tmp_path / f"{kind}.flaw", seed=3, kind=kind)
    (tmp_path / "parts").mkdir()
    for number, image in enumerate(part_images(8, seed=1)):
        cv2.imwrite(str(tmp_path / "parts" / f"{number}.png"), image)
    return tmp_path / "cache" / "flawscope" / "shared"


def planned(folder: Path, kind: str, placement: Placement) -> Planned:
    return plan_score(
        ScoreRequest(
            bundle=folder / f"{kind}.flaw",
            images=[folder / "parts"],
            out=folder / "out" / kind,
            placement=placement,
            backend="cpu",
            path="kernel",
            threads=1,
            shard_size=2,
        )
    )


def banks_of(pid: int | str) -> list[str]:
    """Return device and number of the files with packed banks that a process maps, as often as it maps them."""
    mapped = (line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    return sorted(" ".join(words[3:5]) for words in mapped if ".bank" in words[-1] or ".gaussians" in words[-1])


def opened(side: WorkerSide, order: bytes) -> Opened:
    said = decode_answer(side.open(order))
    assert isinstance(said, Opened), said
    return said


@pytest.mark.parametrize("kind", ["patchcore", "padim"])
def test_workers_that_are_told_one_run_map_one_file_and_the_last_removes_it(
    tmp_path: Path, shared: Path, kind: str
) -> None:
    work = encode_work(planned(tmp_path, kind, Placement(workers=2)).work)
    one, other, stranger = WorkerSide(), WorkerSide(), WorkerSide()
    assert opened(one, encode_order(work, run="a run")).notes == ()
    opened(other, encode_order(work, run="a run"))
    first, second = banks_of("self")
    assert first == second
    (folder,) = shared.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    opened(stranger, encode_order(work, run="another run"))
    assert len(set(banks_of("self"))) == 2
    stranger.close()
    one.close()
    assert list(shared.iterdir()) == [folder]
    other.close()
    assert list(shared.iterdir()) == []
    assert bank_scorer._shared is None


def test_without_room_the_worker_opens_all_the_same_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run: str) -> None:
        raise StorageError("cache: could not be written: no space left on device. Free space.")

    monkeypatch.setattr(worker_side, "shared_folder", refuse)
    side = WorkerSide()
    work = encode_work(planned(tmp_path, "patchcore", Placement(workers=2)).work)
    (note,) = opened(side, encode_order(work, run="a run")).notes
    assert note.endswith(
        "no space left on device. Free space. Each worker has its own memory bank, which takes more memory."
    )
    assert banks_of("self") == []
    side.close()


def test_a_bank_that_cannot_be_written_is_its_own_and_the_worker_says_so(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    side = WorkerSide()
    work = encode_work(planned(tmp_path, "patchcore", Placement(workers=2)).work)
    notes = opened(side, encode_order(work, shared=str(tmp_path / "file"))).notes
    assert "this process has the bank for itself" in notes[-1]
    assert banks_of("self") == []
    side.close()


def on_ray(work: bytes, **placed: Any) -> RayExecutor:
    return RayExecutor(work, Placement(on="ray", **placed))


def test_actors_are_told_of_a_run_and_what_they_say_is_said_once(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ray", StandInRay((2, 2), lambda number, name: False))
    plan = planned(tmp_path, "patchcore", Placement(workers=2))
    with on_ray(encode_work(plan.work), workers=2) as executor:
        end = time.monotonic() + 60
        while len(executor.workers) < 2:
            executor._look()
            assert time.monotonic() < end
        assert len(list(shared.iterdir())) == 1
        assert len(set(banks_of("self"))) == 1
    assert list(shared.iterdir()) == []
    caplog.clear()
    shared.rmdir()
    shared.write_bytes(b"no folder")
    with (
        caplog.at_level(logging.WARNING, "flawscope.runtime.scale"),
        on_ray(encode_work(plan.work), workers=2) as executor,
    ):
        while len(executor.workers) < 2:
            executor._look()
    said = [record for record in caplog.records if record.name.startswith("flawscope.runtime.scale")]
    assert ["Each worker has its own memory bank" in record.getMessage() for record in said] == [True]


def test_one_worker_has_nobody_to_share_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", StandInRay((2, 2), lambda number, name: False))
    for placed, shares in (({"workers": 1}, False), ({"workers": 2, "shares": False}, False), ({}, True)):
        executor = on_ray(b"{}", **placed)
        executor._connect()
        assert (b'"run":""' not in executor._order) is shares
        executor._disconnect()


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_actors_of_a_real_cluster_share_a_bank_and_killed_ones_leave_it_to_the_next_run(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    plan = planned(tmp_path, "padim", Placement(workers=2))
    with on_ray(encode_work(plan.work), workers=2) as executor:
        end = time.monotonic() + 120
        while len(executor.workers) < 2:
            executor._look()
            assert time.monotonic() < end
        pids = [int(name.rpartition(" ")[2].rstrip(")")) for name in executor.workers]
        mapped = [banks_of(pid) for pid in pids]
        assert mapped[0] == mapped[1] != []
        Driver(plan.work, executor, lambda done, total: None).run(plan.plan.tasks(), plan.plan.items)
        (folder,) = shared.iterdir()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        # The next run on this machine, of whatever executor, takes it away, once the system has ended them.
        while folder.exists():
            with temporary_folder(shared):
                pass
            time.sleep(0.05)
            assert time.monotonic() < end
    lines = [b"".join(read_blocks(tmp_path / "out" / "padim", plan.plan, task)) for task in plan.plan.tasks()]
    assert b"".join(lines).count(b"\n") == 8
