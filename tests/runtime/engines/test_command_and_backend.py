"""What `flawscope engine build` has built, backend `tensorrt` takes: stand-ins for the GPU, TensorRT and the build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cuda_stand_in import Stand, check_left, stand_in
from tensorrt_stand_in import tensorrt_module
from tiny_synth_bundle import MAX_BATCH, write_tiny_synth

from flawscope import cli
from flawscope.bundle import open_bundle
from flawscope.errors import BackendError
from flawscope.runtime.backends import engine_session
from flawscope.runtime.engines import BuildOptions, Built, Target, TensorRT, engine_command, ensure

GRAPHS = ("text", "encode", "denoise", "decode")
CARD = Target("stand-in", (8, 9), "1")


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stand]:
    """A GPU in host memory, and an empty cache of engines."""
    stand = Stand()
    stand_in(stand, monkeypatch)
    tensorrt = TensorRT("tensorrt", "11.0", tensorrt_module(stand))
    monkeypatch.setenv("FLAWSCOPE_ENGINES", str(tmp_path / "engines"))
    for module in (engine_session, engine_command):
        monkeypatch.setattr(module, "import_tensorrt", lambda *_: tensorrt)
        monkeypatch.setattr(module, "current_target", lambda: CARD)
    yield stand
    check_left(stand)


@pytest.fixture
def drawer(tmp_path: Path) -> Path:
    write_tiny_synth(tmp_path / "drawer.flaw")
    return tmp_path / "drawer.flaw"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, drawer: Path) -> dict[str, BuildOptions]:
    """Graph → the options that its engine was built with, last."""
    found: dict[str, BuildOptions] = {}

    def build(tensorrt: Any, graph: Path, target: Any, options: BuildOptions, **_: Any) -> Built:
        found[graph.stem] = options
        return Built(str(drawer / graph.name).encode(), 1.0, (), None, None, b"")

    monkeypatch.setattr(ensure, "build_engine", build)
    return found


def open_all(path: Path) -> None:
    with open_bundle(path) as bundle:
        for graph in GRAPHS:
            engine_session.open_engine(bundle, graph, "fp32").close()


@pytest.mark.parametrize("options", [(), ("--opt-batch", "2"), ("--opt-batch", "4", "--workspace", "512")])
def test_an_engine_that_the_command_has_built_is_not_built_again_by_the_backend(
    stand: Stand, drawer: Path, built: dict[str, BuildOptions], options: tuple[str, ...]
) -> None:
    assert cli.run(["engine", "build", str(drawer), *options]) == 0
    usual = int(options[1]) if options else 1
    # Guidance runs the denoiser twice for each image, and texts are encoded one by one.
    assert {name: (value.opt_batch, value.max_batch) for name, value in built.items()} == {
        "text": (1, 1),
        "encode": (usual, MAX_BATCH // 2),
        "denoise": (2 * usual, MAX_BATCH),
        "decode": (usual, MAX_BATCH // 2),
    }
    built.clear()
    open_all(drawer)
    assert built == {}


def test_an_engine_that_the_backend_has_built_fits_for_the_command(
    stand: Stand, drawer: Path, built: dict[str, BuildOptions]
) -> None:
    open_all(drawer)
    assert set(built) == set(GRAPHS)
    built.clear()
    assert cli.run(["engine", "build", str(drawer), "--no-build"]) == 0
    assert built == {}


def test_an_engine_that_computes_in_tf32_is_not_taken_unless_that_was_asked_for(
    stand: Stand, drawer: Path, monkeypatch: pytest.MonkeyPatch, built: dict[str, BuildOptions]
) -> None:
    assert cli.run(["engine", "build", str(drawer), "--tf32"]) == 0

    def refuse(*_: Any, **__: Any) -> Built:
        raise BackendError("engine: it would be built anew.")

    monkeypatch.setattr(ensure, "build_engine", refuse)
    with pytest.raises(BackendError, match="it would be built anew"):
        open_all(drawer)
    monkeypatch.setenv("FLAWSCOPE_TF32", "1")
    open_all(drawer)
