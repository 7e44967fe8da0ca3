"""Images that are submitted: their results in order, a bound on how many wait, and faults where none can be had."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope.bundle import Limits, ThresholdLimits, Thresholds
from flawscope.errors import ArgumentError, BundleError, DeviceError, QueueFull
from flawscope.runtime import Frame, Inspector

WAIT_S = 20.0


def image_of(value: int) -> np.ndarray:
    return np.full((16, 16, 3), value, np.uint8)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    own, limits = tiny_thresholds(150.0), Limits(100.0, 175.0)
    write_tiny_bundle(
        tmp_path / "t.flaw", thresholds=Thresholds(own.image, own.pixel, ThresholdLimits(limits, limits)), min_area_px=1
    )
    return tmp_path / "t.flaw"


class Gate:
    """Holds every inference until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.is_open = threading.Semaphore(0), threading.Event()
        infer = Inspector.infer

        def waiting(inspector: Inspector, prepared: Any) -> Any:
            self.entered.release()
            assert self.is_open.wait(WAIT_S)
            return infer(inspector, prepared)

        monkeypatch.setattr(Inspector, "infer", waiting)

    def wait_for_one(self) -> None:
        assert self.entered.acquire(timeout=WAIT_S)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.is_open.set()


def test_results_are_those_of_the_inspector_each_with_its_id(bundle: Path) -> None:
    values = [10, 90, 149, 150, 151, 250]
    with Inspector.load(bundle, "cpu") as inspector:
        futures = [inspector.submit(Frame(image_of(value), f"part {value}")) for value in values]
        results = [future.result(WAIT_S) for future in futures]
        expected = [inspector(image_of(value)) for value in values]
    assert [result.id for result in results] == [f"part {value}" for value in values]
    assert [(r.score, r.decision) for r in results] == [(r.score, r.decision) for r in expected]
    assert [result.decision for result in results] == ["accept"] * 4 + ["reject"] * 2


def test_an_image_without_an_id_is_called_by_its_place(bundle: Path) -> None:
    with Inspector.load(bundle, "cpu") as inspector:
        results = [inspector.submit(source).result(WAIT_S) for source in (image_of(1), b"no image", "gone.png")]
    assert [result.image for result in results] == ["image 0", "image 1", "gone.png"]
    assert [result.decision for result in results] == ["accept", "fault", "fault"]
    assert (results[1].reason or "").startswith("expected an image (")


def test_more_than_the_bound_are_not_taken_and_it_says_so(bundle: Path, gate: Gate) -> None:
    with Inspector.load(bundle, "cpu") as inspector:
        futures = [inspector.submit(image_of(value), most_pending=3) for value in (1, 2, 200)]
        with pytest.raises(QueueFull, match=r"expected at most 3 images without a result, got one more\. Wait for"):
            inspector.submit(image_of(4), most_pending=3)
        gate.is_open.set()
        assert [future.result(WAIT_S).decision for future in futures] == ["accept", "accept", "reject"]
        # There is room again.
        assert inspector.submit(image_of(4), most_pending=1).result(WAIT_S).decision == "accept"


def test_what_waits_when_it_is_closed_is_a_fault_and_never_an_accept(bundle: Path, gate: Gate) -> None:
    inspector = Inspector.load(bundle, "cpu")
    futures = [inspector.submit(Frame(image_of(1), f"{number}")) for number in range(3)]
    gate.wait_for_one()
    closing = threading.Thread(target=inspector.close)
    closing.start()
    deadline = time.monotonic() + WAIT_S
    while not inspector._is_closed and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)  # the queue is closed right after
    gate.is_open.set()
    closing.join(WAIT_S)
    results = [future.result(WAIT_S) for future in futures]
    # The first was being inspected: it may have been done in time.
    assert [result.decision for result in results[1:]] == ["fault", "fault"]
    assert [result.reason for result in results[1:]] == ["the inspector was closed"] * 2
    assert [(result.id, result.digest) for result in results] == [(f"{n}", inspector.manifest.digest) for n in range(3)]
    assert all(result.time is not None for result in results)
    with pytest.raises(BundleError, match="the inspector was closed"):
        inspector.submit(image_of(1))


