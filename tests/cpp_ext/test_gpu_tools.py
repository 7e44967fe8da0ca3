"""What stages of `tools/gpu_check.py` make of what other programs say: compute-sanitizer, Nsight Compute, pytest."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from gpu_stages import checks, ncu, sanitizer
from gpu_stages.report import Absent, Report
from gpu_stages.said import last_lines, refusal

WHOLE = "64 checks, failed: none\n========= ERROR SUMMARY: 0 errors\n"
KILLED = "========= COMPUTE-SANITIZER\nfirst\nsecond\n"
UNSUPPORTED = "=========\n========= Error: Device not supported. Please refer to the notes\nmore\n"


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "result.json", 600, tmp_path)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a stage's program say something: (stage, (exit status or None for a timeout, text), ...), in turn."""

    def prepare(stage: ModuleType, *runs: tuple[int | None, str]) -> None:
        turns = iter(runs)

        def run(command: list[str], timeout: float, **_: object) -> Any:
            status, text = next(turns)
            if status is None:
                raise subprocess.TimeoutExpired(command, timeout)
            return SimpleNamespace(stdout=text, stderr="", returncode=status)

        monkeypatch.setattr(stage, "program", lambda name: name)
        monkeypatch.setattr(stage, "subprocess", SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired))

    return prepare


def left_out(report: Report) -> list[str]:
    found: list[str] = json.loads((report.work / "result.json").read_text())["left_out"]
    return found


# --- compute-sanitizer


def test_the_count_of_the_sanitizer_is_read() -> None:
    assert sanitizer.errors_of("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 3 errors\n") == 3
    assert sanitizer.errors_of("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n") == 0
    assert sanitizer.errors_of(KILLED) is None


def test_tools_that_find_nothing_pass(report: Report, says: Callable[..., None]) -> None:
    says(sanitizer, *[(0, WHOLE)] * 4)
    sanitizer.on_card(report)
    assert (report.checks, report.failures) == (5, [])


@pytest.mark.parametrize(
    ("status", "text", "failure"),
    [
        (-9, KILLED, "memcheck: no summary, status -9: COMPUTE-SANITIZER | first | second"),
        (1, "", "memcheck: no summary, status 1: it said nothing"),
        (
            1,
            "PermissionError: Permission denied\n",
            "memcheck: no summary, status 1: PermissionError: Permission denied",
        ),
        (1, WHOLE, "memcheck: 0 errors, status 1: 64 checks, failed: none | ERROR SUMMARY: 0 errors"),
        (0, WHOLE.replace("0 errors", "2 errors"), "memcheck: 2 errors, status 0: 64 checks"),
        # It counts no errors of a program that it never started.
        (0, "========= ERROR SUMMARY: 0 errors\n", "memcheck: 0 errors, status 0: ERROR SUMMARY: 0 errors"),
    ],
)
def test_a_run_of_the_sanitizer_that_was_killed_or_failed_is_failed(
    report: Report, says: Callable[..., None], status: int, text: str, failure: str
) -> None:
    says(sanitizer, (status, text), *[(0, WHOLE)] * 3)
    sanitizer.on_card(report)
    (found,) = report.failures
    assert found.startswith(failure)


def test_a_machine_that_the_sanitizer_refuses_is_absent(report: Report, says: Callable[..., None]) -> None:
    says(sanitizer, *[(1, UNSUPPORTED)] * 4)
    with pytest.raises(Absent, match=r"^compute-sanitizer does not work here: Error: Device not supported"):
        sanitizer.on_card(report)
    assert report.checks == 0


def test_one_tool_that_is_refused_does_not_hide_what_the_others_found(
    report: Report, says: Callable[..., None]
) -> None:
    says(sanitizer, (0, WHOLE), (1, UNSUPPORTED), (None, ""), (0, WHOLE))
    sanitizer.on_card(report)
    assert report.failures == []
    assert [line.split(":")[0] for line in left_out(report)] == ["racecheck", "synccheck"]


