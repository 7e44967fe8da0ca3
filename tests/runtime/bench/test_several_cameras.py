"""Several cameras: what all get together and how long each waits, beside one camera."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flawscope import cli
from flawscope.errors import ArgumentError, DeviceError
from flawscope.runtime import Inspector
from flawscope.runtime.bench import several_cameras as module
from flawscope.runtime.bench.several_cameras import ARRANGEMENTS, several_cameras

pytestmark = pytest.mark.serial  # latencies and throughput are compared with each other


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm up for a moment instead of seconds."""
    monkeypatch.setattr(module, "WARM_UP_S", (0.0, 0.05))


def check_figures(figures: dict[str, Any], cameras: int) -> None:
    assert json.loads(msgspec.json.encode(figures)) == figures  # plain numbers, none of NumPy's
    assert [row["inspectors"] for row in figures["cameras"]] == list(ARRANGEMENTS)
    assert [row["cameras"] for row in figures["cameras"]] == [1, cameras, cameras]
    assert figures["turns"] >= 3
    alone = figures["cameras"][0]
    for row in figures["cameras"]:
        # At least ten counted images of each camera in each turn.
        assert row["images"] >= 10 * row["cameras"] * figures["turns"]
        latency = row["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"]
        slowest, fastest = row["images_per_second_slowest"], row["images_per_second_fastest"]
        assert 0 < slowest <= fastest
        assert row["cameras"] * slowest <= row["images_per_second"] * 1.000001
        assert row["images_per_second"] <= row["cameras"] * fastest * 1.000001
        ratio = row["ratio_to_alone"]
        assert ratio["images_per_second"] == pytest.approx(row["images_per_second"] / alone["images_per_second"])
        assert ratio["p50"] == pytest.approx(latency["p50"] / alone["latency_ms"]["p50"])
        low, high = ratio["images_per_second_quartiles"]
        assert 0 < low <= high
    assert alone["ratio_to_alone"] == {"images_per_second": 1.0, "images_per_second_quartiles": [1.0, 1.0], "p50": 1.0}


def test_every_way_is_measured_beside_one_camera(padim_bundle: Path) -> None:
    shares: list[float] = []
    figures = several_cameras(padim_bundle, 3, seconds=0.2, progress=shares.append, backend="cpu")
    check_figures(figures, 3)
    assert (figures["method"], figures["backend"]) == ("padim", "cpu")
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1


def test_cameras_that_share_an_inspector_wait_for_each_other(
    padim_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A sleep lets other threads run: what `own` does at once, `shared` does one by one. It is far longer than the
    # turns of a busy machine.
    monkeypatch.setattr(module, "_decide", lambda inspector, image: module.time.sleep(0.015))
    figures = several_cameras(padim_bundle, 4, seconds=0.3, backend="cpu")
    alone, shared, own = figures["cameras"]
    assert 2.0 < shared["latency_ms"]["p50"] / alone["latency_ms"]["p50"] < 12.0
    rates = [each["ratio_to_alone"]["images_per_second"] for each in (shared, own)]
    assert rates[0] < 2.0
    assert rates[1] > 2.0 * rates[0]
    # Nobody starves: images are taken in the order in which they came.
    assert shared["images_per_second_fastest"] < 2 * shared["images_per_second_slowest"]


def test_an_image_without_a_decision_ends_the_measurement(padim_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Inspector, _prepared: object) -> object:
        raise DeviceError("the device was unplugged")

    monkeypatch.setattr(Inspector, "infer", fail)
    with pytest.raises(DeviceError, match=r"^bench: expected a decision .*, got a fault: .*the device was unplugged"):
        several_cameras(padim_bundle, 2, seconds=0.1, backend="cpu")


@pytest.mark.parametrize("cameras", [-1, 0, 1, 65])
def test_an_impossible_number_of_cameras_is_refused(
    padim_bundle: Path, cameras: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArgumentError, match=rf"^cameras: expected 2 to 64, got {cameras}\."):
        several_cameras(padim_bundle, cameras, backend="cpu")
    assert cli.run(["bench", str(padim_bundle), "--cameras", str(cameras)]) == 2
    assert capsys.readouterr().err.startswith(f"error: cameras: expected 2 to 64, got {cameras}.")


@pytest.mark.parametrize(
    "others",
    [["--batch", "1"], ["--no-cold-start"], ["--soak", "10"], ["--plot", "bench.svg"], ["--find-settings"],
     ["--compare", "cpu", "--compare", "cpu"]],
)  # fmt: skip
def test_options_without_effect_are_refused(
    padim_bundle: Path, others: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", str(padim_bundle), "--cameras", "2", *others]) == 2
    assert "has no effect with --" in capsys.readouterr().err


def test_the_command_shows_and_writes_the_figures(
    padim_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    arguments = ["bench", str(padim_bundle), "--backend", "cpu", "--threads", "1", "--cameras", "2"]
    assert cli.run([*arguments, "--seconds", "0.1", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    check_figures(figures, 2)
    assert figures["threads"] == 1
    assert "command" in figures
    shown = capsys.readouterr()
    assert shown.err == ""
    for text in ("one camera", "2 cameras, one inspector", "2 cameras, one each"):
        assert text in shown.out
    for row in figures["cameras"]:
        assert f"{row['images_per_second']:.1f}" in shown.out
        assert f"{row['latency_ms']['p99']:.2f}" in shown.out
