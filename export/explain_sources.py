"""Sides that `flawscope explain` compares: torch and the exported graph, or the graphs of a bundle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from flawscope.arrays import UInt8Array
from flawscope.bundle import Bundle, open_bundle
from flawscope.errors import ArgumentError, RunError
from flawscope.export.explain import TOLERANCES, Explanation, GraphSide, Probe, explain
from flawscope.export.exporter import exporter_of
from flawscope.export.onnx_trace import export_module
from flawscope.export.source_kind import is_run
from flawscope.files import temporary_folder
from flawscope.imaging.images import decode_image, prepare, read_encoded
from flawscope.progress import Progress, no_progress
from flawscope.runtime.backends.ort import cuda_problem
from flawscope.training.detectors.detector_run import read_run

AGAINST = ("plain", "cpu", "cuda")
"""What a bundle's FP32 graph on the CPU can be compared with: ONNX Runtime's CPU without optimisation of the graph,
another precision on the CPU, or CUDA."""


class TorchSide:
    """The feature module in torch, by the outputs of its modules.

    Args:
        features: The module.
        nodes: Tensor → node of the exported graph that computes it; nodes are named after their modules.
        outputs: Names of the graph's outputs, in the order in which the module returns them.
        image: An image, uint8 [H, W, 3], run once to see which modules return a single tensor.
    """

    def __init__(
        self, features: nn.Module, nodes: dict[str, onnx.NodeProto], outputs: Sequence[str], image: UInt8Array
    ) -> None:
        self.name = "torch"
        self._features = features
        returns_tensor = _returns_tensor(features, image)
        modules = {
            tensor: module for tensor, module in _module_outputs(features, nodes).items() if returns_tensor.get(module)
        }
        self._outputs = tuple(outputs)
        # The outputs come last and replace a module's entry: the whole module has the name "".
        self._modules = {**modules, **dict.fromkeys(outputs, "")}
        self.tensors = tuple(self._modules)

    def values(self, tensor: str, images: Sequence[UInt8Array]) -> npt.NDArray[np.float64]:
        """Return a tensor for these images, float64 [N, …]."""
        module = self._features.get_submodule(self._modules[tensor])
        values: list[npt.NDArray[np.float64]] = []
        for image in images:
            results: list[Any] = []
            # `results` as a default: a closure would see the list of the last image.
            hook = module.register_forward_hook(lambda _, __, result, results=results: results.append(result))
            try:
                with torch.inference_mode():
                    self._features(torch.from_numpy(image[None]))
            finally:
                hook.remove()
            result = results[-1]
            if not isinstance(result, torch.Tensor):  # the module itself, with several outputs
                result = result[self._outputs.index(tensor)]
            values.append(result.double().numpy())
        return np.stack(values)


def _returns_tensor(features: nn.Module, image: UInt8Array) -> dict[str, bool]:
    """Return for every module that is called whether it returns one tensor."""
    is_tensor: dict[str, bool] = {}

    def recorder(name: str) -> Any:
        return lambda _, __, result: is_tensor.__setitem__(name, isinstance(result, torch.Tensor))

    hooks = [module.register_forward_hook(recorder(name)) for name, module in features.named_modules()]
    try:
        with torch.inference_mode():
            features(torch.from_numpy(image[None]))
    finally:
        for hook in hooks:
            hook.remove()
    return is_tensor


def _module_outputs(features: nn.Module, nodes: dict[str, onnx.NodeProto]) -> dict[str, str]:
    """Return tensor -> the module whose output it is.

    A module's output is the tensor of the last node below it, if that node is the module's own. A module that the
    exporter has folded into another one has no tensor.
    """
    modules = dict(features.named_modules())
    last: dict[str, tuple[str, str]] = {}
    for tensor, node in nodes.items():  # in the order of the graph, so the last node below a module wins
        layer = node.name.rpartition("/")[0]
        parts = layer.split(".")
        for depth in range(1, len(parts) + 1):
            last[".".join(parts[:depth])] = (layer, tensor)
    return {tensor: name for name, (layer, tensor) in last.items() if name == layer and name in modules}


_SEVERAL = (
    "explain: expected a detector whose score is one graph, got one with several. The parity gate of "
    "flawscope export compares those as a whole."
)


def explain_run(path: Path, tolerance: float | None, progress: Progress = no_progress) -> Explanation:
    """Compare torch with the feature graph of a run, on its sample images.

    Raises:
        RunError: If the run is broken, or torch cannot export it.
        ArgumentError: If the tolerance is no positive number.
    """
    run = read_run(path)
    spec = run.record.config.preprocessing
    images = [prepare(decode_image(read_encoded(sample), sample.name), spec) for sample in run.samples]
    if not images:
        raise RunError(f"{path}: expected sample images in samples/, got none. Train again.")
    outputs = exporter_of(run.record).traced
    if outputs is None:
        raise ArgumentError(f"{path}: {_SEVERAL}")
    with temporary_folder() as folder:
        graph = folder / ("features.onnx" if len(outputs) == 1 else "score.onnx")
        # Traced again and not read from a bundle: `explain` of a run says whether the export itself is at fault.
        onnx.save(export_module(run.module, spec.size, 1, outputs), graph)
        candidate = GraphSide(graph, f"{graph.name} on cpu", "cpu")
        reference = TorchSide(run.module, candidate.nodes, outputs, images[0])
        limit = TOLERANCES["fp32"] if tolerance is None else tolerance
        return explain(reference, candidate, images, limit, candidate.nodes, progress)


def explain_bundle(
    bundle: Bundle, against: Sequence[str], tolerance: float | None, progress: Progress = no_progress
) -> Iterator[Explanation]:
    """Compare a bundle's FP32 graph on the CPU with others, on its golden images.

    Args:
        bundle: The bundle.
        against: Each `BACKEND[:PRECISION]`; none means every precision of the bundle, CUDA if it is available, and
            `plain` if there is nothing else.
        tolerance: Largest difference, or None for that of `TOLERANCES`.
        progress: Told how many tensors were compared.

    Raises:
        ArgumentError: If a pair is not valid, the bundle lacks a precision, or the tolerance is no positive number.
        BackendError: If a backend is not available.
    """
    manifest = bundle.manifest
    pairs = [parse_against(text) for text in against] or _all_pairs(bundle)
    for _, precision in pairs:
        manifest.graphs_of(precision)  # raises where the bundle lacks it, before anything is compared
    images = [
        prepare(decode_image(bundle.read(golden.file), golden.file), manifest.input) for golden in manifest.golden
    ]
    if "score" not in manifest.graphs:
        raise ArgumentError(f"{bundle.path}: {_SEVERAL}")
    files = {precision: bundle.graph_files("score", precision) for precision in ("fp32", *(pair[1] for pair in pairs))}
    # Every tensor is made an output in a copy of the graph, which finds its external data by path.
    with bundle.unpacked(itertools.chain(*files.values())) as folder:
        reference = GraphSide(folder / files["fp32"][0], "fp32 on cpu", "cpu")
        for backend, precision in pairs:
            candidate = GraphSide(folder / files[precision][0], f"{precision} on {backend}", backend)
            limit = TOLERANCES[precision] if tolerance is None else tolerance
            yield explain(reference, candidate, images, limit, candidate.nodes, progress)


def parse_against(text: str) -> tuple[str, str]:
    """Return backend and precision of `BACKEND[:PRECISION]`.

    Raises:
        ArgumentError: If it is not of that form, or is cpu:fp32, which is the reference.
    """
    backend, _, precision = text.partition(":")
    precision = precision or "fp32"
    if backend not in AGAINST or precision not in TOLERANCES or (backend, precision) == ("cpu", "fp32"):
        raise ArgumentError(
            f"--against: expected BACKEND[:PRECISION] with a backend of {', '.join(AGAINST)} and a precision of "
            f"{', '.join(TOLERANCES)}, other than cpu:fp32, got {text!r}."
        )
    return backend, precision


def _all_pairs(bundle: Bundle) -> list[tuple[str, str]]:
    # Of a precision that is computed from the graph of FP32 there is no other graph to compare.
    pairs = [("cpu", precision) for precision in sorted(bundle.manifest.precisions) if precision in TOLERANCES]
    if cuda_problem() is None:
        pairs.append(("cuda", "fp32"))
    return pairs or [("plain", "fp32")]


def explain_source(
    source: Path, against: Sequence[str], tolerance: float | None, progress: Progress = no_progress
) -> list[Explanation]:
    """Explain a run or a bundle; see `explain_run` and `explain_bundle`."""
    if is_run(source):
        if against:
            raise ArgumentError(f"--against: expected it with a bundle, got it with the run {source}. Leave it out.")
        return [explain_run(source, tolerance, progress)]
    with open_bundle(source) as bundle:
        return list(explain_bundle(bundle, against, tolerance, progress))


def lines_of(explanation: Explanation) -> list[str]:
    """Return an explanation as lines of text."""
    head = (
        f"{explanation.candidate} against {explanation.reference}: {explanation.compared} tensors, "
        f"{explanation.images} images, tolerance {explanation.tolerance:g}, {len(explanation.probes)} compared"
    )
    if explanation.first is None:
        return [head, f"  within to the end: {_probe_text(explanation.end)}"]
    before = (
        "the very first tensor" if explanation.before is None else f"within up to {_probe_text(explanation.before)}"
    )
    place, expected, got = explanation.first.largest
    return [
        head,
        f"  {before}",
        f"  outside from {_probe_text(explanation.first)}",
        f"    furthest apart at {list(place)}: {expected:.6g} and {got:.6g}",
        f"  at the end   {_probe_text(explanation.end)}",
    ]


def _probe_text(probe: Probe) -> str:
    origin = f" ({probe.operator} of {probe.layer})" if probe.layer else ""
    return f"{probe.tensor}{origin} {list(probe.shape)}: {probe.difference:.1e}"