def test_whatever_goes_wrong_is_a_fault_and_the_next_is_inspected(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = Inspector.infer
    failures: list[BaseException] = [DeviceError("out of memory"), ValueError("surprise"), SystemExit(3)]

    def failing(inspector: Inspector, prepared: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return infer(inspector, prepared)

    monkeypatch.setattr(Inspector, "infer", failing)
    with Inspector.load(bundle, "cpu") as inspector:
        results = [inspector.submit(Frame(image_of(1), f"{n}")).result(WAIT_S) for n in range(4)]
    assert [result.decision for result in results] == ["fault", "fault", "fault", "accept"]
    assert [result.id for result in results] == ["0", "1", "2", "3"]
    assert results[0].reason == "out of memory"
    assert "surprise" in (results[1].reason or "")
    assert "SystemExit" in (results[2].reason or "")


def test_one_that_is_cancelled_before_its_turn_is_not_inspected(bundle: Path, gate: Gate) -> None:
    with Inspector.load(bundle, "cpu") as inspector:
        first, second, third = (inspector.submit(image_of(value)) for value in (1, 2, 200))
        gate.wait_for_one()
        assert second.cancel()
        assert not first.cancel()
        gate.is_open.set()
        assert (first.result(WAIT_S).decision, third.result(WAIT_S).decision) == ("accept", "reject")
    assert second.cancelled()
    assert not gate.entered.acquire(blocking=False) or not gate.entered.acquire(blocking=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"most_pending": 0}, "most_pending: expected a whole number from 1 on, got 0"),
        ({"most_pending": True}, "most_pending: expected a whole number"),
        ({"color": "hsv"}, "color: expected rgb or bgr"),
        ({"product": "nut"}, "expected a product"),
    ],
)
def test_a_wrong_request_is_an_error_at_once(bundle: Path, arguments: dict[str, Any], words: str) -> None:
    with Inspector.load(bundle, "cpu") as inspector, pytest.raises(ArgumentError, match=words):
        inspector.submit(image_of(1), **arguments)


def test_it_is_decided_by_the_thresholds_of_when_it_came(bundle: Path, gate: Gate) -> None:
    with Inspector.load(bundle, "cpu") as inspector:
        before = inspector.submit(image_of(160))
        inspector.set_thresholds(image=170.0)
        after = inspector.submit(image_of(160))
        gate.is_open.set()
        results = before.result(WAIT_S), after.result(WAIT_S)
    assert [(result.decision, result.threshold) for result in results] == [("reject", 150.0), ("accept", 170.0)]


def test_a_result_can_be_awaited_and_a_callback_may_submit_and_close(bundle: Path) -> None:
    inspector = Inspector.load(bundle, "cpu")

    async def inspected() -> str:
        return (await asyncio.wrap_future(inspector.submit(image_of(200)))).decision

    assert asyncio.run(inspected()) == "reject"
    later: list[Any] = []
    done = threading.Event()

    def call(_: object) -> None:
        later.append(inspector.submit(image_of(1)))
        inspector.close()
        done.set()

    inspector.submit(image_of(1)).add_done_callback(call)
    assert done.wait(WAIT_S)
    assert later[0].result(WAIT_S).decision == "fault"


def test_who_inspects_meanwhile_gets_his_own_results(bundle: Path) -> None:
    with Inspector.load(bundle, "cpu") as inspector:
        futures = [inspector.submit(image_of(value), most_pending=200) for value in range(100, 200)]
        own = [inspector(image_of(value)).score for value in range(100)]
        assert own == [float(value) for value in range(100)]
        assert [future.result(WAIT_S).score for future in futures] == [float(value) for value in range(100, 200)]


def test_an_inspector_that_nobody_closes_leaves_no_thread(bundle: Path) -> None:
    inspector = Inspector.load(bundle, "cpu")
    inspector.submit(image_of(50)).result(WAIT_S)
    before = [thread for thread in threading.enumerate() if thread.name == "scoring of submitted images"]
    del inspector
    gc.collect()
    assert before
    assert not any(thread.is_alive() for thread in before)


def test_a_program_that_ends_without_closing_ends_the_thread_first(bundle: Path) -> None:
    code = (
        "import atexit, sys, threading\n"
        "atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))\n"  # the last one of all
        "import flawscope, numpy\n"
        "inspector = flawscope.Inspector.load(sys.argv[1], 'cpu')\n"
        "inspector.submit(numpy.zeros((16, 16, 3), numpy.uint8)).result()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=False, timeout=WAIT_S
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "['MainThread']\n", "")
