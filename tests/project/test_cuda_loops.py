"""The counts of instructions: loops are found in the assembler's text, and nothing else is counted."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from project_paths import ROOT

import flawscope

SASS = """
        Function : _Zsearch
        /*0000*/                   MOV R1, c[0x0][0x28] ;    /* 0x00 */
        /*0010*/                   CS2R R2, SRZ ;            /* 0x00 */
        /*0020*/                   LDSM.16.M88.4 R4, [R2] ;  /* 0x00 */
        /*0030*/                   HMMA.16816.F32 R8, R4, R6, R8 ;  /* 0x00 */
        /*0040*/              @!PT LDS RZ, [RZ] ;            /* 0x00 */
        /*0050*/                   NOP ;                     /* 0x00 */
        /*0060*/               @P0 BRA 0x20 ;                /* 0x00 */
        /*0070*/                   FMNMX R3, R3, R8, PT ;    /* 0x00 */
        /*0080*/              @!P1 BRA 0x10 ;                /* 0x00 */
        /*0090*/               @P2 BRA 0xb0 ;                /* 0x00 */
        /*00a0*/                   EXIT ;                    /* 0x00 */
        /*00b0*/                   BRA 0xb0;                 /* 0x00 */
        Function : _Zother
        /*0000*/                   FADD R1, R1, R2 ;         /* 0x00 */
        /*0010*/                   BRA 0x0 ;                 /* 0x00 */
"""


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("cuda_loops_tool", ROOT / "tools" / "cuda_loops.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_loops_with_products_are_counted_innermost_first(tool) -> None:  # type: ignore[no-untyped-def]
    [(symbol, (step, tile))] = tool.loops(SASS)
    assert symbol == "_Zsearch"
    assert step == {"LDSM": 1, "HMMA": 1, "BRA": 1}
    assert tile == {"CS2R": 1, "LDSM": 1, "HMMA": 1, "BRA": 2, "FMNMX": 1}


def test_the_kept_counts_are_of_both_shapes_before_and_now() -> None:
    path = ROOT / "benchmarks" / "results" / flawscope.__version__ / "cuda_loops--nvcc.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert {row["sources"] for row in rows} == {"before", "now"}
    for row in rows:
        products = {"before": 32, "now": 64}[row["sources"]] if row["compute_capability"] != "7.5" else 64
        assert row["step"]["HMMA"] == products
        assert row["tile"]["instructions"] > row["step"]["instructions"]
