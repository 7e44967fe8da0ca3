"""Get the engine of a bundle's graph: from the cache if one fits, else built, or refused if building is not allowed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from flawscope.bundle import Bundle
from flawscope.runtime.engines.build import BuildOptions, Progress, build_engine
from flawscope.runtime.engines.cache import EngineCache, find_engine, refuse
from flawscope.runtime.engines.stored_engine import Key, Stored
from flawscope.runtime.engines.target import Target
from flawscope.runtime.engines.tensorrt_modules import TensorRT
from flawscope.scratch import remove_leftovers


@dataclass(frozen=True)
class Ensured:
    """An engine that fits.

    Attributes:
        stored: The engine, in memory.
        built_because: Why it was built, or None if it came from the cache.
    """

    stored: Stored
    built_because: str | None


def ensure_engine(
    bundle: Bundle,
    graph: str,
    tensorrt: TensorRT,
    target: Target,
    options: BuildOptions,
    cache: EngineCache,
    *,
    precision: str = "fp32",
    build: bool = True,
    force: bool = False,
    any_tuning: bool = False,
    progress: Progress | None = None,
) -> Ensured:
    """Return the engine of a graph for a device.

    Args:
        bundle: The opened bundle.
        graph: Name of the graph, for example `features`.
        tensorrt: The module that builds and runs it.
        target: The device.
        options: Profile and limits.
        cache: The cache of engines.
        precision: Precision of the graph, one that the bundle has.
        build: Whether an engine may be built; if not, it is an error that none fits.
        force: Build even if one fits.
        any_tuning: Take the newest engine that computes the same, though it is made fastest for another batch.
        progress: Called as a build proceeds.

    Raises:
        ArgumentError: If an option is out of range, or the bundle lacks the precision.
        BundleError: If the bundle has no such graph.
        BackendError: If none fits and none may be built, building fails, or others may write to the cache.
        StorageError: If it cannot be stored.
    """
    options.check()
    files = bundle.graph_files(graph, precision)
    key = Key(
        model=model_hash(bundle, graph, precision),
        graph=graph,
        precision=precision,
        runtime=tensorrt.name,
        version=tensorrt.version,
        target=target,
        options=options,
    )
    if any_tuning:
        key = cache.newest_alike(key)
    stored, reason = find_engine(cache, key, bundle.manifest.name)
    if stored is not None and not force:
        # A build that was killed after it had stored the engine left its locks; nobody takes them here.
        remove_leftovers(cache.root)
        return Ensured(stored, None)
    if not build:
        raise refuse(str(bundle.path), reason)
    if progress is not None:
        progress(0.0, "waiting for another process that builds the same")
    with cache.building(key):
        # Whoever held the lock before has built it: a GPU takes one build at a time, and minutes for each.
        if not force:
            stored, reason = find_engine(cache, key, bundle.manifest.name)
            if stored is not None:
                return Ensured(stored, None)
        timing_cache = cache.timing_cache(key)
        # The parser takes a path and finds external data beside it.
        with bundle.unpacked(files) as folder:
            built = build_engine(
                tensorrt, folder / files[0], target, options, timing_cache=timing_cache, progress=progress
            )
        return Ensured(cache.put(key, bundle.manifest.name, built), reason or "it was asked for")


def model_hash(bundle: Bundle, graph: str, precision: str = "fp32") -> str:
    """Return the SHA-256 over everything that an engine is built from: the graph, its weights and its bank.

    Learned embeddings of generators are inputs and not weights: another embedding needs no other engine.
    """
    digest = hashlib.sha256()
    # `score.onnx` refers to the bank as external data, so another bank changes its hash; `features.onnx` does not, and
    # its engine stays when rows are added.
    parts = bundle.graph_files(graph, precision)
    # The manifest's hashes, checked when the bundle was opened: the files need not be read again. Sorted, because the
    # order of a set differs from run to run.
    for name in sorted(parts):
        digest.update(f"{name} {bundle.manifest.files[name].sha256}\n".encode())
    return digest.hexdigest()
