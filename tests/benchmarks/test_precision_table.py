"""The table of precisions: rows of an earlier run are judged by today's limits."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import msgspec
import pytest
from benchmark_scripts import load_script
from project_paths import ROOT

from flawscope.bundle import Gate
from flawscope.calibration.quantization.gate_limits import LIMITS

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("precision_table")


def row(precision: str, score_change: float, verdict: str, reason: str = "") -> dict[str, Any]:
    gate = Gate(
        backend="openvino",
        images=76,
        score_max_relative=score_change,
        map_max_relative=0.02,
        threshold=1.0,
        false_reject_shift=0.0,
        labelled=583,
        anomalous=392,
        image_auroc=0.9,
        image_auroc_change=0.0,
        pixel_auroc=None,
        pixel_auroc_change=None,
        score_spearman=0.999,
        images_per_second=200.0,
        images_per_second_fp32=100.0,
    )
    figures = msgspec.json.decode(msgspec.json.encode(gate))  # as it comes back from the file
    key = {"method": "padim", "precision": precision, "backend": "openvino"}
    return {**key, "verdict": verdict, "reason": reason, "gate": figures}


def test_rows_whose_limits_did_not_change_stay(script: ModuleType) -> None:
    rows = [
        row("bf16", 0.01, "passed"),
        row("int8", 0.01, "passed"),
        row("bf16", 0.101, "refused", "the score of a normal image changes by 10.1%, limit 5.0%"),
        {"method": "ddad", "precision": "int8", "backend": "cpu", "verdict": "not offered", "reason": "no"},
        {"method": "ddad", "precision": "bf16", "backend": "cpu", "verdict": "refused", "reason": "no images"},
    ]
    assert script.resumed(rows) == rows


def test_a_row_whose_limits_changed_is_judged_by_its_figures(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = replace(LIMITS["bf16"], score_error=0.2)
    narrower = replace(LIMITS["int8"], score_error=0.02)
    monkeypatch.setattr(script, "LIMITS", {"bf16": wider, "int8": narrower})
    refused, passed = row("bf16", 0.1, "refused", "as it was"), row("bf16", 0.3, "passed")
    assert script.resumed([refused, passed]) == [
        {**refused, "verdict": "passed", "reason": ""},
        {**passed, "verdict": "refused", "reason": "the score of a normal image changes by 30.0%, limit 20.0%"},
    ]
    assert capsys.readouterr().out == ""
    # The operators of INT8 were chosen for another limit: with the new one they would be other ones.
    kept = row("int8", 0.01, "passed")
    assert script.resumed([row("int8", 0.04, "passed"), kept]) == [kept]
    assert capsys.readouterr().out == "padim int8 openvino is to be measured again: its limits changed\n"
