"""The soak: a leak is found, none is invented, and a score that changes stops it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from flawscope import cli
from flawscope.errors import ArgumentError, GateError
from flawscope.runtime import Inspector
from flawscope.runtime.bench import soak as soak_module
from flawscope.runtime.bench.soak import MEMORY_BOUND_KIB, MEMORY_STEPS_KIB, SAMPLES, soak

SCORINGS = 1_000


@pytest.fixture
def fixed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the memory of the test process, in which much else happens, stand still."""
    monkeypatch.setattr(soak_module, "resident_kib", lambda: 100_000)


@pytest.mark.serial
def test_a_command_of_its_own_scores_thousands_without_a_slope(patchcore_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    arguments = ["bench", str(patchcore_bundle), "--backend", "cpu", "--soak", "2000", "--json", str(file)]
    process = subprocess.run(
        [sys.executable, "-m", "flawscope", *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    figures = json.loads(file.read_text())
    memory = figures["memory"]
    assert (figures["scorings"], figures["samples"], figures["scores"]) == (2_000, SAMPLES, "bit-identical")
    assert memory["verdict"].startswith("indistinguishable from zero")
    assert memory["bound"] == pytest.approx(MEMORY_STEPS_KIB / 1.79)  # from 210 to 2,000 scorings
    assert memory["interval"][0] <= memory["slope"] <= memory["interval"][1]
    assert 10_000 < memory["first_kib"] <= memory["peak_kib"]
    assert "scores and maps bit-identical over 2,000 scorings" in process.stdout
    assert "memory, KiB" in process.stdout


LEAK = """
import sys
from flawscope import cli
from flawscope.runtime.bench import rounds
kept, decide = [], rounds.decide
def leaking(*arguments):
    kept.append(bytearray(b"x") * (16 << 10))
    return decide(*arguments)
rounds.decide = leaking
sys.exit(cli.run(sys.argv[1:]))
"""


@pytest.mark.serial
def test_a_real_leak_is_found_and_the_exit_status_says_so(padim_bundle: Path, tmp_path: Path) -> None:
    # In a process of its own: in one that has freed much before, what leaks takes up memory that is resident already.
    file = tmp_path / "soak.json"
    arguments = ["bench", str(padim_bundle), "--backend", "cpu", "--soak", str(SCORINGS), "--json", str(file)]
    process = subprocess.run(
        [sys.executable, "-c", LEAK, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 1
    memory = json.loads(file.read_text())["memory"]  # written although the check failed
    assert memory["verdict"] == "grows"
    assert memory["slope"] == pytest.approx(16_000, rel=0.3)
    assert process.stderr.startswith("error: soak: expected memory to grow by at most ")
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("kib_per_thousand", "verdict"),
    [
        (0.0, "indistinguishable from zero"),
        (10.0, "indistinguishable from zero within the bound"),
        (200.0, "grows"),
        (-200.0, "falls"),
    ],
)
def test_the_verdict_is_that_of_the_memory_that_was_read(
    padim_bundle: Path, monkeypatch: pytest.MonkeyPatch, kib_per_thousand: float, verdict: str
) -> None:
    reads = iter(range(10 * SAMPLES))
    each = kib_per_thousand * SCORINGS / SAMPLES / 1e3
    monkeypatch.setattr(soak_module, "resident_kib", lambda: 100_000 + each * next(reads))
    counts: list[int] = []
    with Inspector.load(padim_bundle, "cpu") as inspector:
        figures = soak(inspector, SCORINGS, progress=counts.append)
    assert json.loads(msgspec.json.encode(figures)) == figures
    assert figures["memory"]["verdict"] == verdict
    assert figures["memory"]["slope"] == pytest.approx(kib_per_thousand, abs=1e-6)
    assert figures["is_growing"] == (verdict == "grows")
    assert counts == [SCORINGS * number // SAMPLES for number in range(1, SAMPLES + 1)]
    assert figures["series"]["scorings"] == counts
    assert len(figures["series"]["latency_ms"]) == SAMPLES
    assert figures["latency"]["median_ms"]["p50"] > 0


@pytest.mark.parametrize(("scorings", "bound"), [(1_000_000, MEMORY_BOUND_KIB), (10_000, MEMORY_STEPS_KIB / 8.95)])
def test_the_bound_is_a_rate_and_for_short_soaks_a_few_pages(padim_bundle: Path, scorings: int, bound: float) -> None:
    count = np.linspace(scorings / SAMPLES, scorings, SAMPLES)
    rows = np.stack([count, np.full(SAMPLES, 1e5), np.ones(SAMPLES)], axis=1)
    with Inspector.load(padim_bundle, "cpu") as inspector:
        assert soak_module._figures(inspector, 1, rows, {})["memory"]["bound"] == pytest.approx(bound)


@pytest.mark.usefixtures("fixed_memory")
def test_batches_are_rounded_up_to_whole_rounds(padim_bundle: Path) -> None:
    with Inspector.load(padim_bundle, "cpu") as inspector:
        figures = soak(inspector, SCORINGS + 1, batch=3)
    assert figures["scorings"] == 1_002
    assert figures["series"]["scorings"][-1] == 1_002


@pytest.mark.usefixtures("fixed_memory")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("quantity", ["score", "largest value of the map"])
def test_a_score_or_map_that_changes_by_its_last_bit_is_an_error(
    padim_bundle: Path, monkeypatch: pytest.MonkeyPatch, batch: int, quantity: str
) -> None:
    with Inspector.load(padim_bundle, "cpu") as inspector:
        infer = inspector.infer
        images_left = 500

        def faulty(_: Inspector, images: Any) -> Any:
            nonlocal images_left
            images_left -= len(images)
            maps, scores = infer(images)
            if images_left < 0:
                changed = scores if quantity == "score" else maps
                changed[-1:] = np.nextafter(changed[-1:], np.float32(np.inf))
            return maps, scores

        monkeypatch.setattr(Inspector, "infer", faulty)
        message = (
            rf"^soak: golden.*bit for bit, and the {quantity} was [0-9.]+; got [0-9.]+ at scoring 501\. Memory or the"
        )
        with pytest.raises(GateError, match=message):
            soak(inspector, SCORINGS, batch=batch)


@pytest.mark.usefixtures("fixed_memory")
def test_where_memory_cannot_be_read_there_is_a_reason_and_no_slope(
    padim_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak_module, "resident_kib", lambda: None)
    with Inspector.load(padim_bundle, "cpu") as inspector:
        figures = soak(inspector, SCORINGS)
    memory = figures["memory"]
    assert (memory["slope"], memory["interval"], memory["verdict"]) == (None, None, "not known")
    assert memory["reason"].startswith("resident memory is read from /proc/self/status")
    assert figures["series"]["resident_kib"] is None
    assert not figures["is_growing"]
    assert figures["latency"]["slope"] is not None


@pytest.mark.parametrize("scorings", [0, -1, 999, 1_000_000_001])
def test_a_number_of_scorings_that_tells_nothing_is_refused(padim_bundle: Path, scorings: int) -> None:
    with (
        Inspector.load(padim_bundle, "cpu") as inspector,
        pytest.raises(ArgumentError, match=rf"soak: expected 1,000 to 1,000,000,000 scorings, got {scorings:,}\."),
    ):
        soak(inspector, scorings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--soak", "0"], "soak: expected 1,000 to 1,000,000,000 scorings, got 0."),
        (["--soak", "2000", "--batch", "9"], "batch: expected 1 to 4, got 9."),
        (["--soak", "2000", "--batch", "1,2"], "bench: expected one batch with --soak, got 1, 2."),
        (["--soak", "2000", "--seconds", "3"], "bench: --seconds has no effect with --soak."),
        (["--soak", "2000", "--no-cold-start"], "bench: --no-cold-start has no effect with --soak."),
        (["--soak", "many"], "--soak: expected a whole number, got 'many'."),
    ],
)
def test_a_wrong_request_is_one_line(
    padim_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert cli.run(["bench", str(padim_bundle), *options, "--json", str(tmp_path / "soak.json")]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {message}")
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
