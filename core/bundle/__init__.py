"""Bundles, the unit of deployment: one folder or one uncompressed zip, verified when it is opened."""

from flawscope.bundle.ensemble_head import EnsembleHead
from flawscope.bundle.ensemble_member import EnsembleMember
from flawscope.bundle.file_names import MANIFEST
from flawscope.bundle.heads import (
    BankHead,
    DdadHead,
    DsadHead,
    Head,
    PadimHead,
    PatchcoreHead,
    ReconstructionHead,
    StfpmHead,
    head_tag,
)
from flawscope.bundle.image_hashes import IMAGE_HASHES, ImageHashes, read_image_hashes
from flawscope.bundle.manifest import (
    PRECISIONS,
    SCHEMA,
    Accuracy,
    Evidence,
    FileEntry,
    Gate,
    Golden,
    Graph,
    KeptNode,
    Manifest,
    Parity,
    Precision,
    Provenance,
    SamplingChange,
    external_data,
)
from flawscope.bundle.onnx_model import OnnxModel
from flawscope.bundle.opening import Bundle, open_bundle, trusted_bundle
from flawscope.bundle.part_place import PartFollower, PartShift, edge_left, move_mask
from flawscope.bundle.region import Region, make_region, mask_on_map, region_mask
from flawscope.bundle.synth_head import ImageParity, SynthDefect, SynthHead, SynthSupport
from flawscope.bundle.threshold_overlay import InForce, thresholds_in_force
from flawscope.bundle.threshold_structs import (
    Guarantee,
    Limits,
    Threshold,
    ThresholdChange,
    ThresholdLimits,
    Thresholds,
)
from flawscope.bundle.trusted_keys import TrustedKeys, find_trusted_keys, making
from flawscope.bundle.writing import (
    change_bundle,
    check_changeable,
    pack_bundle,
    rewrite_manifest,
    sign_bundle,
    write_bundle,
)

__all__ = [
    "IMAGE_HASHES",
    "MANIFEST",
    "PRECISIONS",
    "SCHEMA",
    "Accuracy",
    "BankHead",
    "Bundle",
    "DdadHead",
    "DsadHead",
    "EnsembleHead",
    "EnsembleMember",
    "Evidence",
    "FileEntry",
    "Gate",
    "Golden",
    "Graph",
    "Guarantee",
    "Head",
    "ImageHashes",
    "ImageParity",
    "InForce",
    "KeptNode",
    "Limits",
    "Manifest",
    "OnnxModel",
    "PadimHead",
    "Parity",
    "PartFollower",
    "PartShift",
    "PatchcoreHead",
    "Precision",
    "Provenance",
    "ReconstructionHead",
    "Region",
    "SamplingChange",
    "StfpmHead",
    "SynthDefect",
    "SynthHead",
    "SynthSupport",
    "Threshold",
    "ThresholdChange",
    "ThresholdLimits",
    "Thresholds",
    "TrustedKeys",
    "change_bundle",
    "check_changeable",
    "edge_left",
    "external_data",
    "find_trusted_keys",
    "head_tag",
    "make_region",
    "making",
    "mask_on_map",
    "move_mask",
    "open_bundle",
    "pack_bundle",
    "read_image_hashes",
    "region_mask",
    "rewrite_manifest",
    "sign_bundle",
    "thresholds_in_force",
    "trusted_bundle",
    "write_bundle",
]
