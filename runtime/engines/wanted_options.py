"""What an engine of a bundle's graph is built for: the one place that says it, for `engine build` and the backend."""

from __future__ import annotations

import os

from flawscope.bundle import Manifest
from flawscope.errors import ArgumentError
from flawscope.runtime.engines.build import BuildOptions

TF32_VARIABLE = "FLAWSCOPE_TF32"


def tf32_allowed() -> bool:
    """Return whether products of FP32 graphs may be computed in TF32 on NVIDIA GPUs: not unless `FLAWSCOPE_TF32=1`.

    Raises:
        ArgumentError: If the variable is something else.
    """
    text = os.environ.get(TF32_VARIABLE, "")
    if text not in ("", "0", "1"):
        raise ArgumentError(f"{TF32_VARIABLE}: expected 0 or 1, got {text!r}.")
    return text == "1"


def graph_batches(manifest: Manifest, graph: str, max_batch: int | None = None) -> range:
    """Return the batch sizes that a graph of a bundle is run at, ascending.

    Args:
        manifest: The bundle's manifest.
        graph: Name of the graph.
        max_batch: Largest batch in place of the bundle's.
    """
    most = manifest.max_batch if max_batch is None else max_batch
    if manifest.kind != "synth":
        return range(1, most + 1)
    # A generator draws `most // 2` images at once: guidance runs the denoiser twice for each, and texts are encoded
    # one by one (`flawscope.runtime.synthesis.synthesizer`).
    if graph == "denoise":
        return range(2, most + 1, 2)
    return range(1, 2) if graph == "text" else range(1, max(most // 2, 1) + 1)


def wanted_options(
    manifest: Manifest,
    graph: str,
    *,
    opt_batch: int | None = None,
    max_batch: int | None = None,
    workspace_mib: int | None = None,
    tf32: bool | None = None,
) -> BuildOptions:
    """Return the options of a graph's engine.

    Args:
        manifest: The bundle's manifest.
        graph: Name of the graph.
        opt_batch: Images at once that it is made fastest for; None for one.
        max_batch: Largest batch; None for the bundle's.
        workspace_mib: Limit of scratch memory on the device in MiB.
        tf32: Whether products may be computed in TF32; None asks `tf32_allowed`.

    Raises:
        ArgumentError: If an option is out of range.
    """
    batches = graph_batches(manifest, graph, max_batch)
    if not batches:
        raise ArgumentError(f"max-batch: expected at least 2, as guidance runs every image twice, got {max_batch}.")
    usual = batches[0]
    # Texts are encoded one by one, whatever is drawn at once.
    if opt_batch is not None and len(batches) > 1:
        usual = opt_batch * batches.step
    allowed = tf32_allowed() if tf32 is None else tf32
    options = BuildOptions(batches[0], usual, batches[-1], workspace_mib, allowed)
    options.check()
    return options
