"""Configurations side by side: all are there, in alternation, with ratios to the first."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from flawscope import cli
from flawscope.errors import ArgumentError
from flawscope.runtime.bench import alternation
from flawscope.runtime.bench.alternation import Configuration, compare, parse_configuration
from flawscope.runtime.bench.measurement import STAGES

pytestmark = pytest.mark.serial  # latencies and throughput are compared with each other

TWICE = ("--compare", "cpu", "--compare", "cpu")
GRAPH, KERNEL = Configuration("cpu", "graph"), Configuration("cpu", "kernel")


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm up for a moment instead of seconds."""
    monkeypatch.setattr(alternation, "WARM_UP_S", (0.0, 0.05))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu", Configuration("cpu", "auto", "fp32")),
        ("cpu:graph", Configuration("cpu", "graph", "fp32")),
        (" cuda : kernel ", Configuration("cuda", "kernel", "fp32")),
        ("auto:auto:int8", Configuration("auto", "auto", "int8")),
        ("openvino:graph", Configuration("openvino", "graph", "fp32")),
        ("openvino:gpu", Configuration("openvino:gpu", "auto", "fp32")),
        ("openvino : cpu:kernel:int8", Configuration("openvino:cpu", "kernel", "int8")),
    ],
)
def test_a_configuration_is_read_part_by_part(text: str, expected: Configuration) -> None:
    assert parse_configuration(text) == expected
    assert parse_configuration(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"backend one of auto, cpu, .*, got '' in ''\."),
        ("tpu:graph", r"backend one of auto, cpu, .*, got 'tpu' in 'tpu:graph'\."),
        ("cpu:magic", r"path one of auto, graph, kernel, got 'magic' in 'cpu:magic'\."),
        ("cpu:", r"path one of auto, graph, kernel, got '' in 'cpu:'\."),
        ("cpu:graph:int4", r"precision one of fp32, fp16, bf16, int8, got 'int4' in 'cpu:graph:int4'\."),
        ("cpu:graph:fp32:1", r"BACKEND:PATH:PRECISION, got 'cpu:graph:fp32:1'\."),
    ],
)
def test_an_unknown_configuration_is_refused(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^compare: expected .*{message}$"):
        parse_configuration(text)


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_every_configuration_has_its_figures_and_its_ratio_to_the_first(bundles: dict[str, Path], method: str) -> None:
    shares: list[float] = []
    figures = compare(bundles[method], [GRAPH, KERNEL, KERNEL], batch=2, seconds=0.1, progress=shares.append)
    assert json.loads(msgspec.json.encode(figures)) == figures
    rows = figures["compare"]
    assert [(row["backend"], row["path"]) for row in rows] == [("cpu", "graph"), ("cpu", "kernel"), ("cpu", "kernel")]
    assert [row["asked_for"] for row in rows] == ["cpu:graph:fp32", "cpu:kernel:fp32", "cpu:kernel:fp32"]
    assert figures["turns"] >= 5
    for row in rows:
        assert row["rounds"] == 10 * figures["turns"]
        assert list(row["latency_ms"]) == list(STAGES)
        total, first = (figures_of["latency_ms"]["total"]["p50"] for figures_of in (row, rows[0]))
        assert row["ratio_to_first"]["total"] == pytest.approx(total / first)
        low, high = row["ratio_to_first"]["total_quartiles"]
        assert 0 < low <= high
        assert row["largest_score_difference"] < 1e-4
        assert row["images_per_second"] > 0
    assert rows[0]["ratio_to_first"] == {"infer": 1.0, "total": 1.0, "total_quartiles": [1.0, 1.0]}
    assert rows[0]["largest_score_difference"] == 0.0
    assert rows[1]["largest_score_difference"] == rows[2]["largest_score_difference"]  # the same, bit for bit
    assert rows[0]["transfers"]["outputs"].keys() == {"anomaly_map", "score"}
    assert rows[1]["transfers"]["outputs"].keys() == {"patches"}
    assert shares == sorted(shares)


def test_blocks_alternate_and_another_one_begins_each_turn(padim_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    one_round = alternation.one_round

    def recording_round(inspector, images):  # type: ignore[no-untyped-def]
        order.append(inspector.path)
        return one_round(inspector, images)

    monkeypatch.setattr(alternation, "one_round", recording_round)
    turns = compare(padim_bundle, [GRAPH, KERNEL], seconds=0.1)["turns"]
    measured = order[-2 * 12 * turns :]
    blocks = [measured[start : start + 12] for start in range(0, len(measured), 12)]
    expected = [path for turn in range(turns) for path in (("graph", "kernel"), ("kernel", "graph"))[turn % 2]]
    assert blocks == [[path] * 12 for path in expected]


def test_the_command_prints_a_table_and_writes_the_same_figures(
    padim_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, plot = tmp_path / "compare.json", tmp_path / "compare.svg"
    arguments = ["bench", str(padim_bundle), "--compare", "cpu:graph", "--compare", "cpu:kernel", "--seconds", "0.1"]
    assert cli.run([*arguments, "--json", str(file), "--plot", str(plot)]) == 0
    figures = json.loads(file.read_text())
    assert "command" in figures
    shown = capsys.readouterr()
    assert shown.err == ""
    for row in figures["compare"]:
        assert f"cpu:{row['path']}" in shown.out
        assert f"{row['latency_ms']['total']['p50']:.2f}" in shown.out
    assert "1. cpu:graph" in plot.read_text()
    assert "2. cpu:kernel" in plot.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare", "cpu:graph"], "compare: expected at least 2 configurations, got 1."),
        (["--compare", "cpu", "--compare", "npu"], "compare: expected BACKEND:PATH:PRECISION, backend one of"),
        (["--compare", "cpu", "--compare", "cpu:auto:int8"], "precision: expected one the bundle has (fp32), got "),
        ([*TWICE, "--batch", "0"], "batch: expected 1 to 4, got 0."),
        ([*TWICE, "--batch", "1,2"], "bench: expected one batch with --compare, got 1, 2."),
        ([*TWICE, "--backend", "cpu"], "bench: --backend has no effect with --compare."),
        ([*TWICE, "--soak", "2000"], "bench: --soak has no effect with --compare."),
        ([*TWICE, "--seconds", "0"], "seconds: expected 0.1 to 86400, got 0.0."),
    ],
)
def test_a_wrong_request_is_one_line(
    padim_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert cli.run(["bench", str(padim_bundle), *options, "--json", str(tmp_path / "compare.json")]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {message}")
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
