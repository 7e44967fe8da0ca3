"""Workers of one machine map one packed bank, decide as one process does, and leave nothing behind."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import cv2
import pytest
from tiny_banks import KINDS, part_images, write_bank_bundle

from flawscope.cpp_ext import HAVE_NATIVE
from flawscope.errors import StorageError
from flawscope.runtime.scale.driver import Driver
from flawscope.runtime.scale.executors import Placement, local
from flawscope.runtime.scale.executors.local import LocalExecutor
from flawscope.runtime.scale.score_plan import ScoreRequest, plan_score
from flawscope.runtime.scale.shards import read_blocks
from flawscope.runtime.scale.work import encode_work

pytestmark = [
    pytest.mark.skipif(not HAVE_NATIVE, reason="no native kernels, which alone pack banks"),
    pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc that tells what a process maps"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for kind in KINDS:
        write_bank_bundle(tmp_path / "bundle" / f"{kind}.flaw", seed=3, kind=kind)
    for number, image in enumerate(part_images(8, seed=1)):
        (tmp_path / "parts").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "parts" / f"{number}.png"), image)
    return tmp_path / "cache" / "flawscope" / "shared"


def banks_of(pid: int) -> set[str]:
    """Return device, number and name of the files with packed banks that a process maps."""
    mapped = (line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    ours = (words for words in mapped if words[-1].endswith((".bank", ".gaussians")))
    return {" ".join(words[3:]) for words in ours}


def lines_of(folder: Path, kind: str, out: str, placement: Placement, banks: int) -> list[bytes]:
    """Score with an executor; `banks` is how many files each of its workers maps, and all of them together."""
    request = ScoreRequest(
        bundle=folder / "bundle" / f"{kind}.flaw",
        images=[folder / "parts"],
        out=folder / out,
        placement=placement,
        backend="cpu",
        path="kernel",
        threads=1,
        shard_size=2,
    )
    planned = plan_score(request)
    with LocalExecutor(encode_work(planned.work), placement) as executor:
        end = time.monotonic() + 60
        mapped: list[set[str]] = []
        while len(executor.workers) < (placement.workers or 0):
            executor._look()
            assert time.monotonic() < end, "not all workers became ready in time"
        mapped = [banks_of(pid) for pid in executor.pids]
        assert [len(names) for names in mapped] == [banks] * len(executor.pids)
        assert len(set.union(*mapped)) == banks
        Driver(planned.work, executor, lambda done, total: None).run(planned.plan.tasks(), planned.plan.items)
    return [b"".join(read_blocks(folder / out, planned.plan, task)) for task in planned.plan.tasks()]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_have_one_bank_and_the_decisions_of_each_for_itself(tmp_path: Path, cache: Path, kind: str) -> None:
    shared = lines_of(tmp_path, kind, "shared", Placement(workers=2), 1)
    assert list(cache.iterdir()) == []
    shutil.rmtree(cache)
    assert shared == lines_of(tmp_path, kind, "one", Placement(workers=1), 0)
    assert not cache.exists()  # one worker has nobody to share with


def test_a_placement_may_leave_each_worker_its_own(cache: Path) -> None:
    executor = LocalExecutor(b"{}", Placement(workers=2, shares=False))
    executor._connect()
    assert b'"shared":""' in executor._order
    assert not cache.exists()


def test_without_room_for_the_folder_workers_start_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise StorageError("cache: could not be written: no space left on device. Free space.")

    monkeypatch.setattr(local, "shared_folder", refuse)
    executor = LocalExecutor(b"{}", Placement(workers=2))
    executor._connect()
    assert b'"shared":""' in executor._order
    assert "Each worker has its own memory bank" in caplog.text


def test_a_user_without_a_home_shares_in_the_folder_of_temporary_files(no_home: None) -> None:
    executor = LocalExecutor(b"{}", Placement(workers=2))
    executor._connect()
    try:
        (folder,) = (p for p in Path(tempfile.gettempdir()).iterdir() if str(p).encode() in executor._order)
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        executor._disconnect()
    assert not folder.exists()
