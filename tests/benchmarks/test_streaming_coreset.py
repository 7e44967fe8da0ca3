"""The script that measures coresets in one pass: a short stream, within the memory that it was given."""

from __future__ import annotations

import argparse

import pytest
from benchmark_scripts import load_script
from project_paths import ROOT


def test_a_short_stream_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # it imports another script
    script = load_script("streaming_coreset")
    options = argparse.Namespace(seconds=60.0, images=40, channels=16, rows=50, budget=16)
    found = script.measure_memory(options)
    assert (found["images"], found["patches"]) == (40, 40 * 784)
    assert found["bank_rows"] == 50
    assert found["levels"]["depth"] == 0
    assert found["points"]
