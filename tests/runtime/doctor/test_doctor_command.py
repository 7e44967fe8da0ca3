"""Doctor: says what is here, what is not, and the command that installs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flawscope import __version__, cli, cpp_ext, versions
from flawscope.runtime.backends import BACKENDS, openvino_devices, ort
from flawscope.runtime.backends.table import ALIASES
from flawscope.runtime.doctor import doctor_command as doctor_module
from flawscope.runtime.doctor.doctor_command import diagnose
from flawscope.versions import cpu_name, package_versions


def test_the_diagnosis_names_versions_backends_kernels_and_extras() -> None:
    diagnosis = diagnose()
    assert diagnosis["flawscope"] == __version__
    assert set(diagnosis["backends"]) == set(BACKENDS) - set(ALIASES)
    assert diagnosis["backends"]["cpu"] == {"available": True, "takes": "cpu", "reason": "asked for"}
    kernels = diagnosis["kernels"]
    assert (kernels["have_native"], kernels["have_cuda"]) == (cpp_ext.HAVE_NATIVE, cpp_ext.HAVE_CUDA)
    assert kernels["simd_level"] == cpp_ext.simd_level()
    for name in ("nearest", "mahalanobis", "kcenter_greedy"):
        assert kernels["implementations"][name] == cpp_ext.implementation()
    assert set(diagnosis["extras"]) == {
        *("cpu", "openvino", "calibrate", "train", "export", "tensorrt", "tensorrt-rtx", "pycuda")
    }
    assert diagnosis["versions"]["numpy"] == package_versions()["numpy"]
    assert cpu_name() != ""


def test_a_backend_that_is_not_there_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.import_onnxruntime(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    backends = diagnose()["backends"]
    assert backends["cuda"]["available"] is False
    assert backends["cuda"]["takes"] is None
    assert "is not there" in backends["cuda"]["reason"]
    assert backends["auto"]["takes"] == "cpu"


def test_a_missing_extra_comes_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor_module.find_spec
    monkeypatch.setattr(doctor_module, "find_spec", lambda name: None if name == "timm" else real(name))
    extras = diagnose()["extras"]
    assert extras["train"] == {"installed": False, "missing": ["timm"], "install": 'pip install "flawscope[train]"'}


def test_the_engines_that_are_kept_are_counted_and_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLAWSCOPE_ENGINES", str(tmp_path))
    assert diagnose()["engines"]["cache"] == {
        "folder": str(tmp_path),
        "engines": 0,
        "unusable": 0,
        "problem": None,
    }
    (tmp_path / "broken").mkdir()
    engines = diagnose()["engines"]
    assert engines["cache"] == {"folder": str(tmp_path), "engines": 1, "unusable": 1, "problem": None}
    for name in ("tensorrt", "tensorrt-rtx"):
        assert (engines[name]["version"] is None) != (engines[name]["problem"] is None)
    assert (engines["device"]["target"] is None) != (engines["device"]["problem"] is None)


def test_a_user_without_a_home_folder_is_told_about_engines_and_all_else(
    no_home: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diagnose()["engines"]["cache"]["folder"] is None
    assert cli.run(["doctor"]) == (1 if diagnose()["driver"]["problems"] else 0)
    printed = capsys.readouterr()
    (line,) = [line for line in printed.out.splitlines() if line.split()[:2] == ["engines", "cached"]]
    assert "without a home folder" in line
    assert "FLAWSCOPE_ENGINES" in line
    assert printed.err == ""


def test_packages_that_are_not_installed_have_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "PACKAGES", ("numpy", "no-such-package-anywhere"))
    assert set(package_versions()) == {"flawscope", "python", "numpy"}


def test_json_is_the_diagnosis(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == json.loads(json.dumps(diagnose()))
    assert shown.err == ""


def test_text_has_a_line_for_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Everything needed to score on this ")
    assert lines[1].startswith(f"flawscope {__version__} on ")
    first_words = [line.split()[0] for line in lines[2:]]
    assert first_words == (
        ["versions"] + ["backend"] * 8 + ["kernel"] * 4 + ["openvino"] + ["engines"] * 4 + ["driver"] + ["extra"] * 8
    )
    assert any(line.split() == ["backend", "cpu", "here"] for line in lines)


def test_where_nothing_can_run_a_bundle_the_exit_status_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imports = (ort.import_onnxruntime, openvino_devices.import_openvino, openvino_devices.openvino_core)
    for once in imports:
        once.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(doctor_module, "find_spec", lambda name: None)
    try:
        assert cli.run(["doctor", "--json"]) == 1
    finally:
        for once in imports:
            once.cache_clear()
    report = json.loads(capsys.readouterr().out)
    backends = report["backends"]
    assert report["openvino"]["devices"] == {}
    assert 'pip install "flawscope[openvino]"' in report["openvino"]["problem"]
    assert {backend["available"] for backend in backends.values()} == {False}
    assert 'pip install "flawscope[cpu]"' in backends["auto"]["reason"]


EXTRAS = {name: {"installed": True, "install": None} for name in ("cpu", "calibrate", "train", "export")}
CPU = {"available": True, "takes": "cpu", "reason": "asked for"}


READY = "Everything needed to score on this CPU is here."


@pytest.mark.parametrize(
    ("auto", "problems", "missing", "said"),
    [
        (CPU, [], [], f"{READY} So is what calibrating, training and exporting need."),
        (CPU, [], ["train", "export"], f'{READY} To train and export: pip install "flawscope[train,export]"'),
        (CPU, [], ["calibrate"], f'{READY} To calibrate: pip install "flawscope[calibrate]"'),
        ({**CPU, "takes": "cuda"}, [], [], "Everything needed to score on this machine with backend cuda is here. So "),
        (CPU, ["too old"], [], "Scoring works on this CPU, but the GPU's driver is too old for what is installed"),
        ({**CPU, "available": False, "reason": "no ONNX."}, [], [], "Nothing here can score: no ONNX."),
    ],
)
def test_the_first_line_is_a_verdict(
    monkeypatch: pytest.MonkeyPatch, auto: dict[str, Any], problems: list[str], missing: list[str], said: str
) -> None:
    monkeypatch.setattr(doctor_module.cpp_ext, "HAVE_NATIVE", True)
    extras = {name: {**extra, "installed": name not in missing} for name, extra in EXTRAS.items()}
    assert doctor_module.verdict(auto, problems, extras).startswith(said)


def test_the_verdict_says_that_kernels_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module.cpp_ext, "HAVE_NATIVE", False)
    assert doctor_module.verdict(CPU, [], EXTRAS).startswith("Scoring works on this CPU, slowly: the compiled kernels")
