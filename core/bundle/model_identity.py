"""Which model a bundle holds, whatever thresholds, evidence and reduced precisions were added to it since."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from flawscope.bundle.manifest import Graph, Manifest, external_data
from flawscope.text import encode_json

_LEFT_OUT = frozenset(
    {
        *("name", "flawscope", "max_batch", "golden", "provenance", "files", "learned", "precisions", "thresholds"),
        *("threshold_changes", "min_area_px", "evidence", "digest", "schema"),
    }
)
"""Fields of a manifest that no score depends on. Those that count are not listed, so that a new one does by itself."""


def model_identity(manifest: Manifest) -> str:
    """Return a SHA-256 over all that the FP32 scores of a bundle come from, as 64 hexadecimal digits.

    The digest of a bundle changes with every figure that is recorded in it, and so with `evaluate` itself: it cannot
    say whether two machines have measured the same model. Thresholds, evidence, and the graphs of reduced precisions
    are no part of this identity; graphs, bank, preprocessing, tiles and region of interest are.
    """
    reduced = _files(graph for precision in manifest.precisions.values() for graph in precision.graphs.values())
    others = reduced - _files(manifest.graphs.values())
    fields = {name: value for name, value in _without_defaults(manifest).items() if name not in _LEFT_OUT}
    fields["files"] = {name: entry.sha256 for name, entry in manifest.files.items() if name not in others}
    fields["run"] = manifest.provenance.run
    return hashlib.sha256(encode_json(fields, order="sorted")).hexdigest()


def _files(graphs: Any) -> set[str]:
    return {file for graph in graphs for file in _files_of(graph)}


def _files_of(graph: Graph) -> tuple[str, str]:
    return graph.file, external_data(graph.file)


def _without_defaults(value: Any) -> Any:
    """Return a struct as plain data without the fields that have their default.

    A newer flawscope knows more fields, whose default is what older bundles did: on two machines with two versions the
    same bundle must have one identity.
    """
    if isinstance(value, msgspec.Struct):
        return {
            field.encode_name: _without_defaults(getattr(value, field.name))
            for field in msgspec.structs.fields(value)
            if getattr(value, field.name) != _default(field)
        }
    if isinstance(value, list | tuple):
        return [_without_defaults(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_defaults(item) for key, item in value.items()}
    return value


def _default(field: msgspec.structs.FieldInfo) -> Any:
    is_made = field.default_factory is not msgspec.NODEFAULT
    return field.default_factory() if is_made else field.default
