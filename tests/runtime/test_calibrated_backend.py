"""`auto` and a calibrated bundle: where thresholds were set is kept, unless one that has passed its gate is faster."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import rival_stand_in
from tiny_bundle import tiny_manifest, tiny_thresholds, write_tiny_bundle

from flawscope.bundle import Gate, Precision
from flawscope.runtime import Inspector
from flawscope.runtime.backends import ort

GATE = Gate("cpu", 9, 0.0, 0.0, 1.0, 0.0, 0, 0, None, None, None, None, 1.0, 1.0, 1.0)


@pytest.fixture(autouse=True)
def _no_cuda_and_nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.import_onnxruntime(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def int8_set_on_openvino(tmp_path: Path) -> Path:
    manifest = tiny_manifest()
    thresholds = tiny_thresholds()
    set_there = msgspec.structs.replace(
        thresholds,
        image=msgspec.structs.replace(thresholds.image, backend="openvino"),
        pixel=msgspec.structs.replace(thresholds.pixel, backend="openvino"),
    )
    int8 = Precision(manifest.graphs, manifest.golden, "by hand", 1, 1, (), gate=GATE, thresholds=set_there)
    write_tiny_bundle(tmp_path / "int8.flaw", precisions={"int8": int8})
    return tmp_path / "int8.flaw"


@pytest.mark.parametrize(("cpu_ms", "expected"), [(19.0, "openvino"), (10.0, "cpu")])
def test_where_thresholds_were_set_is_kept_unless_another_that_has_passed_is_clearly_faster(
    int8_set_on_openvino: Path, monkeypatch: pytest.MonkeyPatch, cpu_ms: float, expected: str
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    rival_stand_in.measured_as(monkeypatch, {"openvino": [20.0] * 3, "cpu": [cpu_ms] * 3})
    with Inspector.load(int8_set_on_openvino, precision="int8") as inspector:
        assert inspector.backend == expected
        assert "thresholds were set on openvino, and INT8 has passed its gate on cpu" in inspector.backend_reason


def test_one_that_has_passed_takes_the_place_of_that_which_does_not_start_and_says_where_thresholds_were_set(
    int8_set_on_openvino: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival_stand_in.put_in_place(monkeypatch, refusal="backend openvino: no memory.")
    with Inspector.load(int8_set_on_openvino, precision="int8") as inspector:
        assert inspector.backend == "cpu"
        assert inspector.backend_reason == (
            "auto: thresholds were set on openvino, and INT8 has passed its gate on cpu; cpu takes its place: backend "
            "openvino: no memory."
        )
