"""The bundle: what is shipped to a line, one folder or one uncompressed zip, verified when it is opened."""

from flawscope.bundle.manifest import (
    SCHEMA,
    Accuracy,
    Evidence,
    FileEntry,
    Golden,
    Graph,
    Head,
    Manifest,
    PadimHead,
    Parity,
    PatchcoreHead,
    Provenance,
    Threshold,
    ThresholdChange,
    Thresholds,
)
from flawscope.bundle.store import Bundle, open_bundle, pack_bundle, rewrite_manifest, write_bundle

__all__ = [
    "SCHEMA",
    "Accuracy",
    "Bundle",
    "Evidence",
    "FileEntry",
    "Golden",
    "Graph",
    "Head",
    "Manifest",
    "PadimHead",
    "Parity",
    "PatchcoreHead",
    "Provenance",
    "Threshold",
    "ThresholdChange",
    "Thresholds",
    "open_bundle",
    "pack_bundle",
    "rewrite_manifest",
    "write_bundle",
]
