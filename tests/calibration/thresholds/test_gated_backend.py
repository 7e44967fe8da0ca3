"""Which backend a reduced precision is calibrated on: one where it has passed its gate, or one that computes in it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tiny_bundle import tiny_manifest, write_tiny_bundle

from flawscope.bundle import Gate, Precision
from flawscope.calibration.thresholds.gated_backend import backend_for, gate_notes
from flawscope.errors import ArgumentError
from flawscope.runtime.backends import table


def gate(backend: str) -> Gate:
    return Gate(backend, 20, 0.0, 0.0, 1.0, 0.0, 0, 0, None, None, None, None, None, 1.0, 1.0)


def gated(*backends: str) -> dict[str, Precision]:
    gates = [gate(name) for name in backends]
    manifest = tiny_manifest()
    return {
        "int8": Precision(
            manifest.graphs,
            manifest.golden,
            "by hand",
            0,
            0,
            (),
            gate=gates[0] if gates else None,
            gates=tuple(gates[1:]) or msgspec.UNSET,
        )
    }


@pytest.mark.parametrize(
    ("asked", "there", "passed", "expected"),
    [
        ("auto", {"cpu", "openvino"}, ("cpu", "openvino"), "auto"),
        ("auto", {"cpu", "openvino"}, ("openvino",), "openvino"),
        ("auto", {"cpu"}, ("openvino",), "auto"),
        ("auto", {"openvino"}, (), "openvino"),
        ("auto", {"cpu", "openvino"}, (), "auto"),
        ("auto", set(), ("openvino",), "auto"),
        ("cpu", {"cpu", "openvino"}, ("openvino",), "cpu"),
    ],
)
def test_auto_takes_one_that_has_passed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    there: set[str],
    passed: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.setattr(table, "is_there", lambda name, precision="fp32": name in there)
    write_tiny_bundle(tmp_path / "tiny.flaw", precisions=gated(*passed))
    assert backend_for(tmp_path / "tiny.flaw", "int8", asked) == expected
    assert backend_for(tmp_path / "tiny.flaw", "fp32", asked) == asked


def test_a_precision_that_the_bundle_lacks_is_named(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny.flaw")
    with pytest.raises(ArgumentError, match=r"precision: expected one the bundle has \(fp32\), got 'int8'"):
        backend_for(tmp_path / "tiny.flaw", "int8", "auto")


def test_a_backend_without_a_gate_is_noted() -> None:
    manifest = tiny_manifest(precisions=gated("openvino"))
    (note,) = gate_notes(manifest, "int8", "cpu")
    assert note.startswith("INT8 has passed its gate on openvino, not on cpu: ")
    assert gate_notes(manifest, "int8", "openvino") == ()
    assert gate_notes(manifest, "fp32", "cpu") == ()
    assert gate_notes(tiny_manifest(precisions=gated()), "int8", "cpu") == ()