def test_tools_that_all_take_too_long_have_not_passed(report: Report, says: Callable[..., None]) -> None:
    says(sanitizer, *[(None, "")] * 4)
    sanitizer.on_card(report)
    assert report.failures == ["no tool came to its end"]


# --- Nsight Compute

METRICS = (
    "==PROF== Connected\n"
    '"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"\n'
    '"0","12","search_kernel<8>(Bank, Plan)","Speed Of Light","Duration","us","1,234.5"\n'
    '"0","12","search_kernel<8>(Bank, Plan)","Speed Of Light","","",""\n'
)


def test_metrics_of_nsight_compute_are_read_from_between_its_messages() -> None:
    row = {"kernel": "search_kernel<8>", "name": "Duration", "unit": "us", "value": "1,234.5"}
    assert ncu.metrics(METRICS) == [row]
    assert ncu.metrics("==ERROR== no permission\n") == []


@pytest.mark.parametrize(
    "text",
    [
        "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters",
        "==ERROR== Profiling is not supported on device 0.",
        "==ERROR== Profiling failed because a driver resource was unavailable.",
    ],
)
def test_a_machine_that_nsight_compute_refuses_is_absent_with_its_words(
    report: Report, says: Callable[..., None], text: str
) -> None:
    says(ncu, (1, f"==PROF== Connected\n{text}\n==PROF== Disconnected\n"))
    with pytest.raises(Absent) as caught:
        ncu.on_card(report)
    assert str(caught.value) == f"Nsight Compute does not work here: {text.strip('= ')}"


@pytest.mark.parametrize(
    ("runs", "failures"),
    [
        ([(0, METRICS)] * 2, []),
        ([(0, METRICS), (None, "")], []),
        ([(0, METRICS), (-11, "==PROF== Connected\nboom\n")], ["0 metrics, status -11: PROF== Connected | boom"]),
        ([(0, METRICS), (0, "==WARNING== No kernels were profiled.\n")], ["0 metrics, status 0: WARNING== No kernels"]),
        ([(1, METRICS), (0, METRICS)], ["1 metrics, status 1: "]),
        ([(None, ""), (None, "")], ["no shape was measured"]),
    ],
)
def test_a_run_of_nsight_compute_that_was_killed_or_failed_is_failed(
    report: Report, says: Callable[..., None], runs: list[tuple[int | None, str]], failures: list[str]
) -> None:
    says(ncu, *runs)
    ncu.on_card(report)
    assert len(report.failures) == len(failures)
    for found, wanted in zip(report.failures, failures, strict=True):
        assert wanted in found


def test_only_lines_of_the_tool_itself_are_a_refusal() -> None:
    assert refusal("no permission\n==ERROR== No Permission\n", ("permission",)) == "ERROR== No Permission"
    assert refusal("no permission\n", ("permission",)) is None
    assert last_lines("a\n\n==\nb\nc\n", 2) == "b | c"


# --- pytest


@pytest.mark.parametrize(
    ("status", "said", "absent"),
    [
        (0, "....\n4 passed, 2 skipped in 3 s", None),
        (1, "..F\n1 failed, 2 passed in 3 s", None),
        (0, "ssss\n4 skipped in 1 s", "no test was run: 4 skipped in 1 s"),
        (5, "9 deselected in 1 s", "no test was run: 9 deselected in 1 s"),
        (2, "E   ModuleNotFoundError: No module named 'av'\n1 error", "ModuleNotFoundError: No module named 'av'"),
        (4, "ERROR: usage", None),
    ],
)
def test_what_pytest_says_is_a_check_or_the_reason_why_there_is_none(
    report: Report, status: int, said: str, absent: str | None
) -> None:
    if absent is None:
        checks.read_tests(report, status, said)
        assert len(report.failures) == (status != 0)
        return
    with pytest.raises(Absent) as caught:
        checks.read_tests(report, status, said)
    assert absent in str(caught.value)
