"""Bench of a bundle that draws: images per second, and where the time of one goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from standing_device import standing_device
from tiny_synth_bundle import SAMPLING, write_tiny_synth

from flawscope import cli
from flawscope.errors import ArgumentError
from flawscope.runtime.bench.bench_tables import drawing_lines
from flawscope.runtime.bench.drawing import DRAWING_STAGES, NOT_ON_HOST, bench_drawing
from flawscope.runtime.synthesis import Synthesizer
from flawscope.runtime.synthesis.draw_options import DrawOptions

pytestmark = pytest.mark.serial  # latencies and throughput are compared with each other


@pytest.fixture(scope="module", params=["blend", "inpaint"])
def drawer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of each mode."""
    path = tmp_path_factory.mktemp("drawer") / f"{request.param}.flaw"
    write_tiny_synth(path, mode=request.param)
    return path


def check_figures(figures: dict[str, Any]) -> None:
    assert json.loads(msgspec.json.encode(figures)) == figures  # plain numbers, none of NumPy's
    assert list(figures["latency_ms"]) == list(figures["first_ms"]) == list(DRAWING_STAGES)
    for stage, latency in figures["latency_ms"].items():
        # Texts may be kept after the first round.
        assert 0 <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"]
        assert latency["p50"] > 0 or stage == "text"
    first = dict(figures["first_ms"])
    assert all(value > 0 for value in first.values())
    assert first.pop("total") == pytest.approx(sum(first.values()))
    assert figures["rounds"] >= 3
    assert figures["images_per_second"] * figures["seconds_per_image"] == pytest.approx(1.0)
    slowest = figures["latency_ms"]["total"]["p99.9"] / 1e3
    assert figures["seconds_per_image"] * figures["batch"] < 1.05 * slowest
    assert figures["denoiser_call_ms"] == pytest.approx(
        figures["latency_ms"]["denoise"]["p50"] / figures["denoiser_calls"]
    )
    assert figures["memory"]["device"]["kib"] is None


@pytest.mark.parametrize("batch", [1, 3])
def test_every_figure_is_there(drawer: Path, batch: int) -> None:
    shares: list[float] = []
    with Synthesizer.load(drawer, "cpu") as synthesizer:
        figures = bench_drawing(synthesizer, batch=batch, seconds=0.2, progress=shares.append)
        assert figures["digest"] == synthesizer.manifest.digest
    check_figures(figures)
    assert (figures["batch"], figures["backend"], figures["solver"]) == (batch, "cpu", "ddim")
    assert figures["steps"] == figures["denoiser_calls"] == SAMPLING.steps
    assert shares == sorted(shares)
    assert 0 < shares[-1] <= 1


def test_steps_and_solver_are_those_asked_for(drawer: Path) -> None:
    with Synthesizer.load(drawer, "cpu") as synthesizer:
        options = DrawOptions(steps=9, solver="dpm++")
        figures = bench_drawing(synthesizer, options=options, seconds=0.1)
    check_figures(figures)
    assert (figures["steps"], figures["denoiser_calls"], figures["solver"]) == (9, 9, "dpm++")


@pytest.mark.long
def test_graphs_that_stay_on_the_device_have_no_times(
    drawer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with standing_device(monkeypatch, tmp_path_factory), Synthesizer.load(drawer, "tensorrt") as synthesizer:
        figures = bench_drawing(synthesizer, seconds=0.1)
    assert figures["backend"] == "tensorrt"
    assert list(figures["latency_ms"]) == list(figures["first_ms"]) == ["total"]
    assert (figures["denoiser_calls"], figures["denoiser_call_ms"]) == (None, None)
    assert figures["stages_reason"] == NOT_ON_HOST
    assert drawing_lines(figures)[1] == f"stages: not known: {NOT_ON_HOST}"


def test_what_cannot_be_drawn_is_refused(drawer: Path) -> None:
    with Synthesizer.load(drawer, "cpu") as synthesizer:
        with pytest.raises(ArgumentError, match=r"^batch: expected 1 to 4, .*, got 5\."):
            bench_drawing(synthesizer, batch=5)
        with pytest.raises(ArgumentError, match=r"^seconds: expected 0\.1 to 86400, got 0"):
            bench_drawing(synthesizer, seconds=0.0)


def test_the_command_shows_and_writes_the_figures(
    drawer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    arguments = ["bench", str(drawer), "--backend", "cpu", "--batch", "2", "--steps", "3", "--seconds", "0.1"]
    assert cli.run([*arguments, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    check_figures({name: value for name, value in figures.items() if name != "command"})
    assert (figures["batch"], figures["steps"]) == (2, 3)
    shown = capsys.readouterr()
    assert shown.err == ""
    for stage in DRAWING_STAGES:
        assert stage in shown.out
    assert f"{figures['latency_ms']['total']['p50']:.2f}" in shown.out
    assert f"{figures['images_per_second']:.3g} images per second" in shown.out
    assert f"3 calls, {figures['denoiser_call_ms']:.2f} ms each" in shown.out


@pytest.mark.parametrize(
    "others", [["--path", "graph"], ["--threads", "1"], ["--no-cold-start"], ["--plot", "bench.svg"]]
)
def test_options_of_scoring_are_refused(drawer: Path, others: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", str(drawer), *others]) == 2
    assert f"bench: {others[0]} has no effect with a bundle that draws." in capsys.readouterr().err


def test_options_of_drawing_are_refused(padim_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", str(padim_bundle), "--steps", "4"]) == 2
    assert "bench: --steps has no effect with a bundle that scores." in capsys.readouterr().err
    assert cli.run(["bench", str(padim_bundle), "--cameras", "2", "--solver", "dpm++"]) == 2
    assert "bench: --solver has no effect with --cameras." in capsys.readouterr().err
