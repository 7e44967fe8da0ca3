"""An installed OpenVINO that cannot be loaded: said as it is, and `auto` and `doctor` do without it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_bundle import golden_image, write_tiny_bundle

from flawscope import cli
from flawscope.errors import BackendError
from flawscope.runtime import Inspector
from flawscope.runtime.backends import choose_backend, openvino_devices, ort

BROKEN = {
    'raise ImportError("libopenvino.so: cannot open shared object file")': "libopenvino.so: cannot open",
    'raise ModuleNotFoundError("no module numpy", name="numpy")': "no module numpy",
    'raise RuntimeError("wrong version.\\nbuilt for another")': "wrong version",
    'raise OSError("no such device")': "no such device",
    "": "module 'openvino' has no attribute 'Core'",
    'def Core(): raise RuntimeError("no plugins.xml")': "no plugins.xml",
}
"""What is in the package's `__init__.py` -> what is said."""


@pytest.fixture(params=BROKEN)
def said(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package `openvino` that is broken in one way; what is said of it."""
    package = tmp_path / "packages" / "openvino"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(request.param)
    cached = (openvino_devices.import_openvino, openvino_devices.openvino_core)
    for function in cached:
        function.cache_clear()
    loaded = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "openvino"}
    for name in loaded:
        del sys.modules[name]
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setattr(ort.import_onnxruntime(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FLAWSCOPE_AUTO", "cpu,openvino")
    yield f"OpenVINO is there and cannot be loaded: {BROKEN[request.param]}"
    for function in cached:
        function.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
        del sys.modules[name]
    sys.modules.update(loaded)


def test_a_broken_openvino_is_no_missing_one_and_stops_nothing_else(
    said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_bundle(tmp_path / "tiny.flaw")
    for _ in range(2):
        with Inspector.load(tmp_path / "tiny.flaw") as inspector:
            assert inspector.backend == "cpu"
            assert f"openvino is left out: {said}" in inspector.backend_reason
            assert inspector.backend_reason.endswith("not kept: openvino may be there by the next load")
            assert inspector(golden_image()).score == pytest.approx(200.0)
    with pytest.raises(BackendError) as caught:
        Inspector.load(tmp_path / "tiny.flaw", "openvino")
    assert said in str(caught.value)
    assert str(caught.value).count("\n") == 0
    with pytest.raises(BackendError, match=r"--force-reinstall openvino\. There is no fall-back"):
        choose_backend("openvino")
    assert cli.run(["doctor", "--json"]) in (0, 1)
    report = json.loads(capsys.readouterr().out)
    assert report["backends"]["openvino"]["available"] is False
    assert said in report["openvino"]["problem"]
