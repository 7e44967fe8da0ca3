"""Doctor's proof of the path: nodes and who took them; and whether the driver fits what is installed."""

from __future__ import annotations

import json
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_dataset import normal_images

from flawscope import cli
from flawscope.bundle import OnnxModel, open_bundle
from flawscope.errors import BackendError
from flawscope.imaging.images import prepare, read_image
from flawscope.runtime.doctor import driver, provider_profile
from flawscope.runtime.doctor.doctor_command import _show_bundle
from flawscope.runtime.doctor.driver import match_driver
from flawscope.runtime.doctor.provider_profile import ProfiledNode, elsewhere, profile_nodes


@pytest.mark.parametrize("graph", ["features", "score"])
def test_every_node_of_a_run_has_its_provider(padim_bundle: Path, tiny_root: Path, graph: str) -> None:
    with open_bundle(padim_bundle) as bundle:
        image = prepare(read_image(normal_images(tiny_root)[0]), bundle.manifest.input)
        nodes = profile_nodes(bundle.model(graph), "cpu", {"image": image[None]})
    assert len(nodes) > 5
    assert len({node.name for node in nodes}) == len(nodes)  # of one run, not of three
    assert {node.provider for node in nodes} == {"CPUExecutionProvider"}
    assert any(node.operator == "Conv" for node in nodes)
    assert all(node.milliseconds >= 0 for node in nodes)
    assert elsewhere(nodes, "cpu") == []
    assert elsewhere(nodes, "cuda")[0].name == max(nodes, key=lambda node: node.milliseconds).name


def test_nodes_elsewhere_are_told_longest_first() -> None:
    nodes = [
        ProfiledNode("a", "Conv", "CUDAExecutionProvider", 9.0),
        ProfiledNode("b", "Resize", "CPUExecutionProvider", 1.0),
        ProfiledNode("c", "Shape", "CPUExecutionProvider", 2.0),
    ]
    assert [node.name for node in elsewhere(nodes, "cuda")] == ["c", "b"]


def test_a_graph_that_does_not_load_is_one_sentence() -> None:
    with pytest.raises(BackendError, match=r"^backend cpu: could not run score\.onnx: [^\n]+$"):
        profile_nodes(OnnxModel("score.onnx", b"rubbish", {}), "cpu", {})


