"""Engines by the real TensorRT-RTX, which builds without a GPU: profiles, parser errors, and a cache that is believed
in no point it does not prove."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from onnx import TensorProto, helper

from flawscope.bundle import open_bundle
from flawscope.errors import ArgumentError, BackendError
from flawscope.runtime.engines import (
    BuildOptions,
    EngineCache,
    Stored,
    Target,
    TensorRT,
    build,
    build_engine,
    import_tensorrt,
    named_target,
    tensorrt_modules,
)
from flawscope.runtime.engines.build import _set_tf32, exporter_module, listen
from flawscope.runtime.engines.cache import ENTRY
from flawscope.runtime.engines.ensure import Ensured, ensure_engine, model_hash

pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is not installed: pip install "flawscope[tensorrt-rtx]"')

L4 = Target("", (8, 9), "")
TO_FOUR = BuildOptions(1, 1, 4)


@pytest.fixture(scope="session")
def rtx() -> TensorRT:
    return import_tensorrt("tensorrt-rtx")


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def ensure(path: Path, tensorrt: TensorRT, cache: EngineCache, graph: str = "features", **options: Any) -> Ensured:
    with open_bundle(path) as bundle:
        return ensure_engine(bundle, graph, tensorrt, L4, options.pop("options", TO_FOUR), cache, **options)


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory, padim_bundle: Path, rtx: TensorRT) -> Path:
    """A cache with one engine, made once; tests work on copies."""
    root = tmp_path_factory.mktemp("engines")
    ensure(padim_bundle, rtx, EngineCache(root))
    return root


@pytest.fixture
def filled(built_once: Path, tmp_path: Path) -> tuple[EngineCache, Stored]:
    cache = EngineCache(Path(shutil.copytree(built_once, tmp_path / "filled")))
    return cache, next(cache.all())


# --- the folder


def test_a_user_without_a_home_folder_has_to_name_the_folder(no_home: None, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"without a home folder\. Name one with FLAWSCOPE_ENGINES\."):
        EngineCache()
    assert EngineCache(tmp_path).root == tmp_path


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_relative_folder_stays_where_it_was(
    by_variable: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLAWSCOPE_ENGINES", "engines")
    root = EngineCache(None if by_variable else Path("engines")).root
    monkeypatch.chdir("/")
    assert root == tmp_path / "engines"


# --- building


@pytest.mark.parametrize(("method", "graph"), [*itertools.product(["patchcore", "padim"], ["features", "score"])])
def test_every_graph_of_every_bundle_builds_for_batches_up_to_the_largest(
    bundles: dict[str, Path], rtx: TensorRT, cache: EngineCache, method: str, graph: str
) -> None:
    ensured = ensure(bundles[method], rtx, cache, graph)
    entry = ensured.stored.entry
    assert entry is not None
    assert ensured.built_because == f"no engine of {method}, graph {graph}, was built yet"
    assert ensured.stored.plan.stat().st_size == entry.size > 10_000
    assert entry.key.options == TO_FOUR
    assert "needs the GPU" in (entry.layers_missing or "")


def test_progress_rises_to_the_end(bundles: dict[str, Path], rtx: TensorRT) -> None:
    shares: list[float] = []
    with open_bundle(bundles["padim"]) as bundle:
        build_engine(
            rtx,
            bundle.path / bundle.graph_file("features"),
            L4,
            TO_FOUR,
            progress=lambda share, _: shares.append(share),
        )
    assert len(shares) > 5
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert sum(0.0 < share < 1.0 for share in shares) > 3


def test_an_interrupted_build_stops_with_the_reason_and_stores_nothing(
    bundles: dict[str, Path], rtx: TensorRT, cache: EngineCache
) -> None:
    def interrupt(share: float, phase: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(bundles["padim"], rtx, cache, progress=interrupt)
    assert list(cache.all()) == []


def graph_of(nodes: list[Any], path: Path, shape: tuple[Any, ...] = ("N", 4), **domains: int) -> Path:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(name, version) for name, version in domains.items())]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "graph", [image], [out]), opset_imports=opsets, ir_version=10), path
    )
    return path


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
def test_every_compute_capability_that_is_known_builds(rtx: TensorRT, tmp_path: Path, capability: str) -> None:
    graph = graph_of([helper.make_node("Relu", ["image"], ["out"])], tmp_path / "small.onnx")
    assert build_engine(rtx, graph, named_target(capability, rtx.compute_capabilities()), TO_FOUR).plan


def test_an_unsupported_operator_is_named_with_its_node_and_where_it_came_from(rtx: TensorRT, tmp_path: Path) -> None:
    node = helper.make_node("Sharpen", ["image"], ["out"], name="backbone.stem/Sharpen_3", domain="acme")
    graph = graph_of([node], tmp_path / "odd.onnx", acme=1)
    with pytest.raises(BackendError) as caught:
        build_engine(rtx, graph, L4, TO_FOUR)
    message = str(caught.value)
    assert "could not parse odd.onnx: node backbone.stem/Sharpen_3, operator Sharpen" in message
    assert "from the module backbone.stem of the backbone" in message
    assert "choose another backbone, or use backend cpu" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("head/product_0", "the scoring head (flawscope.export.detectors.head_nodes)"),
        ("backbone.blocks.0.conv/Conv_3", "the module backbone.blocks.0.conv of the backbone"),
        ("Conv_3", "an unknown module"),
        ("", "an unknown module"),
    ],
)
def test_a_node_tells_the_module_it_came_from(node: str, module: str) -> None:
    assert exporter_module(node) == module


def test_a_file_that_is_no_graph_is_refused_in_words(rtx: TensorRT, tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no graph at all")
    with pytest.raises(BackendError, match=r"tensorrt-rtx: could not parse no\.onnx: "):
        build_engine(rtx, tmp_path / "no.onnx", L4, TO_FOUR)


def test_a_graph_with_another_free_dimension_is_refused(rtx: TensorRT, tmp_path: Path) -> None:
    graph = graph_of([helper.make_node("Relu", ["image"], ["out"])], tmp_path / "free.onnx", ("N", "width"))
    with pytest.raises(ArgumentError, match=r"free\.onnx: expected fixed dimensions after the first, got \(-1, -1\)"):
        build_engine(rtx, graph, L4, TO_FOUR)


def test_a_graph_for_one_batch_takes_that_one(rtx: TensorRT, tmp_path: Path) -> None:
    graph = graph_of([helper.make_node("Relu", ["image"], ["out"])], tmp_path / "one.onnx", (2, 4))
    assert build_engine(rtx, graph, L4, BuildOptions(2, 2, 2)).plan
    with pytest.raises(ArgumentError, match="expected a batch of 2, which is all that the graph takes, got 1 to 4"):
        build_engine(rtx, graph, L4, TO_FOUR)


@pytest.mark.parametrize(
    "options",
    [BuildOptions(0, 1, 1), BuildOptions(2, 1, 4), BuildOptions(1, 5, 4), BuildOptions(1, 1, 257)],
    ids=["zero", "below the smallest", "above the largest", "too large"],
)
def test_batches_out_of_order_are_refused(rtx: TensorRT, tmp_path: Path, options: BuildOptions) -> None:
    with pytest.raises(ArgumentError, match=r"batches: expected 1 ≤ smallest ≤ usual ≤ largest ≤ 256, got"):
        build_engine(rtx, tmp_path / "any.onnx", L4, options)


def test_a_workspace_of_nothing_is_refused(rtx: TensorRT, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="workspace: expected at least 1 MiB, got 0"):
        build_engine(rtx, tmp_path / "any.onnx", L4, BuildOptions(workspace_mib=0))


# --- TF32


def test_products_of_fp32_are_not_computed_in_tf32_unless_that_was_asked_for(rtx: TensorRT) -> None:
    logger, _ = listen(rtx.module)
    config = rtx.module.Builder(logger).create_builder_config()
    flag = rtx.module.BuilderFlag.TF32
    assert config.get_flag(flag), "TensorRT's own default, which is why it has to be cleared"
    _set_tf32(rtx.module, config, allowed=False)
    assert not config.get_flag(flag)
    _set_tf32(rtx.module, config, allowed=True)
    assert config.get_flag(flag)


def test_every_build_says_whether_tf32_is_allowed(
    rtx: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bool] = []
    monkeypatch.setattr(build, "_set_tf32", lambda module, config, *, allowed: said.append(allowed))
    graph = graph_of([helper.make_node("Relu", ["image"], ["out"])], tmp_path / "small.onnx")
    for options in (TO_FOUR, BuildOptions(1, 1, 4, tf32=True)):
        build_engine(rtx, graph, L4, options)
    assert said == [False, True]


# --- the cache


def test_an_engine_that_fits_is_not_built_again(padim_bundle: Path, rtx: TensorRT, filled: Any) -> None:
    cache, stored = filled
    before = stored.plan.stat().st_mtime_ns
    ensured = ensure(padim_bundle, rtx, cache, build=False)
    assert ensured.built_because is None
    assert ensured.stored.plan == stored.plan
    assert stored.plan.stat().st_mtime_ns == before
    assert ensure(padim_bundle, rtx, cache, force=True).built_because == "it was asked for"
    assert stored.plan.stat().st_mtime_ns > before


def truncated(stored: Stored) -> None:
    os.truncate(stored.plan, stored.plan.stat().st_size // 2)


def flipped(stored: Stored) -> None:
    data = bytearray(stored.plan.read_bytes())
    data[len(data) // 2] ^= 1
    stored.plan.write_bytes(data)


def missing(stored: Stored) -> None:
    stored.plan.unlink()


def not_json(stored: Stored) -> None:
    (stored.folder / ENTRY).write_bytes(b"\xff{")


def of_another(stored: Stored) -> None:
    assert stored.entry is not None
    key = msgspec.structs.replace(stored.entry.key, version="0.1")
    (stored.folder / ENTRY).write_bytes(msgspec.json.encode(msgspec.structs.replace(stored.entry, key=key)))


def of_the_future(stored: Stored) -> None:
    (stored.folder / ENTRY).write_bytes(msgspec.json.encode(msgspec.structs.replace(stored.entry, schema=99)))


DAMAGES = {
    truncated: r"its file has \d+ bytes, expected \d+",
    flipped: "its file was changed: SHA-256",
    missing: "its file cannot be read: No such file",
    not_json: "its entry.json is broken",
    of_another: "its entry is of another engine",
    of_the_future: "its entry is of schema 99, expected 2",
}


@pytest.mark.parametrize("damage", list(DAMAGES), ids=lambda damage: damage.__name__)
def test_a_damaged_engine_is_refused_or_built_again(
    padim_bundle: Path, rtx: TensorRT, filled: Any, damage: Any
) -> None:
    cache, stored = filled
    damage(stored)
    with pytest.raises(BackendError, match=rf"fails: {DAMAGES[damage]}.* Build it with: flawscope engine build"):
        ensure(padim_bundle, rtx, cache, build=False)
    ensured = ensure(padim_bundle, rtx, cache)
    assert "fails: " in (ensured.built_because or "")
    assert ensure(padim_bundle, rtx, cache, build=False).stored.problem is None


def test_a_folder_without_an_entry_is_what_an_interruption_left_and_gives_way(
    padim_bundle: Path, rtx: TensorRT, filled: Any
) -> None:
    cache, stored = filled
    (stored.folder / ENTRY).unlink()
    assert "entry.json cannot be read" in (ensure(padim_bundle, rtx, cache).built_because or "")


def test_another_version_device_or_batch_is_refused_with_the_difference(
    padim_bundle: Path, rtx: TensorRT, filled: Any
) -> None:
    cache, _ = filled
    another_version = replace(rtx, version="99.0")
    with pytest.raises(BackendError, match=rf"tensorrt-rtx version {rtx.version}, expected 99.0\."):
        ensure(padim_bundle, another_version, cache, build=False)
    with pytest.raises(BackendError, match=r"something else: options batch 1/1/4, expected batch 1/2/3\. "):
        ensure(padim_bundle, rtx, cache, options=BuildOptions(1, 2, 3), build=False)
    here = Target("NVIDIA L4", (8, 9), "580.65")
    with (
        open_bundle(padim_bundle) as bundle,
        pytest.raises(BackendError, match=r"GPU any, expected NVIDIA L4; driver any, expected 580\.65\. "),
    ):
        ensure_engine(bundle, "features", rtx, here, TO_FOUR, cache, build=False)


def test_a_changed_model_is_another_engine(
    padim_bundle: Path, patchcore_bundle: Path, rtx: TensorRT, filled: Any, tmp_path: Path
) -> None:
    cache, stored = filled
    with open_bundle(padim_bundle) as padim, open_bundle(patchcore_bundle) as patchcore:
        hashes = {model_hash(bundle, graph) for bundle in (padim, patchcore) for graph in ("features", "score")}
        assert len(hashes) == 4
        assert stored.entry is not None
        assert stored.entry.key.model == model_hash(padim, "features")
    renamed = tmp_path / "padim.flaw"  # the other model under the name of the first
    shutil.copytree(patchcore_bundle, renamed)
    from flawscope.bundle import rewrite_manifest

    with open_bundle(renamed) as bundle:
        manifest = msgspec.structs.replace(bundle.manifest, name="padim")
    rewrite_manifest(renamed, manifest)
    with pytest.raises(BackendError, match="something else: model "):
        ensure(renamed, rtx, cache, build=False)


# --- the seam


def test_the_compute_capabilities_are_those_of_the_module(rtx: TensorRT) -> None:
    assert {(7, 5), (8, 6), (8, 9), (12, 0)} <= set(rtx.compute_capabilities())
    assert named_target("8.9", rtx.compute_capabilities()) == L4


@pytest.mark.parametrize("text", ["ampere", "8", "89", "", "-8.9"])
def test_a_target_that_is_no_compute_capability_is_refused(rtx: TensorRT, text: str) -> None:
    with pytest.raises(ArgumentError, match=r"target: expected a compute capability such as 8\.9, got"):
        named_target(text, rtx.compute_capabilities())


def test_a_target_that_the_builder_lacks_is_refused_with_those_it_has(rtx: TensorRT) -> None:
    with pytest.raises(ArgumentError, match=r"the builder knows \(7\.5, 8\.0, .*\), got 9\.0\."):
        named_target("9.0", rtx.compute_capabilities())


def fake_module(name: str, version: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    module = types.ModuleType(name)
    module.__dict__.update(
        __version__=version,
        NetworkDefinitionCreationFlag=types.SimpleNamespace(**{flag: index for index, flag in enumerate(flags)}),
    )
    monkeypatch.setitem(sys.modules, name, module)
    tensorrt_modules._load.cache_clear()
    return import_tensorrt("tensorrt")


def test_version_10_is_told_to_be_strongly_typed_and_11_is_so_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    ten = fake_module("tensorrt", "10.13.2.6", ("EXPLICIT_BATCH", "STRONGLY_TYPED"), monkeypatch)
    eleven = fake_module("tensorrt", "11.0.1", (), monkeypatch)
    assert (ten.network_flags(), eleven.network_flags()) == (2, 0)
    assert ten.compute_capabilities() == ()
    assert not ten.builds_for_absent_gpus
    assert import_tensorrt().name == "tensorrt"
    tensorrt_modules._load.cache_clear()


def test_a_version_of_the_old_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"tensorrt: expected version 10 or newer, got 8\.6\.1\. Update it with"):
        fake_module("tensorrt", "8.6.1", (), monkeypatch)


def test_what_is_not_installed_is_said_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    tensorrt_modules._load.cache_clear()
    both = r'pip install "flawscope\[tensorrt\]".*pip install "flawscope\[tensorrt-rtx\]"'
    with pytest.raises(BackendError, match=both):
        import_tensorrt()
    tensorrt_modules._load.cache_clear()
    with pytest.raises(ArgumentError, match="runtime: expected one of auto, tensorrt, tensorrt-rtx, got 'trt'"):
        import_tensorrt("trt")
