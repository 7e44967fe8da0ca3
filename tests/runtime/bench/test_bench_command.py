"""Bench: every figure is there, in order, with what a reader needs to judge it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flawscope import __version__, cli, resident_memory
from flawscope.errors import ArgumentError
from flawscope.runtime import Inspector
from flawscope.runtime.bench import measurement
from flawscope.runtime.bench.bench_command import parse_batches
from flawscope.runtime.bench.measurement import STAGES, bench, sweep
from flawscope.runtime.scorers.timed import INFER_PARTS

pytestmark = pytest.mark.serial  # latencies and throughput are compared with each other

FIGURES = {
    "bundle", "digest", "method", "precision", "backend", "backend_reason", "path", "batch", "rounds", "seconds",
    "warm_up_rounds", "latency_ms", "backbone_ms", "images_per_second", "ratio_infer_to_backbone",
    "ratio_total_to_backbone", "input", "machine", "transfers", "memory", "sweep", "state", "infer_parts_ms",
    "threads", "streams",
}  # fmt: skip
PERCENTILES = ["p50", "p90", "p99", "p99.9"]


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm up for a moment instead of seconds."""
    monkeypatch.setattr(measurement, "WARM_UP_S", (0.0, 0.05))


def check_figures(figures: dict[str, Any]) -> None:
    assert set(figures) - {"command", "cold_start"} == FIGURES
    assert json.loads(msgspec.json.encode(figures)) == figures  # plain numbers, none of NumPy's
    assert list(figures["latency_ms"]) == list(STAGES)
    # One graph has no parts that could be timed.
    assert list(figures["infer_parts_ms"] or ()) == ([] if figures["path"] == "graph" else list(INFER_PARTS))
    for row in (*figures["latency_ms"].values(), *(figures["infer_parts_ms"] or {}).values(), figures["backbone_ms"]):
        assert list(row) == PERCENTILES
        assert 0 < row["p50"] <= row["p90"] <= row["p99"] <= row["p99.9"]
    assert figures["rounds"] >= 30
    assert figures["warm_up_rounds"] >= 1
    assert figures["images_per_second"] > 0
    # The mean of the total is what the throughput is made of, so it lies between the percentiles.
    assert 1e3 * figures["batch"] / figures["images_per_second"] < 1.05 * figures["latency_ms"]["total"]["p99.9"]
    infer, alone = figures["latency_ms"]["infer"]["p50"], figures["backbone_ms"]["p50"]
    assert figures["ratio_infer_to_backbone"] == pytest.approx(infer / alone)
    assert figures["ratio_total_to_backbone"] > figures["ratio_infer_to_backbone"]
    assert {"cpu", "cores", "system", "flawscope", "python", "numpy"} <= set(figures["machine"])
    assert figures["machine"]["flawscope"] == __version__
    assert figures["sweep"][0] == {name: figures[name] for name in figures["sweep"][0]}
    check_memory(figures["memory"])


def check_memory(memory: dict[str, Any]) -> None:
    host = memory["host"]
    assert 10_000 < host["rss_after_load_kib"] <= host["peak_kib"] < 100_000_000
    if host["growth_kib_per_1000_rounds"] is None:
        assert host["growth_interval"] is None
        assert "too few for a slope" in host["reason"]
    else:
        low, high = host["growth_interval"]
        assert low <= host["growth_kib_per_1000_rounds"] <= high
        assert host["reason"] is None
    assert memory["device"] == {"kib": None, "reason": "the backend cpu uses no device memory"}


@pytest.mark.parametrize("path", ["graph", "kernel"])
@pytest.mark.parametrize(("method", "batch"), [("patchcore", 1), ("padim", 4)])
def test_every_figure_is_there_and_percentiles_rise(
    bundles: dict[str, Path], method: str, batch: int, path: str
) -> None:
    shares: list[float] = []
    with Inspector.load(bundles[method], "cpu", path) as inspector:
        figures = bench(inspector, batch=batch, seconds=0.1, progress=shares.append)
        check_figures(figures)
        assert figures["digest"] == inspector.manifest.digest
    assert (figures["method"], figures["path"], figures["batch"], figures["backend"]) == (method, path, batch, "cpu")
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1


@pytest.mark.parametrize(("path", "outputs"), [("graph", {"anomaly_map", "score"}), ("kernel", {"patches"})])
def test_transfers_are_the_bytes_of_the_arrays(padim_bundle: Path, path: str, outputs: set[str]) -> None:
    with Inspector.load(padim_bundle, "cpu", path) as inspector:
        transfers = [bench(inspector, batch=batch, seconds=0.1)["transfers"] for batch in (1, 3)]
        height, width = inspector.manifest.input.size
    assert transfers[0] == transfers[1]  # per image
    assert transfers[0]["to_session_bytes"] == 3 * height * width
    assert set(transfers[0]["outputs"]) == outputs
    if path == "graph":
        assert transfers[0]["from_session_bytes"] == 4 * (height * width + 1)
    else:
        patches, channels = transfers[0]["outputs"]["patches"][1:]
        assert transfers[0]["from_session_bytes"] == 4 * patches * channels


