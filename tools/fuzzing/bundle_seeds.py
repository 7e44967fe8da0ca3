"""Valid bundles that fuzzing begins with, each of a few kilobytes: by hand, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import SIDE, golden_image, tiny_manifest, tiny_sources, tiny_thresholds, write_tiny_bundle

from flawscope.bundle import BankHead, Golden, Graph, PadimHead, PatchcoreHead, head_tag, open_bundle, write_bundle
from flawscope.imaging.images import prepare
from flawscope.runtime.scorers.scorer import ScorerOptions, open_scorer
from flawscope.triangles import pack_triangles

GRID, CHANNELS = 4, 48


def write_bundle_seeds(folder: Path) -> None:
    """Write bundles with a graph alone, with the kernels of PatchCore, plain and with all switches, and of PaDiM.

    Those of PaDiM have its factors as triangles in float32 and in float16, and as whole matrices, which bundles had
    before: they are read still.
    """
    write_tiny_bundle(folder / "brightness", thresholds=tiny_thresholds())
    rng = np.random.default_rng(0)
    rows = rng.uniform(0, 255, (12, CHANNELS)).astype(np.float32)
    neighbours = rng.integers(0, 12, (12, 3))
    neighbours[:, 0] = np.arange(12)
    patchcore = {"bank": rows, "norms": np.einsum("md,md->m", rows, rows), "neighbours": neighbours}
    _write_kernel_seed(folder / "patchcore", PatchcoreHead((GRID, GRID), 3, "paper", 1.0), patchcore)
    parts = {"bank.0": np.ascontiguousarray(rows[:, :30]), "bank.1": np.ascontiguousarray(rows[:9, 30:])}
    norms = {name.replace("bank", "norms"): np.einsum("md,md->m", part, part) for name, part in parts.items()}
    foreground = {
        "foreground": rng.uniform(-0.001, 0.001, (CHANNELS, 1)).astype(np.float32),
        "foreground_limits": np.array([0.5, 0.1], np.float32),
    }
    places = {
        name.replace("bank", "places"): np.stack(np.divmod(np.arange(len(part)), GRID), axis=1)
        for name, part in parts.items()
    }
    switched = PatchcoreHead((GRID, GRID), 1, "none", 1.0, metric="cosine", top=2, banks=2, foreground=True, window=1)
    _write_kernel_seed(folder / "switches", switched, {**parts, **norms, **foreground, **places})
    mean = rng.uniform(0, 255, (GRID * GRID, CHANNELS)).astype(np.float32)
    whitening = np.triu(rng.uniform(-0.002, 0.002, (GRID * GRID, CHANNELS, CHANNELS)) + 0.02 * np.eye(CHANNELS))
    factors = {
        "padim": {"triangles": pack_triangles(whitening.astype(np.float32))},
        "padim_half": {"triangles": pack_triangles(whitening.astype(np.float16))},
        "padim_matrices": {"whitening": whitening.astype(np.float32)},
    }
    for name, tensors in factors.items():
        _write_kernel_seed(folder / name, PadimHead((GRID, GRID), 1.0), {"mean": mean, **tensors})


def _features() -> onnx.ModelProto:
    """Return the graph image uint8 [N, 16, 16, 3] -> patches float32 [N, 16, 48]: blocks of 4 x 4 pixels."""
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["numbers", "blocks"], ["split"]),
        helper.make_node("Transpose", ["split"], ["turned"], perm=[0, 1, 3, 2, 4, 5]),
        helper.make_node("Reshape", ["turned", "shape"], ["patches"]),
    ]
    edge = SIDE // GRID
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("patches", TensorProto.FLOAT, ["N", GRID * GRID, CHANNELS])],
        [
            numpy_helper.from_array(np.array([-1, GRID, edge, GRID, edge, 3], np.int64), "blocks"),
            numpy_helper.from_array(np.array([-1, GRID * GRID, CHANNELS], np.int64), "shape"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _write_kernel_seed(path: Path, head: BankHead, tensors: dict[str, npt.NDArray[Any]]) -> None:
    # Lazy: it imports torch, and only whoever makes the seeds needs it.
    from native_heads import append_head

    from flawscope.export.detectors.head_nodes import BankFile

    bank = path.parent / "bank.safetensors"
    safetensors.numpy.save_file(tensors, bank)
    score = append_head(_features(), head, BankFile(bank), (SIDE, SIDE), 4)
    sources: dict[str, Path | bytes] = {
        **tiny_sources(),
        "score.onnx": score.SerializeToString(),
        "features.onnx": _features().SerializeToString(),
        "bank.safetensors": bank.read_bytes(),
    }
    bank.unlink()
    graphs = {
        "score": Graph("score.onnx", ("anomaly_map", "score"), "x", 4096, 1 << 14),
        "features": Graph("features.onnx", ("patches",), "x", 4096, 1 << 14),
    }
    manifest = tiny_manifest(graphs=graphs, head=head, method=head_tag(head), thresholds=tiny_thresholds())
    write_bundle(path, manifest, sources)
    with open_bundle(path) as bundle:
        scorer = open_scorer(bundle, ScorerOptions("cpu", "graph", "fp32"))
        maps, scores = scorer.score(prepare(golden_image(), bundle.manifest.input)[None])
        scorer.close()
    golden = Golden("golden/0.png", float(scores[0]), float(maps.max()))
    write_bundle(path, msgspec.structs.replace(manifest, golden=(golden,)), sources, overwrite=True)
