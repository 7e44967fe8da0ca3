"""What `auto` may take: a calibrated bundle stays where its thresholds were set, unless another has passed its gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
import rival_stand_in
from tiny_bundle import tiny_manifest

from flawscope.bundle import Manifest, Threshold, Thresholds, ZoneThresholds
from flawscope.bundle.manifest import Gate, Precision
from flawscope.errors import ArgumentError, BackendError
from flawscope.runtime.backends import choose_backend, driver_library, ort, table
from flawscope.runtime.backends.choice import Choice, allowed_backends, choose_for_bundle, offered_by_auto
from flawscope.runtime.backends.cores import Cores

GATE = Gate("cpu", 9, 0.0, 0.0, 1.0, 0.0, 0, 0, None, None, None, None, 1.0, 1.0, 1.0)


@pytest.fixture(autouse=True)
def _no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.import_onnxruntime(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(driver_library, "load_driver", lambda: None)


def set_on(backend: str | None, pixel: str | None = None) -> Thresholds:
    return Thresholds(
        Threshold(150.0, "order-statistic", backend=backend), Threshold(150.0, "order-statistic", backend=pixel)
    )


def gated(backends: tuple[str, ...], thresholds: Thresholds | None) -> Precision:
    gates = tuple(msgspec.structs.replace(GATE, backend=name) for name in backends)
    manifest = tiny_manifest()
    return Precision(
        graphs=manifest.graphs,
        golden=manifest.golden,
        method="made by hand",
        calibration_images=1,
        quantised=1,
        kept=(),
        gate=gates[0] if gates else None,
        thresholds=thresholds,
        gates=gates[1:] or msgspec.UNSET,
    )


def manifest_of(precision: str, thresholds: Thresholds | None, gates: tuple[str, ...]) -> Manifest:
    if precision == "fp32":
        return tiny_manifest(thresholds=thresholds)
    return tiny_manifest(precisions={precision: gated(gates, thresholds)})


@pytest.mark.parametrize(
    ("precision", "thresholds", "gates", "names", "why"),
    [
        ("fp32", None, (), None, "no thresholds are set"),
        ("fp32", set_on("cpu"), (), ("cpu",), "thresholds were set on cpu"),
        ("fp32", set_on("openvino"), (), ("openvino",), "thresholds were set on openvino"),
        ("fp32", set_on("openvino:cpu"), (), ("openvino",), "thresholds were set on openvino"),
        ("fp32", set_on("cuda"), (), ("cuda",), "thresholds were set on cuda"),
        ("fp32", set_on(None), (), ("cpu",), "thresholds name no backend, which stands for cpu"),
        ("fp32", set_on(None, "openvino"), (), ("openvino",), "thresholds were set on openvino"),
        ("fp32", set_on("torch"), (), ("cpu",), "scores of the training, which stands for cpu"),
        ("int8", None, ("cpu",), ("cpu",), "INT8 has passed its gate on cpu"),
        ("int8", None, ("cpu", "openvino"), ("cpu", "openvino"), "INT8 has passed its gate on cpu and openvino"),
        ("int8", None, ("openvino",), ("openvino",), "INT8 has passed its gate on openvino"),
        ("int8", None, (), ("cpu",), "the gate of INT8 has not run"),
        ("bf16", None, (), ("openvino",), "the gate of BF16 has not run"),
        ("int8", set_on("cpu"), ("cpu",), ("cpu",), "set on cpu, and INT8 has passed its gate on cpu"),
        ("int8", set_on("cpu"), ("cpu", "openvino"), ("cpu", "openvino"), "gate on cpu and openvino"),
        ("int8", set_on("openvino"), ("cpu",), ("openvino", "cpu"), "set on openvino, and INT8"),
        ("int8", set_on("tensorrt"), (), ("tensorrt",), "thresholds were set on tensorrt"),
    ],
)
def test_thresholds_and_gates_say_what_may_be_taken(
    precision: str, thresholds: Thresholds | None, gates: tuple[str, ...], names: tuple[str, ...] | None, why: str
) -> None:
    allowed = allowed_backends(manifest_of(precision, thresholds, gates), precision)
    assert allowed.names == names
    assert why in allowed.why


def test_thresholds_of_zones_say_it_too() -> None:
    alike = Threshold(150.0, "order-statistic", backend="openvino")
    by_hand = Threshold(0.0, "manual")
    thresholds = Thresholds(by_hand, by_hand, zones=(ZoneThresholds("left", alike, alike),))
    assert allowed_backends(tiny_manifest(thresholds=thresholds), "fp32").names == ("openvino",)


def test_thresholds_of_one_precision_say_nothing_of_another() -> None:
    manifest = tiny_manifest(precisions={"int8": gated(("openvino",), None)}, thresholds=set_on("cpu"))
    assert allowed_backends(manifest, "fp32").names == ("cpu",)
    assert allowed_backends(manifest, "int8").names == ("openvino",)


@pytest.mark.parametrize(
    ("precision", "thresholds", "gates", "name", "rivals"),
    [
        ("fp32", None, (), "cpu", ("cpu", "openvino")),
        ("fp32", set_on("cpu"), (), "cpu", ()),
        ("fp32", set_on("openvino"), (), "openvino", ()),
        ("fp32", set_on("cuda"), (), "cpu", ()),
        ("int8", None, ("cpu",), "cpu", ()),
        ("int8", None, ("cpu", "openvino"), "cpu", ("cpu", "openvino")),
        ("int8", None, ("openvino",), "openvino", ()),
        ("int8", set_on("openvino"), ("cpu",), "openvino", ("openvino", "cpu")),
        ("int8", set_on("openvino"), ("cpu", "openvino"), "openvino", ("openvino", "cpu")),
        ("int8", set_on("cpu"), ("openvino", "cpu"), "cpu", ("cpu", "openvino")),
    ],
)
def test_only_where_several_may_be_taken_is_there_something_to_measure(
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    thresholds: Thresholds | None,
    gates: tuple[str, ...],
    name: str,
    rivals: tuple[str, ...],
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    choice = choose_for_bundle("auto", manifest_of(precision, thresholds, gates), precision)
    assert (choice.name, choice.rivals) == (name, rivals)
    assert choice.reason.startswith("auto: ")


@pytest.mark.parametrize("thresholds", [set_on("cpu"), set_on(None)])
def test_a_bundle_that_stays_on_the_cpu_does_not_look_at_the_rival(
    monkeypatch: pytest.MonkeyPatch, thresholds: Thresholds
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    monkeypatch.setitem(
        table.ROWS, "openvino", replace(table.ROWS["openvino"], problem="no.such.module:function", open="none:none")
    )
    choice = choose_for_bundle("auto", tiny_manifest(thresholds=thresholds), "fp32")
    assert choice.name == "cpu"
    assert "; not openvino: thresholds " in choice.reason


def test_a_rival_that_is_not_installed_is_no_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    row = replace(table.ROWS["openvino"], rival="no_such_package_anywhere", problem="no.such.module:function")
    monkeypatch.setitem(table.ROWS, "openvino", row)
    choice = choose_for_bundle("auto", tiny_manifest(), "fp32")
    assert (choice.name, choice.rivals) == ("cpu", ())
    assert choice.reason == "auto: FLAWSCOPE_AUTO leaves CUDA out"


@pytest.mark.parametrize("is_installed", [False, True])
def test_in_fp32_the_cpu_takes_the_place_of_a_backend_that_is_not_there_and_says_so(
    monkeypatch: pytest.MonkeyPatch, is_installed: bool
) -> None:
    rival_stand_in.put_in_place(monkeypatch, problem="it lists no CPU.")
    if not is_installed:
        row = replace(table.ROWS["openvino"], rival="no_such_package_anywhere")
        monkeypatch.setitem(table.ROWS, "openvino", row)
    choice = choose_for_bundle("auto", tiny_manifest(thresholds=set_on("openvino")), "fp32")
    assert choice.name == "cpu"
    assert choice.reason.startswith("auto: thresholds were set on openvino; cpu takes its place: ")
    assert ("it lists no CPU." if is_installed else "openvino is not installed.") in choice.reason


@pytest.mark.parametrize("thresholds", [None, set_on("openvino")])
def test_a_reduced_precision_never_runs_where_it_has_not_passed_its_gate(
    monkeypatch: pytest.MonkeyPatch, thresholds: Thresholds | None
) -> None:
    rival_stand_in.put_in_place(monkeypatch, problem="it lists no CPU.")
    manifest = manifest_of("int8", thresholds, ("openvino",))
    with pytest.raises(BackendError, match=r"none: .*INT8 has passed its gate on openvino; it lists no CPU\. To run"):
        choose_for_bundle("auto", manifest, "int8")
    assert choose_for_bundle("cpu", manifest, "int8") == Choice("cpu", "asked for")
    # BF16 is refused by the CPU's own backend too: nobody is sent there.
    with pytest.raises(BackendError, match=r"it lists no CPU\. Use --precision fp32\.$"):
        choose_for_bundle("auto", manifest_of("bf16", thresholds, ("openvino",)), "bf16")


@pytest.mark.parametrize(
    ("text", "thresholds", "name"),
    [
        ("cpu", None, "cpu"),
        (" openvino ", None, "openvino"),
        ("openvino:cpu", None, "openvino"),
        ("cpu", set_on("openvino"), "cpu"),
        ("cuda,openvino", set_on("openvino"), "openvino"),
    ],
)
def test_the_environment_limits_what_is_taken(
    monkeypatch: pytest.MonkeyPatch, text: str, thresholds: Thresholds | None, name: str
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    monkeypatch.setenv("FLAWSCOPE_AUTO", text)
    choice = choose_for_bundle("auto", tiny_manifest(thresholds=thresholds), "fp32")
    assert (choice.name, choice.rivals) == (name, ())


def test_limits_that_leave_nothing_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    monkeypatch.setenv("FLAWSCOPE_AUTO", "openvino")
    with pytest.raises(BackendError, match=r"thresholds were set on cpu; FLAWSCOPE_AUTO leaves cpu out\."):
        choose_for_bundle("auto", tiny_manifest(thresholds=set_on("cpu")), "fp32")
    monkeypatch.setattr(ort.import_onnxruntime(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setenv("FLAWSCOPE_AUTO", "cuda")
    with pytest.raises(BackendError, match=r"leaves all but cuda out; no CUDA: this machine has no NVIDIA driver\."):
        choose_for_bundle("auto", tiny_manifest(), "fp32")
    monkeypatch.setenv("FLAWSCOPE_AUTO", "cpu,fast")
    with pytest.raises(ArgumentError, match=r"FLAWSCOPE_AUTO: expected some of cuda, cpu, openvino .*, got 'cpu,fast'"):
        choose_for_bundle("auto", tiny_manifest(), "fp32")


def test_cuda_is_first_and_says_where_thresholds_were_set(monkeypatch: pytest.MonkeyPatch) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    monkeypatch.delenv("FLAWSCOPE_AUTO")
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort.import_onnxruntime(), "get_available_providers", lambda: providers)
    expected: list[tuple[Any, str]] = [
        (None, "auto: ONNX Runtime offers CUDA"),
        (set_on("cuda"), "auto: ONNX Runtime offers CUDA"),
        (set_on("cpu"), "auto: ONNX Runtime offers CUDA; thresholds were set on cpu"),
    ]
    for thresholds, reason in expected:
        choice = choose_for_bundle("auto", tiny_manifest(thresholds=thresholds), "fp32")
        assert (choice.name, choice.reason, choice.rivals) == ("cuda", reason, ())
    monkeypatch.setenv("FLAWSCOPE_AUTO", "cpu")
    assert choose_for_bundle("auto", tiny_manifest(), "fp32").name == "cpu"


def test_without_golden_images_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    choice = choose_for_bundle("auto", tiny_manifest(golden=()), "fp32")
    assert (choice.name, choice.rivals) == ("cpu", ())
    drawing = choose_backend("auto")
    assert (drawing.name, drawing.rivals) == ("cpu", ())
    assert "; not openvino: only bundles with golden scores are measured" in drawing.reason
    assert offered_by_auto().rivals == ("cpu", "openvino")


def test_threads_and_streams_leave_the_rivals_that_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    assert choose_for_bundle("auto", tiny_manifest(), "fp32", Cores(threads=1)).rivals == ("cpu", "openvino")
    choice = choose_for_bundle("auto", tiny_manifest(), "fp32", Cores(streams=1))
    assert (choice.name, choice.rivals, choice.may_fall_back) == ("openvino", (), False)
    # And nothing of a measurement, which there is none of.
    assert choice.reason == "auto: of cpu and openvino the only one with streams to choose"


def test_with_threads_to_choose_cuda_is_passed_over_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort.import_onnxruntime(), "get_available_providers", lambda: providers)
    monkeypatch.delenv("FLAWSCOPE_AUTO")
    one, passed_over = Cores(threads=1), "not CUDA, which has no threads to choose"
    choice = choose_for_bundle("auto", tiny_manifest(), "fp32", one)
    assert choice.rivals == ("cpu", "openvino")
    assert choice.reason.startswith(f"auto: {passed_over}; of cpu and openvino the one that is measured")
    assert choice.why_rivals == f"no thresholds are set; {passed_over}"
    choice = choose_for_bundle("auto", tiny_manifest(thresholds=set_on("cpu")), "fp32", one)
    assert (choice.name, choice.reason) == ("cpu", f"auto: {passed_over}; not openvino: thresholds were set on cpu")
    choice = choose_for_bundle("auto", tiny_manifest(), "fp32", Cores(threads=1, streams=1))
    assert (choice.name, choice.rivals) == ("openvino", ())
    assert choose_for_bundle("auto", tiny_manifest(), "fp32").name == "cuda"
    with pytest.raises(ArgumentError, match=r"threads: backend cuda has none to choose"):
        table.check_cores("cuda", one)
    monkeypatch.setenv("FLAWSCOPE_AUTO", "cuda")
    with pytest.raises(BackendError, match=r"leaves all but cuda out; not CUDA, which has no threads to choose\."):
        choose_for_bundle("auto", tiny_manifest(), "fp32", one)
