"""What engines are built for: one function for the command and the backend, and an engine tuned otherwise is found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from flawscope.errors import ArgumentError, BackendError
from flawscope.runtime.engines import (
    BuildOptions,
    Built,
    EngineCache,
    Key,
    Target,
    ensure,
    graph_batches,
    wanted_options,
)

L4 = Target("L4", (8, 9), "580")


def manifest(kind: str, max_batch: int) -> Any:
    return SimpleNamespace(kind=kind, max_batch=max_batch, name="padim")


@pytest.mark.parametrize(
    ("kind", "graph", "max_batch", "sizes"),
    [
        ("score", "features", 4, [1, 2, 3, 4]),
        ("score", "denoise", 3, [1, 2, 3]),  # a reconstruction: no guidance, an image is one of a batch
        ("synth", "denoise", 8, [2, 4, 6, 8]),
        ("synth", "denoise", 3, [2]),
        ("synth", "encode", 8, [1, 2, 3, 4]),
        ("synth", "decode", 2, [1]),
        ("synth", "text", 8, [1]),
    ],
)
def test_the_batch_sizes_are_those_that_a_graph_is_run_at(
    kind: str, graph: str, max_batch: int, sizes: list[int]
) -> None:
    assert list(graph_batches(manifest(kind, max_batch), graph)) == sizes
    options = wanted_options(manifest(kind, max_batch), graph)
    assert options == BuildOptions(sizes[0], sizes[0], sizes[-1])


def test_a_usual_batch_counts_images_whatever_the_graph_makes_of_them() -> None:
    generator = manifest("synth", 8)
    usual = {name: wanted_options(generator, name, opt_batch=2).opt_batch for name in ("denoise", "encode", "text")}
    assert usual == {"denoise": 4, "encode": 2, "text": 1}
    with pytest.raises(ArgumentError, match="batches: expected 1 ≤ smallest ≤ usual ≤ largest ≤ 256, got 2, 10, 8"):
        wanted_options(generator, "denoise", opt_batch=5)
    with pytest.raises(ArgumentError, match="max-batch: expected at least 2, as guidance runs every image twice"):
        wanted_options(generator, "denoise", max_batch=1)


def test_tf32_is_allowed_by_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = manifest("score", 4)
    monkeypatch.delenv("FLAWSCOPE_TF32", raising=False)
    assert [wanted_options(bundle, "features", tf32=asked).tf32 for asked in (None, False, True)] == [
        False,
        False,
        True,
    ]
    monkeypatch.setenv("FLAWSCOPE_TF32", "1")
    assert [wanted_options(bundle, "features", tf32=asked).tf32 for asked in (None, False)] == [True, False]
    monkeypatch.setenv("FLAWSCOPE_TF32", "yes")
    with pytest.raises(ArgumentError, match="FLAWSCOPE_TF32: expected 0 or 1, got 'yes'"):
        wanted_options(bundle, "features")


class FakeBundle:
    """What `ensure_engine` asks of a bundle."""

    path, manifest = Path("padim.flaw"), manifest("score", 4)

    def graph_files(self, graph: str, precision: str) -> tuple[str, ...]:
        return ("features.onnx",)


def key(options: BuildOptions) -> Key:
    return Key("m", "features", "fp32", "tensorrt", "11.0", L4, options)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setattr(ensure, "model_hash", lambda *_: "m")
    return EngineCache(tmp_path / "engines")


def put(cache: EngineCache, options: BuildOptions, plan: bytes, created: str) -> None:
    stored = cache.put(key(options), "padim", Built(plan, 1.0, (), None, None, b""))
    assert stored.entry is not None
    entry = msgspec.structs.replace(stored.entry, created=created)
    (stored.folder / "entry.json").write_bytes(msgspec.json.encode(entry))


def found(cache: EngineCache, **options: Any) -> bytes:
    bundle: Any = FakeBundle()
    tensorrt: Any = SimpleNamespace(name="tensorrt", version="11.0")
    wanted = wanted_options(bundle.manifest, "features", **options)
    return ensure.ensure_engine(
        bundle, "features", tensorrt, L4, wanted, cache, build=False, any_tuning=not options
    ).stored.load()


def test_an_engine_that_is_fastest_at_another_batch_is_found(cache: EngineCache) -> None:
    put(cache, BuildOptions(1, 4, 4, 512), b"for four", "2026-01-01T00:00:00+00:00")
    assert found(cache) == b"for four"
    put(cache, BuildOptions(1, 1, 4), b"for one", "2026-01-02T00:00:00+00:00")
    assert found(cache) == b"for one"
    put(cache, BuildOptions(1, 2, 4), b"for two", "2026-01-03T00:00:00+00:00")
    assert found(cache) == b"for two"
    assert found(cache, opt_batch=1) == b"for one"


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (BuildOptions(1, 1, 3), "options batch 1/1/3, expected batch 1/1/4"),
        (BuildOptions(1, 1, 4, tf32=True), "options batch 1/1/4, TF32, expected batch 1/1/4"),
    ],
)
def test_one_that_computes_otherwise_is_not(cache: EngineCache, options: BuildOptions, difference: str) -> None:
    put(cache, options, b"other", "2026-01-01T00:00:00+00:00")
    with pytest.raises(BackendError, match=difference):
        found(cache)


def test_an_entry_that_cannot_be_read_or_is_of_another_schema_is_passed_over(cache: EngineCache) -> None:
    put(cache, BuildOptions(1, 4, 4), b"for four", "2026-01-01T00:00:00+00:00")
    put(cache, BuildOptions(1, 3, 4), b"for three", "2026-01-02T00:00:00+00:00")
    put(cache, BuildOptions(1, 2, 4), b"for two", "2026-01-03T00:00:00+00:00")
    (cache.folder(key(BuildOptions(1, 2, 4))) / "entry.json").write_bytes(b"{")
    old = cache.folder(key(BuildOptions(1, 3, 4))) / "entry.json"
    old.write_bytes(old.read_bytes().replace(b'"schema":2', b'"schema":1'))
    assert found(cache) == b"for four"
