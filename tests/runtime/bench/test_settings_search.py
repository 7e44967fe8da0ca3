"""`bench --find-settings`: the grid, the choice, and what is printed can be given to `score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.errors import ArgumentError
from flawscope.runtime.backends import Cores
from flawscope.runtime.bench import settings_search
from flawscope.runtime.bench.settings_search import (
    arguments_text,
    best_settings,
    find_settings,
    options_text,
    settings_grid,
)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings_search, "_WARM_UP_S", (0.0, 0.02))
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds())
    return tmp_path / "tiny.flaw"


def row(batch: int, p50: float, threads: int | None = None, streams: int | None = None) -> dict[str, Any]:
    return {
        "threads": threads, "streams": streams, "batch": batch, "p50_ms": p50, "images_per_second": 1e3 * batch / p50,
    }  # fmt: skip


def test_the_grid_halves_threads_and_doubles_streams() -> None:
    both, many = (1, 8), (8,)
    assert settings_grid("cpu", 6, both) == [(Cores(), both), (Cores(3), both), (Cores(1), both)]
    assert settings_grid("openvino", 2, both) == [
        (Cores(), both), (Cores(1), both), (Cores(streams=1), many), (Cores(streams=2), many),
    ]  # fmt: skip
    # More streams than images would have nothing to do; one image has no use for any.
    assert [cores.streams for cores, _ in settings_grid("openvino", 16, (4,))][-3:] == [1, 2, 4]
    assert all(cores.streams is None for cores, _ in settings_grid("openvino", 16, (1,)))
    with pytest.raises(ArgumentError, match="backend cuda has neither threads nor streams"):
        settings_grid("cuda", 4, both)


def test_noise_recommends_no_option() -> None:
    rows = [row(1, 10.0), row(8, 40.0), row(1, 9.8, 1), row(8, 41.0, 1)]
    assert best_settings(rows) == {"one_image": 0, "images_per_second": 1}
    rows[2]["p50_ms"] = 9.0
    assert best_settings(rows) == {"one_image": 2, "images_per_second": 1}
    assert best_settings(rows[1:2]) == {"one_image": None, "images_per_second": 0}


def test_a_row_is_said_as_options_and_as_a_call() -> None:
    figures = {"backend": "openvino", "asked_path": "auto", "precision": "fp32"}
    assert options_text(figures, row(8, 1.0, 4, 2)) == "--backend openvino --threads 4 --streams 2 --batch 8"
    assert arguments_text(figures, row(8, 1.0, None, 2)) == (
        'Inspector.load(bundle, "openvino", streams=2).stream(images, 8)'
    )
    assert arguments_text(figures, row(1, 1.0, 4)) == 'Inspector.load(bundle, "openvino", threads=4)'
    # What was measured in another precision or on another path holds there alone.
    other = {"backend": "openvino", "asked_path": "graph", "precision": "int8"}
    assert options_text(other, row(1, 1.0, 4)) == "--backend openvino --path graph --precision int8 --threads 4"
    assert arguments_text(other, row(1, 1.0)) == 'Inspector.load(bundle, "openvino", path="graph", precision="int8")'


def test_every_setting_is_measured_in_both_directions(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_search, "usable_cores", lambda: 2)
    monkeypatch.setattr("flawscope.runtime.backends.cores.usable_cores", lambda: 2)
    shares: list[float] = []
    figures = find_settings(bundle, "cpu", batches=(2, 1), seconds=0.1, progress=shares.append)
    assert [(r["threads"], r["streams"], r["batch"]) for r in figures["settings"]] == [
        (None, None, 1), (None, None, 2), (1, None, 1), (1, None, 2),
    ]  # fmt: skip
    assert all(r["rounds"] >= 20 and 0 < r["p50_ms"] <= r["p99_ms"] for r in figures["settings"])
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_the_command_prints_options_that_score_takes(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    order = ["bench", str(bundle), "--backend", "cpu", "--find-settings", "--seconds", "0.1", "--json", str(out)]
    assert cli.run(order) == 0
    printed = capsys.readouterr().out
    said = next(line for line in printed.splitlines() if line.startswith("best for latency: "))
    options = said.removeprefix("best for latency: ").partition(";")[0].split()
    assert cli.run(["score", str(bundle), str(next((bundle / "golden").iterdir())), *options]) in (0, 1)
    figures = json.loads(out.read_text())
    assert figures["best"]["one_image"] is not None


@pytest.mark.parametrize("option", [["--threads", "1"], ["--soak", "10"], ["--no-cold-start"]])
def test_what_has_no_effect_is_refused(option: list[str], bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", str(bundle), "--find-settings", *option]) == 2
    assert f"{option[0]} has no effect with --find-settings" in capsys.readouterr().err
