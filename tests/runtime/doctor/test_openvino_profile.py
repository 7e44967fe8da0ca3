"""What OpenVINO executes, and in which precision."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from flawscope.runtime.doctor.doctor_command import doctor, examine

pytest.importorskip("openvino", reason="the extra openvino is not installed")


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_every_node_has_a_precision_and_the_convolutions_run_in_fp32(bundles: dict[str, Path], method: str) -> None:
    report = examine(bundles[method], "openvino", "fp32")
    assert report["elsewhere"] == []
    assert set(report["providers"]) == {"OpenVINO CPU"}
    assert sum(report["computed_in"].values()) == len(report["nodes"])
    convolutions = [node for node in report["nodes"] if node["operator"] == "Convolution"]
    assert convolutions
    assert {node["precision"] for node in convolutions} == {"f32"}
    assert sum(node["milliseconds"] for node in convolutions) > 0


def test_the_text_counts_nodes_by_precision(padim_bundle: Path) -> None:
    result = CliRunner().invoke(doctor, [str(padim_bundle), "--backend", "openvino"])
    (line,) = [line for line in result.output.splitlines() if line.startswith("computed")]
    assert "nodes in f32" in line