def test_a_sweep_has_the_figures_of_every_batch(padim_bundle: Path) -> None:
    shares: list[float] = []
    with Inspector.load(padim_bundle, "cpu") as inspector:
        figures = sweep(inspector, batches=(1, 2, 4), seconds=0.1, progress=shares.append)
    check_figures(figures)
    assert [row["batch"] for row in figures["sweep"]] == [1, 2, 4]
    for row in figures["sweep"]:
        check_figures({**figures, **row, "sweep": [row]})
    peaks = [row["memory"]["host"]["peak_kib"] for row in figures["sweep"]]
    assert peaks == sorted(peaks)
    assert shares == sorted(shares)
    assert shares[-1] <= 1


def test_where_memory_cannot_be_read_it_is_not_known(padim_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_memory, "STATUS", Path("/nowhere/status"))
    with Inspector.load(padim_bundle, "cpu") as inspector:
        host = bench(inspector, seconds=0.1)["memory"]["host"]
    assert host.pop("reason").startswith("resident memory is read from /proc/self/status")
    assert set(host.values()) == {None}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(["1"], (1,)), (["1,2,4,8"], (1, 2, 4, 8)), (["8", "1, 4", "4"], (1, 4, 8)), (["-1"], (-1,)), (["0"], (0,))],
)
def test_batches_are_read_in_both_forms(texts: list[str], expected: tuple[int, ...]) -> None:
    assert parse_batches(texts) == expected


@pytest.mark.parametrize("text", ["", "one", "1,,2", "1;2", "2.0", "1,2,", "--1", "9999999999"])
def test_a_batch_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match=r"batch: expected a number such as 1, or several as 1,2,4,8, got '"):
        parse_batches([text])


def test_a_bundle_without_thresholds_can_be_measured(uncalibrated_bundles: dict[str, Path]) -> None:
    with Inspector.load(uncalibrated_bundles["padim"], "cpu") as inspector:
        check_figures(bench(inspector, seconds=0.1))


@pytest.mark.parametrize("batch", [0, -1, 5])
def test_a_batch_the_bundle_does_not_take_is_refused(padim_bundle: Path, batch: int) -> None:
    with (
        Inspector.load(padim_bundle, "cpu") as inspector,
        pytest.raises(ArgumentError, match=rf"batch: expected 1 to 4, got {batch}\."),
    ):
        bench(inspector, batch=batch, seconds=0.1)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 86_401.0, float("nan"), float("inf")])
def test_an_impossible_time_is_refused(padim_bundle: Path, seconds: float) -> None:
    with (
        Inspector.load(padim_bundle, "cpu") as inspector,
        pytest.raises(ArgumentError, match=r"seconds: expected 0\.1 to 86400, got"),
    ):
        bench(inspector, seconds=seconds)


def test_the_command_prints_a_table_and_writes_the_same_figures(
    patchcore_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out" / "bench.json"
    arguments = ["bench", str(patchcore_bundle), "--seconds", "0.2", "--backend", "cpu", "--batch", "2"]
    arguments += ["--no-cold-start"]
    assert cli.run([*arguments, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    check_figures(figures)
    assert "command" in figures
    assert figures["seconds"] >= 0.1
    shown = capsys.readouterr()
    assert shown.err == ""
    for stage in (*STAGES, *(f"  {part} " for part in INFER_PARTS), "backbone alone"):
        assert stage in shown.out
    assert f"{figures['images_per_second']:.1f} images per second" in shown.out
    assert f"{figures['latency_ms']['total']['p50']:.2f}" in shown.out
    assert f"peak {figures['memory']['host']['peak_kib'] / 1024:.1f} MiB" in shown.out
    assert f"{figures['transfers']['from_session_bytes']:,.0f} back" in shown.out
    assert figures["cold_start"] is None
    assert "cold start" not in shown.out


def test_the_command_shows_one_row_for_each_of_several_batches(
    padim_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / "new" / f"bench.{name}" for name in ("json", "svg")}
    arguments = ["bench", str(padim_bundle), "--seconds", "0.1", "--batch", "1,2", "--batch", "4", "--no-cold-start"]
    assert cli.run([*arguments, "--json", str(files["json"]), "--plot", str(files["svg"])]) == 0
    sweep_of = json.loads(files["json"].read_text())["sweep"]
    assert [row["batch"] for row in sweep_of] == [1, 2, 4]
    shown = capsys.readouterr()
    assert shown.err == ""
    for row in sweep_of:
        assert f"{row['latency_ms']['total']['p50']:.2f}" in shown.out
        assert f"{row['images_per_second']:.1f}" in shown.out
    assert files["svg"].read_text().startswith("<?xml")


@pytest.mark.parametrize("batch", ["5", "1,5", "5,1"])
def test_a_refused_batch_writes_no_file(
    padim_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: str
) -> None:
    arguments = ["bench", str(padim_bundle), "--batch", batch, "--json", str(tmp_path / "bench.json")]
    assert cli.run(arguments) == 2
    assert capsys.readouterr().err == "error: batch: expected 1 to 4, got 5.\n"
    assert list(tmp_path.iterdir()) == []
