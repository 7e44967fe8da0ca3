"""The counts of instructions: loops are found in the assembler's text, and nothing else is counted."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from project_paths import ROOT

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


# A tile's turn: two instructions, a step of three which may be left out, and what stands behind it.
TILE = """
        Function : _Zsearch
        /*0000*/                   MOV R1, c[0x0][0x28] ;    /* 0x00 */
        /*0010*/                   CS2R R2, SRZ ;            /* 0x00 */
        /*0020*/               @P6 BRA 0x70 ;                /* 0x00 */
        /*0030*/                   LDSM.16.M88.4 R4, [R2] ;  /* 0x00 */
        /*0040*/                   HMMA.16816.F32 R8, R4, R6, R8 ;  /* 0x00 */
        /*0050*/                   NOP ;                     /* 0x00 */
        /*0060*/               @P0 BRA 0x30 ;                /* 0x00 */
{behind}
        Function : _Zother
        /*0000*/                   BRA 0x0 ;                 /* 0x00 */
"""
NEAREST = """
        /*0070*/                   FSETP.GEU.AND P1, PT, R3, R8, PT ;  /* 0x00 */
        /*0080*/                   BRA.U UP1, 0xc0 ;         /* 0x00 */
        /*0090*/                   FSETP.NEU.AND P2, PT, R3, R8, PT ;  /* 0x00 */
        /*00a0*/                   SEL R14, RZ, 0x7, P2 ;    /* 0x00 */
        /*00b0*/                   MOV R3, R8 ;              /* 0x00 */
        /*00c0*/              @!P3 BRA 0x10 ;                /* 0x00 */
        /*00d0*/                   EXIT ;                    /* 0x00 */
"""
LISTS = """
        /*0070*/                   ISETP.NE.U32.AND P1, PT, R2, 0x1, PT ;  /* 0x00 */
        /*0080*/               @P1 BRA 0x100 ;               /* 0x00 */
        /*0090*/                   LDS.64 R178, [R166.X8] ;  /* 0x00 */
        /*00a0*/                   FSETP.GTU.AND P1, PT, R170, R2, PT ;  /* 0x00 */
        /*00b0*/               @P1 BRA 0x100 ;               /* 0x00 */
        /*00c0*/                   ATOMS.ADD R177, [R166.X4+0x600], R177 ;  /* 0x00 */
        /*00d0*/               @P2 BRA 0x180 ;               /* 0x00 */
        /*00e0*/                   MOV R3, R4 ;              /* 0x00 */
        /*00f0*/                   STG.E.64 [R2.64], R126 ;  /* 0x00 */
        /*0100*/               @P5 BRA 0x140 ;               /* 0x00 */
        /*0110*/                   SHFL.UP PT, R3, R4, 0x1, RZ ;  /* 0x00 */
        /*0120*/                   SEL R5, R6, R3, P0 ;      /* 0x00 */
        /*0130*/               @P4 BRA 0x110 ;               /* 0x00 */
        /*0140*/              @!P3 BRA 0x10 ;                /* 0x00 */
        /*0150*/                   EXIT ;                    /* 0x00 */
        /*0180*/                   MOV R9, 0x1 ;             /* 0x00 */
        /*0190*/                   BRA 0xe0 ;                /* 0x00 */
"""


@pytest.mark.parametrize(
    ("behind", "expected"),
    [
        (NEAREST, {"always": 2 + 3, "changed": 3}),
        (LISTS, {"always": 2 + 4, "live": 3, "offer": 4, "stage": 3}),
    ],
)
def test_the_end_of_a_tile_is_counted_by_its_shortest_ways(tool, behind: str, expected: dict[str, int]) -> None:  # type: ignore[no-untyped-def]
    (_, code), _ = tool.functions(TILE.format(behind=behind))
    assert tool.tile_end(code) == expected


def test_the_kept_counts_are_of_both_shapes_before_and_now() -> None:
    path = ROOT / "benchmarks" / "results" / "0.1.0" / "cuda_loops--nvcc.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert {row["sources"] for row in rows} == {"before", "now"}
    for row in rows:
        products = {"before": 32, "now": 64}[row["sources"]] if row["compute_capability"] != "7.5" else 64
        assert row["step"]["HMMA"] == products
        assert row["tile"]["instructions"] > row["step"]["instructions"]
        if row["sources"] == "now":
            # What stands behind the step: of a thread eight queries, of each 8 or 16 values. The shortest way to offer
            # one leaves out what another way has, and a merge is counted by a stage of its sorts.
            behind, end = row["tile"]["instructions"] - row["step"]["instructions"], row["tile_end"]
            queries = 8 * (end["live"] if "live" in end else end["changed"])
            offers = end.get("offer", 0) * row["tile"].get("ATOMS", 0)
            assert 0.6 * behind <= end["always"] + queries + offers <= behind
