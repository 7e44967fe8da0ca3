"""Thresholds of a reduced precision on a backend where it has passed no gate are noted."""

from __future__ import annotations

import msgspec
from tiny_bundle import tiny_manifest

from flawscope.bundle import Gate, Precision
from flawscope.calibration.thresholds.threshold_notes import gate_notes


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


def test_a_backend_without_a_gate_is_noted() -> None:
    manifest = tiny_manifest(precisions=gated("openvino"))
    (note,) = gate_notes(manifest, "int8", "cpu")
    assert note.startswith("INT8 has passed its gate on openvino, not on cpu: ")
    assert gate_notes(manifest, "int8", "openvino") == ()
    assert gate_notes(manifest, "fp32", "cpu") == ()
    assert gate_notes(tiny_manifest(precisions=gated()), "int8", "cpu") == ()
