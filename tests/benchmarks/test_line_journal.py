"""The benchmark of the line's journal measures what it says, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

from benchmark_scripts import load_script


def test_every_way_has_its_figures(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    given = [
        str(tmp_path / "disk"),
        "--number",
        "5",
        "--rates",
        "500",
        "--open",
        "1",
        "8",
        "--flood",
        "40",
        "--sealed",
        "30",
    ]
    load_script("line_journal").main([*given, "--out", str(tmp_path / "out.json")])
    text = (tmp_path / "out.json").read_text(encoding="utf-8")
    document = json.loads(text)
    figures = document["figures"]
    assert document["suite"] == "line_journal"
    assert figures["parts"] == 5 + 5 + 2 * 40
    assert [row["open"] for row in figures["flooded"]] == [1, 8]
    for row in (figures["one_by_one"], *figures["paced"], *figures["flooded"], *figures["kept"]["paced"]):
        assert 0 < row["commit_ms"]["p50"] <= row["commit_ms"]["p99"] <= row["commit_ms"]["max"]
        assert row["per_second"] > 0
    assert figures["bytes_per_part"] > 100
    assert figures["kept"]["files"] >= 90 // 30
    assert figures["kept"]["bytes_per_entry"] > 20
    assert str(tmp_path) not in text
    assert list((tmp_path / "disk").iterdir()) == []
