"""Plots: everything that was measured is in the image, and the same figures give the same file."""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from flawscope import cli
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.runtime.bench.bench_plot import check_plot, write_plot
from flawscope.runtime.bench.measurement import STAGES

NAMES = {"bundle": "bottle $5", "backend": "cpu", "path": "kernel", "precision": "fp32", "batch": 1}


def latency(scale: float) -> dict[str, dict[str, float]]:
    """Return percentiles that differ in every stage."""
    return {stage: {"p50": scale * (index + 1), "p99": scale * (index + 1.5)} for index, stage in enumerate(STAGES)}


def sweep_figures(*batches: int) -> dict[str, Any]:
    rows = [{"batch": batch, "latency_ms": latency(batch), "images_per_second": 99.5 + batch} for batch in batches]
    return {**NAMES, "sweep": rows}


def soak_figures(**changes: Any) -> dict[str, Any]:
    series = {"scorings": [1000, 2000, 3000], "resident_kib": [2048.0, 2049.0, 2050.0], "latency_ms": [1.0, 1.2, 1.1]}
    verdicts = {name: {"verdict": f"{name} verdict"} for name in ("memory", "latency")}
    return {**NAMES, **verdicts, "warm_up_share": 0.1, "series": {**series, **changes}}


def texts_of(path: Path) -> set[str]:
    """Return the texts of an SVG file, which must be well-formed."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}


def test_one_batch_shows_both_percentiles_of_every_stage(tmp_path: Path) -> None:
    write_plot(tmp_path / "plot.svg", sweep_figures(2))
    shown = texts_of(tmp_path / "plot.svg")
    expected = {"2.00 / 3.00", "4.00 / 5.00", "6.00 / 7.00", "8.00 / 9.00", "10.0 / 11.0"}
    assert {*STAGES, *expected, "bottle $5 on cpu:kernel, batch 1"} <= shown
    assert "Images per second" not in shown


def test_a_bundle_may_have_any_name(tmp_path: Path) -> None:
    write_plot(tmp_path / "plot.svg", sweep_figures(1) | {"bundle": os.fsdecode(b"\xff\x1b$x_{$.flaw")})
    assert r"\xff\x1b$x_{$.flaw on " in (tmp_path / "plot.svg").read_text("utf-8")


def test_several_batches_show_the_throughput_over_the_batch_as_well(tmp_path: Path) -> None:
    write_plot(tmp_path / "plot.svg", sweep_figures(1, 2, 4))
    shown = texts_of(tmp_path / "plot.svg")
    assert {"batch 1", "batch 2", "batch 4", "Images per second", "images per batch"} <= shown
    assert {"100", "102", "104"} <= shown  # 100.5, 101.5 and 103.5, to even


def test_a_comparison_names_every_configuration(tmp_path: Path) -> None:
    rows = [{**NAMES, "latency_ms": latency(1)}, {**NAMES, "precision": "int8", "latency_ms": latency(2)}]
    write_plot(tmp_path / "plot.svg", {**NAMES, "compare": rows})
    assert {"1. cpu:kernel", "2. cpu:kernel:int8"} <= texts_of(tmp_path / "plot.svg")


@pytest.mark.parametrize("is_known", [True, False])
def test_a_soak_shows_memory_where_it_is_known_and_latency(tmp_path: Path, is_known: bool) -> None:
    write_plot(tmp_path / "plot.svg", soak_figures() if is_known else soak_figures(resident_kib=None))
    shown = texts_of(tmp_path / "plot.svg")
    assert "Median latency of a round, ms · slope latency verdict" in shown
    assert ("Resident memory, MiB · slope memory verdict" in shown) == is_known


def test_the_same_figures_give_the_same_bytes_whatever_the_users_settings(tmp_path: Path) -> None:
    import matplotlib

    write_plot(tmp_path / "one.svg", sweep_figures(1, 2))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        write_plot(tmp_path / "two.svg", sweep_figures(1, 2))
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    write_plot(tmp_path / "a" / "b" / "plot.svg", sweep_figures(1))
    assert (tmp_path / "a" / "b" / "plot.svg").is_file()


@pytest.mark.parametrize("name", ["plot.png", "plot", "svg"])
def test_another_ending_is_refused_before_anything_is_measured(
    padim_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(ArgumentError, match=r"plot: expected a file name that ends in \.svg, got "):
        check_plot(tmp_path / name)
    assert cli.run(["bench", str(padim_bundle), "--plot", str(tmp_path / name)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: plot: expected a file name that ends in .svg")
    assert shown.out == ""


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"drawing a plot needs the package matplotlib.*flawscope\[calibrate\]"):
        check_plot(tmp_path / "plot.svg")
