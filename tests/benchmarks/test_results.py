"""Committed benchmark results have the form that readers and tables rely on."""

from __future__ import annotations

import json
import math

import pytest
from project_paths import ROOT

RESULTS = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))


def test_results_are_kept():
    assert RESULTS


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_a_result_says_what_where_and_how(path):
    document = json.loads(path.read_text(encoding="utf-8"))
    assert path.name.startswith(document["suite"] + "--")
    assert document["machine"]["cpu"]
    assert document["machine"]["cores"] >= 1
    assert document["versions"]["python"]
    assert document["settings"]


@pytest.mark.parametrize("path", [p for p in RESULTS if p.name.startswith("end_to_end--")], ids=lambda path: path.name)
def test_the_summary_follows_from_the_runs(path):
    document = json.loads(path.read_text(encoding="utf-8"))
    assert {run["system"] for run in document["runs"]} == {"flawscope", "anomalib"}
    for row in document["summary"]:
        for system in ("flawscope", "anomalib"):
            values = [
                run[row["figure"]]
                for run in document["runs"]
                if run["method"] == row["method"] and run["system"] == system
            ]
            assert math.isclose(row[system], sum(values) / len(values), rel_tol=1e-9)
            assert len(values) >= 3


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_a_result_names_no_private_path(path):
    text = path.read_text(encoding="utf-8")
    assert not any(prefix in text for prefix in ('"/home', '"/root', '"/work', " /tmp/", '"/tmp'))