def test_doctor_of_a_bundle_names_path_nodes_and_head(
    patchcore_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["doctor", str(patchcore_bundle), "--backend", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    path = next(line for line in lines if line.startswith("path "))
    assert "patchcore in fp32: backend cpu (asked for), features.onnx, head: native (" in path
    nodes = next(line for line in lines if line.startswith("nodes "))
    assert nodes.split(": ")[0].endswith("CPUExecutionProvider")
    assert "100% of the time" in nodes
    assert not any(line.startswith("elsewhere") for line in lines)
    assert sum(line.startswith("slowest") for line in lines) == 5
    assert cli.run(["doctor", str(patchcore_bundle), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["bundle"]
    assert (report["bundle"], report["graph"], report["elsewhere"]) == ("patchcore", "features.onnx", [])
    assert report["providers"]["CPUExecutionProvider"]["nodes"] == len(report["nodes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.flaw",), "error: nowhere.flaw: expected a bundle"),
        (("{bundle}", "--precision", "int8"), "error: precision: expected one the bundle has (fp32), got 'int8'."),
        (("--precision", "int8"), "error: --backend, --precision and --measure are for a BUNDLE."),
    ],
)
def test_a_wrong_request_is_one_line(
    padim_bundle: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert cli.run(["doctor", *(argument.format(bundle=padim_bundle) for argument in arguments)]) == 2
    assert capsys.readouterr().err.startswith(message)


# --- the driver


def fake_nvml(monkeypatch: pytest.MonkeyPatch, cuda: int) -> None:
    nvml: Any = types.ModuleType("pynvml")
    nvml.__spec__ = ModuleSpec("pynvml", None)
    nvml.NVMLError = type("NVMLError", (Exception,), {})
    nvml.nvmlInit = nvml.nvmlShutdown = lambda: None

    def no_device(index: int) -> None:
        raise nvml.NVMLError("no such device")

    nvml.nvmlDeviceGetHandleByIndex = no_device
    nvml.nvmlSystemGetDriverVersion = lambda: b"570.10"
    nvml.nvmlSystemGetCudaDriverVersion_v2 = lambda: cuda
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def test_a_driver_that_is_too_old_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_nvml(monkeypatch, 12080)
    monkeypatch.setattr(driver, "_wanted", lambda: {"onnxruntime-gpu": "12.9", "tensorrt-rtx-cu13": "13"})
    match = match_driver()
    assert (match.driver, match.cuda) == ("570.10", "12.8")
    assert match.problems == (
        "tensorrt-rtx-cu13 is built for CUDA 13, the driver 570.10 supports CUDA 12.8 at most. Update the driver, or "
        "install a tensorrt-rtx-cu13 built for CUDA 12.",
    )
    assert cli.run(["doctor"]) == 1
    assert "driver    570.10, CUDA up to 12.8; onnxruntime-gpu needs CUDA 12.9, tensorrt-rtx-cu13 needs CUDA 13\n" in (
        capsys.readouterr().out
    )


def test_a_driver_that_fits_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, 13000)
    monkeypatch.setattr(driver, "_wanted", lambda: {"tensorrt-rtx-cu13": "13"})
    assert match_driver().problems == ()


def test_without_a_driver_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    match = match_driver()
    assert (match.driver, match.cuda, match.problems) == (None, None, ())


def test_what_is_installed_is_found() -> None:
    pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is not installed: pip install "flawscope[tensorrt-rtx]"')
    versions = match_driver().wanted
    assert any(name.startswith("tensorrt") and number == "13" for name, number in versions.items())


def test_nodes_on_a_device_have_no_times_as_those_of_onnx_runtime_are_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ONNX Runtime writes of a node on CUDA is how long its launch took."""
    profile = tmp_path / "profile.json"
    node = {"cat": "Node", "dur": 4000}
    events = [
        {**node, "name": "a_kernel_time", "args": {"provider": "CUDAExecutionProvider", "op_name": "Conv"}},
        {**node, "name": "b_kernel_time", "args": {"provider": "CPUExecutionProvider", "op_name": "Shape"}},
        {"cat": "Session", "name": "model_run"},
    ]
    profile.write_text(json.dumps(events))
    session = SimpleNamespace(run=lambda *_: None, end_profiling=lambda: str(profile))
    monkeypatch.setattr(provider_profile, "make_session", lambda *_: session)
    model: Any = SimpleNamespace(file="score.onnx")
    nodes = profile_nodes(model, "cuda", {})
    assert [(found.name, found.milliseconds) for found in nodes] == [("a", 0.0), ("b", 4.0)]


def test_the_text_names_no_time_and_no_share_of_nodes_whose_time_is_not_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    nodes = [vars(ProfiledNode("a", "Conv", cuda, 0.0)), vars(ProfiledNode("b", "Shape", cpu, 4.0))]
    report = dict.fromkeys(("bundle", "backend", "reason", "precision", "graph", "head"), "")
    _show_bundle(
        {
            **report,
            "auto": {"names": None, "why": ""},
            "nodes": nodes,
            "milliseconds": 4.0,
            "providers": {cuda: {"nodes": 1, "milliseconds": 0.0}, cpu: {"nodes": 1, "milliseconds": 4.0}},
            "computed_in": {},
            "elsewhere": nodes[1:],
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("nodes")] == [
        f"nodes     {cuda}: 1 of 2, times not known",
        f"nodes     {cpu}: 1 of 2, 4.00 ms",
    ]
    assert [line.split()[1] for line in lines if line.startswith("slowest")] == ["Shape"]
