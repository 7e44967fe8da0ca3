"""BF16: computed by backends that can, from the graphs of FP32, and refused by all others."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bf16_bundles import with_bf16
from tiny_synth_bundle import write_tiny_synth

from flawscope import cli
from flawscope.bundle import open_bundle
from flawscope.errors import ArgumentError, BackendError, BundleError
from flawscope.runtime import Inspector
from flawscope.runtime.backends import openvino_devices, openvino_graph
from flawscope.runtime.backends.table import ROWS, golden_tolerance, is_there, open_session, precision_problem
from flawscope.runtime.synthesis import Synthesizer

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
needs_bf16 = pytest.mark.skipif(not is_there("openvino", "bf16"), reason="OpenVINO does not compute in BF16 here")


class OtherProcessor:
    """OpenVINO on another processor: what it lists, and what becomes of models in reduced precision."""

    def __init__(self, capabilities: list[str], hint: str | None) -> None:
        self._core, self._capabilities, self._hint = openvino.Core(), capabilities, hint

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def get_property(self, device: str, name: str) -> Any:
        return self._capabilities if name == "OPTIMIZATION_CAPABILITIES" else self._core.get_property(device, name)

    def compile_model(self, model: Any, device: str, config: dict[str, Any]) -> Any:
        if config["INFERENCE_PRECISION_HINT"] != "f32":
            if self._hint is None:
                raise RuntimeError("object is not initialized")
            config = {**config, "INFERENCE_PRECISION_HINT": self._hint}
        return self._core.compile_model(model, device, config)


@pytest.fixture
def unknown() -> Iterator[None]:
    """Nothing is known of the processor, before and after."""
    openvino_devices.rounds_to.cache_clear()
    yield
    openvino_devices.rounds_to.cache_clear()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("lists", "hint"),
    [
        (False, "f32"),
        (True, None),  # listed, and kept from it by an environment variable
        (True, "f32"),  # listed, and computed in another precision
    ],
)
def test_a_processor_without_the_arithmetic_refuses_it(
    monkeypatch: pytest.MonkeyPatch, unknown: None, padim_bundle: Path, precision: str, lists: bool, hint: str | None
) -> None:
    core = OtherProcessor(["FP32", "INT8", *([precision.upper()] if lists else [])], hint)
    monkeypatch.setattr(openvino_devices, "openvino_core", lambda: core)
    monkeypatch.setattr(openvino_graph, "openvino_core", lambda: core)
    assert not is_there("openvino", precision)
    assert precision.upper() not in openvino_devices.listed_devices()["CPU"]["precisions"]
    with open_bundle(padim_bundle) as bundle:
        place = openvino_graph.Place("openvino", "CPU", precision)
        with pytest.raises(
            BackendError, match=rf"OpenVINO does not compute in {precision.upper()} on this CPU.*Use --pr"
        ):
            openvino_graph.compile_graph(bundle.model("features", "fp32"), place, openvino_graph.ONE)
        assert openvino_graph.compile_graph(
            bundle.model("features", "fp32"), openvino_graph.Place("openvino", "CPU", "fp32"), openvino_graph.ONE
        )


@pytest.mark.parametrize("backend", [name for name in ROWS if name != "openvino"])
def test_a_backend_that_would_compute_fp32_under_its_name_refuses_it(
    padim_bundle: Path, tmp_path: Path, backend: str
) -> None:
    with (
        open_bundle(with_bf16(padim_bundle, tmp_path / "padim.flaw")) as bundle,
        pytest.raises(BackendError, match=rf"^backend {backend}: it does not compute in bf16, which openvino"),
    ):
        open_session(bundle, "features", "bf16", backend)
    assert not is_there(backend, "bf16")
    with (
        open_bundle(padim_bundle) as bundle,
        pytest.raises(ArgumentError, match=r"precision: expected one the bundle has"),
    ):
        open_session(bundle, "features", "bf16", backend)


def test_every_precision_of_a_row_has_a_tolerance_or_a_reason() -> None:
    for name in ROWS:
        for precision in ("fp32", "fp16", "bf16", "int8"):
            if precision in ROWS[name].tolerances:
                assert 0 < golden_tolerance(name, precision) < 0.1
            else:
                assert precision_problem(name, precision)


def test_no_way_around_it(padim_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(with_bf16(padim_bundle, tmp_path / "padim.flaw"))
    for arguments, said in (
        (
            ("score", bundle, "x.png", "--backend", "cpu", "--precision", "bf16"),
            "backend cpu: it does not compute in bf16",
        ),
        (("engine", "build", bundle, "--precision", "bf16"), "--precision bf16: expected one with graphs of its own"),
    ):
        assert cli.run([*arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_a_bundle_that_draws_has_no_bf16(tmp_path: Path) -> None:
    drawing = tmp_path / "drawer.flaw"
    write_tiny_synth(drawing)
    with pytest.raises(ArgumentError, match=r"precision: expected one the bundle has \(fp32\), got 'bf16'"):
        Synthesizer.load(drawing, "openvino", "bf16")


@needs_bf16
def test_it_runs_in_bf16_and_says_so(padim_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_bundle(padim_bundle) as opened:
        images = np.random.default_rng(0).integers(0, 256, (3, *opened.manifest.input.size, 3), np.uint8)
        model = opened.model("features", "fp32")
    place = openvino_graph.Place("openvino", "CPU", "bf16")
    compiled = openvino_graph.compile_graph(model, place, openvino_graph.ONE)
    kinds = {node.get_rt_info()["runtimePrecision"].astype(str) for node in compiled.get_runtime_model().get_ops()}
    assert "bf16" in kinds
    bundle = with_bf16(padim_bundle, tmp_path / "padim.flaw", golden=())
    with (
        Inspector.load(padim_bundle, "openvino") as exact,
        Inspector(open_bundle(bundle), "openvino", "auto", "bf16", is_candidate=True) as rounded,
    ):
        before, after = exact.infer(images[:1])[1], rounded.infer(images[:1])[1]
    assert 0 < abs(float(after[0]) / float(before[0]) - 1) < 0.05


@needs_bf16
def test_golden_scores_may_belong_to_a_backend(padim_bundle: Path, tmp_path: Path) -> None:
    from flawscope.bundle import rewrite_manifest
    from flawscope.runtime.scorers.golden import measured_golden

    bundle = with_bf16(padim_bundle, tmp_path / "padim.flaw", golden=())
    with open_bundle(bundle) as opened, Inspector(opened, "openvino", "auto", "bf16", is_candidate=True) as inspector:
        manifest = opened.manifest
        own = measured_golden(opened, inspector.scorer, manifest.golden)
    wrong = tuple(msgspec.structs.replace(entry, score=2 * entry.score) for entry in own)
    for golden, golden_on, is_taken in (
        (own, msgspec.UNSET, True),
        (wrong, msgspec.UNSET, False),
        (wrong, {"openvino": own}, True),
        (own, {"openvino": wrong}, False),
        (own, {"cpu": wrong}, True),
    ):
        precision = msgspec.structs.replace(manifest.precisions["bf16"], golden=golden, golden_on=golden_on)
        rewrite_manifest(bundle, msgspec.structs.replace(manifest, precisions={"bf16": precision}))
        if is_taken:
            Inspector.load(bundle, "openvino", "auto", "bf16").close()
        else:
            with pytest.raises(BundleError, match=r"golden image .*: expected score .*, got .* on openvino"):
                Inspector.load(bundle, "openvino", "auto", "bf16")


PROBE = """
from flawscope.runtime.backends.openvino_devices import listed_devices
from flawscope.runtime.backends.table import is_there
print(is_there("openvino", "bf16"), "BF16" in listed_devices()["CPU"]["precisions"], is_there("openvino"))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN is held back on x86 alone")
def test_what_onednn_is_kept_from_is_not_there() -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}  # OpenVINO still lists what the processor has
    run = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False", "True"]
