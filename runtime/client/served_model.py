"""A bundle's graph as a model of an inference server: its name and version there, and what the server must say of it.

The version is made of the hashes of the files that compute: a request names it and the answer repeats it, so that an
answer of another graph is noticed without a further question. Thresholds are no part of it: a bundle that is calibrated
anew is served by the same model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flawscope.bundle import Bundle
from flawscope.errors import BackendError, BundleError, DeviceError

OUTPUTS = ("anomaly_map", "score")
"""Outputs of the graph, in the order in which they are asked for."""
IDENTITY = "flawscope_graph"
"""Parameter of the model's configuration: the identity of its graph, see `served_identity`."""
DIGEST = "flawscope_digest"
"""Parameter of the model's configuration: digest of the bundle that was exported."""

_VERSION_DIGITS = 12
"""Hexadecimal digits of a version: 48 bits, which every reader of JSON keeps exactly; Triton takes 63."""


@dataclass(frozen=True)
class ServedModel:
    """What a server is expected to serve.

    Attributes:
        name: Name of the model.
        identity: Identity of its graph, hexadecimal SHA-256.
        size: Height and width of the graph's input in pixels.
        max_batch: Largest batch that is sent.
    """

    name: str
    identity: str
    size: tuple[int, int]
    max_batch: int

    @property
    def version(self) -> str:
        """Version of the model, a positive number in decimal digits."""
        return served_version(self.identity)


def served_identity(bundle: Bundle, graph: str, precision: str) -> str:
    """Return the SHA-256 of the names and hashes of the files that compute a graph, 64 hexadecimal digits.

    Raises:
        ArgumentError: If the bundle lacks the precision.
        BundleError: If it has no such graph, or the graph is broken.
    """
    listed = bundle.manifest.files
    # Also what the graph reads: two bundles can differ in their memory bank alone.
    lines = []
    for name in bundle.graph_files(graph, precision):
        if name not in listed:
            raise BundleError(f"{bundle.path}: expected {name} in the manifest, got none. Export the bundle again.")
        lines.append(f"{listed[name].sha256} {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def served_version(identity: str) -> str:
    """Return the version of a model in decimal digits: above 0 and without leading zeros, as Triton demands."""
    return str(int(identity[:_VERSION_DIGITS], 16) or 1)


def served_model(bundle: Bundle, graph: str, precision: str, name: str = "") -> ServedModel:
    """Return what serves a graph of a bundle.

    Args:
        bundle: The opened bundle.
        graph: Name of the graph.
        precision: Its precision.
        name: Name of the model; empty for the bundle's.

    Raises:
        ArgumentError: If the bundle lacks the precision.
        BackendError: If the graph is none that a server is given.
        BundleError: If the bundle has no such graph, or it is broken.
    """
    manifest = bundle.manifest
    if graph != "score":
        raise BackendError(
            f"backend triton: expected a bundle whose score is one graph, got {bundle.path} ({manifest.method}), which "
            f"asks for {graph}. {why_not_served(graph)}"
        )
    identity = served_identity(bundle, graph, precision)
    return ServedModel(name or manifest.name, identity, manifest.input.size, manifest.max_batch)


def why_not_served(graph: str) -> str:
    """Return why a graph is not given to a server, and what to do, in sentences."""
    if graph == "features":
        return "Patches are many times the bytes of a map, and would all be sent back: take the path graph."
    return (
        "Its networks are called many times an image, with all arrays between them sent over the network each time: "
        "run it where the images are."
    )


def check_served(model: ServedModel, config: Mapping[str, Any], server: str) -> None:
    """Raise DeviceError unless a server's configuration of a model is that of the graph.

    Args:
        model: What is expected.
        config: The configuration: `inference.ModelConfig` as JSON has it; numbers may be texts.
        server: Address of the server, for messages.
    """
    what = f"backend triton: {server}: model {model.name}"
    try:
        _check_served(model, config, what)
    except (AttributeError, TypeError, ValueError):  # lists for mappings, texts for numbers: of whatever answers there
        raise DeviceError(f"{what}: expected its configuration, got something else. Is it a Triton server?") from None


def _check_served(model: ServedModel, config: Mapping[str, Any], what: str) -> None:
    value = config.get("parameters", {}).get(IDENTITY, {})
    got = str(value.get("string_value", "")) if isinstance(value, Mapping) else ""
    if got != model.identity:
        raise DeviceError(
            f"{what}: expected the graph {model.identity[:12]} of the bundle, got "
            f"{f'the graph {got[:12]}' if got else 'none that flawscope has exported'}. Export the bundle with "
            "flawscope export-triton, and have the server load it."
        )
    height, width = model.size
    expected = {
        "image": ("TYPE_UINT8", [height, width, 3]),
        "anomaly_map": ("TYPE_FP32", [height, width]),
        "score": ("TYPE_FP32", [1]),
    }
    tensors = {
        str(entry.get("name")): (entry.get("data_type"), [int(side) for side in entry.get("dims", ())])
        for entry in (*config.get("input", ()), *config.get("output", ()))
    }
    if tensors != expected:
        raise DeviceError(f"{what}: expected the tensors {expected}, got {tensors}. Export the bundle again.")
    if (most := int(config.get("max_batch_size", 0))) < model.max_batch:
        raise DeviceError(
            f"{what}: expected batches of up to {model.max_batch} images, got {most}. Its config.pbtxt was changed: "
            "export the bundle again."
        )
